"""Bytes in words for people. Pure."""

from __future__ import annotations

import math

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def size(number: float) -> str:
    """Return bytes with a unit: ``3.2 GiB``."""
    if number < 1024:
        return f"{number:.0f} B"
    power = min(int(math.log(number, 1024)), len(_UNITS))
    return f"{number / 1024**power:.1f} {_UNITS[power - 1]}"


def share(done: float, total: float | None) -> str:
    """Return how far something has come: ``35 % 1.2 GiB of 3.4 GiB``; of no total, the bytes."""
    if not total:
        return size(done)
    # An archive may turn out larger than its source said.
    return f"{min(100, int(100 * done / total))} % {size(done)} of {size(total)}"
