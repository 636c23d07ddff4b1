"""From the engine's own metrics pages to the few figures that the picker asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from adapters.base import BusyTime, CacheInfo, MetricMap, Series
from sidecar.core.exposition import Line, has_family
from sidecar.core.lora_activity import Activity, Moment, read_activity, take_lines, whole
from sidecar.core.series import by_model, model_of, select
from sidecar.errors import SidecarError

LARGEST = float(2**53)
"""No figure is greater: the picker converts to an integer, which must stay exact."""
BUSY_SMOOTHING_SECONDS = 2.0
"""Counters of busy time grow when a request ends, in jumps; the mean is taken over about this."""


class SampleError(SidecarError):
    """A page says none of what the engine's pages always say: it is not read as zeros."""


BusyKey = tuple[int, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one scrape of every rank said, added up. Every number is finite and not negative."""

    taken_at: float
    """Seconds on the caller's clock at which the engine's answer was complete, the first one of
    several ranks."""
    queued: float = 0.0
    running: float = 0.0
    running_told: float = 0.0
    """The part of it that gauges say; the rest is a mean of what counters say."""
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
    lora_activity: tuple[Moment, ...] = ()
    """Every set of active LoRAs that the previous sample did not tell of, each with its time (unix
    seconds), oldest first."""
    lora_ranks: tuple[Activity, ...] = ()
    """What each rank's page told of its LoRAs, for the next sample."""
    started_at: float | None = None
    """Unix time at which the engine started; the youngest rank's."""
    busy: Mapping[BusyKey, float] = field(default_factory=dict)
    """Cumulative busy time of each series, microseconds, for the next sample."""


def translate(
    pages: tuple[bytes, ...],
    metric_map: MetricMap,
    previous: Sample | None,
    now: float,
    unix_now: float = math.inf,
) -> Sample:
    """Read the figures that ``metric_map`` names off the pages of all ranks.

    Malformed lines and figures that are no numbers count as missing, missing figures as 0. No
    activity of LoRAs is later than ``unix_now``.

    Raises:
        SampleError: there is no page, or one that has no family by which to know the engine.
    """
    if not pages:
        raise SampleError("the engine gave no metrics page")
    series = metric_map.lora_activity
    # That family may be a hundred times as long as all else, which is then found sooner.
    parts = [(page, []) if series is None else take_lines(page, series.name) for page in pages]
    pages = tuple(page for page, _ in parts)
    for rank, page in enumerate(pages):
        _check_readable(page, metric_map, rank)
    told, mean, busy = _running(pages, metric_map, previous, now)
    block_size, num_blocks = _cache(pages, metric_map.cache)
    starts = _started(pages, metric_map.started_at)
    ranks = _activity([lines for _, lines in parts], series, previous, unix_now)
    slots = [rank.max_loras for rank in ranks if rank.max_loras is not None]
    model_label = metric_map.model_label
    return Sample(
        taken_at=now,
        queued=_bounded(sum(_total(page, metric_map.queued, model_label) for page in pages)),
        running=_bounded(told + mean),
        running_told=_bounded(told),
        kv_usage=min(1.0, max(_greatest(page, metric_map.kv_usage) for page in pages)),
        block_size=block_size,
        num_blocks=num_blocks,
        lora_running=_names(rank.running for rank in ranks),
        lora_waiting=_names(rank.waiting for rank in ranks),
        max_loras=min(slots, default=None),
        lora_activity=tuple(
            sorted((one for rank in ranks for one in rank.moments), key=lambda one: one[0])
        ),
        lora_ranks=ranks,
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


def _lines(page: bytes, alternatives: Iterable[Series], model_label: str = "") -> Iterator[Line]:
    for lines in by_model(page, alternatives, model_label).values():
        yield from lines


def _total(page: bytes, alternatives: Iterable[Series], model_label: str = "") -> float:
    return sum(line.value for line in _lines(page, alternatives, model_label))


def _greatest(page: bytes, alternatives: Iterable[Series]) -> float:
    return max((line.value for line in _lines(page, alternatives)), default=0.0)


def _bounded(value: float) -> float:
    return min(max(value, 0.0), LARGEST)


def _running(
    pages: tuple[bytes, ...], metric_map: MetricMap, previous: Sample | None, now: float
) -> tuple[float, float, Mapping[BusyKey, float]]:
    """Return what gauges say, the mean by the counters of all other models, and all counters."""
    told, busy, counted = 0.0, dict[BusyKey, float](), dict[BusyKey, float]()
    for rank, page in enumerate(pages):
        gauges = by_model(page, metric_map.running, metric_map.model_label)
        told += sum(line.value for lines in gauges.values() for line in lines)
        for series, factor in _counters(metric_map.running_time):
            for line in select(page, series):
                key = (rank, series.name, line.label_text)
                busy[key] = min(line.value * factor, LARGEST)
                if not gauges or model_of(line, metric_map.model_label) not in gauges:
                    counted[key] = busy[key]
    return told, _mean_running(counted, previous, now), busy


def _counters(time: BusyTime | None) -> Iterator[tuple[Series, float]]:
    """Yield every counter of busy time, and what makes microseconds of it."""
    if time is not None:
        yield from ((series, 1.0) for series in time.microseconds)
        yield from ((series, 1e6) for series in time.seconds)


def _mean_running(busy: Mapping[BusyKey, float], previous: Sample | None, now: float) -> float:
    if previous is None:
        return 0.0
    elapsed, before = now - previous.taken_at, previous.running - previous.running_told
    if elapsed <= 0:
        return before
    mean = _bounded(_growth(busy, previous.busy) / 1e6 / elapsed)
    weight = math.exp(-elapsed / BUSY_SMOOTHING_SECONDS)
    return _bounded(before * weight + mean * (1 - weight))


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
        labels = [line.labels() for line in select(page, info.info)]
        sizes = [whole(one.get(info.block_size_label, "")) for one in labels]
        blocks = [whole(one.get(info.num_blocks_label, "")) for one in labels]
        return max(sizes, default=0), sum(blocks)
    if info.block_size is None or info.num_blocks is None:
        return 0, 0
    size = _greatest(page, (info.block_size,))
    return int(_bounded(size)), int(_bounded(_total(page, (info.num_blocks,))))


def _started(pages: tuple[bytes, ...], series: Series | None) -> list[float]:
    if series is None:
        return []
    return [line.value for page in pages for line in select(page, series) if line.value > 0]


def _activity(
    lines: Sequence[list[bytes]],
    series: Series | None,
    previous: Sample | None,
    unix_now: float,
) -> tuple[Activity, ...]:
    if series is None:
        return ()
    before = previous.lora_ranks if previous is not None else ()
    if len(before) != len(lines):
        before = (Activity(),) * len(lines)
    return tuple(
        read_activity(own, series, known, unix_now)
        for own, known in zip(lines, before, strict=True)
    )


def _names(lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({name for names in lists for name in names}))
