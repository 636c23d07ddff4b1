"""Everything a plan depends on, and the plain questions that are asked of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.base import Capabilities, EngineState, Residency, Resident
from sidecar.core.backoff import Basis
from sidecar.core.desired import Desired, Entry
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.memory import Memory
from sidecar.core.progress import Attempt, Progress


class Prune(StrEnum):
    """Which residents may be unloaded when no document lists them."""

    OWNED = "owned"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The flags that planning depends on."""

    prune: Prune = Prune.OWNED
    retain_seconds: float = 3600.0
    store_root: str = ""
    """Residents loaded from below it are ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything a plan depends on, at one moment."""

    desired: Desired | None
    engine: EngineState | None
    """None: unknown. Nothing is asked of an engine that cannot be seen."""
    inventory: Inventory
    progress: Mapping[str, Progress]
    memory: Memory
    capabilities: Capabilities
    policy: Policy
    basis: Basis
    now: float
    """Unix seconds."""
    residents: Mapping[str, Resident] = field(default_factory=dict)
    """``engine.residents`` by name; see ``residents_by_name``."""
    unsure: Collection[str] = ()
    """Names with a call whose outcome is unknown: looked at before anything else is done (P7)."""
    evictions: Mapping[str, Attempt] = field(default_factory=dict)
    """The last failures to delete, by path."""

    def resident(self, name: str) -> Resident | None:
        """Return the engine's account of one name."""
        return self.residents.get(name)


def parameters_key(parameters: Mapping[str, object]) -> str:
    """Return load parameters in canonical form: equal keys mean an equal load."""
    return json.dumps(parameters, sort_keys=True, default=str) if parameters else ""


def residents_by_name(engine: EngineState | None) -> dict[str, Resident]:
    """Index the engine's residents; names are unique over kinds."""
    return {one.name: one for one in engine.residents} if engine is not None else {}


def held_path(view: View, resident: Resident) -> str | None:
    """Return the path a resident was loaded from; None when that is not certain.

    An engine that does not report paths has only a claim (a link): it counts when our own memory
    of the last confirmed load says the same.
    """
    if resident.state is not Residency.RESIDENT or len(resident.paths) != 1:
        return None
    (path,) = resident.paths
    if view.capabilities.reports_paths:
        return path
    held = view.memory.held.get(resident.name)
    return path if held is not None and held.path == path else None


def wanted(view: View, entry: Entry) -> Revision | None:
    """Return the revision that the entry asks for, when it is whole on disk."""
    progress = view.progress.get(entry.name)
    if progress is None or progress.revision is None or not progress.answers(entry):
        return None
    revision = progress.revision
    if not revision.verified:
        return revision
    found = view.inventory.find(entry.name, revision.revision)
    return None if found is None else revision


def is_as_desired(view: View, entry: Entry) -> bool:
    """Tell whether the engine holds exactly what the entry asks for."""
    resident, revision = view.resident(entry.name), wanted(view, entry)
    if resident is None or revision is None or held_path(view, resident) != revision.path:
        return False
    if view.progress[entry.name].broken:
        return False
    held = view.memory.held.get(entry.name)
    return held is None or held.parameters == parameters_key(entry.parameters)


def has_lost_files(view: View, entry: Entry) -> bool:
    """Tell whether the engine holds a revision of the entry whose files are gone (P5).

    Only of what the entry still asks for: another source cannot put it back.
    """
    progress, resident = view.progress.get(entry.name), view.resident(entry.name)
    if progress is None or progress.revision is None or resident is None:
        return False
    revision = progress.revision
    return (
        progress.answers(entry)
        and revision.verified
        and revision.path in resident.paths
        and view.inventory.find(entry.name, revision.revision) is None
    )
