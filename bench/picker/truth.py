"""What a router achieved, by what the engines' slots really held."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.picker.client import Asked
from bench.report import median
from lab.probe import Probe

THROWS = 501


class History:
    """What the slots of one engine held at any moment until now."""

    def __init__(self, probe: Probe) -> None:
        states = probe.states()
        self._times = [state.at for state in states]
        self._names = [frozenset(state.names) for state in states]
        self._loads = [event.at for event in probe.events() if event.move == "in"]

    def holds(self, lora: str, at: float) -> bool:
        """Tell whether a LoRA was in a slot at a monotonic time."""
        index = bisect_right(self._times, at) - 1
        return index >= 0 and lora in self._names[index]

    def loads(self, begin: float, end: float) -> int:
        """Return how many LoRAs came into slots between two monotonic times."""
        return bisect_right(self._loads, end) - bisect_right(self._loads, begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one phase of one run."""

    requests: int
    failed: int
    found: float
    """Share of the requests whose pod had their LoRA in a slot when they were sent."""
    loads: float
    """LoRAs that came into slots, for each request."""
    largest: float
    """Requests of the pod that got most, as a multiple of the mean."""
    hits: tuple[float, ...]
    """Seconds from when it was due, of each answered request that found its LoRA in a slot."""
    misses: tuple[float, ...]
    """The same of those that did not."""
    late: int
    """Requests that our own client sent more than 50 ms after they were due."""


def figures(
    asked: Sequence[Asked], histories: Mapping[str, History], begin: float, end: float
) -> Figures:
    """Return the figures of requests, all of which came between two monotonic times."""

    def is_found(one: Asked) -> bool:
        history = histories.get(one.endpoint)
        return history is not None and history.holds(one.due.lora, one.sent_at)

    loads = sum(history.loads(begin, end) for history in histories.values())
    pods = Counter(one.endpoint for one in asked if one.endpoint in histories)
    good = [one for one in asked if one.status == 200]
    return Figures(
        requests=len(asked),
        failed=len(asked) - len(good),
        found=sum(map(is_found, asked)) / max(1, len(asked)),
        loads=loads / max(1, len(asked)),
        largest=max(pods.values(), default=0) * len(histories) / max(1, pods.total()),
        hits=tuple(one.done_at - one.due_at for one in good if is_found(one)),
        misses=tuple(one.done_at - one.due_at for one in good if not is_found(one)),
        late=sum(one.sent_at - one.due_at > 0.05 for one in asked),
    )


def largest_by_chance(requests: int, pods: int) -> float:
    """Return the median of ``Figures.largest`` when every pod of every request is a throw of dice.

    The fewer the requests, the further is it from 1, which a measured share has to be read by.
    """
    dice = random.Random(0)
    throws = [
        max(Counter(dice.choices(range(pods), k=requests)).values(), default=0) * pods / requests
        for _ in range(THROWS if requests else 0)
    ]
    return median(throws) if throws else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoneFigures:
    """Of the LoRA that only one pod holds."""

    requests: int
    right: int
    """Requests that reached that pod."""
    failed: int


def lone_figures(asked: Sequence[Asked], lone: str, endpoint: str) -> LoneFigures:
    """Return the figures of the requests for that LoRA."""
    mine = [one for one in asked if one.due.lora == lone]
    return LoneFigures(
        requests=len(mine),
        right=sum(one.endpoint == endpoint for one in mine),
        failed=sum(one.status != 200 for one in mine),
    )
