"""From the engine's own metrics pages to the few figures that the picker asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapters.base import CacheInfo, MetricMap, Series
from sidecar.core.exposition import Line, find_lines, has_family
from sidecar.errors import SidecarError

LARGEST = float(2**53)
"""No figure is greater: the picker converts to an integer, which must stay exact."""
BUSY_SMOOTHING_SECONDS = 2.0
"""Counters of busy time grow when a request ends, in jumps; the mean is taken over about this."""
MAX_ACTIVITY = 256
"""How many past sets of active LoRAs one sample carries at most; vLLM never removes them."""


class SampleError(SidecarError):
    """A page says none of what the engine's pages always say: it is not read as zeros."""


BusyKey = tuple[int, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one scrape of every rank said, added up. Every number is finite and not negative."""

    taken_at: float
    """Seconds on the caller's clock at which the engine's answer was complete."""
    queued: float = 0.0
    running: float = 0.0
    kv_usage: float = 0.0
    """The fullest rank's, 0 to 1."""
    block_size: int = 0
    """Tokens a block; 0 where the engine does not say."""
    num_blocks: int = 0
    """Blocks of all ranks: the picker knows the pod as one endpoint."""
    lora_running: tuple[str, ...] = ()
    lora_waiting: tuple[str, ...] = ()
    max_loras: int | None = None
    """GPU slots of the rank that has the fewest."""
    lora_activity: tuple[tuple[float, tuple[str, ...]], ...] = ()
    """Every set of active LoRAs newer than the previous sample's newest, each with its time (unix
    seconds, as the engine counts them), oldest first; with no previous sample, all that the page
    still shows."""
    lora_activity_at: float = 0.0
    """The time of the newest of them."""
    started_at: float | None = None
    """Unix time at which the engine started; the youngest rank's."""
    busy: Mapping[BusyKey, float] = field(default_factory=dict)
    """Cumulative busy time of each series, microseconds, for the next sample."""


def translate(
    pages: tuple[bytes, ...], metric_map: MetricMap, previous: Sample | None, now: float
) -> Sample:
    """Read the figures that ``metric_map`` names off the pages of all ranks.

    Malformed lines and figures that are no numbers count as missing, missing figures as 0.

    Raises:
        SampleError: there is no page, or one that has no family by which to know the engine.
    """
    if not pages:
        raise SampleError("the engine gave no metrics page")
    for rank, page in enumerate(pages):
        _check_readable(page, metric_map, rank)
    running, busy = _running(pages, metric_map, previous, now)
    block_size, num_blocks = _cache(pages, metric_map.cache)
    starts = _started(pages, metric_map.started_at)
    activity = _Activity.read(pages, metric_map.lora_activity)
    return Sample(
        taken_at=now,
        queued=_bounded(sum(_total(page, metric_map.queued) for page in pages)),
        running=running,
        kv_usage=min(1.0, max(_greatest(page, metric_map.kv_usage) for page in pages)),
        block_size=block_size,
        num_blocks=num_blocks,
        lora_running=activity.running,
        lora_waiting=activity.waiting,
        max_loras=activity.max_loras,
        lora_activity=activity.since(previous),
        lora_activity_at=activity.newest_at,
        started_at=max(starts, default=None),
        busy=busy,
    )


def _check_readable(page: bytes, metric_map: MetricMap, rank: int) -> None:
    figures = (*metric_map.queued, *metric_map.running, *metric_map.kv_usage)
    busy = metric_map.running_time
    if busy is not None:
        figures += (*busy.microseconds, *busy.seconds)
    names = [*(series.name for series in figures), *metric_map.present]
    if names and not any(has_family(page, name) for name in names):
        raise SampleError(
            f"the metrics page of engine rank {rank} has none of the expected families"
            f" (such as {names[0]})"
        )


def _select(page: bytes, series: Series) -> list[Line]:
    lines = [line for line in find_lines(page, series.name) if line.value >= 0]
    if series.labels:
        lines = [line for line in lines if _matches(line, series.labels)]
    return _once(lines, series.shared_by) if series.shared_by else lines


def _matches(line: Line, wanted: Mapping[str, str]) -> bool:
    labels = line.labels()
    # As Prometheus has it, a label that is not there is an empty one.
    return all(labels.get(name, "") == value for name, value in wanted.items())


def _once(lines: list[Line], shared_by: tuple[str, ...]) -> list[Line]:
    greatest: dict[frozenset[tuple[str, str]], Line] = {}
    for line in lines:
        key = frozenset(one for one in line.labels().items() if one[0] not in shared_by)
        if key not in greatest or greatest[key].value < line.value:
            greatest[key] = line
    return list(greatest.values())


def _first(page: bytes, alternatives: Iterable[Series]) -> list[Line]:
    for series in alternatives:
        if lines := _select(page, series):
            return lines
    return []


def _total(page: bytes, alternatives: Iterable[Series]) -> float:
    return sum(line.value for line in _first(page, alternatives))


def _greatest(page: bytes, alternatives: Iterable[Series]) -> float:
    return max((line.value for line in _first(page, alternatives)), default=0.0)


def _bounded(value: float) -> float:
    return min(max(value, 0.0), LARGEST)


def _running(
    pages: tuple[bytes, ...], metric_map: MetricMap, previous: Sample | None, now: float
) -> tuple[float, Mapping[BusyKey, float]]:
    time = metric_map.running_time
    # A family of gauges wins, where the page has one; the counters serve for the rest.
    if time is None or any(_first(page, metric_map.running) for page in pages):
        return _bounded(sum(_total(page, metric_map.running) for page in pages)), {}
    busy = _cumulative(pages, time.microseconds, 1.0) | _cumulative(pages, time.seconds, 1e6)
    return _mean_running(busy, previous, now), busy


def _cumulative(
    pages: tuple[bytes, ...], selections: tuple[Series, ...], microseconds: float
) -> dict[BusyKey, float]:
    return {
        (rank, series.name, line.label_text): min(line.value * microseconds, LARGEST)
        for rank, page in enumerate(pages)
        for series in selections
        for line in _select(page, series)
    }


def _mean_running(busy: Mapping[BusyKey, float], previous: Sample | None, now: float) -> float:
    if previous is None:
        return 0.0
    elapsed = now - previous.taken_at
    if elapsed <= 0:
        return previous.running
    mean = _bounded(_growth(busy, previous.busy) / 1e6 / elapsed)
    weight = math.exp(-elapsed / BUSY_SMOOTHING_SECONDS)
    return _bounded(previous.running * weight + mean * (1 - weight))


def _growth(current: Mapping[BusyKey, float], before: Mapping[BusyKey, float]) -> float:
    # A counter that fell was reset (the model was loaded again): it has counted from 0 since.
    grown = 0.0
    for key, value in current.items():
        known = before.get(key, 0.0)
        grown += value - known if value >= known else value
    return grown


def _cache(pages: tuple[bytes, ...], alternatives: tuple[CacheInfo, ...]) -> tuple[int, int]:
    for info in alternatives:
        found = [_cache_of(page, info) for page in pages]
        sizes = [size for size, _ in found if size > 0]
        if sizes:
            return sizes[0], int(_bounded(sum(blocks for _, blocks in found)))
    return 0, 0


def _cache_of(page: bytes, info: CacheInfo) -> tuple[int, int]:
    if info.info is not None:
        labels = [line.labels() for line in _select(page, info.info)]
        sizes = [_whole(one.get(info.block_size_label, "")) for one in labels]
        blocks = [_whole(one.get(info.num_blocks_label, "")) for one in labels]
        return max(sizes, default=0), sum(blocks)
    if info.block_size is None or info.num_blocks is None:
        return 0, 0
    size = _greatest(page, (info.block_size,))
    return int(_bounded(size)), int(_bounded(_total(page, (info.num_blocks,))))


def _whole(text: str) -> int:
    """Read a label that should be a whole number; 0 where it is not ("None")."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0


def _started(pages: tuple[bytes, ...], series: Series | None) -> list[float]:
    if series is None:
        return []
    return [line.value for page in pages for line in _select(page, series) if line.value > 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Activity:
    """Samples of the LoRA family, each as (value, labels), in the order of their values."""

    moments: tuple[tuple[float, Mapping[str, str]], ...] = ()
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    max_loras: int | None = None

    @classmethod
    def read(cls, pages: tuple[bytes, ...], series: Series | None) -> _Activity:
        if series is None:
            return cls()
        moments: list[tuple[float, Mapping[str, str]]] = []
        running: set[str] = set()
        waiting: set[str] = set()
        slots: list[int] = []
        for page in pages:
            lines = _select(page, series)
            if not lines:
                continue
            moments += [(line.value, line.labels()) for line in _newest(lines)]
            newest = max(lines, key=lambda line: line.value).labels()
            running.update(_names(newest, "running_lora_adapters"))
            waiting.update(_names(newest, "waiting_lora_adapters"))
            if most := _whole(newest.get("max_lora", "")):
                slots.append(most)
        return cls(
            moments=tuple(sorted(moments, key=lambda moment: moment[0])),
            running=tuple(sorted(running)),
            waiting=tuple(sorted(waiting)),
            max_loras=min(slots, default=None),
        )

    @property
    def newest_at(self) -> float:
        return self.moments[-1][0] if self.moments else 0.0

    def since(self, previous: Sample | None) -> tuple[tuple[float, tuple[str, ...]], ...]:
        after = -1.0 if previous is None else previous.lora_activity_at
        if self.newest_at < after:  # another engine process, which counts anew
            after = -1.0
        return tuple(
            (value, names)
            for value, labels in self.moments
            if value > after and (names := _names(labels, "running_lora_adapters"))
        )


def _newest(lines: list[Line]) -> list[Line]:
    if len(lines) <= MAX_ACTIVITY:
        return lines
    return sorted(lines, key=lambda line: line.value)[-MAX_ACTIVITY:]


def _names(labels: Mapping[str, str], label: str) -> tuple[str, ...]:
    return tuple(name for part in labels.get(label, "").split(",") if (name := part.strip()))
