"""``python -m demo.vllm_lora`` (``make demo-vllm``): LoRAs come, change and go in a real vLLM.

It runs on CPU. The model is tiny and random, and so are the LoRAs: each answers a prompt with a
gibberish of its own, which tells whose weights answered.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from demo.stage import Engine, Stage, perform, say
from lab import vllm
from lab.clients import BusyClients
from lab.tiny_model import write_base_model, write_lora
from lab.vllm import Vllm, complete

TITLE = "model-sidecar: edit a ConfigMap, and a real vLLM holds exactly those LoRAs."
PROMPT = "Which weights are these?"
TOKENS = 12


class RealVllm:
    """vLLM of the lab, on CPU."""

    title = f"vLLM {vllm.VERSION} on CPU"

    def __init__(self, work: Path) -> None:
        # The development routes tell the agent what it can hold at once.
        self._server = Vllm(
            work / "vllm",
            write_base_model(work / "base"),
            dev_mode=True,
            # It leaves its sockets behind: here they go with everything else.
            extra_env={"TMPDIR": str(work)},
        )
        self.url = self._server.url
        self.metrics_url = self._server.metrics_url
        self.flags = ("--engine=vllm", f"--engine-url={self.url}")

    def start(self) -> object:
        say("", "vLLM takes half a minute to start...")
        return self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.kill()

    def ask(self, name: str) -> str:
        return complete(self.url, name, PROMPT, TOKENS)


def play(stage: Stage) -> None:
    """Three edits, a death, and an end."""

    def entry(name: str, place: str, seed: int) -> dict[str, str]:
        return {"name": name, "source": str(write_lora(stage.work / place, seed=seed))}

    one, two, law = entry("sql", "sql-1", 1), entry("sql", "sql-2", 2), entry("law", "law-1", 3)

    stage.step("Add two LoRAs.")
    stage.edit(one, law)
    stage.wait_converged()
    stage.tell()
    stage.answer("sql", "sql-1")
    stage.answer("law", "law-1")

    stage.step("Other weights behind one name, while clients keep asking both.")
    with (
        BusyClients(1, lambda: stage.engine.ask("sql")) as changing,
        BusyClients(1, lambda: stage.engine.ask("law")) as bystander,
    ):
        stage.edit(two, law)
        stage.wait_converged()
        stage.tell()
        stage.answer("sql", "sql-2")
    # Between unload and load vLLM does not know the name: that is as short as it allows.
    unknown = [words for words in changing.failures if "answered 404" in words]
    stage.check(unknown == changing.failures, f"a request failed: {changing.failures[:1]}")
    stage.check(not bystander.failures, f"a request for law failed: {bystander.failures[:1]}")
    stage.check(changing.turns_only_forward(), "old weights answered after new ones")
    say(
        "clients",
        f"sql: {changing.requests} answered, {len(unknown)} got 404 while it had no name; "
        f"law: {bystander.requests} answered, 0 failed",
    )

    stage.step("Roll back: the files are still on disk.")
    stage.edit(one, law)
    stage.wait_converged()
    stage.tell()
    stage.answer("sql", "sql-1")

    stage.step("Kill the engine, and start it again as the kubelet would: empty.")
    begun = time.monotonic()
    stage.engine.kill()
    stage.wait("notice", lambda status: status["engine"]["state"] == "down")
    say("agent", f"noticed after {time.monotonic() - begun:.1f} s: {stage.status()['cycle']}")
    stage.engine.start()
    begun = time.monotonic()
    stage.wait("healing", lambda status: status["converged"] and status["ready"])
    say("healed", f"{time.monotonic() - begun:.1f} s after vLLM answered again")
    stage.tell()
    stage.answer("sql", "sql-1", "as before it died")
    stage.answer("law", "law-1", "as before it died")

    stage.step("Remove one.")
    stage.edit(law)
    stage.wait_converged()
    stage.tell()
    stage.silent("sql")
    stage.answer("law", "law-1", "as before")


def open_engine(work: Path) -> Engine:
    """Install vLLM where it is missing, and return one."""
    vllm.install()
    return RealVllm(work)


if __name__ == "__main__":
    sys.exit(perform(TITLE, open_engine, play))
