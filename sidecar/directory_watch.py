"""Events of directories, from Linux inotify through the event loop's selector: no thread, no timer.

A library that polls the kernel's queue from a thread costs a thousand wake-ups a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from asyncinotify import Event, Inotify, Mask

WENT = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED
"""No event will come any more for the path that was watched."""
SETTLED = Mask.CLOSE_WRITE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.DELETE
WATCHED = SETTLED | Mask.MODIFY | Mask.ATTRIB | Mask.CREATE | Mask.DELETE_SELF | Mask.MOVE_SELF
MAX_EVENTS_PER_WAKE = 512
"""What is left is taken at the loop's next turn: a busy writer must not hold the loop."""


class EventReader:
    """Hands the events of ``inotify``'s watches to ``take``, on the running loop, until closed.

    The library's own coroutine loses the events that arrive while a wait for them is cancelled, as
    every deadline does; this waits for none. Raises ``OSError`` where the kernel has no queue left.
    """

    def __init__(self, take: Callable[[Iterable[Event]], None]) -> None:
        self._take = take
        self._loop = asyncio.get_running_loop()
        self.inotify = Inotify(sync_timeout=0)
        self._rest: asyncio.Handle | None = None
        self._loop.add_reader(self.inotify.fd, self._read)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self.inotify.fd)
        if self._rest is not None:
            self._rest.cancel()
        self.inotify.close()

    def _read(self) -> None:
        events = list(islice(self.inotify, MAX_EVENTS_PER_WAKE))
        if len(events) == MAX_EVENTS_PER_WAKE:
            # The library may hold some already: the kernel would not wake the loop for those.
            self._rest = self._loop.call_soon(self._read)
        self._take(events)


class DirectoryWatch:
    """Collects the events of the entries directly in ``directory`` whose name is ``relevant``.

    Opens at construction: what changes afterwards is not missed. Use it as a context manager,
    inside a running event loop. Raises ``OSError`` where there is no such directory or where the
    kernel has no watch left for this user.
    """

    def __init__(self, directory: Path, relevant: Callable[[str], bool]) -> None:
        self._relevant = relevant
        self._writing: set[str] = set()
        self._seen_at: float | None = None
        self._ready = asyncio.Event()
        self._ended = False
        self._events = EventReader(self._take_events)
        try:
            self._events.inotify.add_watch(directory, WATCHED | Mask.ONLYDIR)
        except BaseException:
            self._events.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._events.close()

    @property
    def ended(self) -> bool:
        """Whether the directory went away under its name; no event will come any more."""
        return self._ended

    async def wait_changed(self, timeout: float) -> float | None:
        """Wait for relevant events, at most about ``timeout`` seconds.

        Returns the monotonic time of the latest of them, or None when there was none. While a file
        is being written in place it waits on, up to ``timeout`` seconds more: half a document can
        be a valid one that lists fewer models.
        """
        if not await wait_event(self._ready, timeout) and self._writing:
            await wait_event(self._ready, timeout)
        seen_at, self._seen_at = self._seen_at, None
        self._ready.clear()
        return seen_at

    def _take_events(self, events: Iterable[Event]) -> None:
        for event in events:
            self._take(event.mask, str(event.name or ""))
        if self._seen_at is not None and not self._writing:
            self._ready.set()

    def _take(self, mask: Mask, name: str) -> None:
        if mask & WENT:
            self._ended = True
            self._writing.clear()
        elif mask & Mask.Q_OVERFLOW:
            # The end of a write may be among what was lost.
            self._writing.clear()
        elif not self._relevant(name):
            return
        elif mask & Mask.MODIFY:
            self._writing.add(name)
            self._ready.clear()
        elif mask & SETTLED:
            self._writing.discard(name)
        self._seen_at = time.monotonic()


async def wait_event(event: asyncio.Event, timeout: float) -> bool:
    """Return whether ``event`` was set within ``timeout`` seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await event.wait()
    except TimeoutError:
        return False
