"""CPU time of a process."""

from __future__ import annotations

import time

from bench.report import NotMeasuredError

SCHEDULED = 2
"""The kernel's number for the kind of CPU clock that counts in nanoseconds (CPUCLOCK_SCHED)."""


def cpu_seconds(pid: int) -> float:
    """CPU time that a process, all its threads and none of its children, used so far.

    /proc/PID/stat says the same in steps of 10 ms, too coarse for windows of a few seconds.
    """
    try:
        # Linux makes the clock of a process from its id; POSIX' clock_getcpuclockid does no more.
        return time.clock_gettime((~pid << 3) | SCHEDULED)
    except OSError as exc:
        raise NotMeasuredError(f"process {pid} has no CPU clock: {exc}") from exc
