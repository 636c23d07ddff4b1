"""From an archive to a directory: tar, tar.gz and zip, each by our own strict reading of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event

from sidecar.artifacts.archive_gzip import MAGIC as GZIP_MAGIC
from sidecar.artifacts.archive_gzip import GzipStream
from sidecar.artifacts.archive_members import ArchiveFile, Member, no_archive
from sidecar.artifacts.archive_tar import BLOCK_BYTES, looks_like_tar, read_tar
from sidecar.artifacts.archive_tree import Bounds, Tree
from sidecar.artifacts.archive_zip import MAGICS as ZIP_MAGICS
from sidecar.artifacts.archive_zip import read_zip
from sidecar.artifacts.files import remove_tree, source_errors, store_errors
from sidecar.artifacts.listing import ADAPTER_CONFIG, MODEL_CONFIG, is_version
from sidecar.artifacts.manifest import MARKER, FileRecord
from sidecar.artifacts.remote.port import Packing
from sidecar.artifacts.workspace import Workspace, nobody
from sidecar.errors import InvalidArtifact

MAX_RATIO = 100
"""Weights shrink to a half at best, tokenizers to a tenth; a LoRA that was never trained is half
zeros. Deflate cannot do more than 1,030."""
FREE_RATIO_BYTES = 1 << 30
"""Up to here nothing is said of the ratio: it is no burden, and test models are all zeros."""
_SUFFIXES = {
    ".tar": Packing.TAR,
    ".tar.gz": Packing.TAR_GZIP,
    ".tgz": Packing.TAR_GZIP,
    ".zip": Packing.ZIP,
}
_FOREIGN = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
}


def packing_of(name: str) -> Packing | None:
    """Tell by its name how a file is packed; None for one that is no archive to unpack."""
    lower = name.lower()
    return next((packing for end, packing in _SUFFIXES.items() if lower.endswith(end)), None)


def unpack(
    file: Path,
    packing: Packing,
    workspace: Workspace,
    *,
    where: str,
    max_files: int,
    max_bytes: int | None,
    report: Callable[[int], None] = nobody,
) -> tuple[FileRecord, ...]:
    """Unpack an archive into the workspace's directory and return its files by path.

    Files become 0644 and durable, directories 0755; links become copies of what they name inside
    the archive. Each path has to be new in the directory, which is of no use after an error.
    The workspace is asked for room for every byte; its ``report`` hears 0 again and again, so that
    nobody takes it for hanging. ``report`` here hears the bytes of the archive as they are read.
    Raises ``UnsafeArtifact`` for what leads out, is there twice, is no plain file, or is more than
    it may be; ``InvalidArtifact`` for what is cut, damaged or packed in a way that is not read;
    ``StoreFull``, ``FetchFailed`` and ``Stopped``.
    """

    def read(size: int) -> None:
        report(size)
        # Also for what is read past, of which nothing is written.
        workspace.report(0)

    with open_members(
        file, packing, where=where, max_files=max_files, stop=workspace.stop, report=read
    ) as members:
        bounds = bounds_of(file, where, max_files, max_bytes)
        with Tree(workspace, where, bounds) as tree:
            for member in members:
                tree.add(member)
            return tree.finish()


@contextmanager
def open_members(
    file: Path,
    packing: Packing,
    *,
    where: str,
    max_files: int,
    stop: Event,
    report: Callable[[int], None] = nobody,
) -> Iterator[Iterator[Member]]:
    """Yield the members of an archive in their order, as it has them: nothing is judged yet.

    What it begins with counts, then ``packing``: people call a compressed tar .tar. Going on to
    the last member raises ``InvalidArtifact`` when the archive is cut or damaged.
    """
    with source_errors(where):
        # Never waiting for the writer of a pipe.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with source_errors(where):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidArtifact(f"{where}: no regular file")
        opened = ArchiveFile(descriptor, where, stop=stop, report=report)
        yield _members(opened, packing, max_files)
    finally:
        os.close(descriptor)


def _members(file: ArchiveFile, packing: Packing, max_files: int) -> Iterator[Member]:
    start = file.read_at(0, min(BLOCK_BYTES, file.size))
    for magic, name in _FOREIGN.items():
        if start.startswith(magic):
            raise InvalidArtifact(
                f"{file.where}: packed with {name}, which is not unpacked; use tar, gzip or zip"
            )
    if start.startswith(GZIP_MAGIC):
        return read_tar(GzipStream(file), file.where)
    if start.startswith(ZIP_MAGICS):
        return read_zip(file, max_members=max_files)
    if packing is Packing.ZIP and not looks_like_tar(start):
        raise no_archive(file.where, start)
    return read_tar(file, file.where)


def bounds_of(file: Path, where: str, max_files: int, max_bytes: int | None) -> Bounds:
    """Return how much may come out of an archive of this size. Raises ``ArtifactError``."""
    with source_errors(where):
        size = file.stat().st_size
    unlikely = max(FREE_RATIO_BYTES, MAX_RATIO * size)
    if max_bytes is not None and max_bytes <= unlikely:
        return Bounds(max_files=max_files, max_bytes=max_bytes, why="which is --max-artifact-bytes")
    why = f"while it has {size} itself: no model shrinks like that"
    return Bounds(max_files=max_files, max_bytes=unlikely, why=why)


def strip_enclosing(directory: Path, records: Sequence[FileRecord]) -> tuple[FileRecord, ...]:
    """Move an artifact up that was packed together with its directory; return its files.

    Only where that directory is alone and what is in it looks like an artifact: a directory named
    1 is a version of a model, and no enclosing one. Raises ``ArtifactError``.
    """
    with store_errors(directory):
        top = _enclosing(directory)
        if top is None:
            return tuple(records)
        _move_up(directory, top)
    moved = [replace(one, path=one.path.removeprefix(f"{top}/")) for one in records]
    return tuple(one for one in moved if one.path.partition("/")[0] != MARKER)


def _enclosing(directory: Path) -> str | None:
    names = os.listdir(directory)
    if len(names) != 1 or is_version(names[0]) or not (directory / names[0]).is_dir():
        return None
    inside = list((directory / names[0]).iterdir())
    is_artifact = any(
        one.name in {ADAPTER_CONFIG, MODEL_CONFIG} or (is_version(one.name) and one.is_dir())
        for one in inside
    )
    return names[0] if is_artifact else None


def _move_up(directory: Path, top: str) -> None:
    names = set(os.listdir(directory / top))
    # What is in it may be called as it is itself.
    spare = directory / next(name for n in count() if (name := f".{n}") not in names)
    (directory / top).rename(spare)
    for name in names:
        if name == MARKER:
            remove_tree(spare / name)
        else:
            (spare / name).rename(directory / name)
    spare.rmdir()
