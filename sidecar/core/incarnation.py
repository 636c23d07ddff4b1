"""One life of the engine process, and what each of its ends and each document means for memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from adapters.base import EngineState, Residency
from sidecar.core.desired import Desired
from sidecar.core.inventory import Inventory
from sidecar.core.memory import Held, Latch, Memory, Owned

SAME_START_SECONDS = 0.05
"""Start times closer than this are one start, read twice."""


def follow(memory: Memory, state: EngineState, *, refused: bool, before: frozenset[str]) -> Memory:
    """Return the memory after a successful look: the same incarnation, or a new one (P8).

    New when the engine's start time changed; where it tells none, when nothing is left of
    ``before`` (the names that it held before this look, if nothing but a restart can have taken
    them), or, when there are none, when it refused a connection since the last look.
    """
    if memory.incarnation and not _has_restarted(memory, state, refused=refused, before=before):
        return replace(memory, started_at=state.started_at or memory.started_at)
    first = memory.incarnation == 0
    latch = Latch(
        incarnation=memory.incarnation + 1,
        document_seen=memory.latch.document_seen or memory.latch.passed,
    )
    return replace(
        memory,
        incarnation=memory.incarnation + 1,
        started_at=state.started_at,
        latch=replace(memory.latch, incarnation=1) if first else latch,
        retired=memory.retired if first else _still_readable(memory.retired, state),
    )


def _still_readable(retired: Mapping[str, float], state: EngineState) -> dict[str, float]:
    """Return the files that a process may read again which was there when they were unloaded."""
    oldest = state.started_at if state.oldest_started_at is None else state.oldest_started_at
    if oldest is None:
        return {}
    return {path: since for path, since in retired.items() if since >= oldest}


def _has_restarted(
    memory: Memory, state: EngineState, *, refused: bool, before: frozenset[str]
) -> bool:
    if state.started_at is not None and memory.started_at is not None:
        return abs(state.started_at - memory.started_at) > SAME_START_SECONDS
    if not before:
        return refused
    resident = {one.name for one in state.residents if one.state is not Residency.FAILED}
    return resident.isdisjoint(before)


def own(memory: Memory, desired: Desired, *, now: float) -> Memory:
    """Return the memory after a document was accepted: who is ours, and who left when."""
    owned: dict[str, Owned] = {}
    for name, entry in desired.entries.items():
        owned[name] = Owned(drop_out=entry.drop_out, grace_seconds=entry.unload_grace_seconds)
    for name, before in memory.owned.items():
        if name in owned:
            continue
        keeps = name in desired.undecided or desired.incomplete or before.dropped_at is not None
        owned[name] = before if keeps else replace(before, dropped_at=now)
    return replace(memory, owned=owned, generation=desired.generation)


def forget_gone(
    memory: Memory, resident: Collection[str], listed: Collection[str], *, now: float
) -> Memory:
    """Return the memory without names that left both the documents and the engine.

    Their files are retired: nobody saw when they were unloaded (P5).
    """
    owned = {
        name: one
        for name, one in memory.owned.items()
        if one.dropped_at is None or name in resident or name in listed
    }
    held: dict[str, Held] = {}
    retired = dict(memory.retired)
    for name, one in memory.held.items():
        if name in owned or name in resident:
            held[name] = one
        else:
            retired.setdefault(one.path, now)
    if len(owned) == len(memory.owned) and len(held) == len(memory.held):
        return memory
    return replace(memory, owned=owned, held=held, retired=retired)


def forget_retired(memory: Memory, inventory: Inventory, *, before: float) -> Memory:
    """Return the memory without what retired before ``before`` and lies not in the store.

    Nobody would evict it, so that it would be remembered for ever: the files of a passthrough, or
    those that another pod evicted.
    """
    old = {path for path, since in memory.retired.items() if since < before}
    if old:
        old.difference_update(one.path for one in inventory.all())
    if not old:
        return memory
    retired = {path: since for path, since in memory.retired.items() if path not in old}
    return replace(memory, retired=retired)
