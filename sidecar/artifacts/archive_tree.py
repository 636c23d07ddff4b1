"""The files that come out of one archive, below a directory of ours."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from sidecar.artifacts.archive_links import circle, follow
from sidecar.artifacts.archive_members import Member, MemberKind
from sidecar.artifacts.files import (
    DIRECTORY_MODE,
    FILE_MODE,
    copy_file,
    raise_if_stopped,
    store_errors,
)
from sidecar.artifacts.manifest import MARKER, FileRecord
from sidecar.artifacts.paths import MAX_PARTS, MAX_PATH_BYTES, Paths, safe_path, shown
from sidecar.artifacts.syncer import Syncer
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import InvalidArtifact, UnsafeArtifact

_GROW_BYTES = 64 << 20
_MAX_TARGET_PARTS = 2 * MAX_PARTS
"""All the way up, and all the way down."""
_FILE_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much may come out of one archive."""

    max_files: int
    """Directories count as well."""
    max_bytes: int
    why: str
    """What ``max_bytes`` is, in words."""


class Tree:
    """Writes members as plain files and directories, whatever an archive says of them.

    Nothing is ever written through a link: on disk there is none, links become copies. Files are
    durable after ``finish``; the end of the ``with`` gives up threads. The workspace's ``report``
    is called with 0 at each step: nothing new arrived, but it gets on.
    Methods raise ``ArtifactError`` and ``Stopped``.
    """

    def __init__(self, workspace: Workspace, where: str, bounds: Bounds) -> None:
        self._workspace = workspace
        self._syncer = Syncer()
        self._root = workspace.directory
        self._where = where
        self._bounds = bounds
        self._members = 0
        self._bytes = 0
        self._granted = 0
        self._paths = Paths(where)
        self._links: dict[str, str] = {}
        self._records: dict[str, FileRecord] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._syncer.close()

    def add(self, member: Member) -> None:
        """Write one member; a link waits for ``finish``."""
        self._step()
        self._members += 1
        self._count(member.size)
        path = self._path(member.name, member.kind)
        if path is None:
            return
        match member.kind:
            case MemberKind.DIRECTORY:
                self._make(self._paths.add_directory(path))
            case MemberKind.FILE:
                self._make(self._paths.add_file(path))
                self._write(path, member)
            case MemberKind.HARD_LINK:
                self._make(self._paths.add_file(path))
                self._copy(self._earlier(member), path)
            case MemberKind.LINK:
                # As a file, so that no later member is written through it.
                self._make(self._paths.add_file(path))
                self._links[path] = self._target(member)
            case _:
                raise UnsafeArtifact(
                    f"{self._where}: {shown(member.name)} is {member.kind}; pack without it"
                )

    def finish(self) -> tuple[FileRecord, ...]:
        """Make copies of what links name, as is done for directories; return all files by path."""
        real = {path: self._follow(path) for path in sorted(self._links)}
        children = self._children() if real else {}
        self._paths.files.difference_update(real)
        for path, named in real.items():
            above = [path[:at] for at, sign in enumerate(path) if sign == "/"]
            self._expand(path, named, children, ("", *above))
        with store_errors(self._root):
            self._syncer.wait()
        return tuple(self._records[path] for path in sorted(self._records))

    def _path(self, name: str, kind: MemberKind) -> str | None:
        """Return where a member goes; None when it is of no use."""
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if not parts and kind is MemberKind.DIRECTORY:
            return None
        if parts[:1] == [MARKER]:
            # As in a directory: what another store noted of its copy is no part of the artifact.
            return None
        path = safe_path(name if name.startswith("/") else "/".join(parts), self._where)
        is_ignored = parts[0] in {"__MACOSX", "pax_global_header"} or any(
            part == ".DS_Store" or part.startswith("._") for part in parts
        )
        return None if is_ignored else path

    def _step(self) -> None:
        """Be stopped here, and have whoever waits hear that it is not hanging."""
        raise_if_stopped(self._workspace.stop)
        self._workspace.report(0)

    def _target(self, member: Member) -> str:
        target = member.target
        size = len(target.encode("utf-8", "surrogateescape"))
        if size > MAX_PATH_BYTES or target.count("/") >= _MAX_TARGET_PARTS:
            raise InvalidArtifact(
                f"{self._where}: what the link {shown(member.name)} names is longer than any path"
            )
        return target

    def _count(self, size: int) -> None:
        self._bytes += size
        if max(self._members, len(self._paths)) > self._bounds.max_files:
            raise UnsafeArtifact(
                f"{self._where}: the archive holds more than {self._bounds.max_files} files"
            )
        if self._bytes > self._bounds.max_bytes:
            raise UnsafeArtifact(
                f"{self._where}: the archive unpacks to more than {self._bounds.max_bytes} bytes, "
                f"{self._bounds.why}"
            )

    def _make(self, directories: list[str]) -> None:
        self._count(0)
        for path in directories:
            target = self._root / path
            with self._store_errors(path):
                try:
                    target.mkdir()
                except FileExistsError:
                    # Of another part of the artifact.
                    if not target.is_dir():
                        raise
                else:
                    target.chmod(DIRECTORY_MODE)

    def _write(self, path: str, member: Member) -> None:
        digest, left = hashlib.sha256(), member.size
        with self._store_errors(path):
            target = os.open(self._root / path, _FILE_FLAGS, FILE_MODE)
            try:
                os.fchmod(target, FILE_MODE)
                for chunk in member.chunks:
                    self._step()
                    self._grow(len(chunk), left)
                    left -= len(chunk)
                    digest.update(chunk)
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[os.write(target, rest) :]
                    self._workspace.unpacked(len(chunk))
                    self._syncer.wrote(target, len(chunk))
            except BaseException:
                os.close(target)
                raise
            self._syncer.take(target)
        self._records[path] = FileRecord(path=path, size=member.size, sha256=digest.hexdigest())

    def _grow(self, size: int, left: int) -> None:
        """Ask for room before bytes are written, for not many times those that arrived."""
        if size > self._granted:
            asked = min(left - self._granted, _GROW_BYTES)
            self._workspace.grow(asked)
            self._granted += asked
        self._granted -= size

    def _copy(self, one: FileRecord, path: str) -> None:
        self._count(one.size)
        self._workspace.grow(one.size)
        with self._store_errors(path):
            source = os.open(self._root / one.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                sha256 = copy_file(
                    source,
                    self._where,
                    self._root / path,
                    stop=self._workspace.stop,
                    report=lambda _: self._workspace.report(0),
                )
            finally:
                os.close(source)
        self._workspace.unpacked(one.size)
        self._records[path] = FileRecord(path=path, size=one.size, sha256=sha256)

    def _earlier(self, member: Member) -> FileRecord:
        found = self._records.get(self._path(member.target, MemberKind.FILE) or "")
        if found is None:
            raise UnsafeArtifact(
                f"{self._where}: {shown(member.name)} is a hard link to {shown(member.target)}, "
                "which is no earlier file of the archive"
            )
        return found

    def _follow(self, path: str) -> str:
        self._step()
        paths = self._paths
        return follow(path, self._links, paths.files, paths.directories, self._where)

    def _children(self) -> dict[str, list[str]]:
        children = defaultdict(list)
        for path in sorted(self._paths.files | self._paths.directories):
            parent, _, name = path.rpartition("/")
            children[parent].append(name)
        return children

    def _expand(
        self, path: str, real: str, children: dict[str, list[str]], above: tuple[str, ...]
    ) -> None:
        self._step()
        safe_path(path, self._where)
        if real in self._records:
            self._make(self._paths.add_file(path))
            self._copy(self._records[real], path)
            return
        if real in above:
            raise circle(path, self._where)
        self._make(self._paths.add_directory(path))
        for name in children.get(real, ()):
            child = f"{real}/{name}"
            named = self._follow(child) if child in self._links else child
            self._expand(f"{path}/{name}", named, children, (*above, real))

    @contextmanager
    def _store_errors(self, path: str) -> Iterator[None]:
        with store_errors(self._root):
            try:
                yield
            except FileExistsError as error:
                raise UnsafeArtifact(
                    f"{self._where}: {shown(path)} is there twice; keep one of them"
                ) from error
