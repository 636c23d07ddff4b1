"""What is on disk, as facts: complete revisions, and what one source was found to hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapters.base import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One complete revision in the store, or a passthrough source outside it."""

    name: str
    kind: Kind
    revision: str
    """The identity of its bytes; another revision is another directory."""
    path: str
    """The directory that the engine is given, as the agent sees it."""
    bytes: int = 0
    source: str = ""
    digest: str = ""
    """``sha256:<64 hex>`` of the content; empty where the agent never saw it."""
    used_at: float = 0.0
    """Unix time of its fetch or last load, for eviction."""
    verified: bool = True
    """False: a passthrough source that the agent cannot see (``Unverified``)."""
    parts: tuple[str, ...] = ()
    """Models that must be resident first (a Triton ensemble's composing models)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All complete revisions of the store, by target name."""

    revisions: Mapping[str, tuple[Revision, ...]] = field(default_factory=dict)
    max_bytes: int | None = None
    """``--store-max-bytes``."""

    def find(self, name: str, revision: str) -> Revision | None:
        """Return one revision if it is whole on disk."""
        for one in self.revisions.get(name, ()):
            if one.revision == revision:
                return one
        return None

    def at_path(self, name: str, path: str) -> Revision | None:
        """Return the revision of ``name`` that lies at ``path``."""
        for one in self.revisions.get(name, ()):
            if one.path == path:
                return one
        return None

    def all(self) -> Iterable[Revision]:
        """Iterate over every revision."""
        for revisions in self.revisions.values():
            yield from revisions

    @property
    def bytes(self) -> int:
        """Bytes held on disk by complete revisions."""
        return sum(revision.bytes for revision in self.all())
