"""One pod: a real Triton, the agent beside it, and what a test does to both."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lab import triton
from lab.triton import Triton, write_ensemble, write_python_model
from lab.web import get, post
from tests.support.agent_process import AgentProcess

Entry = dict[str, Any]


class TritonPod:
    """Triton and agent on one directory: ``sources``, ``repository`` and the agent's store."""

    def __init__(
        self,
        work: Path,
        *,
        flags: Sequence[str] = (),
        pod_name: str = "triton-chat-0",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.sources = work / "sources"
        self.repository = work / "repository"
        self.repository.mkdir(parents=True)
        self.triton = Triton(work / "triton", self.repository)
        self.agent = AgentProcess(
            work,
            engine="triton",
            engine_urls=[self.triton.url],
            flags=[
                f"--engine-metrics-url={self.triton.metrics_url}",
                f"--repository-dir={self.repository}",
                "--resync-seconds=1",
                *flags,
            ],
            pod_name=pod_name,
            env=env,
        )

    def source(self, place: str, answer: str, **more: Any) -> str:
        """Write a model to ``place`` below the sources; return its path. ``more`` breaks it."""
        return str(write_python_model(self.sources / place, answer=answer, **more))

    def entry(self, name: str, place: str, answer: str, **more: Any) -> Entry:
        """Write a model, and return the native entry that asks for it."""
        return {"name": name, "source": self.source(place, answer, **more)}

    def ensemble(self, name: str, place: str, parts: Sequence[str]) -> Entry:
        """Write an ensemble that chains models, and return its entry."""
        return {"name": name, "source": str(write_ensemble(self.sources / place, parts))}

    def config(self, name: str) -> Entry:
        """The configuration that a model was loaded with."""
        answer: Entry = get(f"{self.triton.url}/v2/models/{name}/config").json()
        return answer

    def infer(self, name: str) -> str:
        """What a model answers; raises ``LabError`` when it does not."""
        return str(triton.infer(self.triton.url, name))

    def index(self) -> dict[str, Mapping[str, str]]:
        """Triton's own account of its repository, by name; a name never loaded has no state."""
        rows = post(f"{self.triton.url}/v2/repository/index", {}).json()
        return {row["name"]: row for row in rows}

    def control(self, name: str, call: str) -> int:
        """Load or unload by hand, past the agent; the status of the answer."""
        return post(f"{self.triton.url}/v2/repository/models/{name}/{call}", {}).status

    def loads(self, name: str) -> int:
        """How many loads of a model Triton has begun, in all its lives."""
        return self.triton.log.read_text(errors="replace").count(f'"loading: {name}:')

    def wait_answer(self, name: str, answer: str, deadline: float = 30.0) -> None:
        """Wait until a model answers so; what it answers before does not matter."""

        def look() -> bool:
            try:
                return self.infer(name) == answer
            except Exception:  # noqa: BLE001 - refused, unknown, cut off: not yet
                return False

        self.agent.wait_for(f"answer {answer!r} of {name}", look, deadline)

    def watch_ready(self, seconds: float) -> set[bool]:
        """Every answer of ``/ready`` in this time."""
        end = time.monotonic() + seconds
        seen = set()
        while time.monotonic() < end:
            seen.add(self.agent.is_ready())
            time.sleep(0.02)
        return seen

    def __enter__(self) -> Self:
        self.triton.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.agent.stop()
        # The work directory goes with the test: nothing in it is worth an orderly end.
        self.triton.kill()
