"""Clients that ask without a pause while something happens, and keep every answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import groupby
from typing import Self


class BusyClients:
    """``count`` threads, each asking again as soon as it was answered."""

    def __init__(self, count: int, ask: Callable[[], str]) -> None:
        """``ask`` raises where a request fails."""
        self._ask = ask
        self._stop = threading.Event()
        self.answers: list[list[str]] = [[] for _ in range(count)]
        """By client, in order."""
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(mine,), daemon=True) for mine in self.answers
        ]

    @property
    def requests(self) -> int:
        """How many were answered."""
        return sum(len(mine) for mine in self.answers)

    def turns(self) -> list[list[str]]:
        """What each client was answered, repetitions left out."""
        return [[answer for answer, _ in groupby(mine)] for mine in self.answers]

    def turns_only_forward(self) -> bool:
        """Tell whether no client was answered by what it had seen replaced before."""
        return all(len(turn) == len(set(turn)) for turn in self.turns())

    def _run(self, mine: list[str]) -> None:
        while not self._stop.is_set():
            try:
                mine.append(self._ask())
            except Exception as error:  # noqa: BLE001 - whatever it is, the request failed
                self.failures.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
