"""Tables in Markdown, and the facts of the machine on which the figures came about."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_MEASURED = "not measured here"


class NotMeasuredError(Exception):
    """The run did not show what it was to show, so there is no figure."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table, and what a reader must know to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the table in Markdown."""
        lines = [f"### {self.title}", "", _row(self.columns), _row("---" for _ in self.columns)]
        lines += [_row(cells) for cells in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Return one line about this machine."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.machine()


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds * 1000:.1f} ms"


def seconds(value: float) -> str:
    """Return a duration in words."""
    return f"{value:.2f} s"


def megabytes(count: float) -> str:
    """Return an amount of memory in words."""
    return f"{count / 1e6:.1f} MB"


def ratio(theirs: float, ours: float) -> str:
    """Return how many times as much theirs is."""
    return f"{theirs / ours:.0f}x"
