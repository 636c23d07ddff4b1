"""A remote source as a fetcher: its blobs are transferred, and its archives unpacked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from threading import Lock

from sidecar.artifacts.archive import strip_enclosing, unpack
from sidecar.artifacts.files import make_directories, store_errors
from sidecar.artifacts.listing import Limits, Listing
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.paths import check_paths
from sidecar.artifacts.remote.port import Blob, Contents, RemoteSource
from sidecar.artifacts.remote.transfer import Brought, fetch_blobs
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import InvalidArtifact


class RemoteFetcher:
    """Brings one remote source; see ``listing.Fetcher``."""

    resumes = True

    def __init__(self, source: RemoteSource, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._contents = Contents(blobs=(), signature="")

    def list(self) -> Listing:
        """Look at what the source holds. Raises ``ArtifactError``."""
        contents = self._contents = self._source.list()
        if len(contents.blobs) > self._limits.max_files:
            raise InvalidArtifact(
                f"{self._source.where}: {len(contents.blobs)} files, and {self._limits.max_files} "
                "are taken at most"
            )
        plain = [one for one in contents.blobs if one.packing is None]
        packed = [one for one in contents.blobs if one.packing is not None]
        check_paths([one.path for one in plain], self._source.where)
        return Listing(
            signature=contents.signature,
            newest_change=0.0,
            is_coarse=False,
            files=tuple((one.path, one.size or 0) for one in plain),
            directories=(),
            packed_bytes=sum(one.size or 0 for one in packed) if packed else None,
        )

    def bring(self, workspace: Workspace) -> tuple[FileRecord, ...]:
        """Fetch what ``list`` found, going on where an interrupted fetch of it ended."""
        bounded = self._bounded(workspace)
        source = _Counted(self._source, workspace.fetched)
        brought = fetch_blobs(source, self._contents.blobs, bounded)
        packed = [one for one in brought if one.blob.packing is not None]
        if not packed:
            return tuple(one.record for one in brought)
        records = self._unpacked(packed, workspace)
        plain = tuple(one.record for one in brought if one.blob.packing is None)
        check_paths([one.path for one in (*plain, *records)], self._source.where)
        return strip_enclosing(workspace.directory, (*plain, *records))

    def close(self) -> None:
        """Give up all connections."""
        self._source.close()

    def _bounded(self, workspace: Workspace) -> Workspace:
        """Return the workspace for bytes that nobody listed: they count against the limit."""
        limit, listed = self._limits.max_bytes, sum(one.size or 0 for one in self._contents.blobs)
        left, lock = None if limit is None else limit - listed, Lock()

        def grow(size: int) -> None:
            nonlocal left
            if left is not None:
                with lock:
                    left -= size
                if left < 0:
                    raise InvalidArtifact(
                        f"{self._source.where}: more than {limit} bytes, which is "
                        "--max-artifact-bytes"
                    )
            workspace.grow(size)

        return replace(workspace, grow=grow)

    def _unpacked(self, packed: Sequence[Brought], workspace: Workspace) -> tuple[FileRecord, ...]:
        limits, where = self._limits, self._source.where
        if self._contents.image_directory:
            from sidecar.artifacts.remote.oci_layers import apply_layers

            return apply_layers(
                [(one.file, one.blob.packing) for one in packed if one.blob.packing is not None],
                self._contents.image_directory,
                workspace,
                where=where,
                max_files=limits.max_files,
                max_bytes=limits.max_bytes,
            )
        plain = sum(one.size or 0 for one in self._contents.blobs if one.packing is None)
        records: list[FileRecord] = []
        for one in packed:
            held = plain + sum(record.size for record in records)
            assert one.blob.packing is not None
            place = workspace.directory / one.blob.path
            with store_errors(workspace.directory):
                make_directories(place)
            found = unpack(
                one.file,
                one.blob.packing,
                replace(workspace, directory=place),
                where=where,
                max_files=limits.max_files - len(records),
                max_bytes=None if limits.max_bytes is None else max(0, limits.max_bytes - held),
            )
            prefix = f"{one.blob.path}/" if one.blob.path else ""
            records += [replace(record, path=prefix + record.path) for record in found]
        return tuple(records)


class _Counted:
    """A source whose bytes are counted as they come."""

    def __init__(self, source: RemoteSource, fetched: Callable[[int], None]) -> None:
        self._source = source
        self._fetched = fetched

    @property
    def where(self) -> str:
        return self._source.where

    def list(self) -> Contents:
        return self._source.list()

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes | memoryview]:
        chunks = self._source.read(blob, start, end)
        try:
            for chunk in chunks:
                self._fetched(len(chunk))
                yield chunk
        finally:
            if isinstance(chunks, Generator):
                chunks.close()

    def close(self) -> None:
        self._source.close()
