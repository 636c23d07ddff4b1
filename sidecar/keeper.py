"""Keeps the agent's memory on disk, and the revisions it needs out of other agents' reach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from sidecar.artifacts.memory import MemoryFile
from sidecar.artifacts.store import Store
from sidecar.core.memory import Memory, anew, from_json, to_json
from sidecar.core.progress import Progress
from sidecar.errors import ArtifactError

log = logging.getLogger("model_sidecar.keeper")


class Keeper:
    """Reads the memory once and saves each later one; never raises."""

    def __init__(self, store: Store, file: MemoryFile, now: Callable[[], float]) -> None:
        """``now`` gives unix seconds."""
        self._store = store
        self._file = file
        self._now = now
        self._trouble = ""
        self._needed: frozenset[str] = frozenset()

    async def recall(self) -> Memory:
        """Return what was remembered; an unusable memory is reported and begun anew."""
        recalled = await self._file.load()
        trouble = recalled.problem
        if recalled.mapping is not None:
            try:
                return from_json(recalled.mapping)
            except ValueError as error:
                trouble = str(error)
        if trouble:
            log.warning("the agent's memory is lost and begun anew: %s", trouble)
        return anew((one.path for one in self._store.inventory().all()), self._now())

    async def save(self, memory: Memory, progress: Mapping[str, Progress]) -> bool:
        """Write the memory down, and hold the revisions that it and ``progress`` name.

        Returns whether that was possible; what was not kept is worth another try.
        """
        needed = {held.path for held in memory.held.values()} | set(memory.retired)
        needed |= {one.revision.path for one in progress.values() if one.revision is not None}
        try:
            await self._file.save(to_json(memory))
            if needed != self._needed:
                revisions = [one for one in self._store.inventory().all() if one.path in needed]
                await self._store.hold(revisions)
                self._needed = frozenset(needed)
            self._trouble = ""
        except ArtifactError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("the agent's memory cannot be kept over its restart: %s", error)
            return False
        return True
