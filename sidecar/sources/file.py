"""Documents from a mounted directory or one file: at once on a change, and on a slow tick."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from sidecar.core.snapshot import Presence, Snapshot
from sidecar.directory_watch import DirectoryWatch
from sidecar.sources.base import ChangesOnly, Publish, absent, unreadable
from sidecar.sources.directory import CURRENT, Files, read_directory, read_file

READ_TIMEOUT_SECONDS = 10.0

_log = logging.getLogger(__name__)


class FileSource:
    """``--config-dir`` (every file in it is a document) or, ``single``, ``--config-file``.

    The directory is watched, never a file: the kubelet replaces what is in it. It may appear late,
    vanish and come back; ``resync_seconds`` bounds how long a change stays unseen whose event was
    lost or never sent (a mount, a link that leads elsewhere, a network file system).
    """

    def __init__(self, path: Path, *, single: bool, resync_seconds: float) -> None:
        self._path = path.absolute()
        self._single = single
        self._resync_seconds = resync_seconds
        self._directory = self._path.parent if single else self._path
        self._reading: asyncio.Future[Files] | None = None
        self._blind = ""

    def describe(self) -> str:
        """Return ``dir PATH`` or ``file PATH``."""
        return f"{'file' if self._single else 'dir'} {self._path}"

    async def read_once(self) -> Snapshot:
        """Read everything once, within ``READ_TIMEOUT_SECONDS``."""
        return await self._read(time.monotonic())

    async def run(self, publish: Publish) -> None:
        """Publish the first read and every one that differs, until cancelled."""
        tell = ChangesOnly(publish)
        while True:
            directory = nearest_directory(self._directory)
            try:
                watch = DirectoryWatch(directory, self._relevant_in(directory))
            except OSError as error:
                self._report_blind(directory, error)
                await self._read_and_wait_tick(tell)
                continue
            self._blind = ""
            with watch:
                await self._follow(tell, watch, directory)

    async def _follow(self, tell: ChangesOnly, watch: DirectoryWatch, directory: Path) -> None:
        """Read at every change and tick, until another directory is the one to watch."""
        identity = _identity(directory)
        seen_at: float | None = None
        while True:
            tell(await self._read(time.monotonic() if seen_at is None else seen_at))
            if watch.ended or identity != _identity(nearest_directory(self._directory)):
                return
            seen_at = await watch.wait_changed(self._resync_seconds)

    async def _read_and_wait_tick(self, tell: ChangesOnly) -> None:
        tell(await self._read(time.monotonic()))
        try:
            async with asyncio.timeout(self._resync_seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            return

    def _relevant_in(self, directory: Path) -> Callable[[str], bool]:
        if directory != self._directory:
            awaited = self._directory.relative_to(directory).parts[0]
            return lambda name: name == awaited
        if self._single:
            return lambda name: name in (self._path.name, CURRENT)
        # The kubelet's other `..` entries are steps on the way to a new `..data`.
        return lambda name: name == CURRENT or not name.startswith("..")

    def _report_blind(self, directory: Path, error: OSError) -> None:
        why = error.strerror or str(error)
        if error.errno == errno.ENOENT or why == self._blind:
            return
        self._blind = why
        _log.warning(
            "cannot watch %s (%s): it is read every %g s instead",
            directory,
            why,
            self._resync_seconds,
        )

    async def _read(self, seen_at: float) -> Snapshot:
        where = self.describe()
        try:
            files = await self._read_files()
        except FileNotFoundError:
            return absent(where, f"{self._path} does not exist", seen_at=seen_at)
        except TimeoutError:
            reason = f"{self._path} could not be read within {READ_TIMEOUT_SECONDS:g} s"
            return unreadable(where, reason, seen_at=seen_at)
        except OSError as error:
            reason = f"{self._path} cannot be read: {error.strerror or error}"
            return unreadable(where, reason, seen_at=seen_at)
        if not files.texts and not files.unreadable:
            return absent(where, f"{self._path} holds no files", seen_at=seen_at)
        return Snapshot(
            presence=Presence.PRESENT,
            source=where,
            files=files.texts,
            unreadable=files.unreadable,
            seen_at=seen_at,
        )

    async def _read_files(self) -> Files:
        """Read in a thread: a slow disk must not stop the event loop."""
        if self._reading is not None:
            # A read that hung is waited for, not joined by more threads. What it brings may be
            # older than the event that woke us, so it is only looked at to be done with it.
            await self._wait_done(self._reading)
            self._reading.exception()
        read = read_file if self._single else read_directory
        self._reading = asyncio.ensure_future(asyncio.to_thread(read, self._path))
        await self._wait_done(self._reading)
        finished, self._reading = self._reading, None
        return finished.result()

    async def _wait_done(self, reading: asyncio.Future[Files]) -> None:
        done, _ = await asyncio.wait({reading}, timeout=READ_TIMEOUT_SECONDS)
        if not done:
            raise TimeoutError


def nearest_directory(path: Path) -> Path:
    """Return ``path``, or the nearest directory above it that can be seen."""
    return next((one for one in (path, *path.parents) if _is_directory(one)), Path(path.anchor))


def _is_directory(path: Path) -> bool:
    # `Path.is_dir` raises where access is denied or the file system fails.
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(directory)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
