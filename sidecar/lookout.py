"""Looks at the engine, and keeps what a failed look means apart from what a successful one says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters.base import EngineAdapter, EngineError, EngineState, EngineUnavailable
from sidecar.core.readiness import Answering, answered, asked, listened
from sidecar.world import World

log = logging.getLogger("model_sidecar.lookout")

LISTEN_SECONDS = 0.25
"""While a look is on its way, so often is the engine's silence measured."""
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
        heard_at: Callable[[], float],
        restarted: Callable[[], None],
        seen: Callable[[EngineState], None],
    ) -> None:
        """``now`` gives unix seconds, and ``heard_at`` those at which the engine last answered
        anything else; ``restarted``: it is another incarnation; ``seen``: a look succeeded."""
        self._adapter = adapter
        self._world = world
        self._now = now
        self._heard_at = heard_at
        self._restarted = restarted
        self._seen = seen
        self._refused = False
        self._defects_told: set[str] = set()
        self.answering = Answering()
        self.message = ""
        """Why the engine cannot be seen; empty while it can."""

    async def look(self, lost: Callable[[], object]) -> None:
        """Look once and tell the world. Never raises: what cannot be seen is unknown (P1).

        ``lost`` is called when the engine turns out to be silent for too long, before the look's
        own deadline says so.
        """
        mark = self._world.begin_look()
        self._heed(asked(self.answering, now=self._now()), lost)
        try:
            with self._listening(lost):
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

    @contextmanager
    def _listening(self, lost: Callable[[], object]) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def listen() -> None:
            nonlocal timer
            timer = loop.call_later(LISTEN_SECONDS, listen)
            self._heed(self._listened(), lost)

        timer = loop.call_later(LISTEN_SECONDS, listen)
        try:
            yield
        finally:
            timer.cancel()

    def _listened(self) -> Answering:
        return listened(self.answering, heard_at=self._heard_at(), now=self._now())

    def _heed(self, answering: Answering, lost: Callable[[], object]) -> None:
        before, self.answering = self.answering, answering
        if answering.gone and not before.gone:
            lost()

    def _lose_sight(self, why: str) -> None:
        self.message = why
        self._world.lost_sight()
        self.answering = answered(self._listened(), ok=False, now=self._now())

    def _is_new_defect(self, error: Exception) -> bool:
        """Tell whether to log a defect of the look: once, not twice a second."""
        said = f"{type(error).__name__}: {error}"
        if said in self._defects_told or len(self._defects_told) >= MAX_DEFECTS_TOLD:
            return False
        self._defects_told.add(said)
        return True
