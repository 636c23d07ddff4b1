"""Small servers of the lab's own, for what nobody ships a program for: token servers of clouds."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from lab.process import free_port
from lab.tls import Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class StubRequest:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """The body's fields, when it is a form."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


@dataclass(frozen=True, slots=True)
class StubAnswer:
    """An answer in JSON."""

    status: int
    value: object = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class Listener:
    """A server on loopback, a thread for each connection."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self._certificate = certificate
        self._port = free_port()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._port}"
        self.authority = certificate.authority if certificate else None
        self._server: ThreadingHTTPServer | None = None

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """How it answers."""
        raise NotImplementedError

    def start(self) -> Self:
        """Listen; again after `stop`, on the same port."""
        server = _Server(("127.0.0.1", self._port), self.handler())
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate.chain, self._certificate.key)
            # The handshake is the thread's business: here it would hold up every other client.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """End it. Twice is fine."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle, as some tests do, is no news."""


class Stub(Listener):
    """A server whose answers a function gives; every request is kept."""

    def __init__(
        self,
        answer: Callable[[StubRequest], StubAnswer],
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(certificate)
        self._answer = answer
        self.requests: list[StubRequest] = []

    def handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def answer(self) -> None:
                parts = urlsplit(self.path)
                request = StubRequest(
                    method=self.command,
                    path=parts.path,
                    query=dict(parse_qsl(parts.query)),
                    headers=self.headers,
                    body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
                )
                stub.requests.append(request)
                found = stub._answer(request)
                body = json.dumps(found.value).encode()
                self.send_response(found.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        return Handler
