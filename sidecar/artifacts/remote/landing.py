"""The file that one large blob lands in: in parts, in any order, hashed from its first byte on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from sidecar.artifacts.files import CHUNK_BYTES, FILE_MODE, Digest
from sidecar.artifacts.remote.journal import Ranges, merge, missing
from sidecar.artifacts.remote.port import Blob
from sidecar.errors import FetchFailed

WINDOW_BYTES = 256 << 20
"""How far parts may run ahead of the hash, so that it finds them in the page cache."""


class Landing:
    """One file on its way. Threads may share it; raises ``OSError`` and ``FetchFailed``."""

    def __init__(
        self, blob: Blob, file: Path, new_digest: Callable[[], Digest], *, part_bytes: int
    ) -> None:
        assert blob.size is not None
        self.blob = blob
        self.file = file
        self.size = blob.size
        self._part_bytes = part_bytes
        self._digest = new_digest()
        self._descriptor: int | None = None
        self._hashing = Lock()
        self._front = 0
        """Hashed up to here; changed under ``_hashing``."""
        self._lock = Lock()
        # Guarded by _lock, from here on.
        self._written: Ranges = ()
        self._parts: deque[tuple[int, int]] = deque()
        self._positions: dict[int, int] = {}
        """Of the parts under way: how far each is written, by its start."""
        self._is_claimed = False

    def open(self, written: Ranges) -> int:
        """Open the file, trusting these ranges of it as far as it goes; return their bytes."""
        self._descriptor = open_file(self.file)
        try:
            length = os.fstat(self._descriptor).st_size
            kept = merge((start, min(end, length, self.size)) for start, end in written)
            os.ftruncate(self._descriptor, max((end for _, end in kept), default=0))
        except OSError:
            self.close()
            raise
        self._written = kept
        for start, end in missing(kept, self.size):
            for at in range(start, end, self._part_bytes):
                self._parts.append((at, min(at + self._part_bytes, end)))
        return sum(end - start for start, end in kept)

    def close(self) -> None:
        """Close the file; again is no error."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def descriptor(self) -> int:
        """The open file."""
        assert self._descriptor is not None
        return self._descriptor

    @property
    def sha256(self) -> str:
        """The hash in hex, of all of it once that is claimed."""
        return self._digest.hexdigest()

    def take_part(self) -> tuple[int, int] | None:
        """Hand out the next part; None while there is none, or the hash is too far behind."""
        with self._lock:
            if not self._parts or self._parts[0][0] >= self._front + WINDOW_BYTES:
                return None
            part = self._parts.popleft()
            self._positions[part[0]] = part[0]
            return part

    def write(self, part: tuple[int, int], position: int, chunk: memoryview) -> None:
        """Write the next chunk of a part, and hash it at once when it is its turn."""
        write_at(self.descriptor, position, chunk)
        with self._lock:
            self._positions[part[0]] = position + len(chunk)
        if position == self._front and self._hashing.acquire(blocking=False):
            try:
                if position == self._front:
                    self._digest.update(chunk)
                    self._front += len(chunk)
            finally:
                self._hashing.release()

    def end_part(self, part: tuple[int, int]) -> None:
        """Count a part among those that are there."""
        with self._lock:
            self._written = merge([*self._written, part])
            del self._positions[part[0]]

    def hash_on(self, after_chunk: Callable[[], None]) -> None:
        """Hash what is there behind the front, unless another thread does.

        ``after_chunk`` may raise.
        """
        while self._solid() > self._front and self._hashing.acquire(blocking=False):
            # Whoever finds it taken goes away: the holder looks once more after it gave it up.
            try:
                self._hash(self._solid(), after_chunk)
            finally:
                self._hashing.release()

    def claim(self) -> bool:
        """Tell one thread, once, that all of it is there and hashed."""
        with self._lock:
            is_whole = self._front == self.size and not self._positions
            is_first = is_whole and not self._is_claimed
            self._is_claimed |= is_whole
            return is_first

    def snapshot(self) -> Ranges:
        """Return what is written by now."""
        with self._lock:
            return merge([*self._written, *self._positions.items()])

    def _solid(self) -> int:
        """Return up to where everything is written, from the front on."""
        front = self._front
        for start, end in self.snapshot():
            if start <= front < end:
                return end
        return front

    def _hash(self, end: int, after_chunk: Callable[[], None]) -> None:
        buffer = memoryview(bytearray(min(CHUNK_BYTES, end - self._front)))
        while self._front < end:
            size = os.preadv(self.descriptor, [buffer[: end - self._front]], self._front)
            if not size:
                raise FetchFailed(f"{self.file} was cut off while it was written; try again")
            self._digest.update(buffer[:size])
            self._front += size
            after_chunk()


def open_file(path: Path, flags: int = 0) -> int:
    """Open a file for writing, mode 0644 whatever the umask, never through a link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)
    return descriptor


def write_at(descriptor: int, position: int, chunk: memoryview) -> None:
    """Write all of a chunk at a position."""
    while chunk:
        size = os.pwrite(descriptor, chunk, position)
        chunk = chunk[size:]
        position += size
