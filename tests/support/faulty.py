"""A real HTTP/1.1 server on loopback that does on the wire what servers do on bad days.

It serves contents that it was given, with ranges, etags and preconditions::

    with FaultyServer() as server:
        server.put("/model.bin", data)                    # a strong etag of the data
        server.add(Cut(after=1000), path="/model.bin")    # the next matching request, once
        server.add(Status(503), skip=2, times=3)          # any request; the 3rd to 5th of them
        fetch(f"{server.url}/model.bin")
        assert server.sent_bytes < 2 * len(data)
        assert [seen.range for seen in server.seen] == [(0, None), (1000, None)]

or stands before a real server and passes everything through, bytes of the head unchanged (the
``Host`` header too, so that signatures made for the real server still hold: give the client the
address of this server as its endpoint, or whatever it signs)::

    with FaultyServer(upstream=("127.0.0.1", port)) as server:
        server.add(Stall(after=1 << 20), method="GET", path=r"/bucket/weights", times=None)
        server.add(Run(lambda: put_other_bytes()), method="GET", skip=1)   # changed while reading

``FaultyServer(tls=context)`` speaks TLS. A rule matches by method and by a regular expression that
is searched in the request target (path and query) or any function of the request. Of the rules that
match, the oldest one that is due acts: the first ``skip`` matches pass it by, the next ``times``
meet it (None: all of them). Each rule may carry several faults, which act one after another on the
answer: ``server.add(Slow(100_000), Cut(after=5000))``. Offsets count bytes of the body sent in that
answer, not offsets in the object. A fault of one's own is a subclass of ``Fault``.

Faults: ``Cut``, ``Close``, ``Length``, ``Stall``, ``Slow``, ``Status``, ``Headers``, ``Flip``,
``Endless``, ``Run``. Content that changes: ``put`` again, or ``Run``.

What it saw: ``seen`` (every request, with its range, status and the bytes sent), ``sent_bytes``,
``open_connections``, ``peak_connections``, ``peak_requests`` (being answered at one time).
``wait(lambda: ...)`` waits until that holds of it, checked whenever a figure changes.
Leaving the block cuts what is still open and joins every thread.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import BoundedSemaphore, Condition, Event, Thread
from types import TracebackType
from typing import BinaryIO, Self

from tests.support.faults import (
    Answer,
    Close,
    ClosedError,
    Cut,
    Endless,
    Fault,
    Flip,
    Headers,
    Length,
    Line,
    Request,
    ResetError,
    Run,
    Slow,
    Stall,
    Status,
)
from tests.support.faulty_contents import Content, head_of, passed_on
from tests.support.faulty_wire import (
    BrokenError,
    Head,
    framed,
    read_body,
    read_head,
    reset,
)

__all__ = [
    "Answer",
    "Close",
    "Cut",
    "Endless",
    "Fault",
    "FaultyServer",
    "Flip",
    "Headers",
    "Length",
    "Request",
    "Run",
    "Slow",
    "Stall",
    "Status",
]

MAX_CONNECTIONS = 128
SILENCE_SECONDS = 300.0
JOIN_SECONDS = 10.0


@dataclass(kw_only=True)
class _Rule:
    faults: tuple[Fault, ...]
    matches: Callable[[Request], object]
    skip: int
    times: int | None

    def take(self, request: Request) -> bool:
        if self.times == 0 or not self.matches(request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultyServer:
    """The server; a context manager. See the module's docstring."""

    def __init__(
        self,
        *,
        upstream: tuple[str, int] | None = None,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """``upstream``: the real server to stand before, spoken to without TLS."""
        self._upstream = upstream
        self._tls = tls
        self._contents: dict[str, Content] = {}
        self._rules: list[_Rule] = []
        self._changed = Condition()
        self._closing = Event()
        self._slots = BoundedSemaphore(MAX_CONNECTIONS)
        self._sockets: set[socket.socket] = set()
        self._threads: set[Thread] = set()
        self._requests = 0
        self.seen: list[Request] = []
        """Every request in the order of arrival, also those that are still being answered."""
        self.sent_bytes = 0
        """Of bodies, all answers together."""
        self.open_connections = 0
        self.peak_connections = 0
        self.peak_requests = 0
        """The most requests that were being answered at one time."""
        self._listener = socket.create_server((host, 0), backlog=MAX_CONNECTIONS)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"

    def __enter__(self) -> Self:
        thread = Thread(target=self._accept, name="faulty", daemon=True)
        self._threads.add(thread)
        thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        with self._changed:
            left = [*self._sockets, self._listener]
            threads = [*self._threads]
        for one in left:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._listener.close()
        assert not any(thread.is_alive() for thread in threads), "a connection did not end"

    def put(
        self,
        path: str,
        data: bytes,
        *,
        etag: str | None = None,
        has_ranges: bool = True,
        is_chunked: bool = False,
        headers: dict[str, str] | None = None,
    ) -> str:
        """Serve ``data`` at a path from now on (answers under way keep theirs); return the etag.

        ``etag``: with its quotes; None makes one of the data, an empty one sends none.
        ``is_chunked``: no length is told. ``headers``: sent too, as ``Last-Modified``.
        """
        if etag is None:
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        content = Content(
            data=memoryview(data),
            headers=tuple((headers or {}).items()),
            etag=etag,
            has_ranges=has_ranges,
            is_chunked=is_chunked,
        )
        with self._changed:
            self._contents[path] = content
        return etag

    def remove(self, path: str) -> None:
        """Answer 404 for a path from now on."""
        with self._changed:
            del self._contents[path]

    def add(
        self,
        *faults: Fault,
        path: str = "",
        method: str = "",
        when: Callable[[Request], object] | None = None,
        skip: int = 0,
        times: int | None = 1,
    ) -> None:
        """Add a rule: what these faults are done to; see the module's docstring."""

        def matches(request: Request) -> object:
            return (
                method in {"", request.method}
                and re.search(path, request.target)
                and (when is None or when(request))
            )

        with self._changed:
            self._rules.append(_Rule(faults=faults, matches=matches, skip=skip, times=times))

    def clear(self) -> None:
        """Forget every rule, and what was seen and sent so far."""
        with self._changed:
            self._rules.clear()
            self.seen.clear()
            self.sent_bytes = 0
            self.peak_connections = self.open_connections
            self.peak_requests = self._requests

    def wait(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait until the condition holds; raises ``TimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise TimeoutError(f"it did not come about within {seconds:g} s")

    def _accept(self) -> None:
        while not self._closing.is_set():
            if not self._slots.acquire(timeout=0.1):
                continue
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = Thread(target=self._run, args=(connection,), name="faulty", daemon=True)
            with self._changed:
                self._threads.add(thread)
                self._sockets.add(connection)
                self.open_connections += 1
                self.peak_connections = max(self.peak_connections, self.open_connections)
                self._changed.notify_all()
                # Whoever closes joins every thread that it finds, so none may be without a start.
                thread.start()
            self._threads_gone()

    def _threads_gone(self) -> None:
        with self._changed:
            self._threads = {one for one in self._threads if one.is_alive()}

    def _run(self, connection: socket.socket) -> None:
        raw = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(SILENCE_SECONDS)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                with self._changed:
                    self._sockets = self._sockets - {raw} | {connection}
            self._serve(connection)
        except (OSError, BrokenError, ValueError):
            # The client went away, or the server closes.
            pass
        finally:
            connection.close()
            with self._changed:
                self._sockets -= {raw, connection}
                self.open_connections -= 1
                self._changed.notify_all()
            self._slots.release()

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while not self._closing.is_set() and (head := read_head(stream)) is not None:
                request = Request(
                    method=head.words[0],
                    target=head.words[1],
                    headers={name.lower(): value for name, value in head.headers},
                    at=time.monotonic(),
                )
                faults = self._arrived(request)
                try:
                    self._answer(request, head, stream, connection, faults)
                except ResetError:
                    reset(connection)
                    return
                except ClosedError:
                    if isinstance(connection, ssl.SSLSocket):
                        connection.settimeout(0.5)
                        connection.unwrap()
                    return
                finally:
                    with self._changed:
                        self._requests -= 1
                        self._changed.notify_all()
                if not head.keeps_open:
                    return

    def _arrived(self, request: Request) -> tuple[Fault, ...]:
        with self._changed:
            self.seen.append(request)
            self._requests += 1
            self.peak_requests = max(self.peak_requests, self._requests)
            self._changed.notify_all()
            for rule in self._rules:
                if rule.take(request):
                    return rule.faults
        return ()

    def _answer(
        self,
        request: Request,
        head: Head,
        stream: BinaryIO,
        connection: socket.socket,
        faults: tuple[Fault, ...],
    ) -> None:
        line = Line(connection, self._closing)
        instead = None
        for fault in faults:
            instead = instead or fault.before(request, line)
        if instead is None and self._upstream is not None:
            with self._ask_upstream(self._upstream, head, stream, connection) as answer:
                self._send(request, answer, connection, faults, line)
            return
        expects = head.get("expect") is not None
        if not expects:
            for _ in read_body(stream, head, to_end=False):
                pass
        self._send(request, instead or self._own(request), connection, faults, line)
        if expects:
            raise ClosedError

    def _own(self, request: Request) -> Answer:
        with self._changed:
            content = self._contents.get(request.target.partition("?")[0])
        if request.method not in {"GET", "HEAD"}:
            return Answer(status=405)
        return content.answer(request) if content is not None else Answer(status=404)

    @contextmanager
    def _ask_upstream(
        self, address: tuple[str, int], head: Head, stream: BinaryIO, connection: socket.socket
    ) -> Iterator[Answer]:
        upstream = socket.create_connection(address, timeout=SILENCE_SECONDS)
        with self._changed:
            self._sockets.add(upstream)
        try:
            with upstream, upstream.makefile("rb") as back:
                upstream.sendall(head.raw)
                found = read_head(back) if head.get("expect") is not None else None
                if found is None or found.words[1] == "100":
                    if found is not None:
                        connection.sendall(found.raw)
                    for piece in read_body(stream, head, to_end=False):
                        upstream.sendall(framed(piece, head.is_chunked))
                    if head.is_chunked:
                        upstream.sendall(b"0\r\n\r\n")
                    found = read_head(back)
                if found is None:
                    raise BrokenError("the real server closed")
                yield passed_on(head, found, back)
        finally:
            with self._changed:
                self._sockets.discard(upstream)

    def _send(
        self,
        request: Request,
        answer: Answer,
        connection: socket.socket,
        faults: tuple[Fault, ...],
        line: Line,
    ) -> None:
        pieces = iter(answer.body)
        for fault in faults:
            answer = fault.answer(answer)
            pieces = fault.body(pieces, line)
        request.status = answer.status
        connection.sendall(head_of(answer))
        is_chunked = answer.length is None and request.method != "HEAD"
        for piece in pieces:
            if piece:
                connection.sendall(framed(piece, is_chunked))
            with self._changed:
                request.sent += len(piece)
                self.sent_bytes += len(piece)
                self._changed.notify_all()
        if is_chunked:
            connection.sendall(b"0\r\n\r\n")
        if answer.is_last:
            raise ClosedError
