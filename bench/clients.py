"""Clients of a real vLLM whose load is the same whatever it answers."""

from __future__ import annotations

import threading
import time
from typing import Self

from lab.vllm import Vllm, stream

CLIENT_TOKENS = 48
CLIENT_SECONDS = 0.5
"""From the beginning of one request of a client to that of its next."""
LORAS = ("a", "b")
"""Each client asks one of these."""


class Clients:
    """Clients that send one short request after another at a fixed rate."""

    def __init__(self, engine: Vllm) -> None:
        self._url = engine.url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in LORAS]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + CLIENT_SECONDS, time.monotonic())
            list(stream(self._url, name, max_tokens=CLIENT_TOKENS))
