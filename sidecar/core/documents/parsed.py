"""What one document says, before it is known for which pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.base import Kind
from sidecar.core.desired import Format, Problem, Readiness, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One of the entries that share a name (Michelangelo): whose it is, and for which pods."""

    source: str
    where: str
    phase: str = ""
    """As written; empty where there is none."""
    canary_pod: str = ""
    """The pod that holds it in phase ``canary``; no meaning in other phases."""
    owner: str = ""
    """``deployment_name``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEntry:
    """One target as a document describes it, for all pods."""

    name: str
    source: str
    where: str
    """Its place in the document, for reports."""
    kind: Kind | None = None
    digest: str | None = None
    base_model: str | None = None
    readiness: Readiness = Readiness.INITIAL
    warmup: bool | None = None
    """None: not said."""
    pinned: bool = False
    credentials: str | None = None
    refresh_seconds: float | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    rollout: Rollout | None = None
    placements: tuple[Placement, ...] = ()
    """Where empty, the entry is for every pod, or for those that ``rollout`` selects."""
    passthrough: bool = False

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose entries these are, in document order; empty where the format has no owners."""
        return tuple(dict.fromkeys(place.owner for place in self.placements if place.owner))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedDocument:
    """One text of a known format."""

    key: str
    format: Format
    entries: Mapping[str, ParsedEntry] = field(default_factory=dict)
    """By name, in document order."""
    absent: frozenset[str] = frozenset()
    """Names that shall not be resident (lora-syncer)."""
    undecided: frozenset[str] = frozenset()
    """Names of entries that cannot be used as they are."""
    incomplete: bool = False
    """There is an entry whose name cannot be read."""
    problems: tuple[Problem, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Every name about which the document says something."""
        return frozenset(self.entries) | self.absent | self.undecided
