"""What the engines of other pods that share the store may read, also while their agents are away.

An agent that runs holds locks, see ``locks``. One that is away left its memory, see ``memory``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sidecar.artifacts.layout import children
from sidecar.artifacts.memory import needed_places, place_of

MEMORY_AGE_SECONDS = 30 * 86400.0
"""A memory that nobody wrote for longer belongs to a pod that is gone."""


@dataclass(frozen=True, slots=True)
class _Needs:
    """What one memory names, as read when the file had this stamp."""

    stamp: tuple[int, int, int]
    places: frozenset[tuple[str, ...]]


class Neighbours:
    """The memories of the other agents of one store. Methods block and raise ``OSError``."""

    def __init__(self, memories: Path, ours: str) -> None:
        """``ours`` is the stem of this agent's own file among the ``memories``."""
        self._memories = memories
        self._ours = ours
        self._read: dict[Path, _Needs] = {}

    def find_needing(self, path: Path, now: float) -> str | None:
        """Return the pod whose memory names a revision, wherever it mounts the store.

        ``now`` is in unix seconds of the clock that stamps the store's files.
        """
        needs: dict[Path, _Needs] = {}
        for memory in children(self._memories):
            if memory.suffix == ".json" and memory.stem != self._ours:
                with suppress(FileNotFoundError):
                    info = memory.stat()
                    if now - info.st_mtime <= MEMORY_AGE_SECONDS:
                        stamp = (info.st_mtime_ns, info.st_ino, info.st_size)
                        needs[memory] = self._look(memory, stamp)
        self._read = needs
        place = place_of(str(path))
        return next((one.stem for one, known in needs.items() if place in known.places), None)

    def _look(self, memory: Path, stamp: tuple[int, int, int]) -> _Needs:
        known = self._read.get(memory)
        if known is not None and known.stamp == stamp:
            return known
        return _Needs(stamp, needed_places(memory.read_bytes()))
