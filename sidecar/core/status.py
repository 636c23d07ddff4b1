"""The published snapshot behind ``/status``: its words and its shape.

The JSON Schema in ``docs/status.schema.json`` is generated from these classes. Fields are only
added within a major version; reasons are extended, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from adapters.base import Kind

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class State(StrEnum):
    """Where one target is on its way."""

    ABSENT = "absent"
    FETCHING = "fetching"
    STAGED = "staged"
    LOADING = "loading"
    RESIDENT = "resident"
    ASLEEP = "asleep"
    UNLOADING = "unloading"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a target is not (only) what it should be. One word, stable once released."""

    FETCH_FAILED = "FetchFailed"
    ACCESS_DENIED = "AccessDenied"
    NOT_FOUND = "NotFound"
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    SOURCE_UNSUPPORTED = "SourceUnsupported"
    DIGEST_MISMATCH = "DigestMismatch"
    INVALID_ARTIFACT = "InvalidArtifact"
    UNSAFE_ARTIFACT = "UnsafeArtifact"
    INCOMPATIBLE_ARTIFACT = "IncompatibleArtifact"
    STORE_FULL = "StoreFull"
    OVER_CAPACITY = "OverCapacity"
    ENGINE_REJECTED = "EngineRejected"
    ENGINE_UNAVAILABLE = "EngineUnavailable"
    ENGINE_TIMEOUT = "EngineTimeout"
    ENGINE_UNSUPPORTED = "EngineUnsupported"
    ENGINE_PROTOCOL = "EngineProtocol"
    INVALID_ENTRY = "InvalidEntry"
    NAME_CONFLICT = "NameConflict"
    UNVERIFIED = "Unverified"
    WAITING_FOR_PARTS = "WaitingForParts"
    DROPPED = "Dropped"
    SPREAD = "Spread"
    INTERNAL_ERROR = "InternalError"


class EngineCondition(StrEnum):
    """What the last looks at the engine say of it."""

    UP = "up"
    DOWN = "down"
    ASLEEP = "asleep"
    UNKNOWN = "unknown"
    """No look has succeeded or failed for long enough yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One target, desired or resident."""

    name: str
    kind: Kind | None
    source: str
    """As the document wrote it, credentials taken out."""
    desired: bool
    readiness: str
    state: State
    revision: str = ""
    """The revision that is resident, else the one being brought in."""
    path: str = ""
    reason: str = ""
    message: str = ""
    attempts: int = 0
    """Failed attempts in a row."""
    retry_at: float | None = None
    """Unix time of the next attempt."""
    since: float = 0.0
    """Unix time at which ``state`` last changed."""
    bytes: int = 0
    """Fetched so far, or held."""
    total_bytes: int | None = None
    bytes_per_second: float | None = None
    """How fast the fetch got on lately; None where nothing is fetched."""
    in_slot: bool | None = None
    """Believed to be in a GPU slot (LoRAs); None where that is unknown."""
    everywhere: bool = True
    """False: the document gives it to some pods only."""
    converged: bool = False
    """The engine holds exactly what the document asks for, and nothing is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentStatus:
    """The documents, as last read and last accepted."""

    digest: str = ""
    generation: int = 0
    observed_generation: int = 0
    formats: tuple[str, ...] = ()
    source: str = ""
    accepted_at: float | None = None
    valid: bool = False
    """The last read was accepted as a whole."""
    problems: tuple[Mapping[str, str], ...] = ()
    """Each with ``where``, ``what`` and ``hint``."""
    elsewhere: tuple[str, ...] = ()
    """Names that the documents give to other pods only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The engine, as last seen."""

    kind: str
    urls: tuple[str, ...]
    state: EngineCondition = EngineCondition.UNKNOWN
    started_at: float | None = None
    base_model: str = ""
    base_names: tuple[str, ...] = ()
    """Every name that the engine serves by itself."""
    slots: int | None = None
    message: str = ""
    """Why it is down, where it is."""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """The disk."""

    bytes: int = 0
    max_bytes: int | None = None
    revisions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything that is published about this pod, at one moment."""

    version: str
    pod: str
    ready: bool
    converged: bool
    reasons: tuple[str, ...]
    """One sentence each: why it is not ready, or what is worth knowing although it is."""
    cycle: str
    """The last cycle's sentence."""
    document: DocumentStatus
    engine: EngineStatus
    store: StoreStatus
    targets: Mapping[str, TargetStatus] = field(default_factory=dict)


def with_slots(status: Status, in_slot: frozenset[str] | None) -> Status:
    """Return the status with another belief about the slots; the same where nothing differs.

    Targets of which nothing was said stay so: the next publication knows what they are.
    """
    moved = {
        name: replace(one, in_slot=name in in_slot)
        for name, one in status.targets.items()
        if in_slot is not None and one.in_slot not in (None, name in in_slot)
    }
    return replace(status, targets={**status.targets, **moved}) if moved else status


def to_json(status: Status | TargetStatus) -> dict[str, object]:
    """Return the plain form of a status for ``json.dumps``; what is None is left out."""
    return _plain_fields(status)


def _plain_fields(record: DataclassInstance) -> dict[str, object]:
    return {
        one.name: _plain(value)
        for one in fields(record)
        if (value := getattr(record, one.name)) is not None
    }


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value.value if isinstance(value, StrEnum) else value
