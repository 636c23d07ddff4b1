"""Who says where a request goes: a gateway with its picker, or the client itself."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from lab.probe import Probe

SLACK = 4
"""Requests that a pod may have in flight beyond the least busy one and still be the right one for a
LoRA in its slots: half of what an engine of the lab computes at once."""


class Gateway:
    """Everything goes to one place, which knows better."""

    def __init__(self, place: str) -> None:
        self._place = place

    def choose(self, lora: str) -> str:
        """Return the gateway."""
        return self._place

    def answered(self, place: str, lora: str) -> None:
        """Nothing to learn."""


class RoundRobin:
    """One pod after the other."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = itertools.cycle(places)
        self._lock = threading.Lock()

    def choose(self, lora: str) -> str:
        """Return the next pod."""
        with self._lock:
            return next(self._places)

    def answered(self, place: str, lora: str) -> None:
        """Nothing to learn."""


class Oracle:
    """Knows what is in every slot this moment, and what it has in flight on every pod.

    A request goes to the pod that has its LoRA in a slot (or that was just asked for it), unless
    that pod is busier than another by ``SLACK`` requests. A LoRA that is nowhere goes to the least
    busy pod, among equals to the one whose next slot to be given away was unused for longest.
    """

    def __init__(self, probes: Mapping[str, Probe], lone: str, lone_place: str) -> None:
        """``probes`` are by place; ``lone`` is only on ``lone_place``."""
        self._probes, self._lone, self._lone_place = probes, lone, lone_place
        self._flight: dict[str, Counter[str]] = {place: Counter() for place in probes}
        self._used: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def choose(self, lora: str) -> str:
        """Return the best pod."""
        with self._lock:
            place = self._lone_place if lora == self._lone else self._best(lora)
            self._flight[place][lora] += 1
            self._used[place, lora] = time.monotonic()
            return place

    def answered(self, place: str, lora: str) -> None:
        """Learn that a request has ended."""
        with self._lock:
            self._flight[place][lora] -= 1

    def _best(self, lora: str) -> str:
        busy = {place: flight.total() for place, flight in self._flight.items()}
        least = min(busy.values())
        slots = {place: probe.slots() for place, probe in self._probes.items()}
        holders = [
            place
            for place in busy
            if busy[place] - least < SLACK
            and (lora in slots[place] or self._flight[place][lora] > 0)
        ]
        if holders:
            return min(holders, key=lambda place: busy[place])
        return min(busy, key=lambda place: (busy[place], self._last_use(place, slots[place])))

    def _last_use(self, place: str, slots: Sequence[str]) -> float:
        return min((self._used.get((place, lora), 0.0) for lora in slots), default=0.0)
