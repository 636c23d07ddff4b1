"""A scripted API server on a real loopback socket: what a real one does rarely, on command."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

REASONS = {401: "Unauthorized", 403: "Forbidden", 410: "Expired", 500: "InternalError"}


@dataclass(frozen=True)
class Request:
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    at: float
    method: str = "GET"
    body: bytes = b""

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


@dataclass(frozen=True)
class Answer:
    """One answer: a whole body, or chunks that come when they are fed."""

    status: int = 200
    body: bytes = b""
    chunks: asyncio.Queue[bytes | None] | None = None
    """None in it ends the body properly; `CUT` breaks the connection."""

    def feed(self, chunk: bytes | None) -> None:
        """Send one more chunk of a stream."""
        assert self.chunks is not None, "only a stream can be fed"
        self.chunks.put_nowait(chunk)


CUT = b"<cut>"


def configmap(version: str, data: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    metadata = {"name": "models", "namespace": "chat", "resourceVersion": version}
    return {"kind": "ConfigMap", "metadata": metadata, "data": dict(data or {}), **more}


def listed(version: str, *items: Mapping[str, Any]) -> Answer:
    body = {"kind": "ConfigMapList", "metadata": {"resourceVersion": version}, "items": items}
    return Answer(body=json.dumps(body).encode())


def refused(status: int, message: str = "because") -> Answer:
    return Answer(status=status, body=json.dumps(status_object(status, message)).encode())


def status_object(code: int, message: str = "because") -> dict[str, Any]:
    reason = REASONS.get(code, "Unknown")
    return {
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def event(kind: str, subject: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": subject}).encode() + b"\n"


def bookmark(version: str) -> bytes:
    return event("BOOKMARK", {"kind": "ConfigMap", "metadata": {"resourceVersion": version}})


def stream(*chunks: bytes, ended: bool = False) -> Answer:
    """Answer a watch with ``chunks``; more may be fed later unless it is ``ended``."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    for chunk in (*chunks, *((None,) if ended else ())):
        queue.put_nowait(chunk)
    return Answer(chunks=queue)


@dataclass
class Script:
    """What is answered; the last answer of each kind is given again and again."""

    lists: list[Answer | Callable[[Request], Answer]] = field(default_factory=list)
    watches: list[Answer | Callable[[Request], Answer]] = field(default_factory=list)


class ScriptedKube:
    """Listens at once; every request is kept in ``requests``."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.url = ""
        self._changed = asyncio.Event()
        self._answering: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._answering):
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)
        await self._server.wait_closed()

    @property
    def watches(self) -> list[Request]:
        return [one for one in self.requests if one.is_watch]

    @property
    def lists(self) -> list[Request]:
        return [one for one in self.requests if not one.is_watch]

    async def wait_requests(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            while await self._answer_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._answering.discard(task)
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *fields = head.strip().split("\r\n")
        method, address, _ = first.split()
        target = urlsplit(address)
        headers = {one.split(": ")[0].lower(): one.split(": ", 1)[1] for one in fields}
        request = Request(
            path=target.path,
            query={name: values[0] for name, values in parse_qs(target.query).items()},
            headers=headers,
            at=time.monotonic(),
            method=method,
            body=await reader.readexactly(int(headers.get("content-length", 0))),
        )
        self.requests.append(request)
        self._changed.set()
        answers = self.script.watches if request.is_watch else self.script.lists
        chosen = answers.pop(0) if len(answers) > 1 else answers[0]
        answer = chosen(request) if callable(chosen) else chosen
        return await _send(answer, writer)


async def _send(answer: Answer, writer: asyncio.StreamWriter) -> bool:
    reason = REASONS.get(answer.status, "OK")
    head = f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: application/json\r\n"
    if answer.chunks is None:
        length = f"Content-Length: {len(answer.body)}\r\n\r\n"
        writer.write((head + length).encode() + answer.body)
        await writer.drain()
        return True
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    await writer.drain()
    while True:
        chunk = await answer.chunks.get()
        if chunk == CUT:
            return False
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunk else b"0\r\n\r\n")
        await writer.drain()
        if not chunk:
            return True


@asynccontextmanager
async def scripted_kube(
    lists: Iterable[Answer | Callable[[Request], Answer]],
    watches: Iterable[Answer | Callable[[Request], Answer]],
) -> AsyncIterator[ScriptedKube]:
    server = ScriptedKube(Script(list(lists), list(watches)))
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()


def write_kubeconfig(
    path: Path, url: str, user: Mapping[str, Any], namespace: str = "chat"
) -> Path:
    """Write a kubeconfig for the one user; JSON is YAML."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "us", "user": user}],
        "contexts": [
            {"name": "it", "context": {"cluster": "it", "user": "us", "namespace": namespace}}
        ],
        "current-context": "it",
    }
    path.write_text(json.dumps(config))
    return path
