"""Clients of a gateway, and pickers as far as a page can tell."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Self
from urllib.parse import urlsplit

from lab.picker import Reply, ask


class Load:
    """Clients that ask without a pause, each with prompts that nobody asked before."""

    def __init__(self, url: str, loras: Sequence[str], clients: int, *, tokens: int) -> None:
        self._url = url
        self._loras = loras
        self._tokens = tokens
        self._stop = threading.Event()
        self.asked: list[tuple[float, Reply]] = []
        """When each was asked (monotonic seconds), and what came; in order of the answers."""
        self._threads = [
            threading.Thread(target=self._run, args=(index,), daemon=True)
            for index in range(clients)
        ]

    def _run(self, index: int) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            begun = time.monotonic()
            lora = self._loras[(index + number) % len(self._loras)]
            prompt = f"{index}/{number}/{begun} and on"
            self.asked.append((begun, ask(self._url, lora, prompt, self._tokens)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)


class Arrivals:
    """Requests that come at a steady rate, whether earlier ones are answered or not."""

    def __init__(self, url: str, loras: Sequence[str], per_second: float) -> None:
        self._url = url
        self._loras = loras
        self._interval = 1 / per_second
        self._stop = threading.Event()
        self._waiting: list[threading.Thread] = []
        self._source = threading.Thread(target=self._run, daemon=True)
        self.asked: list[tuple[float, Reply]] = []
        """As in ``Load``."""

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.wait(self._interval):
                return
            thread = threading.Thread(target=self._ask, args=(number,), daemon=True)
            self._waiting.append(thread)
            thread.start()

    def _ask(self, number: int) -> None:
        begun = time.monotonic()
        lora = self._loras[number % len(self._loras)]
        self.asked.append((begun, ask(self._url, lora, f"{number}/{begun} and on", 4)))

    def __enter__(self) -> Self:
        self._source.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._source.join(timeout=10)
        for thread in self._waiting:
            thread.join(timeout=120)


class ManyPickers:
    """``count`` pickers, each with a connection of its own to each page."""

    def __init__(self, pages: Sequence[str], count: int, *, interval: float) -> None:
        """``interval`` is seconds between two requests of one picker for one page."""
        self._interval = interval
        self._stop = threading.Event()
        self._begun = 0.0
        self._asked: list[int] = []
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(page,), daemon=True)
            for page in pages
            for _ in range(count)
        ]

    def rate(self) -> float:
        """Requests a second, of all of them together, since they began."""
        return len(self._asked) / (time.monotonic() - self._begun)

    def _run(self, page: str) -> None:
        parts = urlsplit(page)
        with closing(http.client.HTTPConnection(parts.netloc, timeout=5)) as connection:
            self._ask(page, parts.path, connection)

    def _ask(self, page: str, path: str, connection: http.client.HTTPConnection) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # As a ticker does: what comes too late is dropped.
            due = max(due + self._interval, time.monotonic())
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(f"{page}: {exc!r}")
                connection.close()
                continue
            self._asked.append(answer.status)
            if answer.status != 200:
                self.failures.append(f"{page}: {answer.status}")

    def __enter__(self) -> Self:
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)


def ask_many(url: str, lora: str, count: int, clients: int = 3) -> list[Reply]:
    """Answers to that many requests, each with a prompt of its own."""
    stamp = time.monotonic_ns()
    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(lambda n: ask(url, lora, f"{n}/{stamp} on", 8), range(count)))
