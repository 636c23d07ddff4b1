"""Serves the ASGI application: sockets, TLS that follows its files, an ordered end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.config import Config

from sidecar.board import Board
from sidecar.core.deadlines import Deadlines
from sidecar.http_app import HttpApp, Pages
from sidecar.telemetry import Telemetry

TASK = "server"
TICK_SECONDS = 1.0
"""How often the certificate is looked at and the event loop's lag measured."""
KEEP_ALIVE_SECONDS = 75
"""Longer than any picker keeps an idle connection, so that no request meets a closing one."""
_END_SECONDS = 2
_BACKLOG = 1024
_log = logging.getLogger(__name__)


class Server:
    """The HTTP server. ``serve`` runs until ``close`` or cancellation."""

    def __init__(
        self,
        board: Board,
        pages: Pages,
        telemetry: Telemetry,
        deadlines: Deadlines,
        *,
        tls: Tls | None = None,
    ) -> None:
        """``tls`` is read again when its files change."""
        self._telemetry = telemetry
        self._deadlines = deadlines
        self._tls = tls
        self._app = HttpApp(board, pages, deadlines)
        self._uvicorn = HttpServer(http_config(self._app, tls))

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on ``sockets``, which are closed at the end."""
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(self._tick(), name="server tick")
            try:
                await self._uvicorn.serve(list(sockets))
            finally:
                self._app.close()
                ticking.cancel()
                for one in sockets:
                    one.close()
        self._deadlines.done(TASK)

    def close(self) -> None:
        """Stop accepting, answer what waits and let ``serve`` return."""
        self._app.close()
        self._uvicorn.end()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._deadlines.beat(TASK, 20 * TICK_SECONDS)
            due = loop.create_future()
            at = loop.time() + TICK_SECONDS
            timer = loop.call_at(at, due.set_result, None)
            try:
                await due
            finally:
                timer.cancel()
            self._telemetry.loop_lag(max(0.0, loop.time() - at))
            if self._tls is not None:
                self._tls.reload_changed()


class Tls:
    """A certificate and its key, loaded again when either file changes."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        """Load the pair.

        Raises:
            OSError, ssl.SSLError: a file cannot be read, or they are no pair.
        """
        self._files = (cert_file, key_file)
        self._seen = self._stamp()
        self._trouble = ""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(*self._files)

    def reload_changed(self) -> bool:
        """Take up a changed pair for new connections; a broken one leaves the old in use."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            self._seen = stamp
            # A failing load would leave the live context with half a pair: try it elsewhere.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
        except OSError as exc:  # ssl.SSLError is one
            if str(exc) != self._trouble:
                self._trouble = str(exc)
                _log.warning("the changed TLS certificate is not used, the old one is: %s", exc)
            return False
        self._trouble = ""
        _log.info("the TLS certificate was loaded again")
        return True

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        stats = [os.stat(path) for path in self._files]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in stats)


def parse_listen(text: str) -> tuple[str, int]:
    """Split ``:9110``, ``host:port`` or ``[::1]:port``; an empty host means all addresses.

    Raises:
        ValueError: it is none of these.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    digits = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    if not colon or not digits or (":" in host) is not bracketed:
        raise ValueError(
            f"{text!r} is no address to listen on; write :9110, host:port or [::1]:port"
        )
    return host, int(port)


def open_sockets(listen: str) -> list[socket.socket]:
    """Bind what ``listen`` says.

    Raises:
        ValueError: the text is malformed.
        OSError: the address is not ours, or the port is taken.
    """
    host, port = parse_listen(listen)
    if not host:
        return [_bind_all(port)]
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, str(where[0])) for family, _, _, _, where in infos))
    bound: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in addresses:
        try:
            bound.append(_bind(family, address, bound_port(bound) if bound else port))
        except OSError as exc:
            # A name such as localhost may have an address of a family that is switched off.
            failure = exc
    if failure is not None and not bound:
        raise failure
    return bound


def bound_port(sockets: Sequence[socket.socket]) -> int:
    """Return the port that was bound."""
    port: int = sockets[0].getsockname()[1]
    return port


def _bind_all(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return _bind(socket.AF_INET6, "::", port)
        except OSError:
            # IPv6 may be compiled in and switched off; a taken port fails once more below.
            _log.debug("cannot bind all IPv6 addresses, IPv4 only")
    return _bind(socket.AF_INET, "0.0.0.0", port)


def _bind(family: int, address: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named, which
    # socket.create_server does not do: answers in two writes would then take 40 ms.
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        one.bind((address, port))
        one.listen(_BACKLOG)
    except OSError:
        one.close()
        raise
    return one


class HttpServer(uvicorn.Server):
    """Leaves signals to its owner, and waits to be ended instead of looking ten times a second."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Let ``serve`` shut down."""
        self._ended.set()

    async def main_loop(self) -> None:
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            # uvicorn shuts down only when asked; cancelled, it would leave its listeners behind.
            for server in self.servers:
                server.close()
            for connection in list(self.server_state.connections):
                connection.shutdown()
            for task in self.server_state.tasks:
                task.cancel()
            raise

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_config(app: Callable[..., Any], tls: Tls | None) -> Config:
    """Return how an application is served: HTTP/1.1 alone, quietly, with TLS where it is given."""
    options: dict[str, Any] = {}
    if tls is not None:
        options["ssl_context_factory"] = lambda _config, _default: tls.context
    return Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_END_SECONDS,
        **options,
    )
