"""The readiness table: what is known -> ready or not, and the sentence that says why."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from sidecar.core.desired import Readiness
from sidecar.core.memory import Latch, Memory, from_json, to_json
from sidecar.core.readiness import (
    GRACE_SECONDS,
    STEADY_SECONDS,
    Answering,
    Came,
    DocumentFact,
    Facts,
    Gate,
    answered,
    asked,
    evaluate,
    listened,
)

NOW = 10_000.0
UP = Answering(answers=True, since=NOW - 100.0)
REQUIRED, INITIAL, OPTIONAL = Readiness.REQUIRED, Readiness.INITIAL, Readiness.OPTIONAL
RESIDENT, PENDING, REFUSED = Came.RESIDENT, Came.PENDING, Came.REJECTED
ACCEPTED, ABSENT, TROUBLE, UNREAD = (
    DocumentFact.ACCEPTED,
    DocumentFact.ABSENT,
    DocumentFact.TROUBLE,
    DocumentFact.UNREAD,
)
FRESH = Latch(incarnation=1, first_answer_at=NOW - 10.0)
LATE = Latch(incarnation=1, first_answer_at=NOW - 600.0)
PASSED = Latch(incarnation=1, first_answer_at=NOW - 10.0, passed=True, gating=frozenset())
SERVED = replace(PASSED, served=True)
SECOND = Latch(incarnation=2, first_answer_at=NOW - 10.0, document_seen=True)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    says: str
    """The only or first reason; empty: none."""
    ready: bool = False
    latch: Latch = FRESH
    document: DocumentFact = ACCEPTED
    targets: dict[str, tuple[Readiness, Came]] = field(default_factory=dict)
    """Name -> (readiness, how far it came)."""
    alone: bool = True
    residents: int = 0
    gate: Gate = Gate.INITIAL
    answering: Answering = UP
    asleep: bool = False
    failing: frozenset[str] = frozenset()
    incarnation: int = 1


NOT_YET = "a is not resident yet."
NEEDED = "a is required and not resident."
STAYS = "a is not resident; the pod stays ready."
NONE_OF_THEM = "None of the document's models is resident, and the engine has no other."
NO_MORE = "No model is resident any more, and the engine has no other."
UNREADABLE = "The document cannot be read, and there is no last good one."
NOTHING_DESIRED = "The document cannot be read; nothing is desired until it can."

TABLE = {
    # Rule 1: the engine answers and is awake.
    "no engine yet": Row("The engine has not answered yet.", incarnation=0),
    "asleep": Row("The engine is asleep.", latch=PASSED, asleep=True),
    "one unanswered look": Row(
        "",
        ready=True,
        latch=PASSED,
        answering=Answering(since=NOW, silent_since=NOW - GRACE_SECONDS),
    ),
    "silent for longer than the grace": Row(
        "The engine has not answered for 6 s.",
        latch=PASSED,
        answering=Answering(since=NOW - 1.0, lost=True, silent_since=NOW - 6.0),
    ),
    "a look on its way": Row(
        "",
        ready=True,
        latch=PASSED,
        answering=replace(UP, silent_since=NOW - GRACE_SECONDS, listened_at=NOW),
    ),
    "back, but not for long": Row(
        "The engine answers again; waiting for it to stay.",
        latch=PASSED,
        answering=Answering(answers=True, since=NOW - 1.0, lost=True),
    ),
    "back for long enough": Row(
        "",
        ready=True,
        latch=PASSED,
        answering=Answering(answers=True, since=NOW - STEADY_SECONDS, lost=True),
    ),
    "never looked": Row("", ready=True, latch=PASSED, answering=Answering(answers=True)),
    # Rule 2: the initial pass.
    "nothing asked for": Row("", ready=True),
    "initial and pending": Row(NOT_YET, targets={"a": (INITIAL, PENDING)}),
    "initial and resident": Row("", ready=True, targets={"a": (INITIAL, RESIDENT)}),
    "initial and rejected": Row(STAYS, ready=True, targets={"a": (INITIAL, REFUSED)}),
    "initial and pending past the timeout": Row(
        STAYS, ready=True, latch=LATE, targets={"a": (INITIAL, PENDING)}
    ),
    "required and pending": Row(NEEDED, targets={"a": (REQUIRED, PENDING)}),
    "required and resident": Row("", ready=True, targets={"a": (REQUIRED, RESIDENT)}),
    "required and rejected": Row(NEEDED, targets={"a": (REQUIRED, REFUSED)}),
    "required and pending past the timeout": Row(
        NEEDED, latch=LATE, targets={"a": (REQUIRED, PENDING)}
    ),
    "optional and pending": Row("", ready=True, targets={"a": (OPTIONAL, PENDING)}),
    "one of two": Row(
        "b is not resident yet.", targets={"a": (INITIAL, RESIDENT), "b": (INITIAL, PENDING)}
    ),
    "added before the first ones came": Row(
        "b is not resident; the pod stays ready.",
        ready=True,
        latch=replace(FRESH, gating=frozenset({"a"})),
        targets={"a": (INITIAL, RESIDENT), "b": (REQUIRED, PENDING)},
    ),
    "left before it came": Row("", ready=True, latch=replace(FRESH, gating=frozenset({"a"}))),
    "made optional before it came": Row(
        "",
        ready=True,
        latch=replace(FRESH, gating=frozenset({"a"})),
        targets={"a": (OPTIONAL, PENDING)},
    ),
    "failing before the engine restarted": Row(
        STAYS,
        ready=True,
        latch=SECOND,
        incarnation=2,
        failing=frozenset({"a"}),
        targets={"a": (REQUIRED, REFUSED)},
    ),
    "not failing before the engine restarted": Row(
        NEEDED, latch=SECOND, incarnation=2, targets={"a": (REQUIRED, PENDING)}
    ),
    "failing in the first incarnation excuses nothing": Row(
        NEEDED, failing=frozenset({"a"}), targets={"a": (REQUIRED, PENDING)}
    ),
    # Rule 3: no document.
    "nothing read yet": Row("No document has been read yet.", document=UNREAD),
    "nothing read yet past the timeout": Row(
        "No document has been read yet.", document=UNREAD, latch=LATE
    ),
    "no document": Row("", ready=True, document=ABSENT),
    "no document, an engine without models": Row("", ready=True, document=ABSENT, alone=False),
    "unreadable": Row(UNREADABLE, document=TROUBLE),
    "unreadable past the timeout": Row(NOTHING_DESIRED, ready=True, document=TROUBLE, latch=LATE),
    # Rule 4: an engine that serves nothing of its own.
    "all rejected, nothing served": Row(
        NONE_OF_THEM, targets={"a": (INITIAL, REFUSED)}, alone=False
    ),
    "all too late, nothing served": Row(
        NONE_OF_THEM, latch=LATE, targets={"a": (INITIAL, PENDING)}, alone=False
    ),
    "pending says so rather than both": Row(
        NOT_YET, targets={"a": (INITIAL, PENDING)}, alone=False
    ),
    "one rejected, one served": Row(
        STAYS,
        ready=True,
        targets={"a": (INITIAL, REFUSED), "b": (INITIAL, RESIDENT)},
        alone=False,
        residents=1,
    ),
    "all excused, nothing served": Row(
        NONE_OF_THEM,
        latch=SECOND,
        incarnation=2,
        failing=frozenset({"a"}),
        targets={"a": (INITIAL, REFUSED)},
        alone=False,
    ),
    "all of the first ones left, nothing served": Row(
        NONE_OF_THEM,
        latch=replace(FRESH, gating=frozenset({"gone"})),
        targets={"a": (INITIAL, PENDING)},
        alone=False,
    ),
    "only optional ones": Row("", ready=True, targets={"a": (OPTIONAL, PENDING)}, alone=False),
    "an empty list": Row("", ready=True, alone=False),
    # Rule 5: latched.
    "added later": Row(STAYS, ready=True, latch=PASSED, targets={"a": (REQUIRED, PENDING)}),
    "failed later": Row(STAYS, ready=True, latch=SERVED, targets={"a": (INITIAL, REFUSED)}),
    "a document appears later": Row(
        STAYS,
        ready=True,
        latch=replace(PASSED, gating=None),
        targets={"a": (INITIAL, PENDING)},
        alone=False,
    ),
    "the last model went": Row(
        NO_MORE, latch=SERVED, targets={"a": (INITIAL, PENDING)}, alone=False
    ),
    "the last model went, and nothing is asked for": Row("", ready=True, latch=SERVED, alone=False),
    "unreadable later": Row(NOTHING_DESIRED, ready=True, document=TROUBLE, latch=PASSED),
    # --readiness required
    "required stays required": Row(
        NEEDED, latch=PASSED, targets={"a": (REQUIRED, PENDING)}, gate=Gate.REQUIRED
    ),
    "required and here": Row(
        "", ready=True, latch=PASSED, targets={"a": (REQUIRED, RESIDENT)}, gate=Gate.REQUIRED
    ),
    "initial ones do not": Row(
        STAYS, ready=True, latch=PASSED, targets={"a": (INITIAL, PENDING)}, gate=Gate.REQUIRED
    ),
    "required, and the last model went": Row(
        NO_MORE,
        latch=SERVED,
        targets={"a": (INITIAL, PENDING)},
        gate=Gate.REQUIRED,
        alone=False,
    ),
    # --readiness none
    "none gates nothing": Row(
        STAYS, ready=True, targets={"a": (REQUIRED, PENDING)}, gate=Gate.NONE, alone=False
    ),
    "none, and nothing was read": Row("", ready=True, document=UNREAD, gate=Gate.NONE),
    "none, and the last model went": Row(
        STAYS,
        ready=True,
        latch=SERVED,
        targets={"a": (INITIAL, PENDING)},
        gate=Gate.NONE,
        alone=False,
    ),
    "none still needs the engine": Row("The engine is asleep.", asleep=True, gate=Gate.NONE),
}


def facts_of(row: Row) -> Facts:
    """Return the facts of one row."""
    return Facts(
        gate=row.gate,
        incarnation=row.incarnation,
        answering=row.answering,
        asleep=row.asleep,
        document=row.document,
        targets=row.targets,
        failing=row.failing,
        serves_alone=row.alone,
        resident_count=row.residents,
        initial_timeout_seconds=600.0,
    )


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_table(row):
    verdict = evaluate(row.latch, facts_of(row), now=NOW)
    assert (verdict.ready, verdict.reasons) == (row.ready, (row.says,) if row.says else ())


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_who_is_not_ready_is_told_why(row):
    verdict = evaluate(row.latch, facts_of(row), now=NOW)
    assert verdict.ready or verdict.reasons


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_an_agent_restart_changes_nothing(row):
    before = evaluate(row.latch, facts_of(row), now=NOW)
    remembered = from_json(json.loads(json.dumps(to_json(Memory(latch=before.latch)))))
    # The first look fails, the one after it does not.
    unseen = evaluate(remembered.latch, replace(facts_of(row), incarnation=0), now=NOW)
    after = evaluate(unseen.latch, facts_of(row), now=NOW)
    assert (after.ready, after.latch) == (before.ready, before.latch)


@pytest.mark.parametrize("readiness", Readiness)
@pytest.mark.parametrize("came", Came)
@pytest.mark.parametrize("alone", [True, False])
def test_a_ready_pod_stays_ready_whatever_is_added(readiness, came, alone):
    served = Row("", targets={"a": (INITIAL, RESIDENT)}, residents=1, alone=alone)
    before = evaluate(FRESH, facts_of(served), now=NOW)
    assert before.ready
    added = replace(served, targets={**served.targets, "b": (readiness, came)})
    assert evaluate(before.latch, facts_of(added), now=NOW + 1.0).ready


@pytest.mark.parametrize("alone", [True, False])
def test_a_document_that_appears_later_does_not_unready(alone):
    nothing = Row("", document=ABSENT, alone=alone)
    before = evaluate(FRESH, facts_of(nothing), now=NOW)
    first = Row("", targets={"a": (REQUIRED, PENDING)}, alone=alone)
    assert evaluate(before.latch, facts_of(first), now=NOW + 1.0).ready


def test_the_latch_ends_with_the_engines_incarnation():
    row = Row("", targets={"a": (INITIAL, RESIDENT)}, residents=1)
    passed = evaluate(FRESH, facts_of(row), now=NOW).latch
    again = replace(row, incarnation=2, targets={"a": (INITIAL, PENDING)}, residents=0)
    verdict = evaluate(passed, facts_of(again), now=NOW + 50.0)
    assert not verdict.ready
    assert verdict.latch.first_answer_at == NOW + 50.0
    assert verdict.latch.gating == frozenset({"a"})


def test_later_incarnations_gate_by_the_current_document_without_what_was_failing():
    row = Row(
        "",
        incarnation=2,
        failing=frozenset({"bad"}),
        targets={"a": (INITIAL, PENDING), "bad": (REQUIRED, REFUSED), "o": (OPTIONAL, PENDING)},
    )
    verdict = evaluate(PASSED, facts_of(row), now=NOW)
    assert verdict.latch.gating == frozenset({"a"})


def test_the_initial_timeout_counts_from_the_engines_first_answer():
    row = facts_of(Row("", targets={"a": (INITIAL, PENDING)}))
    first = evaluate(Latch(incarnation=1), row, now=NOW)
    assert first.latch.first_answer_at == NOW
    assert not evaluate(first.latch, row, now=NOW + 599.9).ready
    assert evaluate(first.latch, row, now=NOW + 600.0).ready


NEVER = float("-inf")
TICK = 0.25


def look(state: Answering, *, at: float, ok: bool) -> Answering:
    """One look that ends at once; the looks before it go on as if nothing happened."""
    state = asked(state, now=NOW + at)
    if not ok:
        state = listened(state, heard_at=NEVER, now=NOW + at)
    return answered(state, ok=ok, now=NOW + at)


def looks(*script: tuple[float, bool]) -> Answering:
    """Return how the engine answers after looks at these seconds, failing on in between."""
    state, last = Answering(), 0.0
    for at, ok in script:
        state = listen(state, last, at)
        state, last = look(state, at=at, ok=ok), at
    return state


def listen(state: Answering, began: float, until: float, heard_at: float = NEVER) -> Answering:
    """Listen four times a second; the seconds are those after ``NOW``."""
    for tick in range(1, int((until - began) / TICK) + 1):
        state = listened(state, heard_at=NOW + heard_at, now=NOW + began + tick * TICK)
    return state


def is_ready(answering: Answering, at: float) -> bool:
    return evaluate(PASSED, facts_of(Row("", answering=answering)), now=NOW + at).ready


def test_one_slow_answer_is_no_outage():
    seen = looks((0.0, True), (1.0, False), (4.0, False), (5.0, True))
    assert not seen.lost
    assert is_ready(seen, 5.0)


def test_an_outage_ends_when_the_engine_answered_steadily():
    down = looks((0.0, True), (1.0, False), (7.0, False))
    assert not is_ready(down, 7.0)
    back = answered(down, ok=True, now=NOW + 8.0)
    assert not is_ready(back, 9.0)
    steady = answered(back, ok=True, now=NOW + 10.0)
    assert not steady.lost
    assert is_ready(steady, 10.0)


def test_a_relapse_is_not_given_the_grace_again():
    back = looks((0.0, True), (1.0, False), (7.0, False), (8.0, True), (9.0, False))
    assert not is_ready(back, 9.1)


def test_an_outage_without_a_look_within_it_counts_too():
    back = looks((0.0, True), (1.0, False), (20.0, True))
    assert back.lost
    assert not is_ready(back, 20.5)


def test_silence_counts_from_the_question_and_not_from_its_deadline():
    hung = asked(look(Answering(), at=0.0, ok=True), now=NOW + 3.0)
    still = listen(hung, 3.0, 3.0 + GRACE_SECONDS)
    assert is_ready(still, 3.0 + GRACE_SECONDS)
    gone = listen(hung, 3.0, 3.0 + GRACE_SECONDS + TICK)
    assert gone.gone
    assert gone.since == gone.listened_at
    assert not is_ready(gone, 3.0 + GRACE_SECONDS + TICK)


def test_silence_goes_on_from_one_failed_look_to_the_next():
    gone = looks((0.0, True), (1.0, False), (3.0, False), (6.0, False), (6.5, False))
    assert gone.silent_since == NOW + 1.0
    assert not is_ready(gone, 6.5)
    assert is_ready(looks((0.0, True), (1.0, False), (3.0, False), (6.0, False)), 6.0)


@pytest.mark.parametrize("pause", [0.0, 5.0, 1e6])
@pytest.mark.parametrize("late", [0.0, 1.0, GRACE_SECONDS])
def test_who_is_not_asked_is_not_silent_and_who_answers_in_time_is_not_gone(pause, late):
    seen = look(Answering(), at=0.0, ok=True)
    waited = listen(asked(seen, now=NOW + pause), pause, pause + late)
    assert is_ready(waited, pause + late)
    after = answered(waited, ok=True, now=NOW + pause + late)
    assert after.silent_since is None
    assert not after.lost
    assert after.since == seen.since


def test_what_is_heard_while_the_first_look_waits_is_no_silence():
    asking = asked(look(Answering(), at=0.0, ok=True), now=NOW)
    heard = listen(asking, 0.0, 9.0, heard_at=4.0)
    assert is_ready(heard, 9.0)
    assert listen(asking, 0.0, 9.25, heard_at=4.0).gone


def test_what_was_heard_before_the_look_makes_no_silence_longer():
    asking = asked(look(Answering(), at=0.0, ok=True), now=NOW + 100.0)
    assert listen(asking, 100.0, 101.0, heard_at=0.0).silent_since == NOW + 100.0


def test_samples_do_not_hide_that_looks_fail():
    failed = looks((0.0, True), (1.0, False))
    assert listen(failed, 1.0, 6.25, heard_at=6.0).gone


def test_an_agent_that_stood_still_concludes_nothing_from_it():
    asking = asked(look(Answering(), at=0.0, ok=True), now=NOW)
    woken = listened(listen(asking, 0.0, 2.0), heard_at=NEVER, now=NOW + 60.0)
    assert is_ready(woken, 60.0)
    assert is_ready(answered(woken, ok=False, now=NOW + 60.0), 60.0)
    # What was heard in silence before counts, 2 s, and of the rest one.
    assert is_ready(listen(woken, 60.0, 62.0), 62.0)
    assert listen(woken, 60.0, 62.25).gone


def test_an_engine_that_never_answered_is_gone_after_the_grace_too():
    asking = asked(Answering(), now=NOW)
    gone = listen(asking, 0.0, GRACE_SECONDS + TICK)
    assert gone.gone
    assert look(gone, at=8.0, ok=True).lost


def test_a_moment_without_a_question_is_no_silence():
    seen = look(Answering(), at=0.0, ok=True)
    assert listened(seen, heard_at=NEVER, now=NOW + 50.0) == seen


@pytest.mark.parametrize("apart", [0.5, 1.3, 3.0])
def test_looks_that_fail_at_once_add_up_however_slow_the_cycles_between_them_are(apart):
    state = look(Answering(), at=0.0, ok=True)
    # Between two looks nobody listens: an answer is asked for, and refused.
    at = [
        1.0 + apart * number
        for number in range(2 + int(max(apart, 1.0) * GRACE_SECONDS / apart) * 2)
    ]
    for moment in at:
        state = look(state, at=moment, ok=False)
    assert not is_ready(state, at[-1])
