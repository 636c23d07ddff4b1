"""What an action's outcome means for everything that is remembered. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

from adapters.base import Resident
from sidecar.core.actions import Action, Check, Evict, Fetch, Load, Unload, Warm
from sidecar.core.backoff import Basis, Severity
from sidecar.core.inventory import Revision
from sidecar.core.memory import Held, Memory
from sidecar.core.progress import Attempt, Progress, Stage, asks, failed, tries
from sidecar.core.status import Reason
from sidecar.core.view import parameters_key

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The action took effect."""

    revision: Revision | None = None
    """What a fetch or a check found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """It did not, or nobody knows (``Reason.ENGINE_TIMEOUT``)."""

    reason: Reason
    message: str
    severity: Severity


Outcome = Done | Failed

UNKNOWN_REASONS = frozenset({Reason.ENGINE_TIMEOUT, Reason.ENGINE_UNAVAILABLE})
"""An engine call that ended so may have taken effect after all."""

STAGES: dict[type[Action], Stage] = {
    Fetch: Stage.FETCH,
    Check: Stage.CHECK,
    Load: Stage.LOAD,
    Warm: Stage.WARM,
    Unload: Stage.UNLOAD,
    Evict: Stage.EVICT,
}


def is_unknown(action: Action, outcome: Outcome) -> bool:
    """Tell whether only a look can say if the engine did what it was asked (P7)."""
    return (
        isinstance(outcome, Failed)
        and isinstance(action, Load | Unload | Warm)
        and outcome.reason in UNKNOWN_REASONS
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The state of one target after an outcome."""

    progress: Progress
    memory: Memory
    resident: Resident | None
    """What the engine's answer says it holds now."""
    freed: bool = False
    """The engine was given room: what it rejected is worth another try."""
    evicted: bool = False
    """The disk was given room."""


def after(
    before: Effect, action: Action, outcome: Outcome, *, basis: Basis, now: float, jitter: float
) -> Effect:
    """Return the state of the action's target after its outcome."""
    if isinstance(outcome, Failed):
        return _after_failure(before, action, outcome, basis=basis, now=now, jitter=jitter)
    progress = before.progress
    match action:
        case Fetch():
            return replace(before, progress=_fetched(progress, action, outcome.revision, now))
        case Check():
            assert outcome.revision is not None
            return replace(before, progress=_checked(progress, outcome.revision, basis))
        case Load():
            return _loaded(before, action, now)
        case Warm():
            warmed = (action.path, basis.incarnation)
            return replace(
                before,
                progress=replace(
                    _without(progress, Stage.WARM), warmed=warmed, suspect=False, broken=False
                ),
            )
        case Unload():
            return _unloaded(before, action, now)
        case Evict():
            retired = _less(before.memory.retired, action.revision.path)
            return replace(before, memory=replace(before.memory, retired=retired), evicted=True)
        case _:
            assert_never(action)


def _fetched(progress: Progress, action: Fetch, revision: Revision | None, now: float) -> Progress:
    assert revision is not None
    same = progress.revision is not None and progress.revision.revision == revision.revision
    # What was put back says nothing of what the source holds by now, nor does a look that began
    # before its last change.
    answered = action.restore is None and action.moves == progress.moved
    kept = progress.revision if same and progress.revision is not None else revision
    return replace(
        progress,
        about=tries(action.entry),
        asked=asks(action.entry),
        revision=replace(revision, parts=kept.parts),
        fetched_at=now,
        moved=0 if answered else progress.moved,
        due_at=0.0 if answered else progress.due_at,
        unseen="" if answered else progress.unseen,
        fetch_attempt=None,
        # A failed load of these very bytes stays failed; other bytes are worth a try at once.
        attempt=progress.attempt if same else None,
    )


def _checked(progress: Progress, revision: Revision, basis: Basis) -> Progress:
    if progress.revision is None or progress.revision.revision != revision.revision:
        return progress
    checked = (revision.revision, basis.incarnation)
    return replace(_without(progress, Stage.CHECK), checked=checked, revision=revision)


def _loaded(before: Effect, action: Load, now: float) -> Effect:
    name, path = action.name, action.revision.path
    memory = _retire(before, name, now, unless=path)
    held = Held(path=path, parameters=parameters_key(action.target.parameters))
    memory = replace(memory, held={**memory.held, name: held}, retired=_less(memory.retired, path))
    progress = replace(
        before.progress, fallback_attempt=None, warmed=None, suspect=False, broken=False
    )
    if not action.fallback:
        progress = replace(progress, attempt=None)
    resident = Resident(name=name, kind=action.target.kind, paths=frozenset({path}))
    return replace(before, progress=progress, memory=memory, resident=resident)


def _unloaded(before: Effect, action: Unload, now: float) -> Effect:
    memory = _retire(before, action.name, now, unless=None)
    if not action.replacing:
        memory = replace(
            memory, held=_less(memory.held, action.name), owned=_less(memory.owned, action.name)
        )
    progress = _without(before.progress, Stage.UNLOAD)
    # What a replacement gives back it takes again: were it counted, two replacements that are
    # refused would wake each other for ever.
    freed = not action.replacing
    return replace(before, progress=progress, memory=memory, resident=None, freed=freed)


def _retire(before: Effect, name: str, now: float, *, unless: str | None) -> Memory:
    """Mark the files of what was resident: the engine may read them again for a while (P5)."""
    memory = before.memory
    paths = set(before.resident.paths) if before.resident is not None else set()
    if (held := memory.held.get(name)) is not None:
        paths.add(held.path)
    paths.discard(unless or "")
    return replace(memory, retired={**memory.retired, **dict.fromkeys(paths, now)})


def _after_failure(
    before: Effect, action: Action, outcome: Failed, *, basis: Basis, now: float, jitter: float
) -> Effect:
    def attempt_after(previous: Attempt | None) -> Attempt:
        return failed(
            previous,
            stage=STAGES[type(action)],
            reason=outcome.reason,
            message=outcome.message,
            severity=outcome.severity,
            basis=basis,
            now=now,
            jitter=jitter,
            parameters=parameters_key(action.target.parameters) if isinstance(action, Load) else "",
        )

    progress = before.progress
    match action:
        case Fetch():
            again = attempt_after(progress.fetch_attempt)
            progress = replace(progress, about=tries(action.entry), fetch_attempt=again)
        case Load(fallback=True):
            again = attempt_after(progress.fallback_attempt)
            progress = replace(progress, fallback_attempt=again)
        case Warm() if progress.suspect and outcome.severity is Severity.REJECTED:
            progress = replace(progress, suspect=False, broken=True)
        case _:
            about = tries(action.entry) if isinstance(action, Check) else progress.about
            progress = replace(progress, about=about, attempt=attempt_after(progress.attempt))
    memory = before.memory
    if is_unknown(action, outcome):
        # It may hold the files after all, or have let go of them, and read them again (P5).
        if isinstance(action, Load):
            memory = replace(memory, retired={**memory.retired, action.revision.path: now})
        elif isinstance(action, Unload):
            memory = _retire(before, action.name, now, unless=None)
    return replace(before, progress=progress, memory=memory)


def _without(progress: Progress, stage: Stage) -> Progress:
    attempt = progress.attempt
    return replace(progress, attempt=None) if attempt and attempt.stage is stage else progress


def _less(mapping: Mapping[str, V], key: str) -> Mapping[str, V]:
    if key not in mapping:
        return mapping
    return {name: value for name, value in mapping.items() if name != key}
