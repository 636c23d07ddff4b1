"""What is done to single files and directories: copy, hash, sync, remove, and name the error."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Protocol

from sidecar.errors import AccessDenied, ArtifactError, FetchFailed, NotFound, StoreFull

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
CHUNK_BYTES = 1 << 20
_FICLONE = 0x40049409
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_ACCESS = frozenset({errno.EACCES, errno.EPERM})


class Stopped(Exception):
    """The work was cancelled between two chunks; never leaves this package."""


class Digest(Protocol):
    """What ``hashlib.sha256()`` returns."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def raise_if_stopped(stop: Event) -> None:
    """Raise ``Stopped`` once ``stop`` is set."""
    if stop.is_set():
        raise Stopped


@contextmanager
def source_errors(path: str) -> Iterator[None]:
    """Translate what the operating system says of a source into ``ArtifactError``."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: there is no such file or directory in the agent") from error
    except OSError as error:
        if error.errno in _NO_ACCESS:
            raise AccessDenied(f"{path}: the agent may not read it ({error.strerror})") from error
        raise FetchFailed(f"{path}: cannot be read ({error.strerror})") from error


@contextmanager
def store_errors(root: Path) -> Iterator[None]:
    """Translate what the operating system says of the store into ``ArtifactError``."""
    try:
        yield
    except OSError as error:
        raise store_error(root, error) from error


def store_error(root: Path, error: OSError) -> ArtifactError:
    """Return the ``ArtifactError`` that an error of the store's disk means."""
    if error.errno in _NO_ROOM:
        return StoreFull(
            f"the disk of the store {root} is full ({error.strerror}): free space or enlarge it"
        )
    return FetchFailed(
        f"the store {root} cannot be used ({error.strerror}: {error.filename or root}): "
        "--store-dir must be a writable directory"
    )


def make_directories(path: Path) -> None:
    """Create a directory and its missing parents, mode 0755 whatever the umask."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for one in reversed(missing):
        with suppress(FileExistsError):
            one.mkdir()
            one.chmod(DIRECTORY_MODE)
            sync_directory(one.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Make the names in a directory and all below it durable, the deepest first."""
    for directory, _, _ in os.walk(root, topdown=False):
        sync_directory(Path(directory))


def write_file(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Write a file so that readers see the old or the new content, durable when this returns."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as handle:
            os.fchmod(descriptor, mode)
            handle.write(data)
            handle.flush()
            os.fsync(descriptor)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    sync_directory(path.parent)


def copy_file(
    source: int, where: str, target: Path, *, stop: Event, report: Callable[[int], None]
) -> str:
    """Copy an open file to a new one and return the sha256 of the copy in hex.

    By reflink where the filesystem can: such a copy takes no room and is then read for its hash.
    ``report`` is called with the bytes of each chunk. Raises ``OSError`` for the target,
    ``ArtifactError`` for the source (``where`` in words), and ``Stopped``.
    """
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        os.fchmod(descriptor, FILE_MODE)
        digest = hashlib.sha256()
        if _clone(source, descriptor):
            _transfer(descriptor, str(target), None, digest, stop, report)
        else:
            _transfer(source, where, descriptor, digest, stop, report)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def read_file(path: Path, *, stop: Event) -> None:
    """Read a file once, which leaves it in the page cache.

    Raises ``ArtifactError`` and ``Stopped``.
    """
    with source_errors(str(path)):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        _transfer(descriptor, str(path), None, None, stop, lambda _: None)
    finally:
        os.close(descriptor)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _transfer(
    source: int,
    where: str,
    target: int | None,
    digest: Digest | None,
    stop: Event,
    report: Callable[[int], None],
) -> None:
    with source_errors(where):
        # A full chunk for each small file would cost time, and memory that no thread gives back.
        expected = os.fstat(source).st_size
    buffer = memoryview(bytearray(min(CHUNK_BYTES, expected + 1)))
    while True:
        raise_if_stopped(stop)
        with source_errors(where):
            size = os.readv(source, [buffer])
        if not size:
            return
        chunk = buffer[:size]
        if digest is not None:
            digest.update(chunk)
        while target is not None and chunk:
            chunk = chunk[os.write(target, chunk) :]
        report(size)


def remove_tree(path: Path) -> None:
    """Delete a file, a link or a directory with all below it; links are not followed.

    What is already gone is no error; raises ``OSError`` otherwise.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        path.unlink(missing_ok=True)
        return
    with os.scandir(path) as found:
        names = [one.name for one in found]
    for name in names:
        remove_tree(path / name)
    with suppress(FileNotFoundError):
        path.rmdir()
