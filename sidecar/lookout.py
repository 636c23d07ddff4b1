"""Looks at the engine, and keeps what a failed look means apart from what a successful one says."""

from __future__ import annotations

import logging
from collections.abc import Callable

from adapters.base import EngineAdapter, EngineError, EngineState, EngineUnavailable
from sidecar.core.readiness import Answering, answered
from sidecar.world import World

log = logging.getLogger("model_sidecar.lookout")

MAX_DEFECTS_TOLD = 100
"""Messages may carry numbers; the log and the memory of it stay small all the same."""
DEFECT = "a defect of the agent; its log says more"


class Lookout:
    """One look after another; ``answering`` and ``message`` say how they went."""

    def __init__(
        self,
        adapter: EngineAdapter,
        world: World,
        *,
        now: Callable[[], float],
        restarted: Callable[[], None],
        seen: Callable[[EngineState], None],
    ) -> None:
        """``now`` gives unix seconds; ``restarted``: the engine is another incarnation; ``seen``:
        a look succeeded."""
        self._adapter = adapter
        self._world = world
        self._now = now
        self._restarted = restarted
        self._seen = seen
        self._refused = False
        self._defects_told: set[str] = set()
        self.answering = Answering()
        self.message = ""
        """Why the engine cannot be seen; empty while it can."""

    async def look(self) -> None:
        """Look once and tell the world. Never raises: what cannot be seen is unknown (P1)."""
        mark = self._world.begin_look()
        try:
            state = await self._adapter.observe()
        except EngineError as error:
            self._refused |= isinstance(error, EngineUnavailable)
            self._lose_sight(str(error))
            return
        except Exception as error:
            if self._is_new_defect(error):
                log.exception("a defect of the agent; the engine counts as not seen")
            self._lose_sight(f"{DEFECT} ({type(error).__name__})")
            return
        self.message = ""
        if self._world.saw(state, mark, refused=self._refused, now=self._now()):
            log.info("the engine was restarted; healing what it lost")
            self._restarted()
        self._refused = False
        self.answering = answered(self.answering, ok=True, now=self._now())
        self._seen(state)

    def _lose_sight(self, why: str) -> None:
        self.message = why
        self._world.lost_sight()
        self.answering = answered(self.answering, ok=False, now=self._now())

    def _is_new_defect(self, error: Exception) -> bool:
        """Tell whether to log a defect of the look: once, not twice a second."""
        said = f"{type(error).__name__}: {error}"
        if said in self._defects_told or len(self._defects_told) >= MAX_DEFECTS_TOLD:
            return False
        self._defects_told.add(said)
        return True
