"""Locks between the agents of several pods that share one store.

One lock file; each key is one byte of it, locked by the open file (not by the process), so that
thousands of keys cost one descriptor, nothing has to be cleaned up, and the kernel releases the
locks of an agent that dies. Two ``LockFile`` of one process exclude each other as well.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path
from threading import Lock

from sidecar.artifacts.files import FILE_MODE, make_directories

_BUSY = frozenset({errno.EAGAIN, errno.EACCES})
_FLOCK = struct.Struct("hhqqi0q")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, pid."""


class LockFile:
    """Shared and exclusive locks by key, none of which waits. Methods raise ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._opening = Lock()

    def acquire(self, key: str, *, exclusive: bool) -> bool:
        """Take or convert a lock; False when another holder is in the way, then nothing changes."""
        try:
            self._apply(key, fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK)
        except OSError as error:
            if error.errno in _BUSY and self._descriptor is not None:
                return False
            raise
        return True

    def release(self, key: str) -> None:
        """Give up a lock; one that is not held is no error."""
        if self._descriptor is not None:
            self._apply(key, fcntl.F_UNLCK)

    def close(self) -> None:
        """Give up every lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _apply(self, key: str, operation: int) -> None:
        with self._opening:
            if self._descriptor is None:
                make_directories(self._path.parent)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, FILE_MODE)
        start = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8])
        request = _FLOCK.pack(operation, os.SEEK_SET, start >> 2, 1, 0)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
