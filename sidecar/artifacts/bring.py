"""One fetch, from the entry to the committed revision. Blocking; runs in a thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from adapters.base import Kind
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.fetch import local_path, open_source
from sidecar.artifacts.files import DIRECTORY_MODE, store_errors
from sidecar.artifacts.layout import Held
from sidecar.artifacts.listing import Fetcher, Listing, Look, kind_of, refuse_pickles
from sidecar.artifacts.manifest import Manifest, content_digest
from sidecar.artifacts.room import Room
from sidecar.artifacts.triton_layout import add_missing_version, read_config
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.redact import redact_source
from sidecar.errors import ArtifactError, DigestMismatch, InvalidArtifact

REPORT_BYTES = 8 << 20
CLOCK_TICK_SECONDS = 0.05
COARSE_TICK_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A fetch that has to read the source."""

    entry: Entry
    fetcher: Fetcher
    listing: Listing
    is_restore: bool


def fetch_key(entry: Entry) -> str:
    """Return what only one agent at a time fetches."""
    return f"{entry.name}\n{entry.source}"


class Bringer:
    """Fetches into one store. Methods raise ``ArtifactError`` only, and ``files.Stopped``."""

    def __init__(self, disk: Disk, room: Room, allowed: tuple[str, ...]) -> None:
        self._disk = disk
        self._room = room
        self._allowed = allowed

    def look(self, entry: Entry) -> Look | ArtifactError:
        """Look at a source; an error is returned, so that one source does not hide the others."""
        try:
            found = open_source(entry, self._allowed)
            if isinstance(found, Revision):
                return Look(signature=found.revision, newest_change=0.0)
            listing = found.list()
        except ArtifactError as error:
            return error
        return Look(signature=listing.signature, newest_change=listing.newest_change)

    def find(
        self, entry: Entry, held: tuple[Held, ...], *, is_restore: bool
    ) -> Held | Revision | Order:
        """Return what answers the entry without reading the source, else the order to read it."""
        if entry.digest is not None and not is_restore:
            for one in held:
                if one.manifest.digest == entry.digest and (used := self._use(one, entry)):
                    return used
        found = open_source(entry, self._allowed)
        if isinstance(found, Revision):
            return found
        self._refuse_own_directory(entry.source)
        order = Order(entry=entry, fetcher=found, listing=found.list(), is_restore=is_restore)
        return self._same_source(order, held) or order

    def find_held(self, entry: Entry, held: tuple[Held, ...]) -> Held | None:
        """Return what ``find`` finds on disk; None for every other answer and for errors."""
        try:
            found = self.find(entry, held, is_restore=False) if held else None
        except ArtifactError:
            return None
        return found if isinstance(found, Held) else None

    def bring(
        self, order: Order, held_bytes: int, report: Callable[[int], None], stop: Event
    ) -> Held | None:
        """Fetch; None while another agent fetches the same. ``report`` gets the bytes so far."""
        entry = order.entry
        with self._disk.fetching(fetch_key(entry)) as is_ours:
            if not is_ours:
                return None
            found = self._same_source(order, self._disk.read_name(entry.name))
            if found is not None:
                return found
            where, listing = redact_source(entry.source), order.listing
            files = [path for path, _ in listing.files]
            kind = entry.kind or kind_of(where, files, listing.directories)
            if not files:
                raise InvalidArtifact(f"{where}: the directory holds no files")
            refuse_pickles(where, kind, files)
            with (
                self._room.reserve(listing.bytes, held_bytes, where),
                self._disk.staging() as area,
            ):
                return self._stage(order, kind, area, report, stop)

    def _stage(
        self, order: Order, kind: Kind, area: Path, report: Callable[[int], None], stop: Event
    ) -> Held:
        entry, staged = order.entry, area / "new"
        with store_errors(self._disk.root):
            began_at = area.stat().st_ctime
            staged.mkdir()
            staged.chmod(DIRECTORY_MODE)
        meter = _Meter(report)
        records = order.fetcher.bring(staged, meter.add, stop)
        meter.flush()
        digest = content_digest(records)
        _require_digest(entry, digest)
        if kind is Kind.MODEL:
            with store_errors(self._disk.root):
                add_missing_version(staged)
        manifest = Manifest(
            name=entry.name,
            kind=kind,
            digest=digest,
            source=redact_source(entry.source),
            source_signature=_trusted_signature(order.listing, began_at),
            files=tuple(records),
            parts=_parts(kind, staged),
        )
        return self._disk.commit(area, staged, manifest, stop)

    def _same_source(self, order: Order, held: Iterable[Held]) -> Held | None:
        entry, source = order.entry, redact_source(order.entry.source)
        if order.is_restore:
            return None
        for one in held:
            manifest = one.manifest
            if (
                manifest.source_signature == order.listing.signature
                and manifest.source == source
                and (used := self._use(one, entry))
            ):
                _require_digest(entry, manifest.digest)
                return used
        return None

    def _use(self, held: Held, entry: Entry) -> Held | None:
        return self._disk.use(held) if entry.kind in {None, held.manifest.kind} else None

    def _refuse_own_directory(self, source: str) -> None:
        path = local_path(source)
        root = os.path.realpath(self._disk.root)
        if path is not None and f"{root}/".startswith(os.path.realpath(path).rstrip("/") + "/"):
            raise InvalidArtifact(
                f"{redact_source(source)}: the store {root} itself lies in it; "
                "name the directory of one artifact"
            )


class _Meter:
    """Sums up chunks and passes the sum on now and then."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._done = 0
        self._reported = 0

    def add(self, size: int) -> None:
        self._done += size
        if self._done - self._reported >= REPORT_BYTES:
            self.flush()

    def flush(self) -> None:
        self._reported = self._done
        self._report(self._done)


def _require_digest(entry: Entry, digest: str) -> None:
    if entry.digest is not None and entry.digest != digest:
        raise DigestMismatch(
            f"{redact_source(entry.source)} holds {digest}, the document pins {entry.digest}: "
            "correct the pin or the source"
        )


def _trusted_signature(listing: Listing, began_at: float) -> str:
    """Return the signature, or nothing when a later change could bear the same times."""
    tick = COARSE_TICK_SECONDS if listing.is_coarse else CLOCK_TICK_SECONDS
    return listing.signature if listing.newest_change < began_at - tick else ""


def _parts(kind: Kind, directory: Path) -> tuple[str, ...]:
    try:
        config = read_config(directory) if kind is Kind.MODEL else None
    except InvalidArtifact:
        # Preflight says what is wrong with it.
        return ()
    return config.parts if config is not None else ()
