"""``python -m demo.triton`` (``make demo``): models come, change, fail and go in a real Triton.

Where no Triton can be had (its wheels are for Linux on x86-64), the fake engine
that ships with the adapters takes its part.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.stage import ROOT, Engine, Stage, perform, say
from lab import LabError, triton
from lab.clients import BusyClients
from lab.install import base_python
from lab.process import Process, free_port
from lab.triton import Triton, infer, write_python_model
from lab.web import is_ok

TITLE = "model-sidecar: edit a ConfigMap, and a real Triton holds exactly those models."
CLIENTS = 4
FAKE_ANSWER = 12
"""Characters of the digest that a fake model answers."""


class RealTriton:
    """Triton of the lab."""

    title = "Triton 2.51"

    def __init__(self, work: Path) -> None:
        repository = work / "repository"
        repository.mkdir()
        self._server = Triton(work / "triton", repository)
        self.url = self._server.url
        self.metrics_url = self._server.metrics_url
        self.flags = _flags(self.url, repository)

    def start(self) -> object:
        return self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.kill()

    def ask(self, name: str) -> str:
        return str(infer(self.url, name))

    def write_broken(self, directory: Path) -> None:
        write_python_model(directory, answer="never heard", broken=True)


class FakeTriton:
    """The fake engine in Triton's shape."""

    title = "the fake engine, in Triton's shape,"

    def __init__(self, work: Path) -> None:
        repository = work / "repository"
        repository.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"{self.url}/metrics"
        self.flags = _flags(self.url, repository)
        command = [sys.executable, "-m", "adapters.fake", "--shape=triton", f"--port={port}"]
        self._server = Process(
            "the fake engine",
            [*command, f"--repository={repository}"],
            log=work / "engine.log",
            cwd=work,
            env={"PYTHONPATH": str(ROOT)},
        )

    def start(self) -> object:
        self._server.start()
        self._server.wait_ready(lambda: is_ok(f"{self.url}/v2/health/live"), 30)
        return self

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.kill()

    def ask(self, name: str) -> str:
        return str(infer(self.url, name))[:FAKE_ANSWER]

    def write_broken(self, directory: Path) -> None:
        # It runs no code, so that only files that are not there can fail.
        (write_python_model(directory, answer="never heard") / "1" / "model.py").unlink()


def _flags(url: str, repository: Path) -> tuple[str, ...]:
    return ("--engine=triton", f"--engine-url={url}", f"--repository-dir={repository}")


def why_not_real() -> str:
    """Return why Triton cannot be had here; empty where it can."""
    if triton.find() is not None:
        return ""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"PyPI has no Triton for {platform.system()} on {platform.machine()}"
    try:
        base_python()
    except LabError as error:
        return str(error)
    return ""


def play(stage: Stage, engine: RealTriton | FakeTriton) -> None:
    """Five edits."""

    def entry(name: str, place: str, answer: str = "") -> dict[str, str]:
        directory = stage.work / place
        if answer:
            write_python_model(directory, answer=answer)
        return {"name": name, "source": str(directory)}

    one, two = entry("greeter", "v1", "Good morning"), entry("greeter", "v2", "Good evening")
    engine.write_broken(stage.work / "v3")
    broken, other = entry("greeter", "v3"), entry("farewell", "w1", "Goodbye")

    stage.step("Add a model.")
    stage.edit(one)
    stage.wait_converged()
    stage.tell()
    stage.answer("greeter", "v1")

    stage.step(f"Other bytes behind the same name, while {CLIENTS} clients keep asking.")
    with BusyClients(CLIENTS, lambda: engine.ask("greeter")) as clients:
        stage.edit(two)
        stage.wait_converged()
        stage.tell()
        stage.answer("greeter", "v2")
    failed = len(clients.failures)
    stage.check(failed == 0, f"{failed} requests failed, the first with {clients.failures[:1]}")
    stage.check(clients.turns_only_forward(), "old bytes answered after new ones")
    say("clients", f"{clients.requests} requests, {failed} failed; no old answer after a new one")

    stage.step("Roll back: the files are still on disk.")
    stage.edit(one)
    stage.wait_converged()
    stage.tell()
    stage.answer("greeter", "v1")

    stage.step("Break one entry (its new revision cannot be loaded), and add another.")
    stage.edit(broken, other)
    stage.wait("report", lambda status: status["targets"]["greeter"]["reason"])
    stage.wait("farewell", lambda status: stage.is_resident(status, "farewell"))
    stage.tell()
    stage.answer("greeter", "v1", "as before: what served goes on serving")
    stage.answer("farewell", "w1")

    stage.step("Remove the broken one.")
    stage.edit(other)
    stage.wait_converged()
    stage.tell()
    stage.silent("greeter")
    stage.answer("farewell", "w1", "as before")


def main(arguments: Sequence[str] | None = None) -> int:
    """Perform the demo; 0 when every step happened."""
    parser = argparse.ArgumentParser(prog="python -m demo.triton", description=__doc__)
    parser.add_argument("--fake", action="store_true", help="use the fake engine in any case")
    fake = parser.parse_args(arguments).fake
    reason = "as asked" if fake else why_not_real()
    engines: list[RealTriton | FakeTriton] = []

    def open_engine(work: Path) -> Engine:
        if reason:
            say("note", f"{reason}: the fake engine takes Triton's part.")
        else:
            triton.install()
        engines.append(FakeTriton(work) if reason else RealTriton(work))
        return engines[0]

    return perform(TITLE, open_engine, lambda stage: play(stage, engines[0]))


if __name__ == "__main__":
    sys.exit(main())
