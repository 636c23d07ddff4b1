"""Goes round: which sources hold something else now, and whose files are gone from the store.

Both are only looked at here; what follows from them is planned like everything else. A round looks
at a share of the targets, so that a thousand of them cost no more at once than a hundred; a new
document has every source looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Protocol

from sidecar.artifacts.losses import LossWatch
from sidecar.core.desired import Desired, Entry
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.progress import Progress, asks
from sidecar.directory_watch import wait_event
from sidecar.errors import ArtifactError

log = logging.getLogger("model_sidecar.patrol")

SHARE = 100
"""Targets a round."""
QUIET_SECONDS = 1.0
"""A source that changed by itself is fetched once it has been left alone for this long: whoever
copies files into it is not done with the first one."""
FOLLOW_SECONDS = 1.0
"""A target that became resident is watched no later than this."""
PACE_SECONDS = 0.2
ROUND_SECONDS = 120.0
"""The longest that a round may take: a source on a network that hangs is given up."""
BEAT_SECONDS = 2 * ROUND_SECONDS
"""Beyond the interval: a patrol that is silent for longer counts as hung."""


class Sight(Protocol):
    """What one look at a source says."""

    @property
    def signature(self) -> str: ...

    @property
    def newest_change(self) -> float: ...


class Shelves(Protocol):
    """What the patrol asks of the store."""

    def inventory(self) -> Inventory: ...

    async def look_all(self, entries: Iterable[Entry]) -> Mapping[str, Sight | ArtifactError]: ...

    async def fetch_known(self, entries: Iterable[Entry]) -> Mapping[str, Revision]: ...

    async def verify(self, revisions: Iterable[Revision]) -> tuple[Revision, ...]: ...


class Patrol:
    """Looks at sources and files in turn, and says what it found."""

    def __init__(
        self,
        shelves: Shelves,
        *,
        desired: Callable[[], Desired | None],
        progress: Mapping[str, Progress],
        moved: Callable[[Iterable[str]], None],
        lost: Callable[[], None],
        beat: Callable[[float], None],
        now: Callable[[], float],
        is_busy: Callable[[], bool],
        interval_seconds: float,
    ) -> None:
        """``moved`` and ``lost`` are called with what was found; ``now`` gives unix seconds;
        ``is_busy`` tells whether actions are under way."""
        self._shelves = shelves
        self._desired = desired
        self._progress = progress
        self._moved = moved
        self._lost = lost
        self._beat = beat
        self._now = now
        self._is_busy = is_busy
        self._interval_seconds = interval_seconds
        self._seen: dict[str, tuple[str, str]] = {}
        self._due = asyncio.Event()
        self._everything = False
        self._position = 0

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
        for name in self._seen.keys() - desired.entries.keys():
            del self._seen[name]
        entries = list(desired.entries.values())
        if not everything:
            entries = self._next_share(entries)
        await self._look_for_losses(entries)
        # Whoever edits the document says that the sources are as they shall be.
        quiet = 0.0 if everything else QUIET_SECONDS
        await self._look_for_moves(entries, self._now() - quiet)

    def _next_share(self, entries: list[Entry]) -> list[Entry]:
        if len(entries) <= SHARE:
            return entries
        self._position %= len(entries)
        share = list(islice(entries + entries, self._position, self._position + SHARE))
        self._position += SHARE
        return share

    async def _look_for_losses(self, entries: Iterable[Entry]) -> None:
        inventory = self._shelves.inventory()
        revisions = [one for entry in entries for one in inventory.revisions.get(entry.name, ())]
        lost = await self._shelves.verify(revisions)
        if lost:
            names = ", ".join(sorted({one.name for one in lost}))
            log.warning("files vanished from the store: %s; they are put back", names)
            self._lost()

    async def _look_for_moves(self, entries: Iterable[Entry], quiet_since: float) -> None:
        fetched = [entry for entry in entries if self._is_fetched(entry)]
        sights = await self._shelves.look_all(fetched)
        changed = []
        for entry in fetched:
            sight = sights.get(entry.name)
            if sight is None or isinstance(sight, ArtifactError):
                # A source that went away changes nothing for what was fetched from it.
                continue
            if self._seen.get(entry.name) == (entry.source, sight.signature):
                continue
            if sight.newest_change > quiet_since:
                continue
            self._seen[entry.name] = (entry.source, sight.signature)
            changed.append(entry)
        known = await self._shelves.fetch_known(changed) if changed else {}
        moved = [
            entry.name
            for entry in changed
            if self._is_fetched(entry) and not self._is_current(entry, known.get(entry.name))
        ]
        if moved:
            self._moved(moved)

    def _is_fetched(self, entry: Entry) -> bool:
        """A pinned entry asks for one content for ever, whatever its source holds."""
        progress = self._progress.get(entry.name)
        return progress is not None and progress.answers(entry) and entry.digest is None

    def _is_current(self, entry: Entry, known: Revision | None) -> bool:
        progress = self._progress[entry.name]
        assert progress.revision is not None
        return (
            known is not None
            and progress.asked == asks(entry)
            and known.revision == progress.revision.revision
        )


class LossPatrol:
    """Has the files of residents put back as soon as they vanish: the engine may read them again.

    The rounds of ``Patrol`` are the net where the kernel's events do not reach.
    """

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
        broken = await self._shelves.verify(revisions)
        if broken:
            names = ", ".join(sorted({one.name for one in broken}))
            log.warning("files vanished from the store: %s; they are put back", names)
            self._lost()


async def wait_for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()
