"""What an archive is seen as: its bytes as a stream, and its members one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Event
from typing import Protocol

from sidecar.artifacts.files import raise_if_stopped, source_errors
from sidecar.errors import InvalidArtifact

CHUNK_BYTES = 256 << 10


class MemberKind(StrEnum):
    """What a member is to become."""

    FILE = "a file"
    DIRECTORY = "a directory"
    LINK = "a symbolic link"
    HARD_LINK = "a hard link"
    DEVICE = "a device"
    PIPE = "a named pipe"
    SOCKET = "a socket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry of an archive, before anything is believed of it."""

    name: str
    """As the archive has it; bytes that are no UTF-8 are surrogates."""
    kind: MemberKind
    size: int = 0
    """Of its content in bytes, which is what ``chunks`` adds up to."""
    target: str = ""
    """What a link names."""
    chunks: Iterator[bytes | memoryview] = field(default_factory=lambda: iter(()))
    """Its content; each chunk holds until the next one is asked for. Raises ``InvalidArtifact``
    when it is not whole. What is left of it is gone once the next member is asked for."""


class Stream(Protocol):
    """Bytes in their order."""

    def read(self, limit: int) -> memoryview:
        """Return at least one and at most ``limit`` bytes, empty at the end.

        They hold until the next read. Raises ``ArtifactError`` and ``Stopped``.
        """
        ...


class ArchiveFile:
    """The file that is an archive; a stream from where ``position`` is."""

    def __init__(
        self, descriptor: int, where: str, *, stop: Event, report: Callable[[int], None]
    ) -> None:
        self._descriptor = descriptor
        self._stop = stop
        self._report = report
        self.where = where
        with source_errors(where):
            self.size = os.fstat(descriptor).st_size
        self.position = 0
        # A full chunk for each small archive would cost memory that no thread gives back.
        self._buffer = memoryview(bytearray(min(CHUNK_BYTES, self.size + 1)))

    def read(self, limit: int) -> memoryview:
        """See ``Stream``."""
        raise_if_stopped(self._stop)
        with source_errors(self.where):
            size = os.preadv(self._descriptor, [self._buffer[:limit]], self.position)
        self.position += size
        self._report(size)
        return self._buffer[:size]

    def read_at(self, position: int, size: int) -> bytes:
        """Return exactly ``size`` bytes, at most some KiB. Raises ``InvalidArtifact``."""
        raise_if_stopped(self._stop)
        # Before asking: an archive may say any position, and the system takes 63 bits of it.
        found = b""
        if position + size <= self.size:
            with source_errors(self.where):
                found = os.pread(self._descriptor, size, position)
        if len(found) < size:
            raise cut_off(self.where)
        return found


def cut_off(where: str) -> InvalidArtifact:
    """Return the error for an archive that ends before its end."""
    return damaged(where, "it ends too early")


def damaged(where: str, what: str) -> InvalidArtifact:
    """Return the error for an archive whose bytes are not as they were written."""
    return InvalidArtifact(f"{where}: the archive is damaged: {what}; pack and upload it again")


def no_archive(where: str, start: bytes) -> InvalidArtifact:
    """Return the error for what is something else: an error page, a pointer to a file."""
    return InvalidArtifact(
        f"{where}: no archive, it begins with {start[:16]!r}; upload a tar, tar.gz or zip"
    )
