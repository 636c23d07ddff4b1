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
from sidecar.core.redact import redact_source


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
    replace_after_seconds: float = 0.0
    """This pod's place in ``--spread-seconds``: how long after an edit, or after a source was seen
    to move, it begins to replace what serves."""


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


def replaces(view: View, entry: Entry) -> bool:
    """Tell whether what the entry's source holds takes the place of another revision that serves,
    or will again as soon as it is loaded."""
    progress, held = view.progress.get(entry.name, Progress()), view.memory.held.get(entry.name)
    resident = view.resident(entry.name)
    if progress.broken:
        return False
    serves = resident is not None and resident.state is not Residency.FAILED
    if held is None:
        return serves
    revision = view.inventory.at_path(entry.name, held.path)
    if revision is None:
        # What is read from files that are gone is no better than what is not there (P5).
        return serves and not is_in_store(view, held.path)
    if not serves and progress.fallback_attempt is not None:
        return False
    return progress.moved > 0 or not _may_be(revision, entry)


def is_in_store(view: View, path: str) -> bool:
    """Tell whether a path lies below the store."""
    return path.startswith(view.policy.store_root.rstrip("/") + "/")


def _may_be(revision: Revision, entry: Entry) -> bool:
    """Tell whether a revision on disk seems to be what the entry asks for."""
    if entry.digest is not None:
        return revision.digest == entry.digest
    return revision.source == redact_source(entry.source)
