"""The real agent as a process of its own: started, looked at over HTTP, stopped, killed.

``AgentProcess`` runs ``python -m sidecar run`` on a free loopback port, beside a mounted ConfigMap
that the test writes. Every wait has a deadline and fails with the last status and the end of the
agent's log.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from lab.configmap import MountedConfigMap
from lab.process import POLL_SECONDS, Process, free_port
from lab.web import Answer, get, is_ok

Json = dict[str, Any]
T = TypeVar("T")

START_SECONDS = 20.0
WAIT_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[2]


class AgentProcess:
    """One agent, with a directory of its own for the ConfigMap, the store and the log."""

    def __init__(
        self,
        work: Path,
        *,
        engine: str,
        engine_urls: Sequence[str] = (),
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pod_name: str = "pod-0",
        documents: Sequence[str] = (),
    ) -> None:
        """``flags`` are appended as they are: a later flag wins over an earlier one.

        ``documents`` are flags that say where the documents are, instead of ``config``.
        """
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.config = MountedConfigMap(work / "config")
        self.store = work / "store"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = work / "agent.log"
        command = [sys.executable, "-m", "sidecar", "run", f"--engine={engine}"]
        command += [f"--engine-url={url}" for url in engine_urls]
        command += documents or [f"--config-dir={self.config.path}"]
        command += [f"--store-dir={self.store}"]
        command += [f"--listen=127.0.0.1:{self.port}", *flags]
        self._process = Process(
            "agent",
            command,
            log=self.log,
            cwd=work,
            env={"PYTHONPATH": str(ROOT), "POD_NAME": pod_name, **(env or {})},
        )

    @property
    def pid(self) -> int:
        """Process id of the running agent."""
        return self._process.pid

    def start(self) -> Self:
        """Start, and wait until it is heard of (not until it is ready)."""
        self._process.start()
        self._process.wait_ready(lambda: is_ok(f"{self.url}/live"), START_SECONDS)
        return self

    def stop(self) -> None:
        """SIGTERM, and wait for an orderly end."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL, as the kernel does it."""
        self._process.kill()

    def restart(self) -> None:
        """End in good order and start again: same port, same store, same ConfigMap."""
        self.stop()
        self.start()

    def is_alive(self) -> bool:
        """Tell whether the process has not ended."""
        return self._process.is_alive()

    def write(self, entries: Sequence[Mapping[str, Any]], **more: str) -> None:
        """Make a native document of ``entries`` the ConfigMap; ``more`` are further keys."""
        # JSON is YAML, too.
        self.config.write({"models.yaml": json.dumps({"models": list(entries)}), **more})

    def get(self, path: str, *, timeout: float = 10.0) -> Answer:
        """Answer of one GET, whatever its status."""
        return get(f"{self.url}{path}", timeout=timeout)

    def status(self) -> Json:
        """What ``/status`` says now."""
        answer: Json = self.get("/status").json()
        return answer

    def target(self, name: str) -> Json:
        """What ``/status`` says of one target; empty when it knows none of that name."""
        found: Json = self.status()["targets"].get(name, {})
        return found

    def is_ready(self) -> bool:
        """What ``/ready`` says now."""
        return self.get("/ready").status == 200

    def metrics(self) -> Answer:
        """The picker page, or the 503 that stands in for it."""
        return self.get("/metrics")

    def metrics_all(self) -> str:
        """The page for Prometheus."""
        return self.get("/metrics/all").text

    def series(self, name: str, **labels: str) -> float:
        """The sum of the samples on ``/metrics/all`` that have this name and these labels."""
        total = 0.0
        for family in text_string_to_metric_families(self.metrics_all()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    def log_text(self) -> str:
        """Everything that all lives of this agent logged."""
        return self.log.read_text(errors="replace")

    def wait_for(
        self, what: str, look: Callable[[], T | None], deadline: float = WAIT_SECONDS
    ) -> T:
        """Look until ``look`` returns something true, and return that.

        Fails after ``deadline`` seconds with ``what``, the status and the end of the log.
        """
        end = time.monotonic() + deadline
        while True:
            if found := look():
                return found
            assert time.monotonic() < end, f"no {what} in {deadline:g} s.\n{self.describe()}"
            time.sleep(POLL_SECONDS)

    def wait_status(
        self,
        condition: Callable[[Json], object],
        deadline: float = WAIT_SECONDS,
        *,
        what: str = "such status",
    ) -> Json:
        """Return the first status for which ``condition`` holds."""

        def look() -> Json | None:
            status = self.status()
            return status if condition(status) else None

        return self.wait_for(what, look, deadline)

    def wait_converged(self, generation: int | None = None, deadline: float = WAIT_SECONDS) -> Json:
        """Return the first status that is converged, at ``generation`` where that is given: until
        an edit is seen, the status of before it is converged, too."""
        return self.wait_status(
            lambda status: (
                status["converged"] and generation in (None, status["document"]["generation"])
            ),
            deadline,
            what="convergence" if generation is None else f"convergence at {generation}",
        )

    def edit(
        self, entries: Sequence[Mapping[str, Any]], deadline: float = WAIT_SECONDS, **more: str
    ) -> Json:
        """Write a document that differs from the last one; return the status that has taken it
        over (converged or not)."""
        before = self.status()["document"]
        self.write(entries, **more)
        return self.wait_status(
            lambda status: (
                status["document"]["generation"] > before["generation"]
                or status["document"]["problems"] != before["problems"]
            ),
            deadline,
            what="new generation",
        )

    def apply(
        self, entries: Sequence[Mapping[str, Any]], deadline: float = WAIT_SECONDS, **more: str
    ) -> Json:
        """Write a document that differs from the last one, and wait until it is converged."""
        generation = self.edit(entries, deadline, **more)["document"]["generation"]
        return self.wait_converged(generation, deadline)

    def wait_target(
        self,
        name: str,
        condition: Callable[[Json], object],
        deadline: float = WAIT_SECONDS,
    ) -> Json:
        """Return the first status of one target for which ``condition`` holds."""

        def look() -> Json | None:
            target = self.target(name)
            return target if target and condition(target) else None

        return self.wait_for(f"such target {name}", look, deadline)

    def wait_ready(self, ready: bool = True, deadline: float = WAIT_SECONDS) -> None:
        """Wait until ``/ready`` says so."""
        self.wait_for(f"/ready of {ready}", lambda: self.is_ready() is ready, deadline)

    def describe(self) -> str:
        """Status and end of the log, for a failure."""
        try:
            status = json.dumps(self.status(), indent=1)
        except OSError as error:
            status = f"it does not answer: {error}"
        return f"The agent's status:\n{status}\nThe end of {self.log}:\n{self._process.log_tail()}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
