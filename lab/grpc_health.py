"""One question to a gRPC health service, over plaintext HTTP/2, in the standard library."""

from __future__ import annotations

import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_DATA, FRAME_HEADERS, FRAME_SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 0x1, 0x4
STREAM = 1
PATH = b"/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
"""A HealthCheckResponse whose only field, `status`, is 1."""


def is_serving(port: int, *, timeout: float = 2.0) -> bool:
    """Whether the server on this loopback port says SERVING of itself as a whole.

    Every failure is a no, after `timeout` seconds at most.
    """
    end = time.monotonic() + timeout
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
            connection.sendall(PREFACE + _frame(FRAME_SETTINGS, 0, 0, b"") + _request())
            return _answer(connection, end) == SERVING
    except (OSError, EOFError):
        return False


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _request() -> bytes:
    # Header fields as HPACK writes them without a table of its own: an index of the static table
    # (POST, http), or the index of a name and a literal value, or both literally.
    fields = b"\x83\x86" + b"\x04" + _text(PATH) + b"\x01" + _text(b"lab")
    fields += b"\x0f\x10" + _text(b"application/grpc")
    fields += b"\x00" + _text(b"te") + _text(b"trailers")
    # The message is empty: it asks for the server as a whole. Its prefix says: not compressed, 0.
    return _frame(FRAME_HEADERS, END_HEADERS, STREAM, fields) + _frame(
        FRAME_DATA, END_STREAM, STREAM, bytes(5)
    )


def _text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def _answer(connection: socket.socket, end: float) -> bytes:
    """The first message of our stream, without its prefix."""
    while True:
        header = _read(connection, 9, end)
        length = int.from_bytes(header[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", header[3:])
        payload = _read(connection, length, end)
        if stream == STREAM and kind == FRAME_DATA:
            return payload[5:]
        if stream == STREAM and kind != FRAME_DATA and flags & END_STREAM:
            raise EOFError("an answer without a message")


def _read(connection: socket.socket, count: int, end: float) -> bytes:
    read = b""
    while len(read) < count:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        connection.settimeout(left)
        piece = connection.recv(count - len(read))
        if not piece:
            raise EOFError("the server closed the connection")
        read += piece
    return read
