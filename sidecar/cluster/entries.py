"""What can be asked for in a document that we edit: one entry, as its format writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adapters.base import Kind
from sidecar.core.desired import Format, Readiness, Rollout
from sidecar.core.documents.native import FIELDS

OWNER = "deployment_name"

MICHELANGELO_FIELDS = ("name", "storage_path", "s3_path", OWNER, "phase", "canary_pod")
"""Every field of any generation; an entry is written with ``storage_path``, the present one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeModel:
    """One entry of ``models:``. What is None is left out, and has the format's default."""

    format: ClassVar[Format] = Format.NATIVE
    known_fields: ClassVar[tuple[str, ...]] = FIELDS

    name: str
    source: str
    kind: Kind | None = None
    digest: str | None = None
    base_model: str | None = None
    readiness: Readiness | None = None
    rollout: Rollout | None = None
    warmup: bool | None = None
    pinned: bool | None = None
    credentials: str | None = None
    refresh_seconds: float | None = None
    parameters: Mapping[str, object] | None = None

    def fields(self) -> dict[str, object]:
        """Return what the document says of it, in the order of the format's description."""
        rollout = self.rollout
        share: dict[str, object] | None = None
        if rollout is not None:
            share = {"percent": _short(rollout.percent)}
            share |= {"otherwise": rollout.otherwise} if rollout.otherwise is not None else {}
        values: dict[str, object] = {
            "name": self.name,
            "kind": str(self.kind) if self.kind is not None else None,
            "source": self.source,
            "digest": self.digest,
            "base_model": self.base_model,
            "readiness": str(self.readiness) if self.readiness is not None else None,
            "rollout": share,
            "warmup": self.warmup,
            "pinned": self.pinned,
            "credentials": self.credentials,
            "refresh_seconds": _short(self.refresh_seconds),
            "parameters": dict(self.parameters) if self.parameters is not None else None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class MichelangeloModel:
    """One entry of ``model-list.json``: one deployment's use of a model.

    Its identity is the pair of ``deployment`` and ``name``; the first generation of the format has
    no deployments.
    """

    format: ClassVar[Format] = Format.MICHELANGELO
    known_fields: ClassVar[tuple[str, ...]] = MICHELANGELO_FIELDS

    name: str
    source: str
    """``storage_path``."""
    deployment: str = ""
    phase: str = ""
    """``canary``, ``staged`` or ``serving``; empty counts as serving."""
    canary_pod: str = ""

    def fields(self) -> dict[str, object]:
        """Return what the list says of it, as Michelangelo's controller writes it (Go's
        ``omitempty``); ``deployment_name`` also where it is empty."""
        values = {"name": self.name, "storage_path": self.source, OWNER: self.deployment}
        optional = {"phase": self.phase, "canary_pod": self.canary_pod}
        return {**values, **{name: value for name, value in optional.items() if value}}


ModelEntry = NativeModel | MichelangeloModel


def _short(number: float | None) -> float | int | None:
    """Return 300 for 300.0, as people write it."""
    return int(number) if number is not None and number == int(number) else number
