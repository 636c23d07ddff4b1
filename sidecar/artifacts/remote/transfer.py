"""Bringing the blobs of a source to disk: many at once, hashed on the way, resumed when cut off.

Small blobs are read one to a thread; large ones in parts, several threads to a blob, because one
connection to an object store is slower than the network. Each file is synced when it is complete:
with many small files that was faster than any way of syncing them together, as the threads wait
for the disk at the same time. What is durable is noted (``journal``), and a later fetch trusts
only that.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition, Thread

from sidecar.artifacts.files import CHUNK_BYTES, Digest, Stopped, store_errors
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.remote.checkpoints import Checkpoints
from sidecar.artifacts.remote.journal import Journal, Note, Ranges, read_notes
from sidecar.artifacts.remote.landing import Landing, open_file, write_at
from sidecar.artifacts.remote.places import Place, make_places
from sidecar.artifacts.remote.port import Blob, RemoteSource
from sidecar.artifacts.remote.reading import can_read_on, name_of, read_on, read_whole
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import DamagedSource, FetchFailed

PART_BYTES = 16 << 20
LARGE_BYTES = 2 * PART_BYTES
"""Blobs beyond it are read in parts."""
LOOK_SECONDS = 0.1
"""How often it is looked whether the fetch is to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """One blob on disk."""

    blob: Blob
    file: Path
    record: FileRecord


def fetch_blobs(
    source: RemoteSource,
    blobs: Sequence[Blob],
    workspace: Workspace,
    *,
    streams: int = 8,
    new_digest: Callable[[], Digest] = hashlib.sha256,
) -> tuple[Brought, ...]:
    """Bring every blob, durable on disk: plain ones below the workspace's directory, packed ones
    to its scratch.

    Blocks, with at most ``streams`` reads at once, all of which have ended when this returns or
    raises. Goes on where an interrupted call with the same blobs was, and after ``FetchFailed``, a
    bounded number of times. Raises ``ArtifactError``, and ``Stopped`` soon after the workspace's
    ``stop`` is set.
    """
    with store_errors(workspace.directory):
        places = make_places(blobs, workspace)
        known = {one.identity for one in places if can_read_on(one.blob)}
        path = workspace.scratch / "journal"
        notes = {blob: note for blob, note in read_notes(path).items() if blob in known}
        # Before a byte changes that a note on another blob speaks of.
        checkpoints = Checkpoints(Journal(path, notes))
    try:
        transfer = _Transfer(source, workspace, checkpoints, notes, new_digest)
        return transfer.run(places, streams)
    finally:
        checkpoints.close()


class _Transfer:
    """One call of ``fetch_blobs``."""

    def __init__(
        self,
        source: RemoteSource,
        workspace: Workspace,
        checkpoints: Checkpoints,
        notes: dict[str, Note],
        new_digest: Callable[[], Digest],
    ) -> None:
        self._source = source
        self._workspace = workspace
        self._notes = notes
        self._new_digest = new_digest
        self._checkpoints = checkpoints
        self._changed = Condition()
        # Guarded by _changed, from here on.
        self._error: BaseException | None = None
        self._waiting: deque[Place] = deque()
        self._landings: dict[Landing, Place] = {}
        """The large files under way."""
        self._brought: dict[str, Brought] = {}
        self._unfinished = 0

    def run(self, places: Sequence[Place], streams: int) -> tuple[Brought, ...]:
        # The largest first, so that none of them is alone at the end.
        self._waiting.extend(sorted(places, key=_weight, reverse=True))
        self._unfinished = len(places)
        parts = sum(-(-(one.blob.size or 1) // PART_BYTES) or 1 for one in places)
        threads = [
            Thread(target=self._work, name=f"fetch {number}", daemon=True)
            for number in range(min(streams, parts))
        ]
        self._wait_for(threads)
        self._raise_error()
        with store_errors(self._workspace.directory):
            self._checkpoints.flush()
        return tuple(self._brought[one.identity] for one in places)

    def _wait_for(self, threads: Sequence[Thread]) -> None:
        try:
            for thread in threads:
                thread.start()
        except RuntimeError:
            self._end(FetchFailed("the agent may have no more threads; raise its pids limit"))
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_SECONDS)
                if self._workspace.stop.is_set():
                    self._end(Stopped())

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback holds this frame, and with it the chunks of the failed read.
                del error

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                task()
        except BaseException as error:  # noqa: BLE001 - whoever called ``fetch_blobs`` gets it
            self._end(error)

    def _end(self, error: BaseException) -> None:
        with self._changed:
            # What the others raise because of the first error is of no interest.
            self._error = self._error or error
            self._changed.notify_all()

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise Stopped

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None, seconds)
        self._raise_if_ended()

    def _next(self) -> Callable[[], None] | None:
        """Return what a thread is to do next; None when it is not needed any more."""
        with self._changed:
            while True:
                self._raise_if_ended()
                for landing in self._landings:
                    if (part := landing.take_part()) is not None:
                        return partial(self._bring_part, landing, part)
                if self._waiting:
                    return partial(self._begin, self._waiting.popleft())
                if self._unfinished == 0:
                    return None
                # A large file may be opened, a hash come on, a damaged file begin anew.
                self._changed.wait(LOOK_SECONDS)

    def _begin(self, place: Place) -> None:
        blob, note = place.blob, self._notes.get(place.identity, Note())
        if (
            note.sha256
            and blob.sha256 in {"", note.sha256}
            and self._is_unchanged(place, note.sha256)
        ):
            self._finish(place, place.file.stat().st_size, note.sha256)
        elif blob.size is None or blob.size <= LARGE_BYTES or not can_read_on(blob):
            self._bring_whole(place)
        else:
            self._land(place, note.ranges)

    def _land(self, place: Place, written: Ranges) -> None:
        """Have a large blob brought in parts, but for these ranges of it."""
        landing = Landing(place.blob, place.file, self._new_digest, part_bytes=PART_BYTES)
        with store_errors(self._workspace.directory):
            here = landing.open(written)
        place.lost()
        place.came(here)
        self._checkpoints.begin(landing, place.identity)
        with self._changed:
            self._landings[landing] = place
            self._changed.notify_all()
        self._settle(landing)

    def _bring_part(self, landing: Landing, part: tuple[int, int]) -> None:
        place = self._landings[landing]
        with closing(read_on(self._source, place.blob, *part, self._wait)) as chunks:
            for position, chunk in chunks:
                self._raise_if_ended()
                place.came(len(chunk))
                with store_errors(self._workspace.directory):
                    landing.write(part, position, chunk)
                    self._checkpoints.count(len(chunk))
        landing.end_part(part)
        self._settle(landing)

    def _settle(self, landing: Landing) -> None:
        """Hash what came, and end the file when that was all of it."""
        with store_errors(self._workspace.directory):
            landing.hash_on(self._hear)
        if not landing.claim():
            return
        place = self._landings[landing]
        if self._is_promised(place, landing.sha256):
            with store_errors(self._workspace.directory):
                self._checkpoints.end(landing)
            self._finish(place, landing.size, landing.sha256)
        else:
            with store_errors(self._workspace.directory):
                self._checkpoints.drop(landing)
            self._land(place, ())
        with self._changed:
            del self._landings[landing]
            self._changed.notify_all()

    def _hear(self) -> None:
        """Let those go on who wait for a hash, and tell that it gets on."""
        self._raise_if_ended()
        self._workspace.report(0)
        with self._changed:
            self._changed.notify_all()

    def _bring_whole(self, place: Place) -> None:
        size, sha256 = self._read_whole(place)
        while not self._is_promised(place, sha256):
            size, sha256 = self._read_whole(place)
        self._finish(place, size, sha256)
        if can_read_on(place.blob):
            with store_errors(self._workspace.directory):
                self._checkpoints.add(place.identity, sha256)

    def _read_whole(self, place: Place) -> tuple[int, str]:
        size, digest = 0, self._new_digest()
        place.lost()
        with store_errors(self._workspace.directory):
            descriptor = open_file(place.file, os.O_TRUNC)
        try:
            with closing(read_whole(self._source, place.blob, self._wait)) as chunks:
                for position, chunk in chunks:
                    self._raise_if_ended()
                    if position < size:
                        size, digest = 0, self._new_digest()
                        place.lost()
                        with store_errors(self._workspace.directory):
                            os.ftruncate(descriptor, 0)
                    place.came(len(chunk))
                    digest.update(chunk)
                    with store_errors(self._workspace.directory):
                        write_at(descriptor, position, chunk)
                    size += len(chunk)
            with store_errors(self._workspace.directory):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return size, digest.hexdigest()

    def _is_unchanged(self, place: Place, sha256: str) -> bool:
        """Tell whether a file that was complete still has these bytes, by reading them."""
        digest = self._new_digest()
        try:
            with place.file.open("rb", buffering=0) as file:
                buffer = memoryview(bytearray(min(CHUNK_BYTES, os.fstat(file.fileno()).st_size)))
                while buffer and (size := file.readinto(buffer)):
                    self._raise_if_ended()
                    digest.update(buffer[:size])
                    place.came(size)
        except OSError:
            return False
        return digest.hexdigest() == sha256

    def _is_promised(self, place: Place, sha256: str) -> bool:
        """Tell whether these are the bytes that the source promises; raise when asked again."""
        promised = place.blob.sha256
        if promised in {"", sha256}:
            return True
        if not place.is_doubted:
            place.is_doubted = True
            return False
        raise DamagedSource(
            f"{self._source.where}: {name_of(place.blob)} has the sha256 {sha256}, its source "
            f"promises {promised}, also when it was read again: upload it anew"
        )

    def _finish(self, place: Place, size: int, sha256: str) -> None:
        record = FileRecord(path=place.blob.path, size=size, sha256=sha256)
        with self._changed:
            self._brought[place.identity] = Brought(blob=place.blob, file=place.file, record=record)
            self._unfinished -= 1
            self._changed.notify_all()


def _weight(place: Place) -> tuple[bool, int]:
    return place.blob.size is None, place.blob.size or 0
