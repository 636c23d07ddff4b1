"""Files are made durable while the next ones are written."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

_THREADS = 4
_MAX_WAITING = 64
"""Files that are written, open, and not durable yet."""
_WRITE_BACK_BYTES = 32 << 20


class Syncer:
    """Syncs in threads of its own, for one thread that writes.

    A file synced alone waits for its own commit of the filesystem's journal; several that wait at
    once share one. Methods raise ``OSError``, which may be that of an earlier file. The process can
    end while a sync hangs, which the threads of ``concurrent.futures`` do not allow.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[int, Future[None]] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._waiting: deque[Future[None]] = deque()
        self._flushing: Future[None] | None = None
        self._written = 0

    def wrote(self, descriptor: int, size: int) -> None:
        """Be told of bytes written, so that a large file does not wait for its end to be synced."""
        self._written += size
        is_idle = self._flushing is None or self._flushing.done()
        if self._written >= _WRITE_BACK_BYTES and is_idle:
            self._written = 0
            # Linux tells of a failed write once only: if to this one, not when the file is closed.
            self._flushing = self._submit(os.dup(descriptor))

    def take(self, descriptor: int) -> None:
        """Take a file over, to sync and close it."""
        self._submit(descriptor)
        self._wait_for_all_but(_MAX_WAITING)

    def wait(self) -> None:
        """Return when everything is durable and closed."""
        self._wait_for_all_but(0)

    def close(self) -> None:
        """Give up the threads, once what they were given is closed."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _submit(self, descriptor: int) -> Future[None]:
        future: Future[None] = Future()
        if len(self._threads) < _THREADS:
            thread = Thread(target=self._work, name="sync", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._jobs.put((descriptor, future))
        self._waiting.append(future)
        return future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            descriptor, future = job
            try:
                _sync_and_close(descriptor)
            except OSError as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def _wait_for_all_but(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
