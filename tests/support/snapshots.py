"""Runs a source in the background and waits for what it publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sidecar.core.snapshot import Snapshot
from sidecar.sources.base import Source

DEADLINE_SECONDS = 10.0


class Published:
    """Every snapshot of one source, in order, with the monotonic time of its arrival."""

    def __init__(self) -> None:
        self.all: list[Snapshot] = []
        self.times: list[float] = []
        self._changed = asyncio.Event()

    def __call__(self, snapshot: Snapshot) -> None:
        self.all.append(snapshot)
        self.times.append(time.monotonic())
        self._changed.set()

    @property
    def last(self) -> Snapshot:
        return self.all[-1]

    async def wait_for(
        self, condition: Callable[[Snapshot], bool], timeout: float = DEADLINE_SECONDS
    ) -> Snapshot:
        """Return the last snapshot once it meets ``condition``."""
        async with asyncio.timeout(timeout):
            while not (self.all and condition(self.all[-1])):
                self._changed.clear()
                await self._changed.wait()
        return self.all[-1]

    async def wait_files(
        self, files: dict[str, str], timeout: float = DEADLINE_SECONDS
    ) -> Snapshot:
        """Return the last snapshot once it holds exactly ``files``."""
        return await self.wait_for(lambda one: dict(one.files) == files, timeout)


@asynccontextmanager
async def running(source: Source) -> AsyncIterator[Published]:
    """Run ``source`` while the ``with`` lasts; an end of its own is an error."""
    published = Published()
    task = asyncio.create_task(source.run(published))
    try:
        yield published
        assert not task.done(), "a source runs until it is cancelled"
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
