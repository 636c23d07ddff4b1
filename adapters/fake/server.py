"""Serves a face on a socket, and takes it away as a dying engine would."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from adapters.fake.asgi import App


class _Server(uvicorn.Server):
    """A server that leaves the signals of the process alone, and ends at once when told."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    async def main_loop(self) -> None:
        await self.leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class FakeServer:
    """One face on one port, which stays the same through stops and starts."""

    def __init__(self, app: App, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._app = app
        self._host = host
        self.port = port
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the face answers, once started."""
        return f"http://{self._host}:{self.port}"

    async def start(self) -> None:
        """Listen; from the return on, connections are accepted."""
        listener = socket.create_server((self._host, self.port))
        # asyncio sets this only on sockets that name their protocol, which this one does not: each
        # answer, written as head and body, would wait 40 ms for the peer's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=0,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))

    def cut(self) -> None:
        """Begin to stop: no further answer is complete. For callers that cannot wait."""
        if self._server is not None:
            self._server.leaving.set()

    async def stop(self) -> None:
        """Close the port and every connection; requests in flight are cut off."""
        self.cut()
        task, self._task, self._server = self._task, None, None
        if task is not None:
            await task

    async def wait_stopped(self) -> None:
        """Wait until the face is gone."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def __aenter__(self) -> FakeServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
