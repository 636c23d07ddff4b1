"""Blocking work beside the event loop, stoppable between two chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

T = TypeVar("T")
STOP_GRACE_SECONDS = 5.0


class Workers:
    """A small pool of threads of its own, so that a hung disk starves nobody else."""

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def run(self, work: Callable[[Event], T]) -> T:
        """Run ``work`` in a thread; when cancelled, set its event and let it clean up.

        A thread that hangs in the operating system is left behind after 5 seconds.
        """
        stop = Event()
        job = self._pool.submit(work, stop)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            future.add_done_callback(_forget)
            if not job.cancel():
                await asyncio.wait({future}, timeout=STOP_GRACE_SECONDS)
            raise

    def close(self) -> None:
        """Accept no more work and do not wait for what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forget(future: asyncio.Future[T]) -> None:
    # Whoever asked has gone; an unread exception would be reported as an error of ours.
    if not future.cancelled():
        future.exception()
