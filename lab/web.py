"""HTTP to loopback, in the standard library, past any proxy of the environment."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of any status; asking for its JSON or text does not check the status."""

    status: int
    body: bytes
    headers: Message = field(default_factory=Message)

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:  # noqa: ANN401 (JSON has any shape)
        return json.loads(self.body)


def _request(url: str, payload: object | None) -> urllib.request.Request:
    if payload is None:
        return urllib.request.Request(url)
    return urllib.request.Request(
        url,
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )


def get(url: str, *, timeout: float = 10.0) -> Answer:
    """GET; an error status is an answer, a failed connection is an OSError."""
    return _send(_request(url, None), timeout)


def post(url: str, payload: object, *, timeout: float = 60.0) -> Answer:
    """POST of a JSON body."""
    return _send(_request(url, payload), timeout)


def _send(
    request: urllib.request.Request,
    timeout: float,
    opener: urllib.request.OpenerDirector = _opener,
) -> Answer:
    try:
        with opener.open(request, timeout=timeout) as response:
            return Answer(response.status, response.read(), response.headers)
    except urllib.error.HTTPError as exc:
        with exc:
            try:
                body = exc.read()
            except http.client.IncompleteRead as short:
                # distribution 3.1 declares the length of the blob for a 412 that has no body.
                body = short.partial
            return Answer(exc.code, body, exc.headers)


def send(
    method: str,
    url: str,
    *,
    body: bytes | Path = b"",
    headers: Mapping[str, str] | None = None,
    authority: Path | None = None,
    timeout: float = 60.0,
) -> Answer:
    """Send one request, of a file's content as it is read; over TLS by this CA file's word alone.

    A redirect is an answer, not followed.
    """
    given = {"Content-Type": "application/octet-stream", **(headers or {})}
    request = urllib.request.Request(url, headers=given, method=method)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
    if authority is not None:
        context = ssl.create_default_context(cafile=str(authority))
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    if isinstance(body, bytes):
        request.data = body if method not in ("GET", "HEAD") else None
        return _send(request, timeout, opener)
    with body.open("rb") as handle:
        request.data = handle
        request.add_header("Content-Length", str(body.stat().st_size))
        return _send(request, timeout, opener)


def is_ok(url: str, *, authority: Path | None = None) -> bool:
    """Whether a GET answers 200 now."""
    try:
        return send("GET", url, authority=authority, timeout=5.0).status == 200
    except OSError:
        return False


def stream_events(url: str, payload: object, *, timeout: float = 60.0) -> Iterator[Any]:
    """POST, then the JSON of each server-sent event until `[DONE]`."""
    with _opener.open(_request(url, payload), timeout=timeout) as response:
        for raw in response:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
