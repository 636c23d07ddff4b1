"""A place that a hash gives: how pods share out what not all of them shall do at once. Pure."""

from __future__ import annotations

import hashlib

_BITS = 53
"""What a float holds exactly."""


def place_of(*names: str) -> float:
    """Return a number from [0, 1) that depends on these names alone."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return (int.from_bytes(digest[:8]) >> (64 - _BITS)) / (1 << _BITS)
