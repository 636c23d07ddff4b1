"""The routes, as one raw ASGI application: read-only, answered from what is already published.

No handler awaits the engine or the disk. Two may wait: a picker's first request after idle, 300 ms
at most, for a sample that another task takes, and ``?wait=`` for a publication.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

from sidecar.board import Board
from sidecar.core.answers import is_model_ready, is_settled, openai_models, repository_index
from sidecar.core.deadlines import Deadlines
from sidecar.core.picker_page import Page
from sidecar.core.status import Status, to_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LONGEST_WAIT_SECONDS = 600.0
_DEFAULT_WAIT_SECONDS = 30.0
_LARGEST_BODY_BYTES = 65536
_TEXT = b"text/plain; charset=utf-8"
_EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"
_READING: Final = frozenset({"GET", "HEAD"})
_ASKING: Final = frozenset({"GET", "HEAD", "POST"})
PATHS: Final = (
    "/ready",
    "/live",
    "/healthz",
    "/metrics",
    "/metrics/all",
    "/status",
    "/status/{name}",
    "/v1/models",
    "/v2/repository/index",
    "/v2/models/{name}/ready",
)
_FIXED_PATHS: Final = frozenset(path for path in PATHS if "{" not in path)


class Pages(Protocol):
    """Where the metrics pages come from."""

    def ask(self) -> Page | None: ...

    async def wait_page(self) -> Page: ...

    async def render_all(self) -> bytes: ...


class BadRequest(Exception):
    """The request asks for something that does not exist; the message says what does."""


@dataclass(slots=True)
class _Answer:
    """One answer, ready to be sent as the two messages that ASGI wants."""

    start: MutableMapping[str, Any]
    body: MutableMapping[str, Any]


class HttpApp:
    """The ASGI application."""

    def __init__(self, board: Board, pages: Pages, deadlines: Deadlines) -> None:
        self._board = board
        self._pages = pages
        self._deadlines = deadlines
        self._closing = asyncio.Event()
        self._page: Page | None = None
        self._page_answer = _answer(503, b"", _TEXT)
        self._status: Status | None = None
        self._cached: dict[str, _Answer] = {}

    def close(self) -> None:
        """Let every waiting request answer now."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the server speaks HTTP only, and no lifespan."""
        if scope["path"] == "/metrics" and scope["method"] in _READING:
            answer = self._metrics(self._pages.ask() or await self._pages.wait_page())
        else:
            answer = await self._route(scope, receive)
        await send(answer.start)
        await send(answer.body)

    def _metrics(self, page: Page) -> _Answer:
        if page is not self._page:
            self._page = page
            if page.fresh:
                self._page_answer = _answer(200, page.body, _EXPOSITION)
            else:
                self._page_answer = _answer(503, page.body, _TEXT)
        return self._page_answer

    async def _route(self, scope: Scope, receive: Receive) -> _Answer:
        path: str = scope["path"]
        method: str = scope["method"]
        allowed = _allowed(path)
        if allowed is None:
            return _json(404, {"error": f"nothing is served at {path}", "paths": PATHS})
        if method not in allowed:
            names = ", ".join(sorted(allowed))
            return _answer(
                405, _dump({"error": f"{path} answers {names}"}), _JSON, (b"allow", names.encode())
            )
        match path:
            case "/live" | "/healthz":
                return self._live()
            case "/metrics/all":
                return _answer(200, await self._pages.render_all(), _EXPOSITION)
            case "/v2/repository/index":
                return await self._index(method, receive)
        if path == "/status" or path.startswith("/status/"):
            return await self._status_answer(path, scope, receive)
        return self._published(path)

    def _live(self) -> _Answer:
        overdue = self._deadlines.overdue()
        if not overdue:
            return _json(200, {"live": True})
        return _json(503, {"live": False, "overdue": overdue})

    def _published(self, path: str) -> _Answer:
        """Answer from the status alone, rendered once a publication."""
        status = self._board.status
        if status is not self._status:
            self._status = status
            self._cached = {}
        answer = self._cached.get(path)
        if answer is None:
            answer = _render(status, path)
            if path in _FIXED_PATHS:  # names are the caller's, and no cache may grow by them
                self._cached[path] = answer
        return answer

    async def _index(self, method: str, receive: Receive) -> _Answer:
        ready_only = False
        if method == "POST":
            body = await _read_body(receive)
            try:
                asked = json.loads(body) if body and body.strip() else {}
            except (ValueError, RecursionError):
                return _json(400, {"error": "the body is no JSON object"})
            if not isinstance(asked, dict):
                return _json(400, {"error": "the body is no JSON object"})
            ready_only = asked.get("ready") is True
        return _json(200, repository_index(self._board.status, ready_only=ready_only))

    async def _status_answer(self, path: str, scope: Scope, receive: Receive) -> _Answer:
        try:
            seconds = _wait_seconds(scope["query_string"])
        except BadRequest as exc:
            return _json(400, {"error": str(exc)})
        name = path.removeprefix("/status").removeprefix("/")
        if seconds is not None:
            await self._wait_converged(name, seconds, receive)
        return self._published(path)

    async def _wait_converged(self, name: str, seconds: float, receive: Receive) -> None:
        """Wait until it converged, the time passed, the client left or the server closes."""
        ends = {
            asyncio.ensure_future(self._converged(name, seconds)),
            asyncio.ensure_future(_client_left(receive)),
            asyncio.ensure_future(self._closing.wait()),
        }
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in ends:
                one.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _converged(self, name: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not self._is_converged(name) and (left := until - loop.time()) > 0:
            await self._board.wait_changed(left)

    def _is_converged(self, name: str) -> bool:
        status = self._board.status
        return is_settled(status, name) if name else status.converged


def _allowed(path: str) -> frozenset[str] | None:
    if path == "/v2/repository/index":
        return _ASKING
    known = path in _FIXED_PATHS or _status_name(path) or _ready_name(path)
    return _READING if known else None


def _status_name(path: str) -> str:
    return path.removeprefix("/status/") if path.startswith("/status/") else ""


def _ready_name(path: str) -> str:
    name = path.removeprefix("/v2/models/").removesuffix("/ready")
    return name if path == f"/v2/models/{name}/ready" else ""


def _render(status: Status, path: str) -> _Answer:
    if path == "/ready":
        document = {"ready": status.ready, "reasons": status.reasons}
        return _json(200 if status.ready else 503, document)
    if path == "/status":
        return _json(200, to_json(status))
    if path == "/v1/models":
        return _json(200, openai_models(status))
    if name := _ready_name(path):
        if is_model_ready(status, name):
            return _answer(200, b"", _JSON)
        return _json(400, {"error": f"model {name} is not ready"})
    name = _status_name(path)
    target = status.targets.get(name)
    if target is None:
        return _json(404, {"error": f"there is no target {name}"})
    return _json(200, to_json(target))


def _wait_seconds(query_string: bytes) -> float | None:
    query = parse_qs(query_string.decode("latin-1"), keep_blank_values=True)
    if unknown := sorted(query.keys() - {"wait", "timeout"}):
        raise BadRequest(f"unknown parameter {unknown[0]}; known are wait and timeout")
    if "wait" not in query:
        return None
    if query["wait"][-1] != "converged":
        raise BadRequest("wait has one value: converged")
    text = query.get("timeout", [str(_DEFAULT_WAIT_SECONDS)])[-1]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        raise BadRequest(f"timeout is a number of seconds from 0 to {LONGEST_WAIT_SECONDS:g}")
    return seconds


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(receive: Receive) -> bytes:
    """Return the body, as far as it is not absurdly large."""
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body", False) or len(body) > _LARGEST_BODY_BYTES:
            return body


def _json(code: int, document: object) -> _Answer:
    return _answer(code, _dump(document), _JSON)


def _dump(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _answer(code: int, body: bytes, type_: bytes, *more: tuple[bytes, bytes]) -> _Answer:
    headers = [(b"content-type", type_), (b"content-length", b"%d" % len(body)), *more]
    return _Answer(
        {"type": "http.response.start", "status": code, "headers": headers},
        {"type": "http.response.body", "body": body},
    )
