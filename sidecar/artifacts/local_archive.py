"""Archives that the agent sees as files: absolute paths and ``file://``."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sidecar.artifacts.archive import strip_enclosing, unpack
from sidecar.artifacts.files import source_errors
from sidecar.artifacts.listing import Limits, Listing
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.remote.port import Packing
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import ArtifactError, InvalidArtifact, SourceMoved


class LocalArchive:
    """One archive, unpacked from where it is; links to it are followed."""

    resumes = False

    def __init__(self, path: str, packing: Packing, limits: Limits) -> None:
        self._path = path
        self._packing = packing
        self._limits = limits
        self._listed = ""

    def list(self) -> Listing:
        """Look at the file without opening it. Raises ``ArtifactError``."""
        with source_errors(self._path):
            info = os.stat(self._path)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidArtifact(f"{self._path}: no regular file any more")
        seen = f"{info.st_size}\0{info.st_mtime_ns}\0{info.st_ctime_ns}\0{info.st_ino}"
        self._listed = hashlib.sha256(seen.encode()).hexdigest()
        # Setting a modification time sets the change time; only the latter cannot lie ahead.
        changed_ns = info.st_ctime_ns or info.st_mtime_ns
        return Listing(
            signature=self._listed,
            newest_change=changed_ns / 1e9,
            is_coarse=changed_ns % 1_000_000_000 == 0,
            files=(),
            directories=(),
            packed_bytes=info.st_size,
        )

    def bring(self, workspace: Workspace) -> tuple[FileRecord, ...]:
        """Unpack it. Raises ``SourceMoved`` when it changed meanwhile, and ``Stopped``."""
        before = self._listed

        def read(size: int) -> None:
            workspace.report(size)
            workspace.fetched(size)

        try:
            listing = self.list()
            self._require_same(before)
            size = listing.packed_bytes or 0
            records = unpack(
                Path(self._path),
                self._packing,
                replace(workspace, grow=_beyond(size, workspace.grow)),
                where=self._path,
                max_files=self._limits.max_files,
                max_bytes=self._limits.max_bytes,
                report=read,
            )
        except ArtifactError:
            self.list()
            self._require_same(before)
            raise
        self.list()
        self._require_same(before)
        return strip_enclosing(workspace.directory, records)

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _require_same(self, signature: str) -> None:
        if self._listed != signature:
            raise SourceMoved(
                f"{self._path}: it changed while it was unpacked; it is unpacked again once it is "
                "quiet"
            )


def _beyond(size: int, grow: Callable[[int], None]) -> Callable[[int], None]:
    """Return a ``grow`` that knows of ``size`` bytes set aside for a copy that nobody makes."""
    left = size

    def grow_beyond(wanted: int) -> None:
        nonlocal left
        given = min(left, wanted)
        left -= given
        if wanted > given:
            grow(wanted - given)

    return grow_beyond
