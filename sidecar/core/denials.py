"""Loads that an engine confirmed and that its own account then denies. Pure.

Once is drift, healed at once: somebody else may have unloaded it. Again and again it is a
disagreement (about a path, say) that no load ends, so it counts as a failed attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapters.base import EngineState, Residency, Resident
from sidecar.core.backoff import Basis, Severity
from sidecar.core.progress import Attempt, Progress, Stage, failed
from sidecar.core.status import Reason

FREE_DENIALS = 1
"""So many in a row are healed at once."""
JITTER = 0.5
"""The middle: one target a time comes to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The last confirmed load of one name, and how often looks denied it."""

    path: str
    parameters: str = ""
    fallback: bool = False
    judged: bool = False
    """A look newer than the answer denied it."""
    denials: int = 0
    """In a row, of loads from this very path."""
    attempt: Attempt | None = None


def confirmed(before: Claim | None, claim: Claim) -> Claim:
    """Return the claim after one more confirmed load."""
    if before is None or before.path != claim.path:
        return claim
    return replace(claim, denials=before.denials, attempt=before.attempt)


def judge(
    claim: Claim, state: EngineState, seen: Resident | None, *, basis: Basis, now: float
) -> Claim | None:
    """Return the claim after a look that is newer than the load; None when the look confirms it.

    Nothing is concluded of an engine asleep, nor of a name that it works on.
    """
    if state.asleep:
        return claim
    if seen is not None and seen.state in (Residency.LOADING, Residency.UNLOADING):
        return claim
    if seen is not None and seen.state is Residency.RESIDENT and seen.paths == {claim.path}:
        return None
    if claim.judged:
        return claim
    denials = claim.denials + 1
    if denials <= FREE_DENIALS:
        return replace(claim, judged=True, denials=denials)
    where = "nowhere"
    if seen is not None:
        where = f"{seen.state} from {', '.join(sorted(seen.paths)) or 'a path it does not tell'}"
    attempt = failed(
        claim.attempt,
        stage=Stage.LOAD,
        reason=Reason.ENGINE_PROTOCOL,
        message=f"the engine confirmed {denials} times that it loaded {claim.path},"
        f" and then lists it {where}",
        severity=Severity.TRANSIENT,
        basis=basis,
        now=now,
        jitter=JITTER,
        parameters=claim.parameters,
    )
    return replace(claim, judged=True, denials=denials, attempt=attempt)


def blame(progress: Progress, claim: Claim) -> Progress:
    """Return the progress of a target whose load was denied."""
    if claim.fallback:
        return replace(progress, fallback_attempt=claim.attempt)
    return replace(progress, attempt=claim.attempt)


def forgive(progress: Progress, claim: Claim) -> Progress:
    """Return the progress of a target whose load was confirmed after all."""
    if claim.attempt is None:
        return progress
    attempt = None if progress.attempt is claim.attempt else progress.attempt
    fallback = None if progress.fallback_attempt is claim.attempt else progress.fallback_attempt
    return replace(progress, attempt=attempt, fallback_attempt=fallback)
