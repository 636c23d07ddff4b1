"""The little of ASGI that the faces need."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, with its whole body."""

    method: str
    path: str
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as an object; an empty or other body is an empty one."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"


def reply_json(payload: object, status: int = 200) -> Reply:
    """Return an answer of JSON."""
    return Reply(status, json.dumps(payload).encode())


def reply_text(text: str, status: int = 200) -> Reply:
    """Return an answer of plain text."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


def make_app(handle: Callable[[Request], Awaitable[Reply]]) -> App:
    """Return an ASGI application that answers each request with what ``handle`` returns."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        reply = await handle(Request(scope["method"], scope["path"], body))
        headers = [
            (b"content-type", reply.content_type.encode()),
            (b"content-length", str(len(reply.body)).encode()),
        ]
        start = {"type": "http.response.start", "status": reply.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": reply.body})

    return app
