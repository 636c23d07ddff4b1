"""Questions to many sources at once, where one that hangs holds up none of the others.

A file system whose server is gone lets a thread wait for ever. Such a source is given up after its
time, and asked nothing more until that thread returns.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Event, Lock
from typing import Generic, TypeVar

from sidecar.artifacts.locations import is_remote
from sidecar.artifacts.threads import Workers
from sidecar.core.desired import Entry
from sidecar.core.redact import redact_source

T = TypeVar("T")
log = logging.getLogger("model_sidecar.looks")

PARALLEL = 4
"""Sources of one round that are asked at the same time."""
ALONE_SECONDS = 0.2
"""Healthy sources are asked fastest by one thread; others join it where that takes longer."""
THREADS = 2 * PARALLEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Round(Generic[T]):
    """What one round of questions came to."""

    answers: Mapping[str, T]
    """By name; those that were asked and did not answer are missing."""
    unasked: frozenset[str]
    """Those that the round did not come to."""


class Looks:
    """Asks sources in threads of its own. Every round ends in its time."""

    def __init__(self) -> None:
        self._workers = Workers("looks", THREADS)
        self._hanging: set[str] = set()

    async def ask(
        self,
        entries: Iterable[Entry],
        question: Callable[[Entry], T],
        *,
        each_seconds: float,
        all_seconds: float,
    ) -> Round[T]:
        """Return the answers that came in time.

        A healthy round costs a handful of thread changes, however many entries it has.
        """
        todo = deque(entries)
        answers: dict[str, T] = {}
        joins_at = time.monotonic() + ALONE_SECONDS
        ends_at = joins_at - ALONE_SECONDS + all_seconds
        asking: dict[asyncio.Task[None], _Asker[T]] = {}
        given_up: list[asyncio.Task[None]] = []
        try:
            while (now := time.monotonic()) < ends_at:
                for task, asker in list(asking.items()):
                    if (hung := asker.give_up(now - each_seconds)) is not None:
                        log.warning(
                            "%s does not answer; it is not looked at again before it does",
                            redact_source(hung.source),
                        )
                        given_up.append(task)
                        del asking[task]
                        task.cancel()
                while todo and len(asking) < (PARALLEL if now >= joins_at else 1):
                    asker = _Asker(todo, question, answers, self._hanging)
                    asking[asyncio.create_task(self._run(asker))] = asker
                if not asking:
                    break
                # One that begins after this was computed is not due before the round's next turn.
                turns = (min(one.began_at, now) + each_seconds for one in asking.values())
                wake_at = min(ends_at, *turns, *([joins_at] if now < joins_at else []))
                done, _ = await asyncio.wait(
                    asking,
                    timeout=max(0.0, wake_at - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    del asking[task]
                    task.result()
        finally:
            unasked = frozenset(entry.name for entry in todo)
            todo.clear()
            for task, asker in asking.items():
                asker.give_up(math.inf)
                task.cancel()
            await asyncio.gather(*asking, *given_up, return_exceptions=True)
        return Round(answers=answers, unasked=unasked)

    def close(self) -> None:
        """Accept no more questions."""
        self._workers.close()

    async def _run(self, asker: _Asker[T]) -> None:
        await self._workers.run(asker.run, grace_seconds=0.0)


class NearAndFar:
    """Asks disks and networks apart, so that a server that hangs takes no thread from the disks."""

    def __init__(self) -> None:
        self._looks = {is_far: Looks() for is_far in (False, True)}

    async def ask(
        self,
        entries: Iterable[Entry],
        question: Callable[[Entry], T],
        *,
        each_seconds: tuple[float, float],
        all_seconds: float,
    ) -> Round[T]:
        """Return the answers; ``each_seconds``: for what is near, and for what is on a network."""
        kinds: dict[bool, list[Entry]] = {}
        for entry in entries:
            kinds.setdefault(is_remote(entry.source), []).append(entry)
        rounds = await asyncio.gather(
            *(
                self._looks[is_far].ask(
                    some, question, each_seconds=each_seconds[is_far], all_seconds=all_seconds
                )
                for is_far, some in kinds.items()
            )
        )
        return Round(
            answers={name: one for some in rounds for name, one in some.answers.items()},
            unasked=frozenset().union(*(one.unasked for one in rounds)),
        )

    def close(self) -> None:
        """Accept no more questions."""
        for looks in self._looks.values():
            looks.close()


class _Asker(Generic[T]):
    """Asks one source after the other, in one thread, until none is left or it is given up."""

    def __init__(
        self,
        todo: deque[Entry],
        question: Callable[[Entry], T],
        answers: dict[str, T],
        hanging: set[str],
    ) -> None:
        self._todo = todo
        self._question = question
        self._answers = answers
        self._hanging = hanging
        self._lock = Lock()
        self._entry: Entry | None = None
        self._is_given_up = False
        self.began_at = math.inf
        """When it turned to the source that it is asking."""

    def run(self, _: Event) -> None:
        """Ask; what comes after it was given up is dropped."""
        while (entry := self._begin()) is not None:
            try:
                answer = self._question(entry)
            finally:
                with self._lock:
                    self._entry = None
                    if is_late := self._is_given_up:
                        self._hanging.discard(entry.source)
            if not is_late:
                self._answers[entry.name] = answer

    def give_up(self, since: float) -> Entry | None:
        """Stop it unless it turned to a source after ``since``; return what it was asking."""
        with self._lock:
            if self.began_at > since:
                return None
            self._is_given_up = True
            if self._entry is not None:
                self._hanging.add(self._entry.source)
            return self._entry

    def _begin(self) -> Entry | None:
        with self._lock:
            while not self._is_given_up:
                try:
                    entry = self._todo.popleft()
                except IndexError:
                    return None
                if entry.source not in self._hanging:
                    self._entry, self.began_at = entry, time.monotonic()
                    return entry
            return None
