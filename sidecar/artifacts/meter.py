"""How far a fetch has come, told now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

REPORT_BYTES = 8 << 20
REPORT_SECONDS = 0.5
"""A slow source is told of as often as that, so that it is not taken for a hanging one."""


class Meter:
    """Sums up chunks, from any thread, and passes the sum on now and then."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._done = 0
        self._reported = 0
        self._reported_at = 0.0
        self._lock = Lock()

    def add(self, size: int) -> None:
        """Count a chunk of so many bytes."""
        with self._lock:
            self._done += size
            now = time.monotonic()
            is_due = now - self._reported_at >= REPORT_SECONDS
            if self._done - self._reported >= REPORT_BYTES or is_due:
                self._tell(now)

    def flush(self) -> None:
        """Tell the sum at once."""
        with self._lock:
            self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        self._reported, self._reported_at = self._done, now
        self._report(self._done)
