"""How much the store may still take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from sidecar.artifacts.files import store_errors
from sidecar.errors import StoreFull


class Room:
    """Reserves bytes for running fetches, so that two of them do not take the same room."""

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._reserved = 0
        self._lock = Lock()

    @contextmanager
    def reserve(self, size: int, held_bytes: int, what: str) -> Iterator[None]:
        """Set ``size`` bytes aside beside ``held_bytes`` that are there; raises ``StoreFull``."""
        with store_errors(self._root):
            disk = os.statvfs(self._root)
        free = disk.f_bavail * disk.f_frsize
        with self._lock:
            limit = self._max_bytes
            if limit is not None and held_bytes + self._reserved + size > limit:
                raise StoreFull(
                    f"{what} needs {size} bytes, the store {self._root} holds "
                    f"{held_bytes + self._reserved} of {limit}: evict something or raise "
                    "--store-max-bytes"
                )
            if self._reserved + size > free:
                raise StoreFull(
                    f"{what} needs {size} bytes, the disk of the store {self._root} has "
                    f"{max(0, free - self._reserved)} left: free space or enlarge it"
                )
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size
