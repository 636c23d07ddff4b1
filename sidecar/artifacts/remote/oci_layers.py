"""Layers of a container image, applied one over the other; only one directory of it is kept.

Rules: github.com/opencontainers/image-spec/blob/main/layer.md, "Applying Changesets". A layer is
unpacked into a directory of its own first: what it deletes concerns only the layers below it,
wherever in the archive it says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sidecar.artifacts.archive import bounds_of, open_members
from sidecar.artifacts.archive_members import Member, MemberKind
from sidecar.artifacts.archive_tree import Tree
from sidecar.artifacts.files import (
    make_directories,
    raise_if_stopped,
    remove_tree,
    store_errors,
)
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.paths import MAX_PATH_BYTES, shown
from sidecar.artifacts.remote.port import Packing
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import InvalidArtifact

MEMBERS_A_FILE = 10
"""How many times ``max_files`` a layer may have of all: whole systems are below some models."""
_WHITEOUT = ".wh."
_WHITEOUT_OF_ALL = ".wh..wh..opq"
_SHOWN_TOPS = 10
_TOP = re.compile(r"(?:\.?/)*")


def apply_layers(
    layers: Sequence[tuple[Path, Packing]],
    image_directory: str,
    workspace: Workspace,
    *,
    where: str,
    max_files: int,
    max_bytes: int | None,
) -> tuple[FileRecord, ...]:
    """Fill the workspace's directory with what an image has below one of its directories.

    ``layers`` are archives, the lowest first; each is deleted when it is unpacked. Raises
    ``ArtifactError`` and ``files.Stopped``.
    """
    tree = _Image(workspace)
    tops: set[str] = set()
    for number, (file, packing) in enumerate(layers):
        area = workspace.scratch / f"layer-{number}"
        with store_errors(workspace.scratch):
            remove_tree(area)
            make_directories(area)
        changes = _Changes(image_directory, where, max_files)
        bounds = bounds_of(file, where, max_files, max_bytes)
        with (
            Tree(replace(workspace, directory=area), where, bounds) as layer,
            open_members(
                file,
                packing,
                where=where,
                max_files=max_files,
                stop=workspace.stop,
                report=lambda _: workspace.report(0),
            ) as members,
        ):
            for member in _counted(members, where, MEMBERS_A_FILE * max_files):
                if (placed := changes.place(member)) is not None:
                    layer.add(placed)
            records = layer.finish()
        with store_errors(workspace.directory):
            file.unlink()
            tree.hide(changes)
            tree.put(area, records)
            remove_tree(area)
        tops = set(sorted(tops | changes.tops)[:_SHOWN_TOPS])
        _check_limits(tree.records, where, max_files, max_bytes)
    with store_errors(workspace.directory):
        tree.remove_empty_directories()
    if not tree.records:
        found = ", ".join(sorted(tops)) or "nothing"
        raise InvalidArtifact(
            f"{where}: the image has no files in /{image_directory}, where KServe's modelcars have "
            f"them (at its top: {found}); put them there, or push them with `oras push`"
        )
    return tuple(tree.records.values())


class _Changes:
    """What one layer says, while its members go by."""

    def __init__(self, image_directory: str, where: str, max_files: int) -> None:
        self._directory = image_directory
        self._where = where
        self._max_files = max_files
        self.tops: set[str] = set()
        """Some names at the top of the image, as they may stand in a message."""
        self._hidden: set[str] = set()
        self._hidden_below: set[str] = set()

    def place(self, member: Member) -> Member | None:
        """Return the member as it is in the artifact; None for what is not, or hides something.

        Of what is elsewhere in the image (devices, links to absolute paths) nothing is judged.
        """
        path = _plain(member.name)
        directory, slash, base = path.rpartition("/")
        if base == _WHITEOUT_OF_ALL:
            self._hide(directory, self._hidden_below)
        elif base.startswith(_WHITEOUT):
            name = base.removeprefix(_WHITEOUT)
            if name and not name.startswith(_WHITEOUT):
                self._hide(directory + slash + name, self._hidden)
        else:
            top = path.partition("/")[0]
            if top and len(self.tops) < _SHOWN_TOPS:
                self.tops.add(shown(top))
            if (below := self._below(path)) is not None:
                return replace(member, name=below, target=self._target(member))
        return None

    def hides(self, path: str) -> bool:
        """Tell whether a file of the layers below is gone."""
        return (
            path in self._hidden
            or "" in self._hidden_below
            or any(one in self._hidden or one in self._hidden_below for one in _parents(path))
        )

    def _target(self, member: Member) -> str:
        if member.kind is not MemberKind.HARD_LINK:
            return member.target
        # Of a file elsewhere there is no copy: the name stays as it is, and is refused.
        return self._below(_plain(member.target)) or member.target

    def _below(self, path: str) -> str | None:
        head = f"{self._directory}/"
        return path.removeprefix(head) if path.startswith(head) else None

    def _hide(self, path: str, hidden: set[str]) -> None:
        if (below := self._below(path)) is not None:
            if len(below) > MAX_PATH_BYTES:
                # No file has such a path.
                return
            hidden.add(below)
            if len(self._hidden) + len(self._hidden_below) > self._max_files:
                raise InvalidArtifact(
                    f"{self._where}: a layer of the image deletes more than {self._max_files} files"
                )
        elif f"{self._directory}/".startswith(f"{path}/") or not path:
            # The directory itself, or one above it.
            self._hidden_below.add("")


class _Image:
    """What the layers so far make."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._root = workspace.directory
        self.records: dict[str, FileRecord] = {}

    def hide(self, changes: _Changes) -> None:
        for path in [one for one in self.records if changes.hides(one)]:
            self._remove(path)

    def put(self, area: Path, records: Sequence[FileRecord]) -> None:
        for record in records:
            raise_if_stopped(self._workspace.stop)
            self._workspace.report(0)
            target = self._root / record.path
            for parent in _parents(record.path):
                if parent in self.records:
                    self._remove(parent)
            if target.is_dir():
                remove_tree(target)
                self._forget_below(record.path)
            make_directories(target.parent)
            os.replace(area / record.path, target)
            self.records[record.path] = record

    def remove_empty_directories(self) -> None:
        """Triton takes an empty directory of a numeric name for a version."""
        for directory, _, _ in os.walk(self._root, topdown=False):
            if directory != str(self._root) and not os.listdir(directory):
                os.rmdir(directory)

    def _remove(self, path: str) -> None:
        (self._root / path).unlink()
        del self.records[path]

    def _forget_below(self, directory: str) -> None:
        for path in [one for one in self.records if one.startswith(f"{directory}/")]:
            del self.records[path]


def _plain(name: str) -> str:
    """Return a member's name from the top of the image: builders begin it with ./, / or nothing."""
    return _TOP.sub("", name.rstrip("/"), count=1)


def _counted(members: Iterator[Member], where: str, limit: int) -> Iterator[Member]:
    for number, member in enumerate(members):
        if number >= limit:
            raise InvalidArtifact(f"{where}: a layer of the image has more than {limit} files")
        yield member


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _check_limits(
    records: dict[str, FileRecord], where: str, max_files: int, max_bytes: int | None
) -> None:
    if len(records) > max_files:
        raise InvalidArtifact(f"{where}: the image has more than {max_files} files")
    size = sum(record.size for record in records.values())
    if max_bytes is not None and size > max_bytes:
        raise InvalidArtifact(
            f"{where}: {size} bytes unpacked, and --max-artifact-bytes is {max_bytes}"
        )
