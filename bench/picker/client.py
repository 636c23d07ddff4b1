"""Sends requests when they are due, and keeps what became of each."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from bench.picker.workload import Due
from lab.envoy import SERVED_BY

WORKERS = 96
"""Requests in flight, at most; what is due beyond them is late, and its latency says so."""
TIMEOUT_SECONDS = 15.0


class Router(Protocol):
    """Says where a request goes."""

    def choose(self, lora: str) -> str:
        """Return the `address:port` to send it to."""

    def answered(self, place: str, lora: str) -> None:
        """Learn that a request sent there has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request and its fate; times are of the monotonic clock."""

    due: Due
    due_at: float
    sent_at: float
    done_at: float
    status: int
    """0 where there was no answer."""
    endpoint: str
    """`address:port` of the engine that answered; "" where none did."""


def complete(place: str, lora: str, prompt: str, tokens: int) -> tuple[int, str]:
    """Ask for a completion of so many tokens; return status and endpoint as ``Asked`` has them."""
    body = {
        "model": lora,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    # A connection for each request: an engine closes idle ones just when one would be used again.
    connection = http.client.HTTPConnection(place, timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
    served_by = answer.getheader(SERVED_BY, place)
    return answer.status, "" if served_by == "-" else served_by


class Client:
    """Open loop: a slow answer keeps no other request waiting."""

    def __init__(self, router: Router, *, tokens: int, run: str) -> None:
        """``run`` differs from that of any other client: no prompt comes twice."""
        self._router, self._tokens, self._run = router, tokens, run
        self._queue: SimpleQueue[tuple[Due, float] | None] = SimpleQueue()
        self._asked: list[Asked] = []

    def send(self, requests: Iterable[Due]) -> tuple[float, list[Asked]]:
        """Send all of them, wait for their ends; return the start and what became of each."""
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        begun = time.monotonic()
        for due in requests:
            at = begun + due.at
            time.sleep(max(0.0, at - time.monotonic()))
            self._queue.put((due, at))
        for _ in workers:
            self._queue.put(None)
        for worker in workers:
            worker.join()
        return begun, self._asked

    def _work(self) -> None:
        while (ordered := self._queue.get()) is not None:
            due, at = ordered
            # The run comes first: a prompt that begins like an earlier one is partly computed.
            prompt = f"{self._run} {due.number} what comes next"
            place = self._router.choose(due.lora)
            sent = time.monotonic()
            status, endpoint = complete(place, due.lora, prompt, self._tokens)
            self._router.answered(place, due.lora)
            asked = Asked(
                due=due,
                due_at=at,
                sent_at=sent,
                done_at=time.monotonic(),
                status=status,
                endpoint=endpoint,
            )
            self._asked.append(asked)
