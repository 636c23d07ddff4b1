"""How far one target has come: what its source holds, what was checked, what failed last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from sidecar.core import backoff
from sidecar.core.backoff import Basis, Severity
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.status import Reason


class Stage(StrEnum):
    """The steps of a target, in order."""

    FETCH = "fetch"
    CHECK = "check"
    LOAD = "load"
    WARM = "warm"
    UNLOAD = "unload"
    EVICT = "evict"


ENGINE_STAGES = frozenset({Stage.LOAD, Stage.WARM, Stage.UNLOAD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The last failure of one step."""

    stage: Stage
    reason: Reason
    message: str
    severity: Severity
    failures: int
    """In a row."""
    retry_at: float
    basis: Basis
    parameters: str = ""
    """Of a load: what it was given, in canonical form."""

    def is_due(self, basis: Basis, now: float) -> bool:
        """Tell whether the step may be tried again."""
        if now >= self.retry_at:
            return True
        if self.severity is Severity.TRANSIENT:
            restarted = basis.incarnation != self.basis.incarnation
            evicted = basis.evicted != self.basis.evicted
            return (restarted and self.stage in ENGINE_STAGES) or (
                evicted and self.reason is Reason.STORE_FULL
            )
        # Room on disk makes no engine change its mind.
        return replace(basis, evicted=self.basis.evicted) != self.basis

    def is_due_over(self, basis: Basis, now: float, *, parameters: str) -> bool:
        """Tell whether a load may be tried again for which a revision that serves must go first.

        What is gained is a chance, what is lost is certain: neither another entry's edit nor room
        that others left is worth it.
        """
        if self.stage is not Stage.LOAD or self.severity is Severity.TRANSIENT:
            return self.is_due(basis, now)
        restarted = basis.incarnation != self.basis.incarnation
        return now >= self.retry_at or restarted or parameters != self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One target's way. Replaced, never changed."""

    about: tuple[str, str | None, str | None] | None = None
    """Source, pin and credentials that the attempts are about."""
    asked: tuple[str, str | None] | None = None
    """Source and pin that ``revision`` answers."""
    revision: Revision | None = None
    """What the source was found to hold."""
    fetched_at: float = 0.0
    """When it was found, unix seconds."""
    moved: int = 0
    """How often the source was seen to change since: look again."""
    due_at: float = 0.0
    """When this pod's turn comes to replace what serves, unix seconds (``--spread-seconds``)."""
    unseen: str = ""
    """Why the source could not be looked at for changes; told, and no plan depends on it."""
    checked: tuple[str, int] | None = None
    """Revision and engine incarnation for which the checks passed."""
    warmed: tuple[str, int] | None = None
    """Path and incarnation for which a warm-up request was answered."""
    suspect: bool = False
    """The engine woke from sleep: a tiny request must prove the resident."""
    broken: bool = False
    """That request was refused: it must be loaded again."""
    fetch_attempt: Attempt | None = None
    """The last failure to bring the files here: apart, because a source that fails is no reason not
    to load what is on disk."""
    attempt: Attempt | None = None
    """The last failure of any later step."""
    fallback_attempt: Attempt | None = None
    """The last failure to load the revision that served before."""

    @property
    def failures(self) -> tuple[Attempt, ...]:
        """What stands in the way of the desired revision; the engine's word comes first."""
        return tuple(one for one in (self.attempt, self.fetch_attempt) if one is not None)

    def answers(self, entry: Entry) -> bool:
        """Tell whether ``revision`` is what this entry asks for."""
        return self.revision is not None and self.asked == asks(entry)


def failed(
    attempt: Attempt | None,
    *,
    stage: Stage,
    reason: Reason,
    message: str,
    severity: Severity,
    basis: Basis,
    now: float,
    jitter: float,
    parameters: str = "",
) -> Attempt:
    """Return the attempt that follows ``attempt`` after one more failure."""
    repeated = attempt is not None and attempt.stage is stage and attempt.severity is severity
    failures = attempt.failures + 1 if attempt is not None and repeated else 1
    return Attempt(
        stage=stage,
        reason=reason,
        message=message,
        severity=severity,
        failures=failures,
        retry_at=backoff.retry_at(failures, severity, now=now, jitter=jitter),
        basis=basis,
        parameters=parameters,
    )


def asks(entry: Entry) -> tuple[str, str | None]:
    """Return what identifies the bytes that an entry asks for."""
    return (entry.source, entry.digest)


def tries(entry: Entry) -> tuple[str, str | None, str | None]:
    """Return what an attempt to bring them depends on: other credentials are worth one at once."""
    return (entry.source, entry.digest, entry.credentials)


def for_entry(progress: Progress | None, entry: Entry) -> Progress:
    """Return the progress with which ``entry`` goes on; asking for other bytes starts anew."""
    before = progress or Progress()
    if before.about == tries(entry):
        return before
    if before.about is not None and before.about[:2] == asks(entry):
        return replace(before, about=tries(entry), unseen="", fetch_attempt=None)
    return replace(
        before,
        about=tries(entry),
        unseen="",
        fetch_attempt=None,
        attempt=None,
        fallback_attempt=None,
    )


def edited(progress: Progress, entry: Entry, *, now: float, wait_seconds: float) -> Progress:
    """Return the progress after a document asked for other bytes: this pod's turn to replace.

    A turn that is still to come stays, so that edits that follow one another postpone nothing for
    ever. Going back to what was asked before needs none.
    """
    if progress.answers(entry) and not progress.moved:
        return replace(progress, due_at=0.0)
    return progress if progress.due_at > now else replace(progress, due_at=now + wait_seconds)


def moved(progress: Progress, entry: Entry | None, *, now: float, wait_seconds: float) -> Progress:
    """Return the progress after the source was seen to change: it is worth a fetch at once, or when
    this pod's turn comes. What has already begun goes on."""
    if entry is not None and not progress.answers(entry):
        return replace(progress, fetch_attempt=None)
    waits = entry is not None and not progress.moved and progress.due_at <= now
    due_at = now + wait_seconds if waits else progress.due_at
    return replace(progress, moved=progress.moved + 1, due_at=due_at, fetch_attempt=None)
