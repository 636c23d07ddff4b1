"""What can go wrong on our own side, and the reaction each calls for.

::

    SidecarError
    |-- DocumentError        the text is no valid document      -> keep the last good, report
    `-- ArtifactError        files of one target
        |-- FetchFailed          could not be brought here      -> retry with backoff
        |   `-- SourceMoved          other bytes than were listed -> the same, from a new look
        |-- StoreFull            no room                        -> retry with backoff, evict first
        |-- NotFound             the source names nothing       -> retry with backoff
        |-- AccessDenied         the source refuses us          -> retry with backoff
        |-- SourceNotAllowed     outside --allow-source         -> new document
        |-- UnsupportedSource    a scheme this build cannot do  -> new document
        |-- DigestMismatch       not the bytes that were pinned -> new document or artifact
        |-- InvalidArtifact      broken or incomplete files     -> new document or artifact
        |   `-- DamagedSource        not what it promises itself -> the same, and now and then
        |-- UnsafeArtifact       pickle, links out, devices     -> new document or artifact
        `-- IncompatibleArtifact does not fit this engine       -> the same, or another engine start

``reason`` is the word that users read in ``/status``; see ``sidecar.core.status.Reason``.
"""

from __future__ import annotations

from typing import ClassVar


class SidecarError(Exception):
    """Base of our own errors; the message is one plain sentence that says what to do."""


class DocumentError(SidecarError):
    """A document as a whole cannot be used."""

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.where = where
        self.hint = hint


class ArtifactError(SidecarError):
    """Base of what can be wrong with the files of one target."""

    reason: ClassVar[str] = "FetchFailed"
    retryable: ClassVar[bool] = True


class FetchFailed(ArtifactError):
    """The files could not be brought here this time."""


class SourceMoved(FetchFailed):
    """The source changed between the look at it and the reading of it."""


class StoreFull(ArtifactError):
    """The store has no room, and nothing in it may be evicted."""

    reason = "StoreFull"


class NotFound(ArtifactError):
    """The source names nothing that exists."""

    reason = "NotFound"


class AccessDenied(ArtifactError):
    """The source exists, and we may not read it."""

    reason = "AccessDenied"


class SourceNotAllowed(ArtifactError):
    """The source lies outside what ``--allow-source`` admits."""

    reason = "SourceNotAllowed"
    retryable = False


class UnsupportedSource(ArtifactError):
    """The source's scheme is not one that this version fetches."""

    reason = "SourceUnsupported"
    retryable = False


class DigestMismatch(ArtifactError):
    """The bytes are not those that the entry pins."""

    reason = "DigestMismatch"
    retryable = False


class InvalidArtifact(ArtifactError):
    """The files are incomplete or malformed."""

    reason = "InvalidArtifact"
    retryable = False


class DamagedSource(InvalidArtifact):
    """The bytes are not those that the source itself promises."""


class UnsafeArtifact(ArtifactError):
    """The files could do harm: pickled weights, links that lead out, device files."""

    reason = "UnsafeArtifact"
    retryable = False


class IncompatibleArtifact(ArtifactError):
    """The files are whole but do not fit this engine or its base model."""

    reason = "IncompatibleArtifact"
    retryable = False
