"""Where each blob's bytes go, and what must not lie there beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from threading import Lock

from sidecar.artifacts.files import DIRECTORY_MODE, remove_tree
from sidecar.artifacts.remote.port import Blob
from sidecar.artifacts.workspace import Workspace

_PACKED = "packed-"


class Place:
    """One blob, its file, and how much of it was told of. Threads may share it."""

    def __init__(self, blob: Blob, identity: str, workspace: Workspace) -> None:
        self.blob = blob
        self.identity = identity
        """Another one for other bytes, so far as the source tells them apart."""
        self.file = (
            workspace.directory / blob.path
            if blob.packing is None
            else workspace.scratch / f"{_PACKED}{identity}"
        )
        self.is_doubted = False
        """It was brought once already, and was not what the source promises."""
        self._report: Callable[[int], None] = workspace.report
        self._grow: Callable[[int], None] = workspace.grow
        self._lock = Lock()
        self._here = 0
        self._told = 0

    def came(self, size: int) -> None:
        """Tell of so many bytes more, unless they are told of already.

        Of a blob of unknown size, asks for the room for them first: raises ``StoreFull``.
        """
        with self._lock:
            self._here += size
            new = max(0, self._here - self._told)
            self._told += new
        if new and self.blob.size is None:
            self._grow(new)
        # Also when it is nothing new: whoever listens hears that something moves.
        self._report(new)

    def lost(self) -> None:
        """Begin to count from the first byte once more."""
        with self._lock:
            self._here = 0


def make_places(blobs: Sequence[Blob], workspace: Workspace) -> list[Place]:
    """Make the directories of all blobs, and delete what is no blob's. Raises ``OSError``."""
    seen: Counter[str] = Counter()
    places = []
    for blob in blobs:
        identity = _identity(blob, 0)
        if seen[identity]:
            # Layers of an image may be equal; each has a file of its own.
            identity = _identity(blob, seen[identity])
        seen[_identity(blob, 0)] += 1
        places.append(Place(blob, identity, workspace))
    plain = {one.blob.path for one in places if one.blob.packing is None}
    parents = {str(above) for path in plain for above in PurePosixPath(path).parents} - {"."}
    _keep_only(workspace.directory, plain, parents)
    for name in sorted(parents):
        directory = workspace.directory / name
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(DIRECTORY_MODE)
    packed = {one.file.name for one in places if one.blob.packing is not None}
    for name in os.listdir(workspace.scratch):
        if name.startswith(_PACKED) and name not in packed:
            remove_tree(workspace.scratch / name)
    return places


def _identity(blob: Blob, occurrence: int) -> str:
    facts = (
        *(blob.path, blob.key, blob.size, blob.tag, blob.sha256, blob.packing),
        *(blob.has_ranges, occurrence),
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _keep_only(root: Path, files: set[str], directories: set[str]) -> None:
    for directory, below, names in os.walk(root):
        prefix = os.path.relpath(directory, root) + "/" if directory != str(root) else ""
        for name in list(below):
            path = Path(directory, name)
            if path.is_symlink() or prefix + name not in directories:
                remove_tree(path)
                below.remove(name)
        for name in names:
            path = Path(directory, name)
            if path.is_symlink() or prefix + name not in files:
                remove_tree(path)
