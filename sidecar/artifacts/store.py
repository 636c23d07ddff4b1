"""The store as the agent uses it: what is on disk, kept in memory, changed by fetch and evict."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from threading import Event

from sidecar.artifacts.bring import Bringer, Order
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.fetch import ALL_SOURCES, SourceOptions
from sidecar.artifacts.layout import Held, lock_key
from sidecar.artifacts.listing import Look
from sidecar.artifacts.looks import NearAndFar
from sidecar.artifacts.room import Room
from sidecar.artifacts.threads import Workers
from sidecar.artifacts.workspace import nobody
from sidecar.core.desired import Entry
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.redact import redact_source
from sidecar.errors import ArtifactError, FetchFailed

Progress = Callable[[int, int | None], None]
"""Called on the event loop with bytes fetched so far and, where known, in total."""

DISK_THREADS = 4
FIND_THREADS = 4
"""Beside those that fetch: looks that come before a fetch."""
LOOK_SECONDS = 10.0
LOOK_ALL_SECONDS = 60.0
REMOTE_LOOK_SECONDS = 60.0
"""A listing of 100,000 objects takes a hundred pages."""
FIND_SECONDS = 2.0
FIND_ALL_SECONDS = 20.0
FETCH_WAIT_SECONDS = 3600.0
"""How long one agent waits for another that fetches the same source and does not get on."""
COLLECT_SECONDS = 3600.0
"""Between two looks for what interrupted fetches left and nobody went on with."""
POLL_SECONDS = 0.1
MEASURE_SECONDS = 1.0
"""Between two looks at how far another agent's fetch has come."""


class Store:
    """Complete revisions of every target, on one disk that several pods may share.

    Everything raises ``ArtifactError`` only. A store that cannot be written still says what it
    holds; ``problem`` says why it cannot.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int | None,
        pod_uid: str,
        options: SourceOptions = ALL_SOURCES,
        fetch_concurrency: int = 4,
        fetched: Callable[[int], None] = nobody,
    ) -> None:
        """``fetched`` is called from any thread with the bytes that came from a source."""
        self._root = Path(os.path.abspath(root))
        self._disk = Disk(self._root, pod_uid)
        self._bringer = Bringer(self._disk, Room(self._root, max_bytes), options, fetched)
        self._max_bytes = max_bytes
        self._workers = Workers("store", DISK_THREADS)
        # Apart from the store's own disk: a source may hang for ever.
        self._fetchers = Workers("fetch", 2 * fetch_concurrency + FIND_THREADS)
        self._looks = NearAndFar()
        self._collects_at = time.monotonic() + COLLECT_SECONDS
        self._held: dict[str, tuple[Held, ...]] = {}
        self._revisions: dict[str, tuple[Revision, ...]] = {}
        """Those of ``_held``, so that a change of one costs no step for each of the others."""
        self._inventory: Inventory | None = None
        self._edits = 0
        self._holding: dict[str, str] = {}
        self._released = asyncio.Event()
        self.problem = ""
        """Why the store cannot be written; empty while it can."""

    async def open(self) -> None:
        """Read the disk and delete what dead agents left; a bad disk is reported, not raised."""
        try:
            await self._workers.run(lambda _: self._disk.open())
            self.problem = ""
        except ArtifactError as error:
            self.problem = str(error)
        try:
            await self.rescan()
        except ArtifactError as error:
            self.problem = str(error)

    async def close(self) -> None:
        """Give up all locks; running fetches must have been cancelled before."""
        self._workers.close()
        self._fetchers.close()
        self._looks.close()
        self._disk.close()

    def inventory(self) -> Inventory:
        """Return what is on disk, from memory."""
        if self._inventory is None:
            revisions = dict(self._revisions)
            self._inventory = Inventory(revisions=revisions, max_bytes=self._max_bytes)
        return self._inventory

    async def rescan(self) -> None:
        """Read the disk again, because another pod may have changed it."""
        for _ in range(3):
            edits = self._edits
            found = await self._workers.run(lambda _: self._disk.read_all())
            if edits == self._edits:
                self._held, self._inventory = found, None
                self._revisions = {name: _revisions(held) for name, held in found.items()}
                return

    async def verify(self, revisions: Iterable[Revision]) -> tuple[Revision, ...]:
        """Return those whose files vanished or changed size; they leave the inventory.

        Costs one ``stat`` a file: the caller passes some revisions a call and rotates.
        """
        known = [held for one in revisions if (held := self._find(one)) is not None]

        def look(_: Event) -> list[Held]:
            return [held for held in known if not self._disk.is_whole(held)]

        broken = [held for held in await self._workers.run(look) if self._find(held.revision)]
        for held in broken:
            self._drop(held.revision)
        return tuple(held.revision for held in broken)

    async def look(self, entry: Entry) -> Look:
        """Look at an entry's source without reading it; see ``look_all``."""
        found = (await self.look_all((entry,)))[entry.name]
        if isinstance(found, ArtifactError):
            raise found
        return found

    async def look_all(self, entries: Iterable[Entry]) -> dict[str, Look | ArtifactError]:
        """Look at many sources at once; a passthrough that the agent cannot see never moves.

        One that does not answer within 10 s (60 s over the network) is an error, and so it is until
        it does. A round ends after a minute; those that it did not come to are left out.
        """
        asked = tuple(entries)
        found = await self._looks.ask(
            asked,
            self._bringer.look,
            each_seconds=(LOOK_SECONDS, REMOTE_LOOK_SECONDS),
            all_seconds=LOOK_ALL_SECONDS,
        )
        return {
            entry.name: found.answers.get(entry.name) or _no_answer(entry)
            for entry in asked
            if entry.name not in found.unasked
        }

    async def fetch(
        self, entry: Entry, *, restore: Revision | None, progress: Progress
    ) -> Revision:
        """Bring what the entry's source holds into the store and return its revision.

        A source that looks as it did costs stats only; a pinned digest on disk costs no look at
        the source. With ``restore`` the bytes are read in any case, because that revision's files
        are gone. Cancelled, it leaves nothing visible behind.
        """
        held = self._held.get(entry.name, ())
        found = await self._fetchers.run(lambda _: self._bringer.find(entry, held, restore=restore))
        if isinstance(found, Revision):
            return found
        if isinstance(found, Order):
            with closing(found.fetcher):
                found = await self._bring(found, progress)
        return self._take(found)

    async def fetch_known(self, entries: Iterable[Entry]) -> dict[str, Revision]:
        """Return, by name, the revisions of those entries whose source need not be read.

        A few threads for all of them, for a start with many targets. What cannot be answered, or
        not within 2 s for one and 20 s for all, is left out; ``fetch`` says why.
        """

        def find(entry: Entry) -> Held | None:
            return self._bringer.find_held(entry, self._held.get(entry.name, ()))

        found = await self._looks.ask(
            tuple(entries),
            find,
            each_seconds=(FIND_SECONDS, FIND_SECONDS),
            all_seconds=FIND_ALL_SECONDS,
        )
        return {name: self._take(held) for name, held in found.answers.items() if held is not None}

    def held_as(self, entry: Entry, signature: str) -> Revision | None:
        """Return what was brought from the entry's source when that looked so; from memory."""
        for one in self._held.get(entry.name, ()):
            manifest = one.manifest
            came = (manifest.source_signature, manifest.source)
            if signature and came == (signature, redact_source(entry.source)):
                return one.revision if entry.kind in (None, manifest.kind) else None
        return None

    def knows_source(self, revision: Revision) -> bool:
        """Tell whether it is known how the source of a revision looked when it was read."""
        held = self._find(revision)
        return held is not None and bool(held.manifest.source_signature)

    async def _bring(self, order: Order, progress: Progress) -> Held:
        loop = asyncio.get_running_loop()

        def report(done: int) -> None:
            loop.call_soon_threadsafe(progress, done, order.listing.bytes)

        def bring(stop: Event) -> Held | None:
            return self._bringer.bring(order, held_bytes, report, stop)

        if self._max_bytes is not None:
            # The limit is of the disk, and pods that share the store fill it, too.
            await self.rescan()
        heard_at, measured_at, brought = loop.time(), loop.time(), -1
        while loop.time() < heard_at + FETCH_WAIT_SECONDS:
            held_bytes = self.inventory().bytes
            try:
                held = await self._fetchers.run(bring)
            finally:
                released, self._released = self._released, asyncio.Event()
                released.set()
            if held is not None:
                self.problem = ""
                return held
            if loop.time() >= measured_at:
                measured_at = loop.time() + MEASURE_SECONDS
                size = await self._workers.run(lambda _: self._bringer.brought_bytes(order))
                if size != brought:
                    heard_at, brought = loop.time(), size
                    progress(min(size, order.listing.bytes), order.listing.bytes)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._released.wait()
        raise FetchFailed(
            f"{redact_source(order.entry.source)}: another pod that shares the store {self._root} "
            f"fetches it, and has not got on for {FETCH_WAIT_SECONDS:.0f} s"
        )

    async def hold(self, revisions: Iterable[Revision]) -> None:
        """Say which revisions this agent needs; no other agent evicts them from now on."""
        asked, before = tuple(revisions), dict(self._holding)
        now = time.monotonic()
        if is_due := now >= self._collects_at:
            self._collects_at = now + COLLECT_SECONDS

        def hold(_: Event) -> dict[str, str]:
            if is_due:
                self._disk.collect()
            return self._disk.hold(asked, before)

        kept = await self._workers.run(hold)
        fetched = {p: key for p, key in self._holding.items() if p not in before}
        self._holding = kept | fetched

    async def evict(self, revision: Revision) -> None:
        """Delete a revision from disk. Raises while another pod that shares the store holds it."""
        if self._find(revision) is not None:
            await self._workers.run(lambda _: self._disk.evict(revision))
            self._holding.pop(revision.path, None)
            self._drop(revision)

    def _find(self, revision: Revision) -> Held | None:
        for held in self._held.get(revision.name, ()):
            if held.revision.path == revision.path:
                return held
        return None

    def _take(self, held: Held) -> Revision:
        revision = held.revision
        self._holding[revision.path] = lock_key(revision)
        self._change(revision.name, (*self._others(revision), held))
        return revision

    def _drop(self, revision: Revision) -> None:
        self._change(revision.name, self._others(revision))

    def _others(self, revision: Revision) -> tuple[Held, ...]:
        held = self._held.get(revision.name, ())
        return tuple(one for one in held if one.revision.path != revision.path)

    def _change(self, name: str, held: tuple[Held, ...]) -> None:
        if held:
            self._held[name] = held
            self._revisions[name] = _revisions(held)
        else:
            self._held.pop(name, None)
            self._revisions.pop(name, None)
        self._edits += 1
        self._inventory = None


def _revisions(held: Iterable[Held]) -> tuple[Revision, ...]:
    return tuple(one.revision for one in held)


def _no_answer(entry: Entry) -> ArtifactError:
    return FetchFailed(f"{redact_source(entry.source)}: it does not answer")
