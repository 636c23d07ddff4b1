"""HTTP to loopback, in the standard library, past any proxy of the environment."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of any status; asking for its JSON or text does not check the status."""

    status: int
    body: bytes

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


def _send(request: urllib.request.Request, timeout: float) -> Answer:
    try:
        with _opener.open(request, timeout=timeout) as response:
            return Answer(response.status, response.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, exc.read())


def is_ok(url: str) -> bool:
    """Whether a GET answers 200 now."""
    try:
        return get(url, timeout=5.0).status == 200
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
