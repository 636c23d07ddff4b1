"""When sources that may move by themselves are looked at: each at its own time. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from sidecar.core.desired import Entry
from sidecar.core.places import place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """When one source is looked at next."""

    source: str
    seconds: float
    """``refresh_seconds`` of its entry."""
    due_at: float


def turns_of(
    entries: Iterable[Entry], before: Mapping[str, Turn], *, pod: str, now: float
) -> dict[str, Turn]:
    """Return the turns of all entries that have ``refresh_seconds``, by name.

    A first turn comes after a part of the interval that depends on the pod and the name, so that
    pods that were given one document do not look together. ``now`` is unix seconds.
    """
    turns: dict[str, Turn] = {}
    for entry in entries:
        seconds = entry.refresh_seconds
        if seconds is None:
            continue
        turn = before.get(entry.name)
        if turn is None or (turn.source, turn.seconds) != (entry.source, seconds):
            due_at = now + seconds * place_of("refresh", entry.name, pod)
            turn = Turn(source=entry.source, seconds=seconds, due_at=due_at)
        turns[entry.name] = turn
    return turns


def due_names(turns: Mapping[str, Turn], *, now: float, limit: int) -> list[str]:
    """Return whose turn it is, whoever waits longest first, at most ``limit`` of them."""
    due = [name for name, turn in turns.items() if turn.due_at <= now]
    return sorted(due, key=lambda name: turns[name].due_at)[:limit]


def after_looks(
    turns: Mapping[str, Turn], names: Collection[str], *, now: float
) -> dict[str, Turn]:
    """Return the turns after these sources were looked at: never sooner than their interval."""
    return {
        name: replace(turn, due_at=now + turn.seconds) if name in names else turn
        for name, turn in turns.items()
    }
