"""Stands between a picker and the pages of the pods, and counts: neither end says it itself.

Where there is no page to pass on it answers with an empty one, which is what a scrape costs before
there is anything to parse.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from lab.epp import free_port_everywhere

CHUNK = 1 << 18
CONNECT_SECONDS = 5.0
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"


class Relay:
    """Listens on every pod's address at one port, and passes all on to another port there."""

    def __init__(self, addresses: Sequence[str], target: int | None) -> None:
        """Without a ``target``, every page is empty."""
        self.port = free_port_everywhere()
        self.requests = 0
        self.answer_bytes = 0
        """Heads and bodies of the answers, as they came over the wire."""
        self._addresses, self._target = addresses, target
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for address in self._addresses:
            server = socket.create_server((address, self.port))
            self._sockets.append(server)
            self._start(self._accept, server, address)
        return self

    def __exit__(self, *exc: object) -> None:
        for one in self._sockets:
            with suppress(OSError):
                # Wakes the thread that reads it, which closing does not.
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=run, args=arguments, daemon=True).start()

    def _accept(self, server: socket.socket, address: str) -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                self._sockets.append(client)
                if self._target is None:
                    self._start(self._answer, client)
                    continue
                engine = socket.create_connection((address, self._target), CONNECT_SECONDS)
                engine.settimeout(None)
                self._sockets.append(engine)
                self._start(self._pass_on, client, engine, self._count_request)
                self._start(self._pass_on, engine, client, self._count_bytes)

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, count: Callable[[bytes], None]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                count(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK):
                self._count_request(data)
                self._count_bytes(EMPTY)
                client.sendall(EMPTY)

    def _count_request(self, data: bytes) -> None:
        with self._lock:
            # A request of a picker has no body and comes in one piece.
            self.requests += data.startswith(b"GET ")

    def _count_bytes(self, data: bytes) -> None:
        with self._lock:
            self.answer_bytes += len(data)
