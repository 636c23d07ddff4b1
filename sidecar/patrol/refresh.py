"""Looks at each source as often as its entry says with ``refresh_seconds``, and never more often.

Apart from the rounds: servers that are slow take no time from what lies on a disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sidecar.core.desired import Desired, Entry
from sidecar.core.refresh import Turn, after_looks, due_names, turns_of
from sidecar.directory_watch import wait_event
from sidecar.errors import ArtifactError

log = logging.getLogger("model_sidecar.patrol")

TICK_SECONDS = 5.0
"""No longer between two questions whose turn it is: documents come and fetches end meanwhile."""
LEAST_SECONDS = 0.2
LOOKS = 100
"""Sources that are looked at together."""
QUIET_SECONDS = 1.0
"""As in a round: who changed a moment ago may not be done."""
TURN_SECONDS = 120.0
"""The longest that looks may take together."""
BEAT_SECONDS = 2 * TURN_SECONDS
"""Beyond a tick: one that is silent for longer counts as hung."""


class Watch(Protocol):
    """What looks at sources; see ``Moves``."""

    def is_watched(self, entry: Entry) -> bool: ...

    async def look(self, entries: list[Entry], *, quiet_since: float) -> frozenset[str]: ...


class RefreshPatrol:
    """Keeps the turns of the sources that may move by themselves."""

    def __init__(
        self,
        watch: Watch,
        *,
        desired: Callable[[], Desired | None],
        pod: str,
        beat: Callable[[float], None],
        now: Callable[[], float],
    ) -> None:
        """``pod`` is what tells this pod from others; ``now`` gives unix seconds."""
        self._watch = watch
        self._desired = desired
        self._pod = pod
        self._beat = beat
        self._now = now
        self._turns: dict[str, Turn] = {}

    async def run(self) -> None:
        """Look in turn until cancelled."""
        while True:
            self._beat(TICK_SECONDS + BEAT_SECONDS)
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await self.turn_once()
            except TimeoutError:
                log.warning("sources could not be looked at within %g s", TURN_SECONDS)
            except ArtifactError as error:
                log.warning("could not look at sources: %s", error)
            await wait_event(asyncio.Event(), self._pause())

    async def turn_once(self) -> None:
        """Look at the sources whose turn it is."""
        desired = self._desired()
        entries = desired.entries if desired is not None else {}
        watched = [one for one in entries.values() if self._watch.is_watched(one)]
        now = self._now()
        self._turns = turns_of(watched, self._turns, pod=self._pod, now=now)
        due = due_names(self._turns, now=now, limit=LOOKS)
        if not due:
            return
        left_out: frozenset[str] = frozenset()
        try:
            left_out = await self._watch.look(
                [entries[name] for name in due], quiet_since=now - QUIET_SECONDS
            )
        finally:
            # Also of looks that failed, and counted from their end: never sooner than asked for.
            self._turns = after_looks(self._turns, set(due) - left_out, now=self._now())

    def _pause(self) -> float:
        due = min((turn.due_at for turn in self._turns.values()), default=float("inf"))
        return min(max(due - self._now(), LEAST_SECONDS), TICK_SECONDS)
