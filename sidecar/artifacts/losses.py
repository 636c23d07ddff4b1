"""Files of residents that vanish or change under the engine: noticed by the kernel's events."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Event as Stop

from asyncinotify import Event, Mask, Watch

from sidecar.artifacts.threads import Workers
from sidecar.directory_watch import SETTLED, WENT, EventReader, wait_event

# A file renamed over another tells of no deletion. Time stamps are our own doing.
LOSSES = SETTLED | Mask.MODIFY | Mask.DELETE_SELF | Mask.MOVE_SELF
MAX_DIRECTORIES = 256
"""Watched of one path at most; what is in others is seen by the periodic look alone."""
SHARE = 50
"""Paths watched at one turn of the loop."""
LIST_TIMEOUT_SECONDS = 10.0

_log = logging.getLogger(__name__)


class LossWatch:
    """Tells which directories of residents lost a file or had one written to.

    A hint to look at once, never a verdict: events can be lost, come late, or concern bytes that
    are put back already. Made and used inside one running event loop; ``close`` it. Raises
    ``OSError`` where the kernel has no queue of events left for this user.
    """

    def __init__(self) -> None:
        self._events = EventReader(self._take_events)
        self._workers = Workers("losses", 1)
        self._watches: dict[str, set[Watch]] = {}
        # Two paths can lead to one directory, for which the kernel has one watch.
        self._paths: dict[Watch, set[str]] = {}
        self._told: set[str] = set()
        self._skipped: set[str] = set()
        self._why = ""
        self._lost: set[str] = set()
        self._ready = asyncio.Event()

    def close(self) -> None:
        """Watch nothing any more."""
        self._events.close()
        self._workers.close()

    async def set_paths(self, paths: Iterable[str]) -> None:
        """Watch exactly these directories and all below them; unchanged ones cost nothing.

        One that is not there counts as lost, once, and is watched by a later call that finds it.
        One that cannot be watched is skipped until another one leaves. What vanished before this
        returns may go unnoticed. Not to be called again before it returned.
        """
        wanted = set(paths)
        for path in self._watches.keys() - wanted:
            self._forget(path)
            self._skipped.clear()
        for some in (self._told, self._skipped, self._lost):
            some &= wanted
        fresh = sorted(wanted - self._watches.keys() - self._skipped)
        skipped: dict[str, str] = {}
        try:
            async with asyncio.timeout(LIST_TIMEOUT_SECONDS):
                while fresh:
                    list_share = partial(_list_directories, fresh[:SHARE])
                    skipped |= self._watch_all(await self._workers.run(list_share))
                    del fresh[:SHARE]
        except TimeoutError:
            skipped |= dict.fromkeys(fresh, f"not listed within {LIST_TIMEOUT_SECONDS:g} s")
        if skipped or not self._skipped:
            self._report(skipped)

    async def wait_lost(self, timeout: float) -> frozenset[str]:
        """Return the paths concerned since the last call; wait up to ``timeout`` seconds for one.

        Empty when there was none. A path whose watch ended is told here once, and watched again by
        the next ``set_paths``.
        """
        await wait_event(self._ready, timeout)
        lost = frozenset(self._lost)
        self._lost.clear()
        self._ready.clear()
        return lost

    def _watch_all(self, listed: Mapping[str, list[str]]) -> dict[str, str]:
        """Watch them, and return why those that are skipped cannot be."""
        skipped = {}
        for path, directories in listed.items():
            try:
                self._watch(path, directories)
                self._told.discard(path)
            except (FileNotFoundError, NotADirectoryError):
                self._forget(path)
                if path not in self._told:
                    self._told.add(path)
                    self._tell({path})
            except OSError as error:
                self._forget(path)
                skipped[path] = error.strerror or str(error)
        self._skipped |= skipped.keys()
        return skipped

    def _watch(self, path: str, directories: Iterable[str]) -> None:
        watches = self._watches.setdefault(path, set())
        for directory in directories:
            watch = self._events.inotify.add_watch(directory, LOSSES | Mask.ONLYDIR)
            watches.add(watch)
            self._paths.setdefault(watch, set()).add(path)

    def _forget(self, path: str) -> None:
        for watch in self._watches.pop(path, ()):
            paths = self._paths[watch]
            paths.discard(path)
            if not paths:
                del self._paths[watch]
                # The kernel drops the watch of a directory that was deleted by itself.
                with suppress(OSError):
                    self._events.inotify.rm_watch(watch)

    def _report(self, skipped: Mapping[str, str]) -> None:
        path, why = next(iter(skipped.items()), ("", ""))
        if why and why != self._why:
            message = "cannot watch %d directories of residents, the first is %s (%s)"
            _log.warning(message, len(skipped), path, why)
        self._why = why

    def _take_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.mask & Mask.Q_OVERFLOW:
                self._tell(self._watches.keys())
                continue
            concerned = tuple(self._paths.get(event.watch, ())) if event.watch else ()
            self._tell(concerned)
            if event.mask & WENT:
                for path in concerned:
                    self._forget(path)
                    self._told.add(path)

    def _tell(self, paths: Iterable[str]) -> None:
        self._lost.update(paths)
        if self._lost:
            self._ready.set()


def _list_directories(paths: Iterable[str], stop: Stop) -> dict[str, list[str]]:
    """List each path and the directories below it. Blocking."""
    listed = {}
    for path in paths:
        if stop.is_set():
            break
        found = [directory for directory, _, _ in islice(os.walk(path), MAX_DIRECTORIES)]
        # One that cannot be listed says why when it is to be watched.
        listed[path] = found or [path]
    return listed
