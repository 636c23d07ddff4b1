"""When a failed target is tried again (P3). Pure: time and chance come in as arguments."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0
SLOW_RETRY_SECONDS = 60.0
"""After an answer that no engine should give."""
REJECTED_RETRY_SECONDS = 300.0
"""A rejection can be a lack of memory, so it is not forever."""


class Severity(StrEnum):
    """How a failure is tried again."""

    TRANSIENT = "transient"
    """Exponential backoff with jitter."""
    REJECTED = "rejected"
    """At once when what it was tried against changed, else every 300 s with jitter."""
    PROTOCOL = "protocol"
    """Slowly: somebody has to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What an attempt was made against; when it changes, a rejection is worth another try."""

    generation: int = 0
    incarnation: int = 0
    freed: int = 0
    """Counter of unloads, which give the engine room."""
    evicted: int = 0
    """Counter of evictions, which give the disk room."""


def retry_at(failures: int, severity: Severity, *, now: float, jitter: float) -> float:
    """Return when attempt ``failures + 1`` is due, in the seconds of ``now``.

    ``failures`` counts from 1; ``jitter`` is a number from [0, 1).
    """
    if severity is Severity.REJECTED:
        return now + REJECTED_RETRY_SECONDS * (0.9 + 0.2 * jitter)
    if severity is Severity.PROTOCOL:
        return now + SLOW_RETRY_SECONDS * (0.9 + 0.2 * jitter)
    delay = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LAST_RETRY_SECONDS)
    return now + delay * (0.5 + jitter)
