"""Goes round: which sources on disks hold something else now, and whose files are gone.

A round looks at a share of the targets, so that a thousand of them cost no more at once than a
hundred; a new document has every one looked at. Sources on a network, and those whose entry says
how often, are left to ``refresh``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice
from typing import TypeVar

from sidecar.artifacts.locations import is_remote
from sidecar.core.desired import Desired, Entry
from sidecar.directory_watch import wait_event
from sidecar.errors import ArtifactError
from sidecar.patrol.losses import PACE_SECONDS, Shelves, look_for_losses
from sidecar.patrol.moves import Moves

T = TypeVar("T")
log = logging.getLogger("model_sidecar.patrol")

SHARE = 100
"""Targets a round."""
QUIET_SECONDS = 1.0
"""A source that changed by itself is fetched once it has been left alone for this long: whoever
copies files into it is not done with the first one."""
ROUND_SECONDS = 120.0
"""The longest that a round may take: a source on a network that hangs is given up."""
BEAT_SECONDS = 2 * ROUND_SECONDS
"""Beyond the interval: a patrol that is silent for longer counts as hung."""


class Patrol:
    """Looks at sources and files in turn, and says what it found."""

    def __init__(
        self,
        shelves: Shelves,
        moves: Moves,
        *,
        desired: Callable[[], Desired | None],
        lost: Callable[[], None],
        beat: Callable[[float], None],
        now: Callable[[], float],
        is_busy: Callable[[], bool],
        interval_seconds: float,
    ) -> None:
        """``lost`` is called when files need mending; ``now`` gives unix seconds; ``is_busy`` tells
        whether actions are under way."""
        self._shelves = shelves
        self._moves = moves
        self._desired = desired
        self._lost = lost
        self._beat = beat
        self._now = now
        self._is_busy = is_busy
        self._interval_seconds = interval_seconds
        self._due = asyncio.Event()
        self._everything = False
        self._files, self._sources = _Shares(), _Shares()

    def look_at_all(self) -> None:
        """Look at every source and every file soon: a document came, or a file went."""
        self._everything = True
        self._due.set()

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            self._beat(self._interval_seconds + BEAT_SECONDS)
            try:
                async with asyncio.timeout(self._interval_seconds):
                    await self._due.wait()
            except TimeoutError:
                pass
            if self._due.is_set():
                await self._wait_quiet()
            self._due.clear()
            everything, self._everything = self._everything, False
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    await self.round_once(everything=everything)
            except TimeoutError:
                log.warning("sources could not be looked at within %g s", ROUND_SECONDS)
            except ArtifactError as error:
                log.warning("could not go round: %s", error)

    async def _wait_quiet(self) -> None:
        """Let what an edit asks for go first, as a look at every source competes with it.

        A long load is not waited for: no longer than one interval.
        """
        try:
            async with asyncio.timeout(self._interval_seconds):
                await wait_event(asyncio.Event(), PACE_SECONDS)
                while self._is_busy():
                    await wait_event(asyncio.Event(), PACE_SECONDS)
        except TimeoutError:
            return

    async def round_once(self, *, everything: bool) -> None:
        """Look at the next share of the targets, or at all of them."""
        desired = self._desired()
        if desired is None:
            return
        self._moves.keep(desired.entries.keys())
        names = list(desired.entries)
        near = [one for one in desired.entries.values() if _is_of_rounds(one)]
        if not everything:
            names, near = self._files.next(names), self._sources.next(near)
        inventory = self._shelves.inventory()
        revisions = [one for name in names for one in inventory.revisions.get(name, ())]
        await look_for_losses(self._shelves, revisions, self._lost)
        # Whoever edits the document says that the sources are as they shall be.
        quiet = 0.0 if everything else QUIET_SECONDS
        await self._moves.look(near, quiet_since=self._now() - quiet)


class _Shares:
    """Takes one share of a list after the other."""

    def __init__(self) -> None:
        self._position = 0

    def next(self, things: list[T]) -> list[T]:
        if len(things) <= SHARE:
            return things
        self._position %= len(things)
        share = list(islice(things + things, self._position, self._position + SHARE))
        self._position += SHARE
        return share


def _is_of_rounds(entry: Entry) -> bool:
    return entry.refresh_seconds is None and not is_remote(entry.source)
