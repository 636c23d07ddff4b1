"""When what came is made durable and noted, so that a later fetch can go on from there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from sidecar.artifacts.remote.journal import Journal, Note
from sidecar.artifacts.remote.landing import Landing

CHECKPOINT_BYTES = 16 << 20
"""Smaller ones than 64 MiB cost nothing that could be measured on a local disk."""
CHECKPOINT_FILES = 64
MAX_UNNOTED_BYTES = 2 * CHECKPOINT_BYTES
"""With so much since a checkpoint began, its end is waited for: the disk is the slower side. So
at most twice as much is read again after the agent was killed."""


class Checkpoints:
    """Watches over the files under way. Threads may share it; raises ``OSError``."""

    def __init__(self, journal: Journal) -> None:
        """Takes the journal over."""
        self._journal = journal
        self._writing = Lock()
        """Held while the journal is written, and while a file is closed that it speaks of."""
        self._is_broken = False
        """Syncing failed. A second attempt would succeed, because the system tells of lost bytes
        only once: nothing is noted any more."""
        self._lock = Lock()
        # Guarded by _lock, from here on.
        self._landings: dict[Landing, str] = {}
        self._complete: list[tuple[str, Note]] = []
        self._unnoted_bytes = 0

    def begin(self, landing: Landing, blob: str) -> None:
        """Note from now on what of a large file is there."""
        with self._lock:
            self._landings[landing] = blob

    def drop(self, landing: Landing) -> None:
        """Close a large file, and have nobody believe in the bytes that it has."""
        with self._lock:
            blob = self._landings.pop(landing)
        with self._writing:
            with self._unbroken():
                self._journal.add(blob, Note())
                self._journal.flush()
            landing.close()

    def end(self, landing: Landing) -> None:
        """Make a large file durable and close it."""
        with self._unbroken():
            os.fsync(landing.descriptor)
        with self._lock:
            blob = self._landings.pop(landing)
            self._complete.append((blob, Note(sha256=landing.sha256)))
        with self._writing:
            landing.close()

    def add(self, blob: str, sha256: str) -> None:
        """Note a file that is complete and durable."""
        with self._lock:
            self._complete.append((blob, Note(sha256=sha256)))
        self.count(0)

    def count(self, size: int) -> None:
        """Count bytes that were written, and make a checkpoint when it is time for one."""
        with self._lock:
            self._unnoted_bytes += size
            is_late = self._unnoted_bytes >= MAX_UNNOTED_BYTES
        if self._is_due() and self._writing.acquire(blocking=is_late):
            try:
                if self._is_due():
                    self._write()
            finally:
                self._writing.release()

    def flush(self) -> None:
        """Make everything durable, and note it."""
        with self._writing:
            self._write()

    def close(self) -> None:
        """Note what came, as far as the disk lets us, and close every file."""
        with suppress(OSError):
            self.flush()
        for landing in self._landings:
            landing.close()
        self._journal.close()

    def _write(self) -> None:
        if self._is_broken:
            return
        with self._lock:
            complete, self._complete = self._complete, []
            landings = list(self._landings.items())
            self._unnoted_bytes = 0
        with self._unbroken():
            for landing, blob in landings:
                written = landing.snapshot()
                os.fdatasync(landing.descriptor)
                self._journal.add(blob, Note(ranges=written))
            for blob, note in complete:
                self._journal.add(blob, note)
            self._journal.flush()

    def _is_due(self) -> bool:
        return self._unnoted_bytes >= CHECKPOINT_BYTES or len(self._complete) >= CHECKPOINT_FILES

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._is_broken = True
            raise
