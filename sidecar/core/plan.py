"""What to do next: from everything known to the ordered steps that close the gap.

``plan`` is pure. For every state and every prefix of its plan: apply the prefix, plan again, apply
that, and the plan is empty (tests prove it by interruption). Steps that cannot be known yet (what
a source holds, before it was fetched) are planned when they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from adapters.base import Kind, Residency, Resident, Target
from sidecar.core.actions import (
    Action,
    Check,
    Fetch,
    Load,
    Plan,
    Unload,
    Wait,
    Warm,
    waits_for,
    waits_for_look,
    waits_for_turn,
)
from sidecar.core.backoff import Severity
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.progress import Attempt, Progress, Stage, for_entry
from sidecar.core.removal import plan_drop, plan_evictions, spares_last
from sidecar.core.room import is_short, refusal, waits_for_room
from sidecar.core.status import Reason
from sidecar.core.view import (
    View,
    has_lost_files,
    held_path,
    is_as_desired,
    parameters_key,
    replaces,
    wanted,
)


def plan(view: View) -> Plan:
    """Return every step that is due, in order, and why the other targets wait."""
    actions: list[Action] = []
    waits: list[Wait] = []
    if view.desired is not None:
        # Files that vanished under a resident come first: the engine may read them any moment.
        entries = sorted(
            view.desired.entries.values(), key=lambda entry: not has_lost_files(view, entry)
        )
        spares = spares_last(view)
        drops = [step for name in view.residents for step in plan_drop(view, name, spares=spares)]
        loads = [step for entry in entries for step in plan_target(view, entry)]
        order = (drops, loads) if is_short(view) else (loads, drops)
        for step in (*order[0], *order[1]):
            if isinstance(step, Wait):
                waits.append(step)
            else:
                actions.append(step)
        actions.extend(plan_evictions(view))
    return Plan(actions=tuple(actions), waits=tuple(waits))


def plan_name(view: View, name: str) -> tuple[Action | Wait, ...]:
    """Return the steps of one name, desired or dropped, without evictions."""
    if view.desired is None:
        return ()
    entry = view.desired.entries.get(name)
    if entry is not None:
        return tuple(plan_target(view, entry))
    if name not in view.residents:
        return ()
    return tuple(plan_drop(view, name, spares=spares_last(view)))


def plan_target(view: View, entry: Entry) -> Iterator[Action | Wait]:
    """Yield the steps of one desired target."""
    progress = for_entry(view.progress.get(entry.name), entry)
    revision = wanted(view, entry)
    if revision is not None and not progress.moved:
        look = _plan_fetch(view, entry, progress) if _may_be_mended(view, entry, progress) else None
        if isinstance(look, Fetch):
            yield look
        else:
            yield from _plan_engine(view, entry, revision)
        return
    fetch = _plan_fetch(view, entry, progress)
    if revision is None:
        # What served before the engine was restarted does not wait for the source.
        yield from _plan_fallback(view, entry, None)
    elif isinstance(fetch, Wait) or not _is_held(view, entry):
        yield from _plan_engine(view, entry, revision)
    yield fetch


def _plan_fetch(view: View, entry: Entry, progress: Progress) -> Fetch | Wait:
    restore = progress.revision if has_lost_files(view, entry) else None
    if restore is None and view.now < progress.due_at and replaces(view, entry):
        return waits_for_turn(entry.name, progress.due_at)
    attempt = progress.fetch_attempt
    if attempt is not None and not attempt.is_due(view.basis, view.now):
        return waits_for(entry.name, attempt)
    return Fetch(name=entry.name, entry=entry, restore=restore, moves=progress.moved)


def _may_be_mended(view: View, entry: Entry, progress: Progress) -> bool:
    """Tell whether a refused artifact is worth a look at its source before it is tried again.

    It may have been mended in place where nobody else looks: on a network, without
    ``refresh_seconds``.
    """
    attempt = progress.attempt
    if attempt is None or attempt.stage not in (Stage.CHECK, Stage.LOAD):
        return False
    if entry.digest is not None or entry.refresh_seconds is not None:
        return False
    rejected = attempt.severity is Severity.REJECTED
    return rejected and view.now >= attempt.retry_at > progress.fetched_at


def _is_held(view: View, entry: Entry) -> bool:
    resident = view.resident(entry.name)
    return resident is not None and resident.state is not Residency.FAILED


def _plan_engine(view: View, entry: Entry, revision: Revision) -> Iterator[Action | Wait]:
    """Yield the steps from a revision on disk to one that serves."""
    if view.engine is None or view.engine.asleep:
        return
    resident = view.resident(entry.name)
    if entry.name in view.unsure:
        yield waits_for_look(entry.name)
    elif resident is not None and resident.state in (Residency.LOADING, Residency.UNLOADING):
        yield Wait(
            name=entry.name,
            reason=Reason.ENGINE_TIMEOUT,
            message=f"the engine is {resident.state} it; looking again",
        )
    elif is_as_desired(view, entry):
        yield from _plan_warm(view, entry, revision)
    else:
        yield from _plan_load(view, entry, revision, resident)


def _plan_warm(view: View, entry: Entry, revision: Revision) -> Iterator[Action | Wait]:
    progress = view.progress.get(entry.name, Progress())
    warmed = progress.warmed == (revision.path, view.basis.incarnation)
    wants = progress.suspect or (entry.warmup and not warmed)
    if not wants or not view.capabilities.warms:
        return
    attempt = progress.attempt
    if (
        attempt is not None
        and attempt.stage is Stage.WARM
        and not attempt.is_due(view.basis, view.now)
    ):
        yield waits_for(entry.name, attempt)
    else:
        yield Warm(name=entry.name, target=target_of(entry, revision.kind), path=revision.path)


def _plan_load(
    view: View, entry: Entry, revision: Revision, resident: Resident | None
) -> Iterator[Action | Wait]:
    progress = for_entry(view.progress.get(entry.name), entry)
    attempt = progress.attempt
    if attempt is not None and not _is_due(view, entry, revision, attempt):
        yield waits_for(entry.name, attempt)
        yield from _plan_fallback(view, entry, revision)
        return
    if (refused := refusal(view, entry, revision)) is not None:
        yield refused
        return
    checked = (revision.revision, view.basis.incarnation)
    if progress.checked != checked:
        yield Check(name=entry.name, entry=entry, revision=revision)
    if (wait := waits_for_room(view, entry, revision, resident)) is not None:
        yield wait
        return
    target = target_of(entry, revision.kind)
    if resident is not None and _must_unload_first(view, resident, revision, entry):
        yield Unload(name=entry.name, target=target, replacing=True)
    yield Load(name=entry.name, target=target, revision=revision)
    if view.capabilities.warms and entry.warmup:
        yield Warm(name=entry.name, target=target, path=revision.path)


def _is_due(view: View, entry: Entry, revision: Revision, attempt: Attempt) -> bool:
    resident = view.resident(entry.name)
    if resident is None or not _must_unload_first(view, resident, revision, entry):
        return attempt.is_due(view.basis, view.now)
    parameters = parameters_key(entry.parameters)
    return attempt.is_due_over(view.basis, view.now, parameters=parameters)


def _must_unload_first(view: View, resident: Resident, revision: Revision, entry: Entry) -> bool:
    if resident.state is Residency.FAILED or view.capabilities.replaces_in_place:
        return False
    if view.progress[entry.name].broken:
        return True
    held = view.memory.held.get(entry.name)
    same_load = held is None or held.parameters == parameters_key(entry.parameters)
    # Ranks that lack it are filled; ranks that hold something else must let go of it first.
    return not (same_load and resident.paths <= {revision.path})


def _plan_fallback(view: View, entry: Entry, failed: Revision | None) -> Iterator[Action]:
    """Load what served before while the desired revision cannot be had (P4)."""
    held = view.memory.held.get(entry.name)
    if held is None or view.engine is None or view.engine.asleep or entry.name in view.unsure:
        return
    resident = view.resident(entry.name)
    if _is_held(view, entry) and (failed is None or not _is_left_behind(view, entry)):
        return
    revision = view.inventory.at_path(entry.name, held.path)
    if revision is None or (failed is not None and revision.path == failed.path):
        return
    attempt = view.progress.get(entry.name, Progress()).fallback_attempt
    if attempt is not None and not attempt.is_due(view.basis, view.now):
        return
    parameters = json.loads(held.parameters) if held.parameters else {}
    target = Target(name=entry.name, kind=revision.kind, parameters=parameters)
    split = resident is not None and not resident.paths <= {held.path}
    if split and not view.capabilities.replaces_in_place:
        yield Unload(name=entry.name, target=target, replacing=True)
    yield Load(name=entry.name, target=target, revision=revision, fallback=True)


def _is_left_behind(view: View, entry: Entry) -> bool:
    """Tell whether a refused load left the engine between two revisions.

    Some ranks took it and others did not; or a repository leads to what was refused, while what
    was held before answers.
    """
    resident = view.resident(entry.name)
    attempt = view.progress.get(entry.name, Progress()).attempt
    refused = (
        attempt is not None
        and attempt.stage is Stage.LOAD
        and attempt.severity is Severity.REJECTED
    )
    if resident is None or not refused:
        return False
    if resident.state is Residency.PARTIAL:
        return True
    return (
        view.capabilities.replaces_in_place
        and resident.state is Residency.RESIDENT
        and held_path(view, resident) is None
    )


def target_of(entry: Entry, kind: Kind) -> Target:
    """Return what the engine is asked to hold for an entry."""
    return Target(name=entry.name, kind=kind, parameters=entry.parameters)
