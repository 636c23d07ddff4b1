"""What every remote source can be asked: what it holds, and the bytes of it.

A source does one attempt, with deadlines, and translates every foreign error into an
``ArtifactError``:

- ``AccessDenied``, ``NotFound``, ``InvalidArtifact``, ``UnsafeArtifact``, ``SourceNotAllowed``:
  it is of no use to ask again at once.
- ``SourceMoved``: the bytes are no longer those that were listed.
- ``FetchFailed``: everything that may be otherwise in a moment (no connection, cut, 5xx, 429,
  silence); the transfer reads on from where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""The longest silence of a server that is waited for, at every step of an answer."""


class Packing(StrEnum):
    """Files in one file."""

    TAR = "tar"
    TAR_GZIP = "tar.gz"
    ZIP = "zip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One piece of content that a source holds: a file, or an archive of files."""

    path: str
    """Where its bytes go in the revision, with forward slashes; of an archive, the directory that
    it is unpacked in (empty: the top)."""
    key: str
    """What its source calls it: object key, URL, digest."""
    size: int | None
    """Bytes; None where the source does not tell."""
    tag: str = ""
    """Identifies its bytes (an etag, a version, a digest); empty where the source does not tell."""
    sha256: str = ""
    """What the source promises, in hex, and the transfer verifies; empty without a promise."""
    packing: Packing | None = None
    has_ranges: bool = True
    """It can be read from any byte on; else only from the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What one look at a remote source found."""

    blobs: tuple[Blob, ...]
    signature: str
    """Equal signatures mean equal bytes: a digest over the listing, an etag, a commit. Empty where
    the source tells nothing by which that can be known."""
    image_directory: str = ""
    """Not empty: the archives are the layers of a container image, applied in order, and only what
    is below this directory of it is the artifact."""


class RemoteSource(Protocol):
    """One source. Methods block, and raise ``ArtifactError`` only."""

    @property
    def where(self) -> str:
        """The source in words, without anything secret."""
        ...

    def list(self) -> Contents:
        """Look at what it holds, without reading the bytes of it."""
        ...

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a blob from ``start`` to before ``end`` (None: to its end).

        Chunks are at most a few MiB. One that ends early without an error is found by whoever
        counts. Raises ``SourceMoved`` when the blob's ``tag`` no longer holds. Closing the iterator
        gives up the connection.
        """
        ...

    def close(self) -> None:
        """Give up all connections."""
        ...
