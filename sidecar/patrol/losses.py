"""Has the files of residents put back as soon as they vanish: the engine may read them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from sidecar.artifacts.losses import LossWatch
from sidecar.core.inventory import Inventory, Revision
from sidecar.directory_watch import wait_event

log = logging.getLogger("model_sidecar.patrol")

FOLLOW_SECONDS = 1.0
"""A target that became resident is watched no later than this."""
PACE_SECONDS = 0.2


class Shelves(Protocol):
    """What is asked of the store."""

    def inventory(self) -> Inventory: ...

    async def verify(self, revisions: Iterable[Revision]) -> tuple[Revision, ...]: ...


class LossPatrol:
    """Watches the files of residents; the rounds of ``Patrol`` are the net where the kernel's
    events do not reach."""

    def __init__(
        self,
        shelves: Shelves,
        *,
        residents: Callable[[], Iterable[str]],
        lost: Callable[[], None],
    ) -> None:
        """``residents`` gives the paths to guard; ``lost`` is called when one needs mending."""
        self._shelves = shelves
        self._residents = residents
        self._lost = lost

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            watch = LossWatch()
        except OSError as error:
            log.warning("files are not watched (%s), only looked at in turn", error.strerror)
            return await wait_for_ever()
        try:
            while True:
                await watch.set_paths(self._residents())
                lost = await watch.wait_lost(FOLLOW_SECONDS)
                if lost:
                    await self._mend(lost)
                    # Whoever rewrites a large file is told of once a moment, not at each write.
                    await wait_event(asyncio.Event(), PACE_SECONDS)
        finally:
            watch.close()

    async def _mend(self, paths: frozenset[str]) -> None:
        revisions = [one for one in self._shelves.inventory().all() if one.path in paths]
        await look_for_losses(self._shelves, revisions, self._lost)


async def look_for_losses(
    shelves: Shelves, revisions: Iterable[Revision], lost: Callable[[], None]
) -> None:
    """Call ``lost`` when files of these revisions are gone from the store."""
    broken = await shelves.verify(revisions)
    if broken:
        names = ", ".join(sorted({one.name for one in broken}))
        log.warning("files vanished from the store: %s; they are put back", names)
        lost()


async def wait_for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()
