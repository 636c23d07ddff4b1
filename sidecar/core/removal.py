"""What leaves: residents that no document lists, and files that nobody needs (P1, P2, P5)."""

from __future__ import annotations

from collections.abc import Iterator

from adapters.base import Residency, Resident, Target
from sidecar.core.actions import Action, Evict, Unload, Wait, waits_for, waits_for_look
from sidecar.core.backoff import Severity
from sidecar.core.desired import DropOut, Entry
from sidecar.core.inventory import Revision
from sidecar.core.memory import Owned
from sidecar.core.progress import Progress, Stage
from sidecar.core.room import is_short, refusal
from sidecar.core.status import Reason
from sidecar.core.view import Prune, View, is_in_store, wanted


def plan_drop(view: View, name: str, *, spares: bool) -> Iterator[Action | Wait]:
    """Yield the unload of a resident that no document lists, when it may go (P1, P2).

    ``spares`` is what ``spares_last`` says of the view.
    """
    desired, engine = view.desired, view.engine
    if desired is None or engine is None or engine.asleep:
        return
    resident = view.residents[name]
    if name in desired.entries or name in desired.undecided or name in engine.base_names:
        return
    if resident.state in (Residency.UNLOADING, Residency.LOADING):
        return
    failed = resident.state is Residency.FAILED
    if failed and name not in view.memory.owned:
        # The failure of a load that was not ours is the engine's to tell, whatever is pruned.
        return
    if (desired.incomplete and name not in desired.absent) or not _may_drop(view, resident):
        return
    owned = view.memory.owned.get(name, Owned())
    due = (owned.dropped_at if owned.dropped_at is not None else view.now) + owned.grace_seconds
    attempt = view.progress.get(name, Progress()).attempt
    if view.now < due and name not in desired.absent:
        yield Wait(name=name, reason=Reason.DROPPED, message="it left the document", until=due)
    elif name in view.unsure:
        yield waits_for_look(name)
    elif (
        attempt is not None
        and attempt.stage is Stage.UNLOAD
        and not attempt.is_due(view.basis, view.now)
    ):
        yield waits_for(name, attempt)
    elif not failed and spares:
        yield Wait(
            name=name,
            reason=Reason.DROPPED,
            message="it left the document, and serves until one that the document lists does",
        )
    else:
        yield Unload(name=name, target=Target(name=name, kind=resident.kind))


def _may_drop(view: View, resident: Resident) -> bool:
    if view.policy.prune is Prune.NONE or view.desired is None:
        return False
    if view.policy.prune is Prune.ALL or resident.name in view.desired.absent:
        return True
    owned = view.memory.owned.get(resident.name)
    drop_out = owned.drop_out if owned is not None else view.desired.drop_out
    return drop_out is DropOut.UNLOAD and _is_ours(view, resident)


def _is_ours(view: View, resident: Resident) -> bool:
    """Tell whether we loaded it: one that the engine was started with stays what it is, also when
    a document listed its name and could not be followed."""
    if resident.name in view.memory.held or resident.state is Residency.FAILED:
        return True
    return bool(resident.paths) and all(is_in_store(view, path) for path in resident.paths)


def spares_last(view: View) -> bool:
    """Tell whether what dropped out must serve on.

    An engine without a model of its own keeps a last one until a desired one serves (P9). Only
    while one of the desired can still come: when all have failed, the document is obeyed. An
    engine without room for both makes it when the new one's files are here.
    """
    desired = view.desired
    if view.capabilities.serves_alone or desired is None or not desired.entries:
        return False
    for name in desired.entries:
        resident = view.residents.get(name)
        if resident is not None and resident.state is Residency.RESIDENT:
            return False
    coming = (entry for entry in desired.entries.values() if _can_still_come(view, entry))
    if not is_short(view):
        return next(coming, None) is not None
    expected = [wanted(view, entry) is not None for entry in coming]
    return bool(expected) and not any(expected)


def _can_still_come(view: View, entry: Entry) -> bool:
    revision = wanted(view, entry)
    if revision is not None and refusal(view, entry, revision) is not None:
        return False
    return all(
        one.severity is Severity.TRANSIENT or one.is_due(view.basis, view.now)
        for one in view.progress.get(entry.name, Progress()).failures
    )


def plan_evictions(view: View) -> Iterator[Evict]:
    """Yield what may leave the disk: never resident, retired, desired, undecided or pinned."""
    desired, memory, policy = view.desired, view.memory, view.policy
    if desired is None or view.engine is None or desired.incomplete:
        return
    kept = {held.path for held in memory.held.values()}
    kept |= {path for one in view.residents.values() for path in one.paths}
    # Also of names that left the document: a load of theirs may still be under way.
    kept |= {one.revision.path for one in view.progress.values() if one.revision is not None}
    candidates = [
        one
        for one in view.inventory.all()
        if one.path not in kept
        and not _may_be_asked_for(view, one)
        and view.now >= memory.retired.get(one.path, 0.0) + policy.retain_seconds
        and ((attempt := view.evictions.get(one.path)) is None or view.now >= attempt.retry_at)
    ]
    limit = view.inventory.max_bytes
    surplus = view.inventory.bytes - limit if limit is not None else None
    if surplus is not None:
        surplus = max(surplus, _room_asked_for(view))

    def last_used(revision: Revision) -> float:
        return max(revision.used_at, memory.retired.get(revision.path, 0.0))

    for one in sorted(candidates, key=last_used):
        if surplus is not None:
            # With a size limit the disk is a cache: files stay until their room is needed.
            if surplus <= 0:
                return
            surplus -= one.bytes
        yield Evict(name=one.name, revision=one)


def _may_be_asked_for(view: View, revision: Revision) -> bool:
    """Tell whether a document may ask for a revision that no target is known to need."""
    desired = view.desired
    if desired is None or revision.name in desired.undecided:
        return True
    entry = desired.entries.get(revision.name)
    if entry is None or entry.pinned:
        return entry is not None
    # Until its source was seen, any of its revisions may be the one; after an agent restart too.
    progress = view.progress.get(entry.name, Progress())
    return (progress.moved > 0 or not progress.answers(entry)) and not _lacks_room(progress)


def _lacks_room(progress: Progress) -> bool:
    attempt = progress.fetch_attempt
    return attempt is not None and attempt.reason is Reason.STORE_FULL


def _room_asked_for(view: View) -> int:
    """Return 1 while a fetch waits for room: one eviction at a time makes it try again.

    Until that try has failed too, which is as long as the fetch takes, nothing more has to go.
    """
    full = any(
        _lacks_room(one)
        and one.fetch_attempt is not None
        and one.fetch_attempt.basis.evicted == view.basis.evicted
        for name, one in view.progress.items()
        if view.desired is not None and name in view.desired.entries
    )
    return 1 if full else 0
