"""When the pod may receive traffic: state and facts in, (state, ready, reasons) out.

The rules are those of the design's readiness section; every branch here is a row of the table in
``tests/unit/test_readiness.py``. In short: the engine answers and is awake; then, once per engine
incarnation, the initial pass; after that, documents and failures no longer unready the pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sidecar.core.desired import Readiness
from sidecar.core.memory import Latch

GRACE_SECONDS = 5.0
"""An engine that is silent for longer unreadies the pod: a flap costs the picker its prefix index,
and one slow answer is no outage."""
DEAF_SECONDS = 1.0
"""The agent listens more often than this, unless it stood still itself (frozen, or without a CPU):
of a longer gap, nobody knows whether the engine was silent for more than this."""
STEADY_SECONDS = 2.0
"""An engine that came back answers for this long before the pod is ready again."""


class Gate(StrEnum):
    """``--readiness``."""

    INITIAL = "initial"
    REQUIRED = "required"
    NONE = "none"


class Came(StrEnum):
    """How far a target has come, as far as readiness cares."""

    RESIDENT = "resident"
    PENDING = "pending"
    REJECTED = "rejected"


class DocumentFact(StrEnum):
    """What is known of the documents."""

    ACCEPTED = "accepted"
    ABSENT = "absent"
    """Nothing was ever there: it gates nothing."""
    TROUBLE = "trouble"
    """Unreadable, unreachable or invalid, and no last good one: it may ask for anything."""
    UNREAD = "unread"
    """No read has ended yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How the engine answers, for hysteresis. Times are unix seconds."""

    answers: bool = False
    since: float | None = None
    """When ``answers`` last changed; None before the first look."""
    lost: bool = False
    """It was silent for longer than the grace: it must answer steadily again."""
    silent_since: float | None = None
    """Since when a look waits for its answer, or looks fail; None while none does."""
    listened_at: float = 0.0
    """Until when that silence was listened to."""

    @property
    def gone(self) -> bool:
        """It is silent, and was for longer than the grace."""
        return self.lost and not self.answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one evaluation looks at."""

    gate: Gate
    incarnation: int
    answering: Answering
    asleep: bool
    document: DocumentFact
    targets: Mapping[str, tuple[Readiness, Came]] = field(default_factory=dict)
    """Desired targets by name."""
    failing: frozenset[str] = frozenset()
    """Names that were failing when this incarnation began."""
    serves_alone: bool = True
    resident_count: int = 0
    """Targets of ours or not that are resident now."""
    initial_timeout_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of ``/ready`` and the latch to keep."""

    ready: bool
    reasons: tuple[str, ...]
    latch: Latch


def asked(before: Answering, *, now: float) -> Answering:
    """Return how the engine answers as a look at it begins: nobody is silent who was not asked."""
    if before.silent_since is None:
        return replace(before, silent_since=now, listened_at=now)
    return listened(before, heard_at=before.silent_since, now=now)


def listened(before: Answering, *, heard_at: float, now: float) -> Answering:
    """Return how the engine answers while a look still has no answer, or as it fails.

    ``heard_at`` is when the engine last answered anything but a look (a sample). That is no
    silence either, until a look has failed: then only looks tell whether it can be seen.
    """
    if before.silent_since is None:
        return before
    silent_since = before.silent_since
    if now - before.listened_at > DEAF_SECONDS:
        silent_since += now - before.listened_at - DEAF_SECONDS
    if before.answers:
        silent_since = max(silent_since, heard_at)
    after = replace(before, silent_since=silent_since, listened_at=now)
    if now - silent_since <= GRACE_SECONDS:
        return after
    since = now if before.answers or before.since is None else before.since
    return replace(after, answers=False, since=since, lost=True)


def answered(before: Answering, *, ok: bool, now: float) -> Answering:
    """Return how the engine answers after one more look."""
    after = replace(before, silent_since=None) if ok else before
    if before.since is None or ok != before.answers:
        return replace(after, answers=ok, since=now)
    steady = ok and now - before.since >= STEADY_SECONDS
    return replace(after, lost=before.lost and not steady)


def evaluate(latch: Latch, facts: Facts, *, now: float) -> Verdict:
    """Decide whether the pod is ready, and why not."""
    if facts.incarnation == 0:
        # Until it answers nobody knows whether its incarnation ended: the latch is kept.
        return Verdict(ready=False, reasons=("The engine has not answered yet.",), latch=latch)
    if latch.incarnation != facts.incarnation:
        latch = Latch(
            incarnation=facts.incarnation, document_seen=latch.document_seen or latch.passed
        )
    if latch.first_answer_at is None:
        latch = replace(latch, first_answer_at=now)
    latch = _with_gating(latch, facts)
    if facts.resident_count:
        latch = replace(latch, served=True)
    if (trouble := _engine_trouble(facts, now)) is not None:
        return Verdict(ready=False, reasons=(trouble,), latch=latch)
    blockers = _blockers(latch, facts, now)
    if not latch.passed and not blockers:
        latch = replace(latch, passed=True)
    blockers = (*blockers, *_lasting_blockers(latch, facts))
    return Verdict(
        ready=not blockers and latch.passed,
        reasons=blockers or _notes(latch, facts),
        latch=latch,
    )


def _with_gating(latch: Latch, facts: Facts) -> Latch:
    if latch.gating is not None or facts.document is not DocumentFact.ACCEPTED or latch.passed:
        return latch
    excused = facts.failing if latch.document_seen else frozenset()
    gating = frozenset(
        name
        for name, (readiness, _) in facts.targets.items()
        if readiness is not Readiness.OPTIONAL and name not in excused
    )
    return replace(latch, gating=gating)


def _engine_trouble(facts: Facts, now: float) -> str | None:
    answering = facts.answering
    if answering.gone:
        silent = now - (now if answering.silent_since is None else answering.silent_since)
        return f"The engine has not answered for {silent:.0f} s."
    back = now - (now if answering.since is None else answering.since)
    if answering.lost and back < STEADY_SECONDS:
        return "The engine answers again; waiting for it to stay."
    if facts.asleep:
        return "The engine is asleep."
    return None


def _blockers(latch: Latch, facts: Facts, now: float) -> tuple[str, ...]:
    """Return what the initial pass still waits for."""
    if latch.passed or facts.gate is Gate.NONE:
        return ()
    since = latch.first_answer_at if latch.first_answer_at is not None else now
    timed_out = now - since >= facts.initial_timeout_seconds
    if facts.document is DocumentFact.UNREAD:
        return ("No document has been read yet.",)
    if facts.document is DocumentFact.TROUBLE:
        return () if timed_out else ("The document cannot be read, and there is no last good one.",)
    reasons = []
    gating = {name: facts.targets[name] for name in latch.gating or () if name in facts.targets}
    for name, (readiness, came) in sorted(gating.items()):
        if came is Came.RESIDENT or readiness is Readiness.OPTIONAL:
            continue
        if readiness is Readiness.REQUIRED:
            reasons.append(f"{name} is required and not resident.")
        elif came is Came.PENDING and not timed_out:
            reasons.append(f"{name} is not resident yet.")
    # Of all that gate, not only of the first ones: some were excused, or have left since.
    asked = any(readiness is not Readiness.OPTIONAL for readiness, _ in facts.targets.values())
    if asked and not facts.serves_alone and not facts.resident_count and not reasons:
        reasons.append("None of the document's models is resident, and the engine has no other.")
    return tuple(reasons)


def _lasting_blockers(latch: Latch, facts: Facts) -> tuple[str, ...]:
    """Return what unreadies even a pod that has passed."""
    if not latch.passed or facts.gate is Gate.NONE:
        return ()
    if facts.gate is Gate.REQUIRED:
        required = tuple(
            f"{name} is required and not resident."
            for name, (readiness, came) in sorted(facts.targets.items())
            if readiness is Readiness.REQUIRED and came is not Came.RESIDENT
        )
        if required:
            return required
    if not facts.serves_alone and facts.targets and latch.served and not facts.resident_count:
        return ("No model is resident any more, and the engine has no other.",)
    return ()


def _notes(latch: Latch, facts: Facts) -> tuple[str, ...]:
    """Return what is worth knowing although the pod is ready."""
    if facts.document is DocumentFact.TROUBLE:
        return ("The document cannot be read; nothing is desired until it can.",)
    return tuple(
        f"{name} is not resident; the pod stays ready."
        for name, (readiness, came) in sorted(facts.targets.items())
        if came is not Came.RESIDENT and readiness is not Readiness.OPTIONAL
    )
