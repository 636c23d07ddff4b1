"""Where revisions are made: directories below the store's ``.staging`` that no engine sees.

::

    .staging/<unique>/               one that dies with its agent
    .staging/fetch-<digest of key>/  one that an interrupted fetch leaves to the next:
        signature                    what its source looked like
        new/                         becomes the revision
        scratch/                     archives, and notes on what is complete

Each is locked by the agent that works in it. Methods block and raise ``OSError``, unless they say
otherwise.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sidecar.artifacts.files import (
    DIRECTORY_MODE,
    Stopped,
    make_directories,
    remove_tree,
    store_errors,
    write_file,
)
from sidecar.artifacts.layout import children
from sidecar.artifacts.locks import LockFile
from sidecar.errors import AccessDenied, FetchFailed, SourceMoved

KEPT_SECONDS = 86400.0
"""How long an interrupted fetch is kept for the next one: a day of somebody's failing network."""
MAX_SIGNATURE_BYTES = 4096
_PREFIX = "fetch-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """One directory to make a revision in."""

    path: Path
    new: Path
    scratch: Path


class Areas:
    """The staging directory of one store, as one agent uses it."""

    def __init__(self, root: Path, lock_path: Path, locks: LockFile) -> None:
        self._root = root
        self._staging = root / ".staging"
        self._lock_path = lock_path
        self._locks = locks
        self._running: set[Path] = set()
        """What this agent is fetching into: its room is reserved, and not counted once more."""

    def open(self, now: float) -> None:
        """Make the directory, and delete what dead agents left that is of no use any more."""
        make_directories(self._staging)
        self.collect(now)

    def collect(self, now: float) -> None:
        """Delete what nobody works in, and nobody went on with for a day."""
        for left in children(self._staging):
            if left not in self._running and not _is_worth_keeping(left, now):
                self._collect(left)

    @contextmanager
    def fresh(self) -> Iterator[Area]:
        """Yield an empty one; what is left in it is deleted. Raises ``ArtifactError``."""
        path = self._staging / secrets.token_hex(12)
        try:
            with store_errors(self._root):
                make_directories(self._staging)
                self._locks.acquire(_key(path), exclusive=True)
                area = _make(path)
            yield area
        finally:
            # What cannot be deleted now is collected at the next start.
            with suppress(OSError):
                remove_tree(path)
            with suppress(OSError):
                self._locks.release(_key(path))

    @contextmanager
    def of_fetch(self, key: str, signature: str) -> Iterator[Area]:
        """Yield the one of a fetch, with what an interrupted one of the same signature left.

        Kept when this fetch is interrupted too, deleted when it ends in any other way; without a
        signature it is new, and never kept. Whoever calls holds the lock of the fetch. Raises
        ``ArtifactError``.
        """
        path, is_kept = self._path(key), False
        with store_errors(self._root):
            make_directories(self._staging)
            if not self._locks.acquire(_key(path), exclusive=True):
                raise FetchFailed(f"{path}: another pod is deleting it; it is fetched anew soon")
        self._running.add(path)
        try:
            with store_errors(self._root):
                area = _reopen(path, signature)
            yield area
        except SourceMoved:
            raise
        except (Stopped, FetchFailed, AccessDenied):
            # Also when access was denied: a token may have expired half way.
            is_kept = bool(signature)
            raise
        finally:
            self._running.discard(path)
            with suppress(OSError):
                if not is_kept:
                    _remove(path)
            with suppress(OSError):
                self._locks.release(_key(path))

    def bytes_of(self, key: str) -> int:
        """Return how many bytes the area of a fetch has on disk."""
        return _size(self._path(key))

    def bytes_besides(self, key: str, now: float) -> int:
        """Return how many bytes interrupted fetches, and those of other agents, have on disk.

        Old ones are deleted.
        """
        total = 0
        for left in self._others(key):
            if not _is_worth_keeping(left, now):
                self._collect(left)
            total += _size(left)
        return total

    def drop_interrupted(self, key: str) -> int:
        """Delete what interrupted fetches left, but ``key``'s; return how many bytes that were."""
        freed = 0
        for left in self._others(key):
            size = _size(left)
            freed += size if self._collect(left) else 0
        return freed

    def _others(self, key: str) -> list[Path]:
        ours = {self._path(key), *self._running}
        found = children(self._staging)
        return [one for one in found if one.name.startswith(_PREFIX) and one not in ours]

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._staging / f"{_PREFIX}{digest[:24]}"

    def _collect(self, path: Path) -> bool:
        # With locks of its own: those of this agent do not keep it from what it works in.
        locks = LockFile(self._lock_path)
        try:
            if is_ours := locks.acquire(_key(path), exclusive=True):
                _remove(path)
            return is_ours
        finally:
            locks.close()


def _key(path: Path) -> str:
    return f"staging {path.name}"


def _make(path: Path) -> Area:
    area = Area(path=path, new=path / "new", scratch=path / "scratch")
    path.mkdir()
    area.scratch.mkdir()
    area.new.mkdir()
    area.new.chmod(DIRECTORY_MODE)
    return area


def _reopen(path: Path, signature: str) -> Area:
    area = Area(path=path, new=path / "new", scratch=path / "scratch")
    # Links are nobody's areas: what is written and deleted here must be below the store.
    is_whole = all(_is_directory(one) for one in (path, area.new, area.scratch))
    if signature and is_whole and _read_signature(path) == signature:
        os.utime(path)
        return area
    _remove(path)
    area = _make(path)
    # Last: without it, nothing that lies here is taken for anything.
    write_file(path / "signature", signature.encode())
    return area


def _remove(path: Path) -> None:
    """Delete an area; when that is cut off, what is left is not taken for an interrupted fetch."""
    if _is_directory(path):
        remove_tree(path / "signature")
    remove_tree(path)


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _read_signature(path: Path) -> str:
    """Return what an area is for; nothing where that is not to be read, whatever lies there."""
    try:
        descriptor = os.open(path / "signature", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, MAX_SIGNATURE_BYTES).decode()
    except (OSError, ValueError):
        return ""
    finally:
        os.close(descriptor)


def _is_worth_keeping(path: Path, now: float) -> bool:
    return bool(_read_signature(path)) and now - _last_used(path) < KEPT_SECONDS


def _last_used(path: Path) -> float:
    """Return the unix time at which something was last noted in an area."""
    times = [0.0]
    for one in (path, path / "scratch", *children(path / "scratch")):
        with suppress(FileNotFoundError):
            times.append(one.lstat().st_mtime)
    return max(times)


def _size(path: Path) -> int:
    """Return the bytes that a directory's files take; what vanishes meanwhile counts nothing."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                # Of a file with holes, what is really there.
                info = os.lstat(os.path.join(directory, name))
                total += min(info.st_size, 512 * info.st_blocks)
    return total
