"""The state of each target in the published words of ``/status``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from adapters.base import Kind, Residency, Resident
from sidecar.core.actions import Action, Fetch, Unload, Wait, Warm
from sidecar.core.backoff import Severity
from sidecar.core.desired import Entry, Problem, Readiness
from sidecar.core.pace import Pace, begin
from sidecar.core.progress import Attempt, Progress, Stage
from sidecar.core.readiness import Came
from sidecar.core.redact import redact_source
from sidecar.core.status import Reason, State, TargetStatus
from sidecar.core.view import View, held_path, is_as_desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """What an in-flight target is at."""

    action: Action
    bytes: int = 0
    total_bytes: int | None = None
    pace: Pace | None = None
    """None before anything was heard."""

    def heard(self, done: int, total: int | None, now: float) -> Underway:
        """Return it after so many bytes were told of; ``now`` is unix seconds."""
        pace = self.pace.heard(done, now) if self.pace is not None else begin(done, now)
        return replace(self, bytes=done, total_bytes=total, pace=pace)


def brought(underway: Iterable[Underway]) -> tuple[int, int | None] | None:
    """Sum up the fetches of which anything was heard; no total where one of them has none."""
    heard = [one for one in underway if one.pace is not None]
    if not heard:
        return None
    totals = [one.total_bytes for one in heard if one.total_bytes is not None]
    return sum(one.bytes for one in heard), sum(totals) if len(totals) == len(heard) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What reports need beside the view."""

    view: View
    waits: Mapping[str, Wait] = field(default_factory=dict)
    underway: Mapping[str, Underway] = field(default_factory=dict)
    previous: Mapping[str, TargetStatus] = field(default_factory=dict)
    in_slot: frozenset[str] | None = None


def came(context: Context, entry: Entry) -> Came:
    """Return how far a desired target has come, as readiness sees it."""
    view = context.view
    resident = view.resident(entry.name)
    progress = view.progress.get(entry.name, Progress())
    if resident is not None and resident.state is Residency.RESIDENT and not progress.broken:
        # Warm-ups count for the initial pass only: an agent restart forgets them.
        passed = view.memory.latch.passed
        unproven = entry.warmup and view.capabilities.warms and progress.warmed is None
        if passed or not unproven:
            return Came.RESIDENT
    wait = context.waits.get(entry.name)
    rejected = any(one.severity is Severity.REJECTED for one in progress.failures)
    refused = wait is not None and wait.until is None and wait.reason in REFUSALS
    return Came.REJECTED if rejected or refused else Came.PENDING


def is_failing(target: TargetStatus) -> bool:
    """Tell whether a desired target cannot be had at present."""
    refused = target.state in (State.ABSENT, State.STAGED) and target.reason in REFUSALS
    return target.desired and (target.state is State.FAILED or refused)


REFUSALS = frozenset(
    {
        Reason.NAME_CONFLICT,
        Reason.ENGINE_UNSUPPORTED,
        Reason.INVALID_ARTIFACT,
        Reason.OVER_CAPACITY,
    }
)


def target_statuses(context: Context, problems: Iterable[Problem]) -> dict[str, TargetStatus]:
    """Return the status of every target that is desired, undecided or resident."""
    view = context.view
    desired = view.desired
    entries = desired.entries if desired is not None else {}
    spoiled = {one.name: one for one in problems if one.name is not None}
    names = dict.fromkeys((*entries, *sorted(spoiled), *view.residents))
    base = view.engine.base_names if view.engine is not None else frozenset()
    return {
        name: _target_status(context, name, entries.get(name), spoiled.get(name))
        for name in names
        if name not in base or name in entries
    }


def _target_status(
    context: Context, name: str, entry: Entry | None, problem: Problem | None
) -> TargetStatus:
    view = context.view
    resident = view.resident(name)
    progress = view.progress.get(name, Progress())
    underway, wait = context.underway.get(name), context.waits.get(name)
    attempt = _standing_failure(view, progress, entry)
    state = _state(view, progress, resident, underway, attempt)
    if state is State.ABSENT and problem is not None:
        state = State.FAILED
    reason, message = _reason(resident, attempt, wait, problem)
    revision = progress.revision
    path = _path(view, resident) if resident is not None else ""
    if path:
        found = view.inventory.at_path(name, path)
        shown = found.revision if found else (revision.revision if revision else "")
    else:
        shown = revision.revision if revision and entry is not None else ""
    if not reason and revision is not None and not revision.verified and entry is not None:
        reason, message = Reason.UNVERIFIED, "the agent cannot see these files"
    if not reason and progress.unseen and entry is not None:
        # No reason: it is what the document asks for, as far as anybody can tell.
        message = f"its source cannot be looked at for changes: {progress.unseen}"
    before = context.previous.get(name)
    since = before.since if before is not None and before.state is state else view.now
    return TargetStatus(
        name=name,
        kind=_kind(entry, resident, progress),
        source=redact_source(entry.source) if entry is not None else "",
        desired=entry is not None,
        readiness=str(entry.readiness) if entry is not None else str(Readiness.OPTIONAL),
        state=state,
        revision=shown,
        path=path,
        reason=str(reason),
        message=message,
        attempts=attempt.failures if attempt is not None else 0,
        retry_at=wait.until if wait is not None else None,
        since=since,
        bytes=_bytes(progress, underway),
        total_bytes=underway.total_bytes if underway else None,
        bytes_per_second=_bytes_per_second(underway, view.now),
        in_slot=None if context.in_slot is None or resident is None else name in context.in_slot,
        everywhere=entry.everywhere if entry is not None else True,
        converged=entry is not None
        and problem is None
        and underway is None
        and wait is None
        and not progress.moved
        and is_as_desired(view, entry),
    )


def _path(view: View, resident: Resident) -> str:
    """Return where what answers was loaded from, empty where nobody knows.

    Where an engine has only a claim, and it is not that of the last confirmed load, that load is
    what is known.
    """
    path = held_path(view, resident)
    held = view.memory.held.get(resident.name)
    claims = resident.state is Residency.RESIDENT and not view.capabilities.reports_paths
    return path or (held.path if held is not None and claims else "")


def _kind(entry: Entry | None, resident: Resident | None, progress: Progress) -> Kind | None:
    if progress.revision is not None:
        return progress.revision.kind
    if resident is not None:
        return resident.kind
    return entry.kind if entry is not None else None


def _standing_failure(view: View, progress: Progress, entry: Entry | None) -> Attempt | None:
    """Return the failure that still stands between the target and what is asked of it."""
    attempt = progress.attempt
    if attempt is not None and entry is not None and attempt.stage is not Stage.WARM:
        # A call that timed out and took effect after all is no failure any more.
        attempt = None if is_as_desired(view, entry) else attempt
    return attempt or progress.fetch_attempt


def _bytes(progress: Progress, underway: Underway | None) -> int:
    if underway is not None and isinstance(underway.action, Fetch):
        return underway.bytes
    return progress.revision.bytes if progress.revision is not None else 0


def _bytes_per_second(underway: Underway | None, now: float) -> float | None:
    rate = underway.pace.per_second(now) if underway is not None and underway.pace else None
    return None if rate is None else round(rate)


def _state(
    view: View,
    progress: Progress,
    resident: Resident | None,
    underway: Underway | None,
    attempt: Attempt | None,
) -> State:
    if resident is not None and resident.state is Residency.RESIDENT:
        if underway is not None and isinstance(underway.action, Unload):
            return State.UNLOADING
        # What is resident answers requests, also while an engine takes in its next revision.
        if underway is not None and isinstance(underway.action, Warm) and progress.warmed is None:
            return State.LOADING
        asleep = view.engine is not None and view.engine.asleep
        return State.ASLEEP if asleep else State.RESIDENT
    if underway is not None:
        if isinstance(underway.action, Fetch):
            return State.FETCHING
        return State.UNLOADING if isinstance(underway.action, Unload) else State.LOADING
    if attempt is not None:
        return State.FAILED
    if resident is not None:
        return ENGINE_STATES[resident.state]
    return State.STAGED if progress.revision is not None else State.ABSENT


ENGINE_STATES = {
    Residency.RESIDENT: State.RESIDENT,
    Residency.LOADING: State.LOADING,
    Residency.UNLOADING: State.UNLOADING,
    Residency.FAILED: State.FAILED,
    Residency.PARTIAL: State.LOADING,
}


def _reason(
    resident: Resident | None, attempt: Attempt | None, wait: Wait | None, problem: Problem | None
) -> tuple[str, str]:
    if problem is not None:
        reason = Reason.NAME_CONFLICT if problem.conflict else Reason.INVALID_ENTRY
        return reason, f"{problem.where}: {problem.what}"
    if attempt is not None:
        return attempt.reason, attempt.message
    if wait is not None:
        return wait.reason, wait.message
    if resident is not None and resident.state is Residency.FAILED:
        return Reason.ENGINE_REJECTED, resident.reason
    return "", ""
