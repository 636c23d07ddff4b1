"""Which names that others chose may become paths below a directory of ours."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.artifacts.manifest import MARKER
from sidecar.errors import InvalidArtifact, UnsafeArtifact

MAX_PARTS = 64
MAX_PART_BYTES = 255
"""NAME_MAX of Linux filesystems."""
MAX_PATH_BYTES = 2048
"""Half of PATH_MAX: the other half is left to the path of the store."""
_SHOWN_CHARACTERS = 120


def safe_path(name: str, where: str) -> str:
    """Return ``name`` when it is a plain relative path with forward slashes.

    Raises ``UnsafeArtifact`` for one that leads out of its directory, and ``InvalidArtifact`` for
    one that no directory or checksum list can hold, or that is the store's own.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise UnsafeArtifact(f"{where}: {shown(name)} leads out of the artifact's directory")
    if not name.isprintable() or "\\" in name:
        raise InvalidArtifact(
            f"{where}: the file name {shown(name)} has characters that cannot be kept; rename it"
        )
    if "" in parts or "." in parts:
        raise InvalidArtifact(f"{where}: {shown(name)} is no plain path of a file; rename it")
    if parts[0] == MARKER:
        raise InvalidArtifact(f"{where}: {shown(name)} is what the store calls its own; rename it")
    if len(parts) > MAX_PARTS:
        raise InvalidArtifact(f"{where}: directories nest deeper than {MAX_PARTS}: {shown(name)}")
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise InvalidArtifact(
            f"{where}: a file name longer than {MAX_PART_BYTES} bytes: {shown(name)}; rename it"
        )
    if len(name.encode()) > MAX_PATH_BYTES:
        raise InvalidArtifact(
            f"{where}: a path longer than {MAX_PATH_BYTES} bytes: {shown(name)}; rename it"
        )
    return name


def check_paths(names: Iterable[str], where: str) -> None:
    """Raise ``ArtifactError`` unless files of all these names can be in one directory.

    Each is a safe path, none is there twice, and none is the directory of another.
    """
    paths = Paths(where)
    for name in names:
        paths.add_file(safe_path(name, where))


class Paths:
    """Paths of files, and of the directories that hold them, which do not get in each other's way.

    Methods take safe paths and raise ``UnsafeArtifact`` for one that is there as something else.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.files: set[str] = set()
        self.directories: set[str] = set()

    def __len__(self) -> int:
        return len(self.files) + len(self.directories)

    def add_file(self, path: str) -> list[str]:
        """Add a file; return the directories that are new with it, the outermost first."""
        if path in self.directories:
            raise self._both(path)
        if path in self.files:
            raise UnsafeArtifact(f"{self._where}: {shown(path)} is there twice; keep one of them")
        new = self.add_directory(path.rpartition("/")[0])
        self.files.add(path)
        return new

    def add_directory(self, path: str) -> list[str]:
        """Add a directory, new or not; return those that are new, the outermost first."""
        new: list[str] = []
        while path and path not in self.directories:
            if path in self.files:
                raise self._both(path)
            new.append(path)
            path = path.rpartition("/")[0]
        self.directories.update(new)
        return new[::-1]

    def _both(self, path: str) -> UnsafeArtifact:
        return UnsafeArtifact(
            f"{self._where}: {shown(path)} is a file and a directory at once; rename one of them"
        )


def shown(name: str) -> str:
    """Return a foreign name as it may stand in a message: quoted, escaped, cut."""
    text = repr(name)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
