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

    def __init__(
        self, store: Store, file: MemoryFile, *, now: Callable[[], float], retain_seconds: float
    ) -> None:
        """``now`` gives unix seconds; ``retain_seconds`` is how long retired files are needed."""
        self._store = store
        self._file = file
        self._now = now
        self._retain_seconds = retain_seconds
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

    async def save(self, memory: Memory) -> bool:
        """Write the memory down.

        Returns whether that was possible; what was not kept is worth another try.
        """
        try:
            await self._file.save(to_json(memory))
        except ArtifactError as error:
            self._report(f"the agent's memory cannot be kept over its restart: {error}")
            return False
        self._trouble = ""
        return True

    async def hold(self, memory: Memory, progress: Mapping[str, Progress]) -> None:
        """Keep other agents of a shared store from evicting what this engine may read."""
        kept_until = self._now() - self._retain_seconds
        needed = {path for path, since in memory.retired.items() if since > kept_until}
        needed |= {held.path for held in memory.held.values()}
        needed |= {one.revision.path for one in progress.values() if one.revision is not None}
        if needed == self._needed:
            return
        try:
            await self._store.hold(
                one for one in self._store.inventory().all() if one.path in needed
            )
        except ArtifactError as error:
            self._report(f"revisions cannot be held against other agents: {error}")
            return
        self._needed = frozenset(needed)

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("%s", trouble)
