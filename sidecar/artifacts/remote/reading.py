"""Reading a blob on where a connection was cut, as long as that leads anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from sidecar.artifacts.remote.port import Blob, RemoteSource
from sidecar.errors import FetchFailed, SourceMoved

PAUSES = (0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts that lead nowhere: five of them, and it is for the planner to wait."""
PROGRESS_BYTES = 64 << 10
"""An attempt that brought less led nowhere, so that a bad source is asked a bounded time."""

PACE_SECONDS = 60.0
"""A connection that brings less than that in so long a time leads nowhere either."""

Chunks = Generator[tuple[int, memoryview], None, None]
"""Pieces of a blob with their positions. Closing it gives up the connection."""


class Patience:
    """Decides whether a read is tried once more."""

    def __init__(self, wait: Callable[[float], None], position: int) -> None:
        """``wait`` pauses for so many seconds, or raises when it is of no use any more."""
        self._wait = wait
        self._position = position
        self._failures = 0

    def pause(self, error: FetchFailed, position: int, of: str) -> None:
        """Wait before the next attempt at ``position``, or raise: ``error``, with how far it came.

        ``of``: what is read, in words.
        """
        if isinstance(error, SourceMoved):
            raise error
        if position - self._position >= PROGRESS_BYTES:
            self._failures = 0
        self._position = position
        if self._failures == len(PAUSES):
            raise FetchFailed(
                f"{error} ({len(PAUSES) + 1} attempts in a row came no further than byte "
                f"{position} of {of})"
            ) from error
        self._wait(PAUSES[self._failures])
        self._failures += 1


class Pace:
    """Gives up what drips: it would keep a place that others wait for."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._bytes = 0

    def came(self, size: int, seconds: float, where: str) -> None:
        """Count bytes that were waited for so long; raise ``FetchFailed`` when they are too few."""
        self._seconds += seconds
        self._bytes += size
        if self._seconds < PACE_SECONDS:
            return
        if self._bytes < PROGRESS_BYTES:
            raise FetchFailed(
                f"{where}: {self._bytes} bytes in {self._seconds:.0f} s are too few; look at the "
                "server and the network"
            )
        self._seconds, self._bytes = 0.0, 0


def read_once(source: RemoteSource, blob: Blob, start: int, end: int | None) -> Chunks:
    """Yield the bytes from ``start`` to before ``end`` (None: to the end of the blob).

    Raises ``FetchFailed`` when it ends early or comes too slowly, and ``SourceMoved`` at the first
    byte too many.
    """
    position, last = start, blob.size if end is None else end
    chunks, pace, asked = source.read(blob, start, end), Pace(), time.monotonic()
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            # What the store's own disk takes, between two chunks, is not the server's fault.
            pace.came(len(view), time.monotonic() - asked, source.where)
            if last is not None and position + len(view) > last:
                raise SourceMoved(
                    f"{source.where}: {name_of(blob)} is longer than the {last} bytes that were "
                    "listed; it is listed anew"
                )
            yield position, view
            position += len(view)
            asked = time.monotonic()
    finally:
        if isinstance(chunks, Generator):
            chunks.close()
    if last is not None and position < last:
        raise FetchFailed(
            f"{source.where}: {name_of(blob)} was cut short, {position} of {last} bytes came"
        )


def read_on(
    source: RemoteSource, blob: Blob, start: int, end: int | None, wait: Callable[[float], None]
) -> Chunks:
    """Yield what ``read_once`` does, from where it was after each ``FetchFailed``.

    For blobs whose bytes are surely the same at the next attempt.
    """
    patience, position, last = Patience(wait, start), start, blob.size if end is None else end
    while True:
        try:
            with closing(read_once(source, blob, position, end)) as chunks:
                for at, chunk in chunks:
                    yield at, chunk
                    position = at + len(chunk)
        except FetchFailed as error:
            if position == last and not isinstance(error, SourceMoved):
                return
            patience.pause(error, position, name_of(blob))
        else:
            return


def read_whole(source: RemoteSource, blob: Blob, wait: Callable[[float], None]) -> Chunks:
    """Yield all bytes; a position that was there before says that all begins anew."""
    if can_read_on(blob):
        yield from read_on(source, blob, 0, None, wait)
        return
    patience = Patience(wait, 0)
    while True:
        # Said also for an attempt that brings nothing.
        yield 0, memoryview(b"")
        try:
            yield from read_once(source, blob, 0, None)
        except FetchFailed as error:
            patience.pause(error, 0, name_of(blob))
        else:
            return


def cut(chunks: Iterable[bytes], start: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes from ``start`` to before ``end``; what lies before is read past."""
    position = 0
    for chunk in chunks:
        piece = memoryview(chunk)[max(0, start - position) : max(0, end - position)]
        position += len(chunk)
        if piece:
            yield piece
        if position >= end:
            return


def can_read_on(blob: Blob) -> bool:
    """Tell whether a second read goes on with the bytes of the first: else it may be torn."""
    return blob.has_ranges and bool(blob.tag or blob.sha256)


def name_of(blob: Blob) -> str:
    """Return what to call a blob in a sentence; its key may be a URL with a secret in it."""
    return blob.path or "the archive"
