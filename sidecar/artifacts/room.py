"""How much the store may still take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from sidecar.artifacts.files import store_errors
from sidecar.errors import StoreFull


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What is on the store's disk when a fetch begins."""

    held_bytes: int
    """Of complete revisions, of interrupted fetches, and of those of other agents."""
    resumed_bytes: int
    """What an interrupted fetch left of the bytes that are asked for now."""
    spare: Callable[[], int]
    """Deletes what nobody is fetching any more, when there is no room otherwise; returns how many
    of the held bytes that were."""


class Room:
    """Reserves bytes for running fetches, so that two of them do not take the same room."""

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._reserved = 0
        self._coming = 0
        """What of the reserved bytes is not on disk already."""
        self._lock = Lock()

    @contextmanager
    def reserve(self, size: int, taken: Taken, what: str) -> Iterator[Reservation]:
        """Set ``size`` bytes aside beside those that are there; raises ``StoreFull``."""
        reservation = Reservation(self, taken, what)
        self._take(size, max(0, size - taken.resumed_bytes), reservation)
        try:
            yield reservation
        finally:
            with self._lock:
                self._reserved -= reservation.size
                self._coming -= reservation.coming

    def _take(self, size: int, coming: int, to: Reservation) -> None:
        try:
            self._try(size, coming, to)
        except StoreFull:
            freed = to.spare()
            if not freed:
                raise
            to.held_bytes -= freed
            self._try(size, coming, to)

    def _try(self, size: int, coming: int, to: Reservation) -> None:
        with store_errors(self._root):
            disk = os.statvfs(self._root)
        free = disk.f_bavail * disk.f_frsize
        with self._lock:
            limit, held = self._max_bytes, to.held_bytes + self._reserved
            if limit is not None and held + size > limit:
                raise StoreFull(
                    f"{to.what} needs {to.size + size} bytes, the store {self._root} holds "
                    f"{held - to.size} of {limit}: evict something or raise --store-max-bytes"
                )
            if self._coming + coming > free:
                raise StoreFull(
                    f"{to.what} needs {to.coming + coming} bytes, the disk of the store "
                    f"{self._root} has {max(0, free - self._coming + to.coming)} left: free space "
                    "or enlarge it"
                )
            self._reserved += size
            self._coming += coming
            to.size += size
            to.coming += coming

    def _landed(self, size: int, of: Reservation) -> None:
        with self._lock:
            landed = min(size, of.coming)
            of.coming -= landed
            self._coming -= landed


class Reservation:
    """Bytes that one fetch may write."""

    def __init__(self, room: Room, taken: Taken, what: str) -> None:
        self._room = room
        self.held_bytes = taken.held_bytes
        self.spare = taken.spare
        self.what = what
        self.size = 0
        self.coming = 0
        self._resumed_bytes = taken.resumed_bytes

    def grow(self, size: int) -> None:
        """Set further bytes aside: an archive turned out to hold more. Raises ``StoreFull``."""
        self._room._take(size, size, self)

    def wrote(self, size: int) -> None:
        """Hear that so many of the bytes are on disk, first of all those that were resumed."""
        resumed = min(size, self._resumed_bytes)
        self._resumed_bytes -= resumed
        self.landed(size - resumed)

    def landed(self, size: int) -> None:
        """Hear that so many of the bytes are on disk, where they take free room no more."""
        self._room._landed(size, self)
