"""A pod network for an API server without a cluster: pod addresses that lead to loopback ports.

The API server's pod proxy refuses pods with a loopback address (`IsProxyableIP` of
k8s.io/apimachinery). Its connections to the cluster can be sent through an HTTP CONNECT proxy on a
Unix socket instead (`--egress-selector-config-file`, as konnectivity does): this is that proxy, and
so everything stays on this machine.
"""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import tempfile
import threading
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Self

CONNECT_SECONDS = 5.0


class PodNetwork:
    """Listens while the ``with`` lasts; ``routes`` may change at any time."""

    def __init__(self) -> None:
        self.routes: dict[str, int] = {}
        """The loopback port behind each ``ADDRESS:PORT`` of a pod; others are refused."""
        # The path of a Unix socket may have 107 bytes, and pytest's directories are long.
        self._work = Path(tempfile.mkdtemp(prefix="pods-"))
        self._server = _Server(str(self._work / "s"), _Tunnel)
        self._server.routes = self.routes
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._addresses = (str(one) for one in ip_network("10.9.0.0/16").hosts())

    def address(self) -> str:
        """An address that no pod had before: the API server keeps connections for later requests,
        and they lead to whom they led to."""
        return next(self._addresses)

    def apiserver_args(self) -> list[str]:
        """Flags that make an API server reach pods through here."""
        path = self._work / "egress.json"
        transport = {"uds": {"udsName": self._server.server_address}}
        connection = {"proxyProtocol": "HTTPConnect", "transport": transport}
        config = {
            "apiVersion": "apiserver.k8s.io/v1beta1",
            "kind": "EgressSelectorConfiguration",
            "egressSelections": [{"name": "cluster", "connection": connection}],
        }
        path.write_text(json.dumps(config))
        return [f"--egress-selector-config-file={path}"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        shutil.rmtree(self._work)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    # Whoever asks for many pods at once connects so.
    request_queue_size = 256
    routes: dict[str, int]


class _Tunnel(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        address = self.rfile.readline().decode().split()[1]
        while self.rfile.readline().strip():
            pass
        port = self.server.routes.get(address)
        try:
            if port is None:
                raise ConnectionRefusedError
            there = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS)
        except OSError:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\nconnection refused")
            return
        there.settimeout(None)
        with there:
            self.wfile.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(there, self.connection), daemon=True)
            back.start()
            _copy(self.connection, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    for one, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with suppress(OSError):
            one.shutdown(how)
