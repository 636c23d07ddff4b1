"""One fetch, from the entry to the committed revision. Blocking; runs in a thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from adapters.base import Kind
from sidecar.artifacts.areas import Area
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.fetch import SourceOptions, open_source
from sidecar.artifacts.files import store_errors
from sidecar.artifacts.layout import Held
from sidecar.artifacts.listing import Fetcher, Listing, Look, check_files
from sidecar.artifacts.locations import local_path
from sidecar.artifacts.manifest import Manifest, content_digest
from sidecar.artifacts.meter import Meter
from sidecar.artifacts.room import Reservation, Room, Taken
from sidecar.artifacts.triton_layout import add_missing_version, read_config
from sidecar.artifacts.workspace import Workspace
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.progress import asks
from sidecar.core.redact import redact_source
from sidecar.errors import (
    ArtifactError,
    DamagedSource,
    DigestMismatch,
    FetchFailed,
    InvalidArtifact,
    UnsafeArtifact,
)

log = logging.getLogger("model_sidecar.fetches")

CLOCK_TICK_SECONDS = 0.05
COARSE_TICK_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A fetch that has to read the source."""

    entry: Entry
    fetcher: Fetcher
    listing: Listing
    restore: Revision | None
    """Whose files are gone: read again, whatever the source looks like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """Bytes that are not what was asked for."""

    asks: tuple[str, str | None, Kind | None]
    signature: str
    kind: type[ArtifactError]
    message: str


def fetch_key(entry: Entry) -> str:
    """Return what only one agent at a time fetches."""
    return f"{entry.name}\n{entry.source}"


class Bringer:
    """Fetches into one store. Methods raise ``ArtifactError`` only, and ``files.Stopped``."""

    def __init__(
        self, disk: Disk, room: Room, options: SourceOptions, fetched: Callable[[int], None]
    ) -> None:
        """``fetched`` is called from any thread with the bytes that came from a source."""
        self._fetched = fetched
        self._disk = disk
        self._room = room
        self._options = options
        self._refused: dict[str, _Refused] = {}

    def look(self, entry: Entry) -> Look | ArtifactError:
        """Look at a source; an error is returned, so that one source does not hide the others."""
        try:
            found = open_source(entry, self._options)
            if isinstance(found, Revision):
                return Look(signature=found.revision, newest_change=0.0)
            with closing(found):
                listing = found.list()
        except ArtifactError as error:
            return error
        except Exception as error:
            # Whatever a server made of a library, it is the trouble of this source alone.
            log.exception("a defect of the agent, in a look at %s", redact_source(entry.source))
            what = f"it cannot be looked at, by a defect of the agent ({type(error).__name__})"
            return FetchFailed(f"{redact_source(entry.source)}: {what}; its log says more")
        return Look(signature=listing.signature, newest_change=listing.newest_change)

    def find(
        self, entry: Entry, held: tuple[Held, ...], *, restore: Revision | None
    ) -> Held | Revision | Order:
        """Return what answers the entry without reading the source, else the order to read it.

        Whoever takes the order closes its fetcher.
        """
        if entry.digest is not None and restore is None:
            for one in held:
                if one.manifest.digest == entry.digest and (used := self._use(one, entry)):
                    return used
        found = open_source(entry, self._options)
        if isinstance(found, Revision):
            return found
        with ExitStack() as opened:
            opened.callback(found.close)
            self._refuse_own_directory(entry.source)
            order = Order(entry=entry, fetcher=found, listing=found.list(), restore=restore)
            if (same := self._same_source(order, held)) is not None:
                return same
            self._raise_refused(order)
            opened.pop_all()
        return order

    def find_held(self, entry: Entry, held: tuple[Held, ...]) -> Held | None:
        """Return what ``find`` finds on disk; None for every other answer and for errors."""
        try:
            found = self.find(entry, held, restore=None) if held else None
        except Exception:  # noqa: BLE001 - the fetch that follows says what it is
            return None
        if isinstance(found, Order):
            found.fetcher.close()
        return found if isinstance(found, Held) else None

    def brought_bytes(self, order: Order) -> int:
        """Return how far the fetch of an order has come, whoever does it."""
        return self._disk.areas.bytes_of(fetch_key(order.entry))

    def bring(
        self, order: Order, held_bytes: int, report: Callable[[int], None], stop: Event
    ) -> Held | None:
        """Fetch; None while another agent fetches the same. ``report`` gets the bytes so far."""
        entry = order.entry
        with self._disk.fetching(fetch_key(entry)) as is_ours:
            if not is_ours:
                return None
            on_disk = self._disk.read_name(entry.name)
            found = self._same_source(order, on_disk) or self._restored(order, on_disk)
            if found is not None:
                return found
            try:
                return self._fetch(order, held_bytes, report, stop)
            except (DigestMismatch, InvalidArtifact, UnsafeArtifact) as error:
                # What breaks its own promise may be mended without looking different.
                if order.listing.signature and not isinstance(error, DamagedSource):
                    self._refused[entry.name] = _Refused(
                        asks=(*asks(entry), entry.kind),
                        signature=order.listing.signature,
                        kind=type(error),
                        message=str(error),
                    )
                raise

    def _fetch(
        self, order: Order, held_bytes: int, report: Callable[[int], None], stop: Event
    ) -> Held:
        listing, where = order.listing, redact_source(order.entry.source)
        allow_pickle, kind = self._options.allow_pickle, order.entry.kind
        if listing.packed_bytes is None:
            files = [path for path, _ in listing.files]
            check_files(where, kind, files, listing.directories, allow_pickle=allow_pickle)
        limit = self._options.limits.max_bytes
        if limit is not None and listing.bytes > limit:
            raise InvalidArtifact(
                f"{where}: {listing.bytes} bytes, and --max-artifact-bytes is {limit}"
            )
        key, areas = fetch_key(order.entry), self._disk.areas
        with store_errors(self._disk.root):
            others = held_bytes + areas.bytes_besides(key, self._disk.now())
            resumed = areas.bytes_of(key) if order.fetcher.resumes else 0
        taken = Taken(
            held_bytes=others,
            resumed_bytes=resumed,
            spare=lambda: areas.drop_interrupted(key),
        )
        resumes_at = listing.signature if order.fetcher.resumes else ""
        with (
            self._room.reserve(listing.bytes, taken, where) as reservation,
            areas.of_fetch(key, resumes_at) as area,
        ):
            return self._stage(order, area, reservation, report, stop)

    def _stage(
        self,
        order: Order,
        area: Area,
        reservation: Reservation,
        report: Callable[[int], None],
        stop: Event,
    ) -> Held:
        entry, listing = order.entry, order.listing
        with store_errors(self._disk.root):
            began_at = area.path.stat().st_ctime
        meter = Meter(report)

        def came(size: int) -> None:
            reservation.wrote(size)
            meter.add(size)

        workspace = Workspace(
            directory=area.new,
            scratch=area.scratch,
            report=came,
            grow=reservation.grow,
            stop=stop,
            fetched=self._fetched,
            unpacked=reservation.landed,
        )
        records = order.fetcher.bring(workspace)
        meter.flush()
        files = [one.path for one in records]
        where, directories = redact_source(entry.source), listing.directories
        allow_pickle = self._options.allow_pickle
        kind = check_files(where, entry.kind, files, directories, allow_pickle=allow_pickle)
        digest = content_digest(records)
        _require_digest(entry, digest)
        if kind is Kind.MODEL:
            with store_errors(self._disk.root):
                add_missing_version(area.new)
        manifest = Manifest(
            name=entry.name,
            kind=kind,
            digest=digest,
            source=redact_source(entry.source),
            source_signature=_trusted_signature(listing, began_at),
            files=tuple(records),
            parts=_parts(kind, area.new),
        )
        return self._disk.commit(area, manifest, stop)

    def _raise_refused(self, order: Order) -> None:
        """Raise what was wrong with these very bytes, instead of reading them all again."""
        refused = self._refused.get(order.entry.name)
        if refused is None:
            return
        asked = (*asks(order.entry), order.entry.kind)
        if (refused.asks, refused.signature) == (asked, order.listing.signature):
            raise refused.kind(refused.message)
        del self._refused[order.entry.name]

    def _same_source(self, order: Order, held: Iterable[Held]) -> Held | None:
        entry, source = order.entry, redact_source(order.entry.source)
        if order.restore is not None or not order.listing.signature:
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

    def _restored(self, order: Order, held: Iterable[Held]) -> Held | None:
        """Return what was to be put back, when another agent has just done that."""
        for one in held:
            if order.restore is not None and one.revision.path == order.restore.path:
                return self._use(one, order.entry)
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
