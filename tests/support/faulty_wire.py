"""HTTP/1.1 as bytes on a socket, as much of it as ``faulty`` needs."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

HEAD_BYTES = 1 << 16
PIECE_BYTES = 1 << 16
DRAIN_SECONDS = 10.0


class BrokenError(Exception):
    """The other side went away, or speaks no HTTP."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Start line and headers of a message."""

    raw: bytes
    """As it came, with the empty line that ends it."""
    words: tuple[str, str, str]
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The value of a header, whatever the case of its name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def is_chunked(self) -> bool:
        return (self.get("transfer-encoding") or "").lower() == "chunked"

    @property
    def keeps_open(self) -> bool:
        said = (self.get("connection") or "").lower()
        is_old = "HTTP/1.0" in self.words
        return said == "keep-alive" if is_old else said != "close"


def read_head(stream: BinaryIO) -> Head | None:
    """Read up to the empty line; None when the other side closed before the first byte."""
    raw = b""
    while not raw.endswith((b"\r\n\r\n", b"\n\n")):
        line = stream.readline(HEAD_BYTES)
        if not line and not raw:
            return None
        raw += line
        if not line or len(raw) > HEAD_BYTES:
            raise BrokenError("no complete head")
    first, *rest = raw.decode("latin-1").split("\r\n")
    words = [*first.split(" ", 2), "", ""][:3]
    headers = tuple(
        (k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in rest if line)
    )
    return Head(raw=raw, words=(words[0], words[1], words[2]), headers=headers)


def read_body(stream: BinaryIO, head: Head, *, to_end: bool) -> Iterator[bytes]:
    """Yield the body behind a head, unframed; ``to_end``: it may last until the close."""
    if head.is_chunked:
        yield from _read_chunks(stream)
        return
    length = head.get("content-length")
    if length is not None:
        yield from _read_exactly(stream, int(length))
    elif to_end:
        while piece := _read_some(stream, PIECE_BYTES):
            yield piece


def _read_chunks(stream: BinaryIO) -> Iterator[bytes]:
    while size := int(stream.readline(HEAD_BYTES).partition(b";")[0] or b"0", 16):
        yield from _read_exactly(stream, size)
        stream.readline(HEAD_BYTES)
    while stream.readline(HEAD_BYTES).strip():
        pass


def _read_exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = _read_some(stream, min(size, PIECE_BYTES))
        if not piece:
            raise BrokenError("the body ends early")
        size -= len(piece)
        yield piece


def _read_some(stream: BinaryIO, limit: int) -> bytes:
    # What is there already, without waiting for all of it.
    piece: bytes = stream.read1(limit)  # type: ignore[attr-defined]
    return piece


def framed(piece: bytes | memoryview, is_chunked: bool) -> bytes | memoryview:
    """Return a piece of a body as it goes over the wire."""
    return b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if is_chunked else piece


def reset(connection: socket.socket) -> None:
    """Have the closing of a connection reset it, once what was sent arrived."""
    # What lies in the kernel is thrown away by a reset: the client has to have it before.
    end = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < end:
        waiting = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        if not any(waiting):
            break
        time.sleep(0.001)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
