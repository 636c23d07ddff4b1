"""What ``faulty.FaultyServer`` can do to an answer. Offsets count bytes of that answer's body."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from threading import Event

from tests.support.faulty_wire import PIECE_BYTES

IDLE_SECONDS = 300.0

Pieces = Iterator[bytes | memoryview]


class ResetError(Exception):
    """The connection is to be reset."""


class ClosedError(Exception):
    """The connection is to be closed, as if all were well."""


@dataclass(kw_only=True)
class Request:
    """One request, and what was sent for it so far."""

    method: str
    target: str
    """Path and query as they came."""
    headers: dict[str, str]
    """By lower-case names."""
    at: float
    """``time.monotonic`` of its arrival."""
    status: int = 0
    """0 until the answer begins."""
    sent: int = 0
    """Bytes of the body."""

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First byte asked for and the one after the last (None: to the end), if it asks so."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) + 1 if found[2] else None) if found else None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes back: the body in pieces, framed by ``length`` or, without one, in chunks."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = 0
    body: Iterable[bytes | memoryview] = ()
    is_last: bool = False
    """The connection is closed behind it."""


class Line:
    """The connection as faults see it."""

    def __init__(self, connection: socket.socket, closing: Event) -> None:
        self._connection = connection
        self._closing = closing

    def wait(self, seconds: float) -> None:
        """Wait; raises ``ClosedError`` when the server closes or the client went away."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable, _, _ = select.select([self._connection], [], [], min(left, 0.05))
            if self._closing.is_set() or readable:
                # A client that waits for its answer says nothing: what comes is its end.
                raise ClosedError


class Fault:
    """What happens to one answer. Each hook may be left as it is."""

    def before(self, request: Request, line: Line) -> Answer | None:
        """Act before the request is looked at; an answer is sent instead of the true one."""
        return None

    def answer(self, answer: Answer) -> Answer:
        """Return what is sent instead."""
        return answer

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        """Yield what is sent instead; may raise ``ResetError`` and ``ClosedError``."""
        return pieces


def _until(pieces: Pieces, after: int) -> Pieces:
    for piece in pieces:
        if after <= len(piece):
            yield piece[:after]
            return
        after -= len(piece)
        yield piece


@dataclass(frozen=True)
class Cut(Fault):
    """Reset the connection once ``after`` bytes reached the client."""

    after: int = 0

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        yield from _until(pieces, self.after)
        raise ResetError


@dataclass(frozen=True)
class Close(Fault):
    """Close the connection in good order after ``after`` bytes, whatever length was announced."""

    after: int = 0

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        yield from _until(pieces, self.after)
        raise ClosedError


@dataclass(frozen=True)
class Length(Fault):
    """Announce ``by`` bytes more (or fewer) than are sent, then close."""

    by: int

    def answer(self, answer: Answer) -> Answer:
        assert answer.length is not None, "an answer in chunks announces no length"
        return replace(answer, length=answer.length + self.by, is_last=True)


@dataclass(frozen=True)
class Stall(Fault):
    """Say nothing more after ``after`` bytes (None: not even a head), until the client goes."""

    after: int | None = 0

    def before(self, request: Request, line: Line) -> Answer | None:
        if self.after is None:
            line.wait(IDLE_SECONDS)
        return None

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        yield from _until(pieces, self.after or 0)
        line.wait(IDLE_SECONDS)
        raise ClosedError


@dataclass(frozen=True)
class Slow(Fault):
    """Send at most so many bytes a second."""

    bytes_per_second: float

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        step = max(1, int(self.bytes_per_second / 20))
        for piece in pieces:
            for start in range(0, len(piece), step):
                part = piece[start : start + step]
                line.wait(len(part) / self.bytes_per_second)
                yield part


@dataclass(frozen=True)
class Status(Fault):
    """Answer with this status without looking at the request."""

    status: int
    text: bytes = b"faulty"
    headers: tuple[tuple[str, str], ...] = ()

    def before(self, request: Request, line: Line) -> Answer | None:
        body = () if request.method == "HEAD" else (self.text,)
        return Answer(status=self.status, headers=self.headers, length=len(self.text), body=body)


@dataclass(frozen=True)
class Headers(Fault):
    """Replace headers of the answer, or drop those of value None: ``Headers({"ETag": '"b"'})``."""

    values: dict[str, str | None]

    def answer(self, answer: Answer) -> Answer:
        replaced = {name.lower() for name in self.values}
        kept = [one for one in answer.headers if one[0].lower() not in replaced]
        new = [(name, value) for name, value in self.values.items() if value is not None]
        return replace(answer, headers=(*kept, *new))


@dataclass(frozen=True)
class Flip(Fault):
    """Invert the byte at this offset of the body."""

    at: int = 0

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        start = 0
        for piece in pieces:
            if start <= self.at < start + len(piece):
                changed = bytearray(piece)
                changed[self.at - start] ^= 0xFF
                yield bytes(changed)
            else:
                yield piece
            start += len(piece)


@dataclass(frozen=True)
class Endless(Fault):
    """Send zeros behind the true body, in chunks, until the client goes."""

    def answer(self, answer: Answer) -> Answer:
        return replace(answer, length=None)

    def body(self, pieces: Pieces, line: Line) -> Pieces:
        yield from pieces
        zeros = bytes(PIECE_BYTES)
        while True:
            line.wait(0.001)
            yield zeros


@dataclass(frozen=True)
class Run(Fault):
    """Call something, then go on as if nothing had been: change what is being read."""

    call: Callable[[], object]

    def before(self, request: Request, line: Line) -> Answer | None:
        self.call()
        return None
