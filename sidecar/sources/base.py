"""The port of a source, and what every source needs: telling changes, waiting after failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from sidecar.core.snapshot import Presence, Snapshot

Publish = Callable[[Snapshot], None]
"""Receives snapshots; called on the event loop, and expected not to block or raise."""

BACKOFF_FIRST_SECONDS = 0.25
"""The first step; the longest wait doubles with each failure."""
BACKOFF_MAX_SECONDS = 30.0
MAX_REASON_CHARS = 512


class Source(Protocol):
    """One place that documents come from.

    A trouble is no exception here: it is a snapshot with presence UNREADABLE and its reason, which
    changes nothing downstream and is shown to people.
    """

    def describe(self) -> str:
        """Name the place for people: ``dir /config``, ``configmap chat/models``."""
        ...

    async def read_once(self) -> Snapshot:
        """Read it now, one attempt with a deadline; never raises but when cancelled."""
        ...

    async def run(self, publish: Publish) -> None:
        """Publish the first read, then every one that differs, until cancelled.

        Level-triggered: between two snapshots any number of edits may have been skipped.
        """
        ...


class ChangesOnly:
    """Passes a snapshot on when it says something else than the one before."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._last: Snapshot | None = None

    @property
    def started(self) -> bool:
        """Whether anything has been published yet."""
        return self._last is not None

    def __call__(self, snapshot: Snapshot) -> None:
        """Publish ``snapshot``, unless only the time of its event is new."""
        if self._last is not None and _content(self._last) == _content(snapshot):
            return
        self._last = snapshot
        self._publish(snapshot)


def _content(snapshot: Snapshot) -> Snapshot:
    return dataclasses.replace(snapshot, seen_at=0.0)


def unreadable(source: str, reason: str, *, seen_at: float) -> Snapshot:
    """Build the snapshot of a read that failed."""
    return Snapshot(
        presence=Presence.UNREADABLE,
        source=source,
        reason=reason[:MAX_REASON_CHARS],
        seen_at=seen_at,
    )


def absent(source: str, reason: str, *, seen_at: float) -> Snapshot:
    """Build the snapshot of a read that found nothing there."""
    return Snapshot(presence=Presence.ABSENT, source=source, reason=reason, seen_at=seen_at)


def backoff_seconds(failures: int, share: float) -> float:
    """Return how long to wait after ``failures`` failures in a row (at least 1).

    ``share``, random in [0, 1), spreads the wait over the whole exponential step, from half of the
    first one on, so that a thousand pods, which all failed at one moment, do not come back to a
    restarted API server at one moment.
    """
    # The exponent is bounded: a float overflows after a thousand failures.
    step = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
    least = BACKOFF_FIRST_SECONDS / 2
    return least + (step - least) * share
