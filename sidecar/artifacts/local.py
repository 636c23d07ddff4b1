"""Sources that the agent sees as directories: absolute paths and ``file://``."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.artifacts.files import (
    DIRECTORY_MODE,
    copy_file,
    raise_if_stopped,
    source_errors,
    store_errors,
)
from sidecar.artifacts.listing import MAX_FILES, Listing
from sidecar.artifacts.manifest import MARKER, FileRecord
from sidecar.artifacts.paths import MAX_PARTS, safe_path
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import InvalidArtifact, SourceMoved, UnsafeArtifact

MAX_DEPTH = MAX_PARTS
_ODD = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """One file of the tree; ``real`` is where its bytes are once links are followed."""

    path: str
    real: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class LocalSource:
    """A directory, copied as it is: links inside it become copies, links out of it are refused."""

    resumes = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._root = os.path.realpath(path)
        self._found: list[_Found] = []
        self._directories: list[str] = []
        self._newest_ns = 0

    def list(self) -> Listing:
        """Look at every file without opening one. Raises ``ArtifactError``."""
        self._found, self._directories, self._newest_ns = [], [], 0
        with source_errors(self._path):
            top = os.stat(self._root)
            if not stat.S_ISDIR(top.st_mode):
                raise InvalidArtifact(
                    f"{self._path}: this is a single file; name the directory that holds the "
                    "files, or an archive (.tar, .tar.gz, .tgz, .zip)"
                )
            self._changed(top)
            self._walk(self._root, "", (self._root,))
        self._found.sort(key=lambda one: one.path)
        self._directories.sort()
        return Listing(
            signature=self._signature(),
            newest_change=self._newest_ns / 1e9,
            is_coarse=self._newest_ns % 1_000_000_000 == 0,
            files=tuple((one.path, one.size) for one in self._found),
            directories=tuple(self._directories),
        )

    def bring(self, workspace: Workspace) -> tuple[FileRecord, ...]:
        """Copy what ``list`` found into an empty directory, hashing on the way.

        Raises ``SourceMoved`` when the source changed meanwhile, and ``Stopped``.
        """
        before = self._signature()

        def copied(size: int) -> None:
            workspace.report(size)
            workspace.fetched(size)

        with store_errors(workspace.directory):
            for name in self._directories:
                (workspace.directory / name).mkdir()
                (workspace.directory / name).chmod(DIRECTORY_MODE)
        records = []
        for one in self._found:
            raise_if_stopped(workspace.stop)
            records.append(self._copy(one, workspace, copied))
        if self.list().signature != before:
            raise self._moved()
        return tuple(records)

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _copy(self, one: _Found, workspace: Workspace, copied: Callable[[int], None]) -> FileRecord:
        with source_errors(self._path):
            # Not through a link that took the file's place, and never waiting for a pipe's writer.
            source = os.open(one.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            with source_errors(self._path):
                now = os.fstat(source)
            if (now.st_ino, now.st_size) != (one.inode, one.size):
                raise self._moved()
            with store_errors(workspace.directory):
                target = workspace.directory / one.path
                sha256 = copy_file(source, self._path, target, stop=workspace.stop, report=copied)
        finally:
            os.close(source)
        return FileRecord(path=one.path, size=one.size, sha256=sha256)

    def _walk(self, directory: str, prefix: str, above: tuple[str, ...]) -> None:
        if len(above) > MAX_DEPTH:
            raise InvalidArtifact(f"{self._path}: directories nest deeper than {MAX_DEPTH}")
        with os.scandir(directory) as entries:
            for entry in entries:
                path = prefix + entry.name
                if path == MARKER:
                    continue
                safe_path(path, self._path)
                real = self._resolve(entry.path, path) if entry.is_symlink() else entry.path
                info = os.stat(real)
                self._changed(info)
                if stat.S_ISDIR(info.st_mode):
                    if real in above:
                        raise UnsafeArtifact(f"{self._path}: the link {path} leads in a circle")
                    self._directories.append(path)
                    self._walk(real, path + "/", (*above, real))
                elif stat.S_ISREG(info.st_mode):
                    self._found.append(
                        _Found(
                            path,
                            real,
                            info.st_size,
                            info.st_mtime_ns,
                            info.st_ctime_ns,
                            info.st_ino,
                        )
                    )
                else:
                    what = _ODD.get(stat.S_IFMT(info.st_mode), "no regular file")
                    raise UnsafeArtifact(f"{self._path}: {path} is {what}; remove it")
                if len(self._found) + len(self._directories) > MAX_FILES:
                    raise InvalidArtifact(f"{self._path}: more than {MAX_FILES} files")

    def _resolve(self, link: str, path: str) -> str:
        real = os.path.realpath(link)
        if not real.startswith(self._root.rstrip("/") + "/"):
            raise UnsafeArtifact(
                f"{self._path}: the link {path} leads out of the directory; "
                "copy the files behind it into the directory (cp -L)"
            )
        return real

    def _changed(self, info: os.stat_result) -> None:
        # Setting a modification time sets the change time; only the latter cannot lie ahead.
        self._newest_ns = max(self._newest_ns, info.st_ctime_ns or info.st_mtime_ns)

    def _signature(self) -> str:
        lines = [f"{d}/" for d in self._directories]
        lines += [f"{f.path}\0{f.size}\0{f.mtime_ns}\0{f.ctime_ns}\0{f.inode}" for f in self._found]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _moved(self) -> SourceMoved:
        return SourceMoved(
            f"{self._path}: it changed while it was copied; it is copied again once it is quiet"
        )
