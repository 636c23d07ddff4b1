"""What a fetch would find, seen without writing anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from adapters.base import Kind
from sidecar.artifacts.fetch import SourceOptions, open_source
from sidecar.artifacts.files import CHUNK_BYTES, source_errors
from sidecar.artifacts.layout import Held, directory_name
from sidecar.artifacts.listing import Listing, check_files
from sidecar.artifacts.local import LocalSource
from sidecar.artifacts.locations import local_path
from sidecar.artifacts.manifest import FileRecord, content_digest, revision_of
from sidecar.artifacts.triton_layout import find_versions, read_config
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.redact import redact_source
from sidecar.errors import DigestMismatch

UNKNOWN = "known after the fetch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is known of an entry's files before they are fetched."""

    revision: Revision
    """As it would be in the store; its ``revision`` says UNKNOWN where only a fetch can tell."""
    directory: Path | None
    """Where its files can be read now."""
    is_new: bool
    """The store does not have it."""
    files: int = 0


class Foresight:
    """Looks at sources and at what the store had when it was read. Methods block."""

    def __init__(
        self,
        root: Path,
        held: Mapping[str, tuple[Held, ...]],
        options: SourceOptions,
    ) -> None:
        self._root = root
        self._held = held
        self._options = options

    def find(self, entry: Entry, likely: Kind | None) -> Sight | None:
        """Return what a fetch would find; None where not even the kind can be told.

        ``likely`` is the kind where neither entry nor files tell one. Raises ``ArtifactError`` as
        the fetch would.
        """
        held = [
            one for one in self._held.get(entry.name, ()) if entry.kind in (None, one.manifest.kind)
        ]
        for one in held:
            if entry.digest is not None and one.manifest.digest == entry.digest:
                return _on_disk(one)
        found = open_source(entry, self._options)
        if isinstance(found, Revision):
            return Sight(revision=found, directory=None, is_new=False)
        with closing(found):
            listing = found.list()
        where = redact_source(entry.source)
        for one in held:
            manifest = one.manifest
            came = (manifest.source, manifest.source_signature)
            if listing.signature and came == (where, listing.signature):
                _require_digest(entry, manifest.digest)
                return _on_disk(one)
        if listing.packed_bytes is not None:
            return self._guess(entry, entry.kind or likely, listing)
        files = [path for path, _ in listing.files]
        allow_pickle = self._options.allow_pickle
        kind = check_files(where, entry.kind, files, listing.directories, allow_pickle=allow_pickle)
        if not isinstance(found, LocalSource):
            return self._guess(entry, kind, listing)
        directory = Path(local_path(entry.source) or "")
        digest = _digest(directory, listing)
        _require_digest(entry, digest)
        for one in held:
            if one.manifest.digest == digest:
                return _on_disk(one)
        revision = self._revision(entry, kind, revision_of(digest), listing.bytes, digest)
        return Sight(revision=revision, directory=directory, is_new=True, files=len(files))

    def _guess(self, entry: Entry, kind: Kind | None, listing: Listing) -> Sight | None:
        """What is packed or far away: its bytes are not read for a plan."""
        if kind is None:
            return None
        name = revision_of(entry.digest) if entry.digest is not None else f"({UNKNOWN})"
        revision = self._revision(entry, kind, name, listing.bytes, entry.digest or "")
        return Sight(revision=revision, directory=None, is_new=True, files=len(listing.files))

    def _revision(self, entry: Entry, kind: Kind, name: str, size: int, digest: str) -> Revision:
        return Revision(
            name=entry.name,
            kind=kind,
            revision=name,
            path=str(self._root / kind / directory_name(entry.name) / name),
            bytes=size,
            source=redact_source(entry.source),
            digest=digest,
        )


def is_checkable(sight: Sight) -> bool:
    """Tell whether the files can be checked where they lie.

    An ensemble's source may lack the empty version directory that the fetch adds.
    """
    if sight.directory is None:
        return False
    if sight.revision.kind is Kind.LORA or not sight.is_new:
        return True
    with source_errors(str(sight.directory)):
        if find_versions(sight.directory):
            return True
    config = read_config(sight.directory)
    return config is None or not config.is_ensemble


def _on_disk(held: Held) -> Sight:
    revision = held.revision
    files = len(held.manifest.files)
    return Sight(revision=revision, directory=Path(revision.path), is_new=False, files=files)


def _require_digest(entry: Entry, digest: str) -> None:
    if entry.digest is not None and entry.digest != digest:
        raise DigestMismatch(
            f"{redact_source(entry.source)} holds {digest}, the document pins {entry.digest}: "
            "correct the pin or the source"
        )


def _digest(directory: Path, listing: Listing) -> str:
    records = []
    for path, size in listing.files:
        with source_errors(str(directory)), (directory / path).open("rb") as handle:
            digest = hashlib.sha256()
            while chunk := handle.read(CHUNK_BYTES):
                digest.update(chunk)
        records.append(FileRecord(path=path, size=size, sha256=digest.hexdigest()))
    return content_digest(records)
