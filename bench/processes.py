"""The processes that are measured, and what can be asked of them from outside."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from bench.report import NotMeasuredError
from lab.process import Process, free_port

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
TICKS = os.sysconf("SC_CLK_TCK")
POLL_SECONDS = 0.02
"""Not more often, as every answer costs the agent time that is measured."""


def request(port: int, path: str, *, method: str = "GET", timeout: float = 10.0) -> bytes:
    """Return the body of an answer with status 200. Raises ``OSError``, ``NotMeasuredError``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise NotMeasuredError(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise NotMeasuredError(f"{method} {path}: {answer.status} {body[:200]!r}")
    return body


class Served:
    """A process that answers HTTP on a port of its own."""

    def __init__(
        self, name: str, command: Sequence[str | Path], work: Path, *, port: int, probe: str
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.port = port
        self._probe = probe
        self.process = Process(name, command, log=work / f"{name}.log", cwd=ROOT)

    def __enter__(self) -> Self:
        self.process.start()
        self.process.wait_ready(self._answers, START_SECONDS)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.stop()

    def _answers(self) -> bool:
        try:
            request(self.port, self._probe, timeout=1.0)
        except (OSError, NotMeasuredError):
            return False
        return True

    def pin(self, core: int) -> None:
        """Keep every thread of the process on one core."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident_bytes(self) -> int:
        """Return the resident memory of the process."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Return the greatest resident memory that the process had."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise NotMeasuredError(f"{self.process.name} has no {name}")


class Engine(Served):
    """The fake engine of ``bench.engine``."""

    def __init__(self, work: Path, *, load_seconds: float = 0.0) -> None:
        port = free_port()
        command = [
            *(sys.executable, "-m", "bench.engine"),
            *(f"--port={port}", f"--load-seconds={load_seconds}"),
        ]
        super().__init__("engine", command, work, port=port, probe="/health")

    def reset(self) -> None:
        """Forget the calls so far."""
        request(self.port, "/bench/reset", method="POST")

    def loads(self) -> dict[str, dict[str, Any]]:
        """Return the load calls since the last reset, by name; the first of each."""
        calls = json.loads(request(self.port, "/bench/calls"))["calls"]
        loads = (call for call in calls if call["kind"] == "load")
        return {call["name"]: call for call in reversed(list(loads))}

    def scrapes(self) -> int:
        """Return how often the metrics page was asked for since the last reset."""
        return int(json.loads(request(self.port, "/bench/calls"))["scrapes"])

    def wait_load(self, name: str, deadline: float) -> dict[str, Any]:
        """Wait until ``name`` was loaded; return the call."""
        end = time.monotonic() + deadline
        while (call := self.loads().get(name)) is None:
            if time.monotonic() > end:
                raise NotMeasuredError(f"no load of {name} within {deadline:g} s")
            time.sleep(0.01)
        return call


class Agent(Served):
    """`model-sidecar run` beside an engine."""

    def __init__(self, work: Path, engine: Engine, source: Sequence[str]) -> None:
        """``source`` is the flags that say where the document comes from."""
        port = free_port()
        command = [
            *(sys.executable, "-m", "sidecar", "run", "--engine=vllm"),
            *(f"--engine-url=http://127.0.0.1:{engine.port}", f"--store-dir={work / 'store'}"),
            *(f"--listen=127.0.0.1:{port}", *source),
        ]
        super().__init__("agent", command, work, port=port, probe="/live")

    def status(self) -> dict[str, Any]:
        """Return what the agent publishes."""
        status: dict[str, Any] = json.loads(request(self.port, "/status"))
        return status

    def wait_holds(self, count: int, deadline: float) -> int:
        """Wait until it converged on a document of ``count`` targets; return when it said so."""
        end = time.monotonic() + deadline
        path = "/status?wait=converged&timeout=5"
        while True:
            status = json.loads(request(self.port, path, timeout=15.0))
            at = time.monotonic_ns()
            targets = status["targets"].values()
            resident = sum(one["desired"] and one["state"] == "resident" for one in targets)
            if status["converged"] and resident == len(targets) == count:
                return at
            if time.monotonic() > end:
                raise NotMeasuredError(
                    f"{resident} of {count} targets resident after {deadline:g} s: "
                    f"{status['cycle']}"
                )
            time.sleep(POLL_SECONDS)
