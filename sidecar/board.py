"""The one place where published values hang: written by the loop, read by everyone else."""

from __future__ import annotations

import asyncio

from sidecar.core.status import Status


class Board:
    """Holds the last published ``Status`` and wakes those who wait for another one."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._changed = asyncio.Event()

    @property
    def status(self) -> Status:
        """The last published status."""
        return self._status

    def publish(self, status: Status) -> None:
        """Replace the status and wake every waiter."""
        self._status = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_changed(self, timeout: float) -> bool:
        """Wait for the next publication, at most ``timeout`` seconds; tell whether it came."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
