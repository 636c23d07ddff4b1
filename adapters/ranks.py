"""Several ranks of one engine, seen as one: what holds, holds on every rank.

Each rank is an engine process of its own behind its own URL, and a load reaches one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from adapters.base import (
    Capabilities,
    EngineAdapter,
    EngineBusy,
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnavailable,
    EngineUnsupported,
    FiguresAdapter,
    Limits,
    MetricMap,
    Residency,
    Resident,
    Target,
)

T = TypeVar("T")

WORST_FIRST: tuple[type[EngineError], ...] = (
    # An unknown outcome on one rank makes the whole unknown, whatever the others said.
    EngineTimeout,
    EngineUnavailable,
    EngineProtocolError,
    EngineUnsupported,
    EngineRejected,
    EngineBusy,
    EngineError,
)


class RankedAdapter:
    """The adapters of all ranks behind the port of one."""

    def __init__(self, adapters: tuple[EngineAdapter, ...]) -> None:
        if not adapters:
            raise ValueError("an engine has at least one rank")
        self._adapters = adapters
        self._answered_at = float("-inf")

    @property
    def answered_at(self) -> float:
        """When the first of the pages of the last scrape was complete (the loop's clock)."""
        return self._answered_at

    @property
    def capabilities(self) -> Capabilities:
        """What the first rank can: all run the same engine."""
        return self._adapters[0].capabilities

    @property
    def metric_map(self) -> MetricMap:
        """Where the pages of the ranks say what the picker wants."""
        return self._adapters[0].metric_map

    async def observe(self) -> EngineState:
        """Look at every rank; raise when one of them cannot be seen."""
        return merge_states(await _gather(adapter.observe() for adapter in self._adapters))

    async def load(self, target: Target, path: str) -> None:
        """Load on every rank that does not hold the target from this very path."""
        await _gather(self._load(adapter, target, path) for adapter in self._adapters)

    async def unload(self, target: Target) -> None:
        """Unload on every rank."""
        await _gather(adapter.unload(target) for adapter in self._adapters)

    async def warm(self, target: Target) -> None:
        """Warm every rank."""
        await _gather(adapter.warm(target) for adapter in self._adapters)

    async def scrape(self) -> tuple[bytes, ...]:
        """Return the pages of all ranks, in the order of the ranks."""
        return await self._pages(adapter.scrape() for adapter in self._adapters)

    async def aclose(self) -> None:
        """Close every rank, also when one of them fails at it."""
        await _gather(adapter.aclose() for adapter in self._adapters)

    async def _load(self, adapter: EngineAdapter, target: Target, path: str) -> None:
        if self.capabilities.reports_paths:
            state = await adapter.observe()
            if any(_is_held(resident, target, path) for resident in state.residents):
                return
        await adapter.load(target, path)

    async def _pages(self, calls: Iterable[Awaitable[tuple[bytes, ...]]]) -> tuple[bytes, ...]:
        answers = await _gather(_timed(call) for call in calls)
        self._answered_at = min(at for at, _ in answers)
        return tuple(page for _, pages in answers for page in pages)


class RankedFigures(RankedAdapter):
    """The same, of ranks that can each be asked for less than their whole page."""

    async def scrape_figures(self) -> tuple[bytes, ...]:
        """Return the figures of all ranks, in the order of the ranks."""
        return await self._pages(_scrape_figures(adapter) for adapter in self._adapters)


def join_ranks(adapters: tuple[EngineAdapter, ...]) -> RankedAdapter:
    """Return the ranks as one, which offers what all of them do."""
    if all(isinstance(adapter, FiguresAdapter) for adapter in adapters):
        return RankedFigures(adapters)
    return RankedAdapter(adapters)


def merge_states(states: tuple[EngineState, ...]) -> EngineState:
    """Return what all ranks agree on; a target they disagree about is PARTIAL."""
    first = states[0]
    starts = [state.started_at for state in states]
    # In the order of the first rank: engines list what they hold in the order of its loads.
    names = dict.fromkeys(resident.name for state in states for resident in state.residents)
    return EngineState(
        residents=tuple(_merge_resident(name, states) for name in names),
        base_names=frozenset[str]().union(*(state.base_names for state in states)),
        base_model=first.base_model,
        base_model_path=first.base_model_path,
        started_at=max((start for start in starts if start is not None), default=None),
        oldest_started_at=min(start or 0.0 for start in starts) if len(states) > 1 else None,
        ranks=len(states),
        asleep=any(state.asleep for state in states),
        limits=Limits(
            max_loras=_least(state.limits.max_loras for state in states),
            max_cpu_loras=_least(state.limits.max_cpu_loras for state in states),
            max_lora_rank=_least(state.limits.max_lora_rank for state in states),
            max_residents=_least(state.limits.max_residents for state in states),
        ),
    )


def _merge_resident(name: str, states: tuple[EngineState, ...]) -> Resident:
    found = [one for state in states for one in state.residents if one.name == name]
    first = found[0]
    paths = frozenset[str]().union(*(one.paths for one in found))
    alike = len(found) == len(states) and all(
        (one.state, one.paths) == (first.state, first.paths) for one in found
    )
    return Resident(
        name=name,
        kind=first.kind,
        state=first.state if alike else Residency.PARTIAL,
        paths=paths,
        aliases=frozenset[tuple[str, str]]().union(*(one.aliases for one in found)),
        reason=next((one.reason for one in found if one.reason), "")
        or ("" if alike else f"{len(found)} of {len(states)} ranks list it, or not all alike"),
    )


async def _scrape_figures(adapter: EngineAdapter) -> tuple[bytes, ...]:
    if isinstance(adapter, FiguresAdapter):
        return await adapter.scrape_figures()
    return await adapter.scrape()


async def _timed(call: Awaitable[T]) -> tuple[float, T]:
    answer = await call
    return asyncio.get_running_loop().time(), answer


def _is_held(resident: Resident, target: Target, path: str) -> bool:
    return (
        resident.name == target.name
        and resident.state is Residency.RESIDENT
        and resident.known_as(path).paths == {path}
    )


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


async def _gather(calls: Iterable[Awaitable[T]]) -> tuple[T, ...]:
    """Wait until every call has ended; then raise the worst error, if there was one."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=_badness)
    return tuple(result for result in results if not isinstance(result, BaseException))


def _badness(error: BaseException) -> int:
    for index, kind in enumerate(WORST_FIRST):
        if isinstance(error, kind):
            return index
    return -1
