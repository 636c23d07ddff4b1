"""Pickers as the endpoint picker is one: each on a connection of its own, at a fixed rate."""

from __future__ import annotations

import http.client
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Self

PERIOD_SECONDS = 0.05
TIMEOUT_SECONDS = 1.0
_LOAD = re.compile(
    rb"^vllm:num_requests_(?:running|waiting)(?:\{[^\n]*\})? ([0-9.]+)", re.MULTILINE
)


@dataclass
class Seen:
    """What the pickers were answered."""

    answers: int = 0
    failures: int = 0
    bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    """How long each answer took."""
    loads: list[tuple[float, float]] = field(default_factory=list)
    """When (monotonic), and how many requests ran or waited by that page."""


class Pickers:
    """So many threads that ask one port for its page, while the context lasts."""

    def __init__(self, port: int, count: int, *, reads: bool = False) -> None:
        """``reads``: also read the load off each page."""
        self.seen = Seen()
        self._port = port
        self._reads = reads
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(number / count * PERIOD_SECONDS,))
            for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def reset(self) -> None:
        """Forget what was seen so far."""
        with self._lock:
            self.seen = Seen()

    def first_load(self, at_least: float, since: float) -> float | None:
        """Return when a page first said such a load after ``since``, if one did."""
        with self._lock:
            loads = list(self.seen.loads)
        return next((at for at, load in loads if at >= since and load >= at_least), None)

    def _ask(self, delay: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        due = time.monotonic() + delay
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            # Ticks that are missed are left out, as the picker does.
            due = max(due + PERIOD_SECONDS, began)
            try:
                connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                answer, body = None, b""
            self._note(began, body if answer is not None and answer.status == 200 else None)
        connection.close()

    def _note(self, began: float, body: bytes | None) -> None:
        ended = time.monotonic()
        with self._lock:
            if body is None:
                self.seen.failures += 1
                return
            self.seen.answers += 1
            self.seen.bytes += len(body)
            self.seen.seconds.append(ended - began)
            if self._reads:
                load = sum(float(found[1]) for found in _LOAD.finditer(body))
                self.seen.loads.append((ended, load))
