"""One complete read of where the documents come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Presence(StrEnum):
    """The outcomes of a read that must stay apart. What is read may still be invalid."""

    PRESENT = "present"
    ABSENT = "absent"
    """No file, no ConfigMap."""
    UNREADABLE = "unreadable"
    """It may be there, but this read failed (I/O, access, the API server is away)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one read saw. ``files`` holds key -> text, PRESENT only."""

    presence: Presence
    source: str
    """Where it was read, for people: ``dir /config`` or ``configmap chat/models``."""
    files: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Keys that could not be read or are no UTF-8 -> why."""
    reason: str = ""
    """Why it is not PRESENT."""
    seen_at: float = 0.0
    """Monotonic seconds at which its event arrived; the start of propagation."""
