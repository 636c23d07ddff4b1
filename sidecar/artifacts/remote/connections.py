"""Sockets and TLS for the HTTP client: only to checked addresses, with deadlines, in large reads.

httpcore's own backend resolves and connects in one step, reads one TLS record (16 KiB) a call, and
knows no deadline but the silence between two reads. This one connects to an address that was
checked, so that no second look-up can give another one; reads as much as is there, which halves the
time of a transfer; and bounds the whole wait for the head of an answer.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from sidecar.artifacts.remote.addresses import LookUp, is_loopback, resolve
from sidecar.artifacts.remote.port import CONNECT_SECONDS, READ_SECONDS
from sidecar.errors import FetchFailed, SourceNotAllowed

READ_BYTES = 1 << 18
"""Most of what is read at once. Larger ones gain 5 % and cost each connection that much memory."""
RECORD_BYTES = 1 << 14
"""Most that TLS decrypts in one step."""


class Backend(httpcore.NetworkBackend):
    """Opens connections."""

    def __init__(self, where: str, look_up: LookUp, *, to_loopback: bool) -> None:
        self._where = where
        self._look_up = look_up
        self._to_loopback = to_loopback

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to one of the host's addresses, each in turn, within ``timeout`` in all."""
        until = time.monotonic() + (timeout or CONNECT_SECONDS)
        addresses = resolve(
            host, port, where=self._where, seconds=_left(until), look_up=self._look_up
        )
        if not self._to_loopback and any(map(is_loopback, addresses)):
            raise loopback_refused(self._where, host)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                connected = socket.create_connection((address, port), _left(until) / left)
            except TimeoutError as error:
                failure: Exception = httpcore.ConnectTimeout(str(error))
            except OSError as error:
                failure = httpcore.ConnectError(error.strerror or "no connection")
            else:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Tcp(self._where, connected, (address, port))
        raise failure


class Stream(httpcore.NetworkStream):
    """One connection: what TCP and TLS have in common."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._head_until: float | None = None
        self._reads_body = False
        self._body_until: float | None = None

    def begin_body(self) -> None:
        """From here to the next request, only silence is bounded."""
        self._reads_body = True

    def end_body_within(self, seconds: float) -> None:
        """Bound what is left of the body as a whole."""
        self._body_until = time.monotonic() + seconds

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what is there, or wait for it; of a body also more than ``max_bytes``.

        The parser above takes any amount, and asks for little.
        """
        seconds = timeout or READ_SECONDS
        now = time.monotonic()
        if self._reads_body:
            if self._body_until is not None:
                if now >= self._body_until:
                    raise httpcore.ReadTimeout("the rest of the answer takes too long")
                seconds = min(seconds, _left(self._body_until))
            return self.receive(READ_BYTES, seconds)
        if self._head_until is None:
            self._head_until = now + seconds
        if now >= self._head_until:
            raise httpcore.ReadTimeout("the head of the answer never ends")
        return self.receive(max_bytes, _left(self._head_until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send a piece of a request; the wait for the head of its answer begins anew."""
        self._reads_body = False
        self._head_until = None
        self._body_until = None
        if buffer:
            self.send(buffer, timeout or READ_SECONDS)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Speak TLS over this connection; raises ``FetchFailed`` when it is not to be trusted."""
        host = (server_hostname or "").strip("[]").rstrip(".")
        try:
            return _Tls(self._where, self, ssl_context, host, timeout or CONNECT_SECONDS)
        except BaseException as error:
            self.close()
            if isinstance(error, httpcore.TimeoutException):
                raise httpcore.ConnectTimeout(str(error)) from error
            if isinstance(error, httpcore.NetworkError):
                raise httpcore.ConnectError(str(error)) from error
            raise

    def receive(self, size: int, seconds: float) -> bytes:
        """Wait for bytes; empty at the end."""
        raise NotImplementedError

    def send(self, data: bytes, seconds: float) -> None:
        """Send all of it."""
        raise NotImplementedError


class _Tcp(Stream):
    def __init__(self, where: str, connected: socket.socket, address: tuple[str, int]) -> None:
        super().__init__(where)
        self._socket = connected
        self._address = address

    def receive(self, size: int, seconds: float) -> bytes:
        try:
            self._socket.settimeout(seconds)
            return self._socket.recv(size)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def send(self, data: bytes, seconds: float) -> None:
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(data)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401
        if info == "server_addr":
            return self._address
        if info == "is_readable":
            return _is_readable(self._socket)
        return None


class _Tls(Stream):
    """TLS in memory over another stream, which may itself be one (a proxy reached by TLS)."""

    def __init__(
        self, where: str, below: Stream, context: ssl.SSLContext, host: str, seconds: float
    ) -> None:
        super().__init__(where)
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._shake_hands(host, seconds)

    def receive(self, size: int, seconds: float) -> bytes:
        until = time.monotonic() + seconds
        pieces: list[bytes] = []
        while size > 0:
            try:
                piece = self._object.read(min(size, RECORD_BYTES))
            except ssl.SSLWantReadError:
                # What the peer is to hear first, as for new keys.
                self._flush(_left(until))
                if pieces:
                    break
                self._feed(until)
            except ssl.SSLError as error:
                # Also an end without a farewell, which anybody on the way can bring about.
                raise httpcore.ReadError(_reason(error)) from error
            else:
                if not piece:
                    break
                pieces.append(piece)
                size -= len(piece)
        return b"".join(pieces)

    def send(self, data: bytes, seconds: float) -> None:
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise httpcore.WriteError(_reason(error)) from error
        self._flush(seconds)

    def close(self) -> None:
        self._below.close()

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401
        if info == "ssl_object":
            return self._object
        if info == "is_readable" and self._incoming.pending:
            return True
        return self._below.get_extra_info(info)

    def _shake_hands(self, host: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(_left(until))
                self._feed(until)
            except ssl.SSLCertVerificationError as error:
                raise FetchFailed(
                    f"{self._where}: the certificate of {host} is not trusted "
                    f"({error.verify_message[:200]}); mount the CA as ca.crt among the "
                    "credentials, or name its file in SSL_CERT_FILE"
                ) from error
            except ssl.SSLError as error:
                raise FetchFailed(
                    f"{self._where}: no TLS with {host} ({_reason(error)}); "
                    "is this the right port, and is https:// spoken there?"
                ) from error
            else:
                self._flush(_left(until))
                return

    def _feed(self, until: float) -> None:
        data = self._below.receive(READ_BYTES, _left(until))
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self, seconds: float) -> None:
        data = self._outgoing.read()
        if data:
            self._below.send(data, seconds)


def loopback_refused(where: str, host: str) -> SourceNotAllowed:
    """Return what is said of a redirect from elsewhere to the agent's own machine."""
    return SourceNotAllowed(
        f"{where}: a redirect leads to {host}, which is the agent's own machine; it is not "
        "followed there from elsewhere"
    )


def _left(until: float) -> float:
    # A socket takes 0 for "do not wait", and negative numbers for a mistake.
    return max(0.001, until - time.monotonic())


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "broken off").lower().replace("_", " ")


def _is_readable(connected: socket.socket) -> bool:
    # Of an idle connection: the peer closed it.
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))
