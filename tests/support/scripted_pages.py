"""Many metrics pages on one port: each on a loopback address of its own, and each scrape of an
address gets the next answer of its script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Self

from lab.epp import free_port_everywhere
from tests.support.picker_sequences import Answer

_READY_SECONDS = 20.0
_A_NET = 250


class ScriptedPages:
    """Serves from its start to its end; the last answer of a script is given again and again."""

    def __init__(self, scripts: Sequence[Sequence[Answer]]) -> None:
        self.scripts = scripts
        self.addresses = [f"127.88.{at // _A_NET}.{at % _A_NET + 1}" for at in range(len(scripts))]
        self.port = free_port_everywhere()
        self.served = [0] * len(scripts)
        """Requests that came in, address by address."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_READY_SECONDS), "the pages are not served"
        return self

    def __exit__(self, *exc: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_READY_SECONDS)

    def is_done(self) -> bool:
        """Every script was played to its end, and what came of it is known to the reader: it
        asked once more."""
        return all(
            served > len(script) for served, script in zip(self.served, self.scripts, strict=True)
        )

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        servers = [
            await asyncio.start_server(self._answers(at), address, self.port)
            for at, address in enumerate(self.addresses)
        ]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()

    def _answers(self, at: int) -> Callable[..., Awaitable[None]]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    script = self.scripts[at]
                    writer.write(_http(script[min(self.served[at], len(script) - 1)]))
                    self.served[at] += 1
                    await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        return answer


def _http(answer: Answer) -> bytes:
    status = HTTPStatus(answer.status)
    body = b"" if status is HTTPStatus.NO_CONTENT else answer.body
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: {len(body)}\r\n"
    if answer.encoding:
        head += f"Content-Encoding: {answer.encoding}\r\n"
    return head.encode() + b"\r\n" + body
