"""The routes, as one raw ASGI application. It knows no Kubernetes API: what it answers comes from
the request alone.

Reviews are worked on in threads, one at a time for each path: a document of a megabyte takes a
second, and pods wait for no document meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from sidecar.cluster.webhook.review import BadReview, Review, Verdict, parse_review, render

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reviewer = Callable[[Review], Verdict]

MAX_BODY_BYTES: Final = 7 * 1024 * 1024
"""A review of an UPDATE holds the object twice, and the API server takes 3 MiB for one."""
MAX_HELD_BYTES: Final = 8 * MAX_BODY_BYTES
"""Of all bodies that are read or wait their turn; more are asked to come again."""
_BODY_SHARE: Final = 0.25
"""Of the time for a review: the API server sends a body at once, and others get no longer."""
_THREADS: Final = 4
"""Of a path. One works; the others are for when it does not come to an end in its time, because a
thread cannot be stopped."""
MAX_LOGGED_CHARS: Final = 500

log = logging.getLogger("model_sidecar.webhook")


class _TooLarge(Exception):
    """The body is longer than any review."""


class _TooMany(Exception):
    """The bodies that are held are as many as may be."""


class _NoBody(Exception):
    """The body does not come."""


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where the reviews of one path are worked on."""

    reviewer: Reviewer
    turn: asyncio.Semaphore
    threads: ThreadPoolExecutor


class WebhookApp:
    """The ASGI application: a reviewer for each path, and the kubelet's two questions."""

    def __init__(self, reviewers: Mapping[str, Reviewer], *, review_seconds: float) -> None:
        """``reviewers``: by path, such as ``/inject``; each runs beside the others.

        ``review_seconds``: for one review, from its first byte to the answer.
        """
        self._review_seconds = review_seconds
        self._desks = {
            path: _Desk(reviewer, asyncio.Semaphore(1), ThreadPoolExecutor(_THREADS))
            for path, reviewer in reviewers.items()
        }
        self._held_bytes = 0
        self.not_ready: str = "it is starting"
        """Why no request should come here; empty when they may."""
        self.ending = False
        """Whether callers are asked to leave: each answer then ends its connection."""

    def close(self) -> None:
        """Let go of the threads; nothing is waited for."""
        for desk in self._desks.values():
            desk.threads.shutdown(wait=False, cancel_futures=True)

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
        body = bytearray()
        try:
            async with asyncio.timeout(self._review_seconds):
                await self._read_body(receive, body)
                async with desk.turn:
                    return 200, await _review(path, desk, body)
        except _NoBody:
            return 503, {"error": "the body did not come in time"}
        except _TooMany:
            return 503, {"error": "too many reviews at once; ask again"}
        except TimeoutError:
            what = f"no answer within {self._review_seconds:g} s"
            log.error("%s: %s", path, what)
            return 503, {"error": what}
        except _TooLarge:
            return 413, {"error": f"the body is longer than {MAX_BODY_BYTES} bytes"}
        except BadReview as error:
            log.warning("%s: %s", path, error)
            return 400, {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            what = f"the review failed: {type(error).__name__}"
            # Its message may have a part of the pod in it; where it came from has not.
            log.error("%s: %s at %s", path, what, _place(error))
            return 500, {"error": what}
        finally:
            self._held_bytes -= len(body)

    async def _read_body(self, receive: Receive, body: bytearray) -> None:
        """Add what comes to ``body``, and count it."""
        try:
            async with asyncio.timeout(self._review_seconds * _BODY_SHARE):
                async for part in _parts(receive):
                    body += part
                    self._held_bytes += len(part)
                    if len(body) > MAX_BODY_BYTES:
                        raise _TooLarge
                    if self._held_bytes > MAX_HELD_BYTES:
                        raise _TooMany
        except TimeoutError as error:
            raise _NoBody from error

    def _probe(self, path: str) -> tuple[int, object]:
        if path == "/live":
            return 200, {"live": True}
        reasons = [self.not_ready] if self.not_ready else []
        return (503 if reasons else 200), {"ready": not reasons, "reasons": reasons}


async def _review(path: str, desk: _Desk, body: bytearray) -> bytes:
    def work() -> tuple[Review, Verdict, bytes]:
        review = parse_review(bytes(body))
        verdict = desk.reviewer(review)
        return review, verdict, render(review, verdict)

    loop = asyncio.get_running_loop()
    review, verdict, answer = await loop.run_in_executor(desk.threads, work)
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


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadReview("the caller left before it had said all")
        yield message.get("body", b"")
        is_more = message.get("more_body", False)


def _place(error: BaseException) -> str:
    """Return where an exception came from, as ``file:line``."""
    found = traceback.extract_tb(error.__traceback__)
    return f"{PurePath(found[-1].filename).name}:{found[-1].lineno}" if found else "unknown"
