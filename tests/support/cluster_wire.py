"""The way from agents to the API server: counts connections and bytes, and can be cut.

TLS passes through untouched. A cut one refuses connections, as the port of a dead server does,
while whoever goes past it still reaches the server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

from lab.process import free_port

T = TypeVar("T")

CALL_SECONDS = 20.0
PIECE_BYTES = 1 << 16
BACKLOG = 512
"""A whole fleet connects at once."""


class LoopThread:
    """An event loop in a thread of its own, for what has to go on while a test waits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Wire:
    """Leads from ``port`` to ``there``, both on loopback, while the ``with`` lasts."""

    def __init__(self, thread: LoopThread, there: int) -> None:
        self.port = free_port()
        self.connections = 0
        """That clients opened."""
        self.sent_bytes = 0
        """By clients, TLS included."""
        self.received_bytes = 0
        self._thread = thread
        self._there = there
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        self._thread.call(self._cut())

    def mend(self) -> None:
        """Take connections again, on the same port."""
        self._thread.call(self._mend())

    def __enter__(self) -> Self:
        self.mend()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cut()

    async def _mend(self) -> None:
        self._server = await asyncio.start_server(
            self._carry, "127.0.0.1", self.port, backlog=BACKLOG
        )

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._carrying:
            task.cancel()
        if self._carrying:
            await asyncio.wait(self._carrying)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        self.connections += 1
        # Cancelled by a cut; a task that ended so would be told as a failure of the server.
        with suppress(OSError, asyncio.CancelledError):
            try:
                await self._through(reader, writer)
            finally:
                writer.transport.abort()
                self._carrying.discard(task)

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, there = await asyncio.open_connection("127.0.0.1", self._there)
        ways = {
            asyncio.create_task(self._pump(reader, there, is_sent=True)),
            asyncio.create_task(self._pump(answers, writer, is_sent=False)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            there.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, drain: asyncio.StreamWriter, *, is_sent: bool
    ) -> None:
        while piece := await source.read(PIECE_BYTES):
            if is_sent:
                self.sent_bytes += len(piece)
            else:
                self.received_bytes += len(piece)
            drain.write(piece)
            await drain.drain()
