"""Events of one directory, from Linux inotify through libc: no thread, no timer, no library.

A library that polls the kernel's queue from a thread costs a thousand wake-ups a second for a
reaction within milliseconds; the event loop's own selector costs none and is faster.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

WATCHED = (
    IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
) | (IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)
ENDED = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED

HEADER = struct.Struct("iIII")
READ_BYTES = 64 * 1024
MAX_READS_PER_WAKE = 64
"""What is left stays in the kernel's queue, and wakes the loop again."""

_libc = ctypes.CDLL(None, use_errno=True)


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
        self._loop = asyncio.get_running_loop()
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), WATCHED))
            self._loop.add_reader(self._fd, self._take_events)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

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
        if not await self._wait_ready(timeout) and self._writing:
            await self._wait_ready(timeout)
        seen_at, self._seen_at = self._seen_at, None
        self._ready.clear()
        return seen_at

    async def _wait_ready(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                return await self._ready.wait()
        except TimeoutError:
            return False

    def _take_events(self) -> None:
        for _ in range(MAX_READS_PER_WAKE):
            try:
                block = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                break
            for mask, name in _parse_events(block):
                self._take(mask, name)
        if self._seen_at is not None and not self._writing:
            self._ready.set()

    def _take(self, mask: int, name: str) -> None:
        if mask & ENDED:
            self._ended = True
            self._writing.clear()
        elif mask & IN_Q_OVERFLOW:
            # The end of a write may be among what was lost.
            self._writing.clear()
        elif not self._relevant(name):
            return
        elif mask & IN_MODIFY:
            self._writing.add(name)
            self._ready.clear()
        else:
            if mask & (IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE):
                self._writing.discard(name)
        self._seen_at = time.monotonic()


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _parse_events(block: bytes) -> Iterator[tuple[int, str]]:
    position = 0
    while position + HEADER.size <= len(block):
        _, mask, _, length = HEADER.unpack_from(block, position)
        position += HEADER.size
        yield mask, os.fsdecode(block[position : position + length].rstrip(b"\0"))
        position += length
