"""Whether the engine can hold a target: at all, and at this moment."""

from __future__ import annotations

from adapters.base import Residency, Resident
from sidecar.core.actions import Wait
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.status import Reason
from sidecar.core.view import View


def refusal(view: View, entry: Entry, revision: Revision) -> Wait | None:
    """Return why no engine call can help the target, if that is so."""
    engine, capabilities = view.engine, view.capabilities
    if engine is not None and entry.name in engine.base_names:
        return Wait(
            name=entry.name,
            reason=Reason.NAME_CONFLICT,
            message=f"the engine serves a base model named {entry.name}: choose another name",
        )
    if revision.kind not in capabilities.kinds:
        can = " and ".join(f"{kind}s" for kind in sorted(capabilities.kinds))
        return Wait(
            name=entry.name,
            reason=Reason.ENGINE_UNSUPPORTED,
            message=f"this engine holds {can}, and {entry.name} is a {revision.kind}",
        )
    if entry.kind is not None and entry.kind is not revision.kind:
        return Wait(
            name=entry.name,
            reason=Reason.INVALID_ARTIFACT,
            message=f"the document says {entry.kind}, the files are a {revision.kind}",
        )
    return None


def waits_for_room(
    view: View, entry: Entry, revision: Revision, resident: Resident | None
) -> Wait | None:
    """Return what must happen to other targets first, if anything must."""
    missing = [
        part
        for part in revision.parts
        if (one := view.resident(part)) is None or one.state is not Residency.RESIDENT
    ]
    if missing:
        return Wait(
            name=entry.name,
            reason=Reason.WAITING_FOR_PARTS,
            message=f"its parts must be resident first: {', '.join(missing)}",
        )
    limit = view.engine.limits.max_residents if view.engine is not None else None
    if limit is not None and resident is None and len(view.residents) >= limit:
        return Wait(
            name=entry.name,
            reason=Reason.OVER_CAPACITY,
            message=f"the engine holds {len(view.residents)} targets and can hold {limit}",
        )
    return None


def is_short(view: View) -> bool:
    """Tell whether something must be unloaded before more can be loaded."""
    if view.engine is None or view.desired is None or view.engine.limits.max_residents is None:
        return False
    coming = sum(1 for name in view.desired.entries if name not in view.residents)
    return len(view.residents) + coming > view.engine.limits.max_residents
