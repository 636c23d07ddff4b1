"""What the agent must remember over its own restart, as one frozen value.

Everything else is rebuilt from the engine, the store and the document. Times are unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from sidecar.core.desired import DropOut

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A name that a document of ours listed, and what its leaving means."""

    drop_out: DropOut = DropOut.UNLOAD
    grace_seconds: float = 0.0
    dropped_at: float | None = None
    """When it left the document; None while it is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the engine was last known to hold under one name."""

    path: str
    parameters: str = ""
    """The load's parameters in canonical form; see ``plan.parameters_key``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latch:
    """The readiness of one engine incarnation, as far as it has come."""

    incarnation: int = 0
    first_answer_at: float | None = None
    """The engine's first answer in this incarnation; the initial timeout counts from here."""
    gating: frozenset[str] | None = None
    """Names that gate the initial pass; None until a document was accepted."""
    passed: bool = False
    served: bool = False
    """Some target was resident in this incarnation."""
    document_seen: bool = False
    """A document gated an earlier incarnation, so the current one gates the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The agent's memory."""

    documents: Mapping[str, str] = field(default_factory=dict)
    """Key -> text of the last good documents."""
    generation: int = 0
    observed_generation: int = 0
    accepted_at: float | None = None
    owned: Mapping[str, Owned] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)
    """Name -> what the engine was last known to hold."""
    retired: Mapping[str, float] = field(default_factory=dict)
    """Path of an unloaded revision -> since when."""
    incarnation: int = 0
    started_at: float | None = None
    """The engine's own start time in that incarnation, where it says so."""
    latch: Latch = Latch()
    failing: frozenset[str] = frozenset()
    """Names that were failing when last published: they do not gate the next incarnation."""


def anew(paths: Iterable[str], now: float) -> Memory:
    """Return the memory of an agent that remembers nothing.

    Nobody knows what the engine may read again of the revisions that lie at ``paths``.
    """
    return Memory(retired=dict.fromkeys(paths, now))


def to_json(memory: Memory) -> dict[str, Any]:
    """Return the memory as JSON values."""
    latch = memory.latch
    return {
        "version": VERSION,
        "documents": dict(memory.documents),
        "generation": memory.generation,
        "observed_generation": memory.observed_generation,
        "accepted_at": memory.accepted_at,
        "owned": {
            name: [str(one.drop_out), one.grace_seconds, one.dropped_at]
            for name, one in memory.owned.items()
        },
        "held": {name: [one.path, one.parameters] for name, one in memory.held.items()},
        "retired": dict(memory.retired),
        "incarnation": memory.incarnation,
        "started_at": memory.started_at,
        "latch": {
            "incarnation": latch.incarnation,
            "first_answer_at": latch.first_answer_at,
            "gating": None if latch.gating is None else sorted(latch.gating),
            "passed": latch.passed,
            "served": latch.served,
            "document_seen": latch.document_seen,
        },
        "failing": sorted(memory.failing),
    }


def from_json(value: Mapping[str, Any]) -> Memory:
    """Rebuild a memory. Raises ``ValueError`` when it is not one of ours."""
    try:
        if value["version"] != VERSION:
            raise ValueError(f"memory of version {value['version']!r}, not {VERSION}")
        latch = value["latch"]
        gating = latch["gating"]
        return Memory(
            documents={str(key): str(text) for key, text in value["documents"].items()},
            generation=int(value["generation"]),
            observed_generation=int(value["observed_generation"]),
            accepted_at=_moment(value["accepted_at"]),
            owned={
                str(name): Owned(
                    drop_out=DropOut(drop_out),
                    grace_seconds=float(grace),
                    dropped_at=_moment(dropped_at),
                )
                for name, (drop_out, grace, dropped_at) in value["owned"].items()
            },
            held={
                str(name): Held(path=str(path), parameters=str(parameters))
                for name, (path, parameters) in value["held"].items()
            },
            retired={str(path): _moment(since) or 0.0 for path, since in value["retired"].items()},
            incarnation=int(value["incarnation"]),
            started_at=_moment(value["started_at"]),
            latch=Latch(
                incarnation=int(latch["incarnation"]),
                first_answer_at=_moment(latch["first_answer_at"]),
                gating=None if gating is None else frozenset(map(str, gating)),
                passed=bool(latch["passed"]),
                served=bool(latch["served"]),
                document_seen=bool(latch["document_seen"]),
            ),
            failing=frozenset(map(str, value["failing"])),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"memory is damaged: {error!r}") from error


def _moment(value: object) -> float | None:
    """Return unix seconds, or None. Raises ``TypeError`` for what is neither."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError(f"{value!r} is no moment")
    return float(value)
