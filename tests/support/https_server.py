"""HTTPS on loopback: certificates of a CA of our own, what servers answer, and a proxy.

The server itself is ``faulty.FaultyServer``; ``https_server(certificates)`` is one that speaks TLS.
"""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from tests.support.faults import Answer, Fault, Line, Request
from tests.support.faulty import FaultyServer
from tests.support.faulty_wire import read_head

_EXTENSIONS = """\
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""
_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """A CA, and one server certificate that it signed."""

    ca_file: Path
    server_file: Path
    """Certificate and key."""

    @property
    def ca(self) -> str:
        """The CA's certificate as text."""
        return self.ca_file.read_text()

    def server_context(self) -> ssl.SSLContext:
        """What a server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_file)
        return context


def make_certificates(
    directory: Path, *, names: str = "DNS:localhost, IP:127.0.0.1, IP:::1"
) -> Certificates:
    """Make a CA and a certificate for these names with the ``openssl`` program."""

    def openssl(*arguments: str) -> None:
        command = ("openssl", *arguments)
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=60)

    (directory / "x.conf").write_text(_EXTENSIONS.format(names=names))
    extensions = ("-extfile", "x.conf", "-days", "2")
    for name in ("ca", "server"):
        openssl("req", *_EC, "-subj", f"/CN=test {name}", "-keyout", f"{name}.key", "-out", "csr")
        if name == "ca":
            signer: tuple[str, ...] = ("-signkey", "ca.key")
        else:
            signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(
            *("x509", "-req", "-in", "csr", "-out", f"{name}.crt", "-extensions", name),
            *extensions,
            *signer,
        )
    both = (directory / "server.crt").read_text() + (directory / "server.key").read_text()
    (directory / "server.pem").write_text(both)
    return Certificates(ca_file=directory / "ca.crt", server_file=directory / "server.pem")


class HttpsServer(FaultyServer):
    """A server that speaks TLS; a context manager."""

    def __init__(self, certificates: Certificates) -> None:
        context = certificates.server_context()
        self.handshakes = 0
        """Connections so far."""
        context.sni_callback = self._count
        super().__init__(tls=context)

    def _count(self, connection: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
        # Called once for each handshake, also when no name is told.
        self.handshakes += 1


def https_server(certificates: Certificates) -> HttpsServer:
    """Return a server that shows this certificate; a context manager."""
    return HttpsServer(certificates)


@dataclass(frozen=True)
class Redirect(Fault):
    """Send the client elsewhere."""

    to: str
    status: int = 302
    headers: tuple[tuple[str, str], ...] = ()

    def before(self, request: Request, line: Line) -> Answer | None:
        return Answer(status=self.status, headers=(("Location", self.to), *self.headers))


@dataclass(frozen=True)
class Require(Fault):
    """Answer 401 unless a request header has this value; of all requests, with ``times=None``."""

    name: str
    value: str

    def before(self, request: Request, line: Line) -> Answer | None:
        if request.headers.get(self.name.lower()) == self.value:
            return None
        return Answer(status=401, headers=(("WWW-Authenticate", 'Basic realm="x"'),))


class HttpProxy:
    """A forward proxy: CONNECT, and plain HTTP. Reaches ``to`` whatever host it is asked for."""

    def __init__(self, to: tuple[str, int], *, auth: str = "", tls: ssl.SSLContext | None = None):
        self._to = to
        self._auth = auth
        self._tls = tls
        self._closing = Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.seen: list[str] = []
        """The first line of every request head."""
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        assert callable(target)
        thread = Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), self._tls_over(connection) as client:
            with client.makefile("rb", buffering=0) as raw:
                head = read_head(raw)  # type: ignore[arg-type]
            if head is None:
                return
            self.seen.append(" ".join(head.words))
            if self._auth and head.get("proxy-authorization") != self._auth:
                client.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(self._to, timeout=10) as server:
                if head.words[0] == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    path = "/" + head.words[1].split("/", 3)[3]
                    first = f"{head.words[0]} {path} HTTP/1.1\r\nConnection: close".encode()
                    server.sendall(first + head.raw[head.raw.index(b"\r\n") :])
                self._pass(client, server)

    @contextmanager
    def _tls_over(self, connection: socket.socket) -> Iterator[socket.socket]:
        with connection:
            if self._tls is None:
                yield connection
                return
            with self._tls.wrap_socket(connection, server_side=True) as wrapped:
                self._sockets.add(wrapped)
                yield wrapped

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        others = {client: server, server: client}
        while not self._closing.is_set():
            pending = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if pending else select.select([*others], [], [], 0.1)[0]
            for one in ready:
                data = one.recv(1 << 16)
                if not data:
                    return
                others[one].sendall(data)
