"""The routes, as one raw ASGI application. It knows no Kubernetes API: what it answers comes from
the request alone.

Reviews are worked on in a thread, one for each path: a document of a megabyte takes a second, and
pods wait for no document meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from sidecar.cluster.webhook.review import BadReview, Review, Verdict, parse_review, render

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reviewer = Callable[[Review], Verdict]

MAX_BODY_BYTES: Final = 7 * 1024 * 1024
"""A review of an UPDATE holds the object twice, and the API server takes 3 MiB for one."""
MAX_AT_ONCE: Final = 8
"""Reviews of a path in memory; the others wait their turn, and that counts as their time."""
MAX_LOGGED_CHARS: Final = 500

log = logging.getLogger("model_sidecar.webhook")


class _TooLarge(Exception):
    """The body is longer than any review."""


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where the reviews of one path are worked on."""

    reviewer: Reviewer
    turns: asyncio.Semaphore
    thread: ThreadPoolExecutor


class WebhookApp:
    """The ASGI application: a reviewer for each path, and the kubelet's two questions."""

    def __init__(self, reviewers: Mapping[str, Reviewer], *, review_seconds: float) -> None:
        """``reviewers``: by path, such as ``/inject``; each runs in a thread of its own.

        ``review_seconds``: for one review, from its first byte to the answer.
        """
        self._review_seconds = review_seconds
        self._desks = {
            path: _Desk(reviewer, asyncio.Semaphore(MAX_AT_ONCE), ThreadPoolExecutor(1))
            for path, reviewer in reviewers.items()
        }
        self.not_ready: str = "it is starting"
        """Why no request should come here; empty when they may."""
        self.ending = False
        """Whether callers are asked to leave: each answer then ends its connection."""

    def close(self) -> None:
        """Let go of the threads; nothing is waited for."""
        for desk in self._desks.values():
            desk.thread.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the server speaks HTTP only, and no lifespan."""
        code, document = await self._answer(scope["method"], scope["path"], receive)
        body = document if isinstance(document, bytes) else json.dumps(document).encode() + b"\n"
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        if self.ending or code == 413:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, method: str, path: str, receive: Receive) -> tuple[int, object]:
        if path in ("/live", "/ready"):
            if method not in ("GET", "HEAD"):
                return 405, {"error": f"{path} answers GET"}
            return self._probe(path)
        desk = self._desks.get(path)
        if desk is None:
            return 404, {"error": f"nothing is served at {path}"}
        if method != "POST":
            return 405, {"error": f"{path} answers POST"}
        try:
            async with asyncio.timeout(self._review_seconds), desk.turns:
                return 200, await _review(path, desk, await _read_body(receive))
        except TimeoutError:
            what = f"no answer within {self._review_seconds:g} s"
            log.error("%s: %s", path, what)
            return 503, {"error": what}
        except _TooLarge:
            return 413, {"error": f"the body is longer than {MAX_BODY_BYTES} bytes"}
        except BadReview as error:
            log.warning("%s: %s", path, error)
            return 400, {"error": str(error)}

    def _probe(self, path: str) -> tuple[int, object]:
        if path == "/live":
            return 200, {"live": True}
        reasons = [self.not_ready] if self.not_ready else []
        return (503 if reasons else 200), {"ready": not reasons, "reasons": reasons}


async def _review(path: str, desk: _Desk, body: bytes) -> bytes:
    def work() -> tuple[Review, Verdict, bytes]:
        review = parse_review(body)
        verdict = desk.reviewer(review)
        return review, verdict, render(review, verdict)

    loop = asyncio.get_running_loop()
    review, verdict, answer = await loop.run_in_executor(desk.thread, work)
    _tell(path, review, verdict)
    return answer


def _tell(path: str, review: Review, verdict: Verdict) -> None:
    about = f"{review.operation} {review.kind} {review.namespace}/{review.name or '(no name yet)'}"
    if not verdict.allowed:
        said = " ".join(verdict.message.split())[:MAX_LOGGED_CHARS]
        log.warning("%s: %s refused: %s", path, about, said)
    elif verdict.patch:
        log.info("%s: %s changed by %d operations", path, about, len(verdict.patch))
    else:
        log.debug("%s: %s admitted as it is", path, about)


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadReview("the caller left before it had said all")
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _TooLarge
        if not message.get("more_body", False):
            return bytes(body)
