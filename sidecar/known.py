"""What many fetches would find on disk, found together: one by one, a thousand cost a second.

A source that hangs holds up its group for a few seconds, and nobody longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.core.actions import Fetch
from sidecar.core.inventory import Revision
from sidecar.executor import Executor

log = logging.getLogger("model_sidecar.drives")

MANY_FETCHES = 8
"""From so many on, they are looked for together."""
FETCHES_TOGETHER = 50
"""Few enough that the first ones are loaded while the others are looked for."""
KNOWN_SECONDS = 5.0
"""After that one of the sources hangs, and each target is fetched by itself."""


@dataclass(frozen=True, slots=True)
class Known:
    """A fetch whose answer may be on disk."""

    fetch: Fetch
    found: asyncio.Task[Mapping[str, Revision]]
    """By name, this one's and others'."""


class Finder:
    """Looks for what is on disk, some groups at once."""

    def __init__(self, executor: Executor, *, places: int) -> None:
        """``places`` are its own: hung fetches keep nobody from what is on disk."""
        self._executor = executor
        self._places = asyncio.Semaphore(places)

    def start(self, fetches: Sequence[Fetch], group: asyncio.TaskGroup) -> dict[str, Known]:
        """Begin to look, if there are many; return by name where it will be told."""
        asked = [fetch for fetch in fetches if fetch.restore is None]
        if len(asked) < MANY_FETCHES:
            return {}
        told: dict[str, Known] = {}
        for start in range(0, len(asked), FETCHES_TOGETHER):
            some = asked[start : start + FETCHES_TOGETHER]
            found = group.create_task(self._find(some))
            told.update((fetch.name, Known(fetch, found)) for fetch in some)
        return told

    async def _find(self, fetches: Sequence[Fetch]) -> Mapping[str, Revision]:
        async with self._places:
            looking = asyncio.create_task(self._executor.find_known(fetches))
            try:
                done, _ = await asyncio.wait({looking}, timeout=KNOWN_SECONDS)
                if done:
                    return looking.result()
                log.warning("a source does not answer; each target is fetched by itself")
            except Exception:
                log.exception("a defect of the agent; each target is fetched by itself")
            finally:
                # Not waited for: its thread may hang in the operating system.
                looking.cancel()
        return {}
