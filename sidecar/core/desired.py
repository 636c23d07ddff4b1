"""What documents ask for: entries, problems and the desired state of one pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.base import Kind


class Format(StrEnum):
    """The document formats that are read unchanged."""

    NATIVE = "native"
    MICHELANGELO = "michelangelo"
    LORA_SYNCER = "lora-syncer"
    KSERVE = "kserve"


class Readiness(StrEnum):
    """How a target gates the pod's readiness."""

    REQUIRED = "required"
    INITIAL = "initial"
    OPTIONAL = "optional"


class DropOut(StrEnum):
    """What it means that a name is no longer in a document."""

    UNLOAD = "unload"
    KEEP = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with a document, said to the person who wrote it."""

    where: str
    """Key, place in the structure and line: ``models.yaml: models[2].digest (line 14)``."""
    what: str
    hint: str = ""
    """What to do; may be empty where ``what`` says it."""
    name: str | None = None
    """The entry that it spoils; None where it spoils the whole document or none."""
    conflict: bool = False
    """Two documents claim the name."""

    @property
    def line(self) -> str:
        """Return it as one line: place, what is wrong, what to do."""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.where}: {self.what}{hint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A share of the pods; the others hold ``otherwise``, or nothing."""

    percent: float
    otherwise: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One target as a document describes it, resolved for this pod."""

    name: str
    source: str
    format: Format
    where: str
    """Its place in the document, for reports."""
    kind: Kind | None = None
    """None: told by the artifact."""
    digest: str | None = None
    """``sha256:<64 hex>`` of the artifact's content."""
    base_model: str | None = None
    readiness: Readiness = Readiness.INITIAL
    warmup: bool = False
    pinned: bool = False
    credentials: str | None = None
    refresh_seconds: float | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    passthrough: bool = False
    """A source that the agent cannot see goes to the engine as it is (lora-syncer)."""
    drop_out: DropOut = DropOut.UNLOAD
    unload_grace_seconds: float = 0.0
    """Between leaving the document and the unload."""
    everywhere: bool = True
    """False: only some pods hold it (rollout, canary)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What the last accepted documents ask of this pod."""

    generation: int
    """Our counter of accepted documents, from 1."""
    digest: str
    """sha256 over the keys and texts that were accepted, hex; the document's identity."""
    entries: Mapping[str, Entry]
    """By name, in document order: what this pod shall hold."""
    elsewhere: frozenset[str] = frozenset()
    """Names that the documents give to other pods only; this one does not hold them."""
    absent: frozenset[str] = frozenset()
    """Names that shall not be resident, whoever loaded them (lora-syncer's ensureNotExist)."""
    undecided: frozenset[str] = frozenset()
    """Names of spoiled entries: neither loaded, changed nor unloaded until mended. One that was
    good before stays in ``entries`` as it was."""
    incomplete: bool = False
    """An entry whose name cannot be read may be any name that seems to have gone: nothing is
    dropped until it is mended."""
    formats: tuple[Format, ...] = ()
    drop_out: DropOut = DropOut.UNLOAD
    """For residents of ours that no document of which we know ever listed."""
    problems: tuple[Problem, ...] = ()
