"""Blocking work beside the event loop, stoppable between two chunks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
STOP_GRACE_SECONDS = 5.0
MAX_LEFT_BEHIND = 64
"""Hanging threads of one pool that are replaced; those beyond take the places of healthy ones."""


class Workers:
    """A small pool of threads of its own, so that a hung disk starves nobody else.

    The process can end while one of them hangs.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._limit = threads
        self._changed = Condition()
        # Guarded by _changed, from here on.
        self._jobs: deque[_Job] = deque()
        self._threads = 0
        self._idle = 0
        self._left_behind = 0
        self._is_closed = False

    async def run(self, work: Callable[[Event], T], *, grace_seconds: float | None = None) -> T:
        """Run ``work`` in a thread; when cancelled, set its event and let it clean up.

        A thread that hangs in the operating system is left behind after ``grace_seconds`` (5 where
        nothing is said), and another takes its place.
        """
        job = _Job(work)
        self._submit(job)
        future = asyncio.wrap_future(job.future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            job.stop.set()
            future.add_done_callback(_forget)
            if not job.future.cancel():
                grace = STOP_GRACE_SECONDS if grace_seconds is None else grace_seconds
                try:
                    await asyncio.wait({future}, timeout=grace)
                finally:
                    self._leave_behind(job)
            raise

    def close(self) -> None:
        """Accept no more work and do not wait for what runs."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify_all()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if self._is_closed:
                raise RuntimeError(f"the threads {self._name!r} are closed")
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._changed.notify()
            else:
                self._add_thread()

    def _add_thread(self) -> None:
        if self._jobs and self._threads < self._limit:
            self._threads += 1
            Thread(target=self._work, name=self._name, daemon=True).start()

    def _leave_behind(self, job: _Job) -> None:
        with self._changed:
            if not job.future.done() and self._left_behind < MAX_LEFT_BEHIND:
                job.is_left_behind = True
                self._left_behind += 1
                self._threads -= 1
                self._add_thread()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            with self._changed:
                if job.is_left_behind:
                    self._left_behind -= 1
                    return
            del job

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._jobs:
                if self._is_closed:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return self._jobs.popleft()


class _Job:
    """One piece of work and who waits for it."""

    def __init__(self, work: Callable[[Event], Any]) -> None:
        self._work = work
        self.future: Future[Any] = Future()
        self.stop = Event()
        self.is_left_behind = False

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._work(self.stop)
        except Exception as error:  # noqa: BLE001 - whoever waits for the job gets it
            self.future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - a panic of a library is no end of the agent
            foreign = RuntimeError(f"{type(error).__name__} in a thread")
            foreign.__cause__ = error
            self.future.set_exception(foreign)
        else:
            self.future.set_result(result)


def _forget(future: asyncio.Future[T]) -> None:
    # Whoever asked has gone; an unread exception would be reported as an error of ours.
    if not future.cancelled():
        future.exception()
