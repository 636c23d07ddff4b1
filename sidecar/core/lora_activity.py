"""Which LoRAs had requests, and when, off a family that gains a line for every set of them.

vLLM sets the line of the LoRAs that have requests to the present time, and never removes one: with
many LoRAs there are tens of thousands of lines after some hours, and a handful of them are newer
than the last sample. So the values are read first, and the labels of those alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapters.base import Series
from sidecar.core.exposition import find_lines
from sidecar.core.series import select

MAX_ACTIVITY = 256
"""How many past sets of active LoRAs one rank's sample carries at most."""

Moment = tuple[float, tuple[str, ...]]
"""LoRAs that had requests together, and when: unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What one rank's page told, and how far it was read. Times are the engine's unix seconds."""

    moments: tuple[Moment, ...] = ()
    """Every set of active LoRAs that the page before did not tell of, oldest first; of what lies
    in the future the time is the present. With no page before: all that the page still shows."""
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    max_loras: int | None = None
    newest: float = -1.0
    """The time of the newest line that was not in the future."""
    ahead: frozenset[float] = frozenset()
    """The times of those that were: a clock was set back, or is ahead of ours."""


def take_lines(page: bytes, family: str) -> tuple[bytes, list[bytes]]:
    """Return the page without the labelled lines of one family, and those lines."""
    head = family.encode() + b"{"
    if head not in page:
        return page, []
    lines = page.split(b"\n")
    own = [line for line in lines if line.startswith(head)]
    return b"\n".join([line for line in lines if not line.startswith(head)]), own


def read_activity(
    lines: list[bytes], series: Series, previous: Activity, unix_now: float
) -> Activity:
    """Read the lines of one rank; without any, what was known holds."""
    if not lines:
        return replace(previous, moments=())
    values = _values(lines, series.name)
    last = max(values)
    if last < previous.newest:  # another engine process, which counts anew
        previous = Activity()
    is_set_back = previous.newest > unix_now
    floor = -1.0 if is_set_back else previous.newest
    new = [
        (value, line)
        for value, line in zip(values, lines, strict=True)
        if value > floor and value not in previous.ahead
    ]
    if is_set_back:  # What is later than the present has been read, save what is the latest yet.
        new = [one for one in new if not unix_now < one[0] <= previous.newest]
    fresh = _select([line for _, line in heapq.nlargest(MAX_ACTIVITY, new)], series)
    fresh.sort(key=lambda one: one[0])
    read = (*previous.ahead, *(value for value, _ in fresh))
    at = last if last <= unix_now else max((one for one in values if one <= unix_now), default=last)
    present = next((labels for _, labels in _select([lines[values.index(at)]], series)), {})
    return Activity(
        moments=tuple(
            (min(value, unix_now), names)
            for value, labels in fresh
            if (names := _names(labels, "running_lora_adapters"))
        ),
        running=_names(present, "running_lora_adapters"),
        waiting=_names(present, "waiting_lora_adapters"),
        max_loras=whole(present.get("max_lora", "")) or None,
        newest=max((one for one in read if one <= unix_now), default=floor),
        ahead=frozenset(value for value in values if value > unix_now)
        if last > unix_now
        else frozenset(),
    )


def whole(text: str) -> int:
    """Read a label that should be a whole number; 0 where it is not ("None")."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0


def _values(lines: list[bytes], family: str) -> list[float]:
    """Read the value of each line, at little cost where all are plain; -1 where there is none."""
    try:
        values = [float(line[line.rfind(b"}") + 1 :]) for line in lines]
    except ValueError:
        found = (find_lines(line, family) for line in lines)
        return [one[0].value if one else -1.0 for one in found]
    return values if math.isfinite(sum(values)) else [v if v < math.inf else -1.0 for v in values]


def _select(lines: list[bytes], series: Series) -> list[tuple[float, Mapping[str, str]]]:
    return [(line.value, line.labels()) for line in select(b"\n".join(lines), series)]


def _names(labels: Mapping[str, str], label: str) -> tuple[str, ...]:
    return tuple(name for part in labels.get(label, "").split(",") if (name := part.strip()))
