"""What is worth an Event, from one published status to the next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.status import EngineCondition, Reason, State, Status, TargetStatus
from sidecar.core.targets import is_failing

REVISION_CHARACTERS = 12
SEEN = frozenset({EngineCondition.UP, EngineCondition.ASLEEP})
HELD = frozenset({State.RESIDENT, State.ASLEEP})
SPOILED = frozenset({Reason.INVALID_ENTRY, Reason.NAME_CONFLICT})


class Happening(StrEnum):
    """The reason of an Event; stable once released."""

    LOADED = "TargetLoaded"
    FAILED = "TargetFailed"
    HEALED = "EngineHealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing that happened."""

    happening: Happening
    target: str
    """Empty: it is about the engine."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is remembered of the statuses so far."""

    resident: Mapping[str, str]
    """Revision of each desired target that the engine held when it was last seen."""
    restarts: int
    failures: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Reason and failed attempts of each target that is failing."""
    healing: Mapping[str, str] | None = None
    """What the engine held before it restarted, until it is back."""
    healing_since: float = 0.0
    """Unix seconds."""


def watch(
    before: Watched | None, status: Status, now: float
) -> tuple[Watched | None, tuple[Notice, ...]]:
    """Return what to remember, and what happened since; None before the engine was ever seen.

    What it held when it was first seen is no news: the agent may have restarted.
    """
    if status.engine.state not in SEEN:
        return before, ()
    resident = _resident(status)
    if before is None:
        before = Watched(resident=resident, restarts=status.engine.restarts)
    healing, since = before.healing, before.healing_since
    if status.engine.restarts > before.restarts:
        healing = {**(healing or {}), **before.resident}
        since = now if before.healing is None else since
    known = healing or before.resident
    notices = [
        _loaded(status.targets[name])
        for name, revision in resident.items()
        if revision not in (before.resident.get(name), known.get(name))
    ]
    failures = {one.name: (one.reason, one.attempts) for one in _failing(status)}
    notices += [
        _failed(status.targets[name])
        for name, (reason, attempts) in failures.items()
        if _is_news(before.failures.get(name), reason, attempts)
    ]
    if healing is not None and _is_healed(healing, resident, status):
        if healing:
            notices.append(_healed(len(healing), now - since))
        healing = None
    watched = Watched(
        resident=resident,
        restarts=status.engine.restarts,
        failures=failures,
        healing=healing,
        healing_since=since,
    )
    return watched, tuple(notices)


def _resident(status: Status) -> dict[str, str]:
    return {
        name: one.revision or one.path
        for name, one in status.targets.items()
        if one.desired and one.state in HELD
    }


def _failing(status: Status) -> Iterable[TargetStatus]:
    return (
        one
        for one in status.targets.values()
        if one.reason and (one.attempts or is_failing(one) or one.reason in SPOILED)
    )


def _is_news(before: tuple[str, int] | None, reason: str, attempts: int) -> bool:
    return before is None or reason != before[0] or attempts > before[1]


def _is_healed(healing: Mapping[str, str], resident: Mapping[str, str], status: Status) -> bool:
    # What left the document meanwhile is not waited for.
    desired = (name for name in healing if name in status.targets and status.targets[name].desired)
    return all(name in resident for name in desired)


def _loaded(one: TargetStatus) -> Notice:
    revision = f" revision {one.revision[:REVISION_CHARACTERS]}" if one.revision else ""
    return Notice(
        happening=Happening.LOADED,
        target=one.name,
        message=f"{one.kind} {one.name}{revision} is resident",
    )


def _failed(one: TargetStatus) -> Notice:
    kind = f"{one.kind} " if one.kind is not None else ""
    said = f": {one.message}" if one.message else ""
    return Notice(
        happening=Happening.FAILED,
        target=one.name,
        message=f"{kind}{one.name}: {one.reason}{said}",
    )


def _healed(targets: int, seconds: float) -> Notice:
    noun = "target that it held is" if targets == 1 else "targets that it held are"
    return Notice(
        happening=Happening.HEALED,
        target="",
        message=f"the engine restarted; {targets} {noun} back after {seconds:.0f} s",
    )
