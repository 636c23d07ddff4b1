"""Many pods in this process: each a whole agent with an engine, a store and S3 keys of its own.

What each did, and when, is known from outside: from the requests that came with its keys, and from
the calls on its engine.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from adapters.base import EngineAdapter, EngineOptions, Target
from adapters.fake import FakeAdapter, FakeEngine, Faults
from lab.sigv4 import Keys
from tests.support.agent import Running, running_agent
from tests.support.faults import Fault, Line, Pieces, Slow
from tests.support.s3_front import S3Front

Span = tuple[float, float]
"""From and to, as ``time.monotonic`` counts."""


@dataclass
class Call:
    """One call on an engine."""

    words: str
    """As ``load sql``."""
    began_at: float
    ended_at: float


class NotingAdapter(FakeAdapter):
    """An adapter that notes when loads and unloads began and ended."""

    def __init__(self, engine: FakeEngine, options: EngineOptions, calls: list[Call]) -> None:
        super().__init__(engine, options)
        self._calls = calls

    async def load(self, target: Target, path: str) -> None:
        began_at = time.monotonic()
        await super().load(target, path)
        self._calls.append(Call(f"load {target.name}", began_at, time.monotonic()))

    async def unload(self, target: Target) -> None:
        began_at = time.monotonic()
        await super().unload(target)
        self._calls.append(Call(f"unload {target.name}", began_at, time.monotonic()))


@dataclass
class PodUnderTest:
    """One pod."""

    uid: str
    keys: Keys
    front: S3Front
    calls: list[Call] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Reasons that its status gave for any target."""
    running: Running | None = None

    @property
    def agent(self) -> Running:
        """The agent, once it runs."""
        assert self.running is not None
        return self.running

    def asked_at(self, prefix: str) -> float:
        """When it first asked for anything of a prefix."""
        marks = (f"/{prefix}/", f"prefix={prefix}%2F")
        return min(
            one.at
            for one in list(self.front.proxy.seen)
            if f"Credential={self.keys.access_key}/" in one.headers.get("authorization", "")
            and any(mark in one.target for mark in marks)
        )

    def ended_at(self, words: str) -> float:
        """When the last such call on its engine ended."""
        return max(one.ended_at for one in self.calls if one.words == words)

    def gap(self, name: str) -> Span:
        """When a name was last unknown to its engine: from unload to the end of the load."""
        unload = max(one.began_at for one in self.calls if one.words == f"unload {name}")
        return unload, self.ended_at(f"load {name}")

    async def wait_converged(self, generation: int, seconds: float) -> None:
        """Wait until it holds what a generation asks for, noting what it says meanwhile."""

        def look(status):
            self.told += {one.reason for one in status.targets.values()} - {""}
            return status.converged and status.document.generation == generation

        await self.agent.wait(look, seconds)


@asynccontextmanager
async def open_pods(
    work: Path, front: S3Front, users: Sequence[Keys], *, load_seconds: float, **flags: Any
) -> AsyncIterator[list[PodUnderTest]]:
    """Run a pod for each of these users of the server."""
    async with AsyncExitStack() as stack:
        pods = []
        for index, keys in enumerate(users):
            uid = f"uid-{index:02}"
            pod = PodUnderTest(uid, keys, front)
            pod.running = await stack.enter_async_context(
                running_agent(
                    work / uid,
                    FakeEngine(faults=Faults(load_seconds=load_seconds)),
                    adapter=_noting(pod),
                    environment=front.environment(pod.keys),
                    pod_name=uid,
                    pod_uid=uid,
                    resync_seconds=1.0,
                    **flags,
                )
            )
            pods.append(pod)
        yield pods


def _noting(pod: PodUnderTest):
    def make(engine: FakeEngine, options: EngineOptions) -> EngineAdapter:
        return NotingAdapter(engine, options, pod.calls)

    return make


class Crowd(Fault):
    """Sends slowly, and counts how many answers have bytes in flight at one time."""

    def __init__(self, bytes_per_second: float) -> None:
        self._slow = Slow(bytes_per_second)
        self._lock = Lock()
        self._now = 0
        self.peak = 0

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)
        try:
            yield from self._slow.body(pieces, line)
        finally:
            with self._lock:
                self._now -= 1


def longest_above(spans: Iterable[Span], limit: float) -> float:
    """The longest time without a break at which more than ``limit`` of the spans were open."""
    turns = sorted((at, change) for one in spans for at, change in ((one[0], 1), (one[1], -1)))
    longest, open_now, since = 0.0, 0, 0.0
    for at, change in turns:
        before, open_now = open_now, open_now + change
        if before <= limit < open_now:
            since = at
        elif open_now <= limit < before:
            longest = max(longest, at - since)
    return longest


def most_at_once(spans: Sequence[Span]) -> int:
    """The most spans that were open at one time."""
    return max(sum(one[0] <= at < one[1] for one in spans) for at, _ in spans)
