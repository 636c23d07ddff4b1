"""gzip as a stream, checked to its last byte (RFC 1952)."""

from __future__ import annotations

import zlib

from sidecar.artifacts.archive_members import CHUNK_BYTES, ArchiveFile, cut_off, damaged

MAGIC = b"\x1f\x8b"
_INPUT_BYTES = 256 << 10
_WITH_GZIP_HEADER = 31


class GzipStream:
    """What is compressed in a file, one or more gzip members.

    Not ``gzip.GzipFile``: it lets go of a wrong checksum when nobody reads up to it.
    """

    def __init__(self, file: ArchiveFile) -> None:
        self._file = file
        # zlib compares length and checksum of each member itself.
        self._inflater = zlib.decompressobj(_WITH_GZIP_HEADER)
        self._input: bytes | memoryview = b""
        self._output = memoryview(b"")

    def read(self, limit: int) -> memoryview:
        """See ``Stream``."""
        while not self._output:
            if self._inflater.eof and not self._open_next():
                return self._output
            self._inflate()
        chunk, self._output = self._output[:limit], self._output[limit:]
        return chunk

    def _inflate(self) -> None:
        if not self._input:
            self._input = self._file.read(_INPUT_BYTES)
        if not self._input:
            raise cut_off(self._file.where)
        try:
            self._output = memoryview(self._inflater.decompress(self._input, CHUNK_BYTES))
        except zlib.error as error:
            raise damaged(self._file.where, "its gzip data or checksum is wrong") from error
        self._input = self._inflater.unconsumed_tail or self._inflater.unused_data

    def _open_next(self) -> bool:
        """Start with the member that follows; tell whether there is one."""
        while not (rest := bytes(self._input).lstrip(b"\0")):
            self._input = self._file.read(_INPUT_BYTES)
            if not self._input:
                return False
        if not MAGIC.startswith(rest[:2]):
            raise damaged(self._file.where, "other bytes follow after its end")
        self._input = rest
        self._inflater = zlib.decompressobj(_WITH_GZIP_HEADER)
        return True
