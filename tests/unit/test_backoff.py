"""When a failed target is tried again (P3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.backoff import Basis, Severity, retry_at
from sidecar.core.progress import Attempt, Stage, failed
from sidecar.core.status import Reason

BASIS = Basis(generation=3, incarnation=2, freed=5, evicted=7)
CHANGES = {
    "nothing": {},
    "document": {"generation": 4},
    "engine start": {"incarnation": 3},
    "freed capacity": {"freed": 6},
    "evicted files": {"evicted": 8},
}


def attempt(severity: Severity, stage: Stage = Stage.LOAD, reason=Reason.ENGINE_REJECTED):
    """Return a failure at second 100."""
    return failed(
        None,
        stage=stage,
        reason=reason,
        message="no",
        severity=severity,
        basis=BASIS,
        now=100.0,
        jitter=0.5,
    )


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_transient_pauses_double_up_to_a_minute_give_or_take_half(failures, jitter):
    middle = min(2.0 ** min(failures - 1, 30), 60.0)
    pause = retry_at(failures, Severity.TRANSIENT, now=1000.0, jitter=jitter) - 1000.0
    assert middle * 0.5 - 1e-6 <= pause <= middle * 1.5 + 1e-6


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_rejected_pauses_are_300_seconds_give_or_take_a_tenth(failures, jitter):
    pause = retry_at(failures, Severity.REJECTED, now=0.0, jitter=jitter)
    assert 270.0 <= pause <= 330.0


def test_jitter_spreads_retries_over_the_whole_range():
    assert retry_at(1, Severity.REJECTED, now=0.0, jitter=0.0) == pytest.approx(270.0)
    assert retry_at(1, Severity.REJECTED, now=0.0, jitter=0.999999) == pytest.approx(330.0, abs=0.1)
    assert retry_at(1, Severity.TRANSIENT, now=0.0, jitter=0.0) == 0.5


@given(jitter=st.floats(0, 1, exclude_max=True))
def test_an_answer_that_no_engine_should_give_is_retried_slowly_from_the_first_time(jitter):
    assert 54.0 <= retry_at(1, Severity.PROTOCOL, now=0.0, jitter=jitter) <= 66.0


@pytest.mark.parametrize("severity", [Severity.REJECTED, Severity.PROTOCOL])
@pytest.mark.parametrize("change", CHANGES)
def test_a_rejection_is_due_at_once_when_what_it_was_tried_against_changed(severity, change):
    later = replace(BASIS, **CHANGES[change])
    unmoved = ("nothing", "evicted files")
    assert attempt(severity).is_due(later, 101.0) == (change not in unmoved)


@pytest.mark.parametrize(
    ("stage", "reason", "change", "due"),
    [
        (Stage.LOAD, Reason.ENGINE_UNAVAILABLE, "document", False),
        (Stage.LOAD, Reason.ENGINE_UNAVAILABLE, "engine start", True),
        (Stage.WARM, Reason.ENGINE_UNAVAILABLE, "engine start", True),
        (Stage.UNLOAD, Reason.ENGINE_TIMEOUT, "engine start", True),
        (Stage.FETCH, Reason.FETCH_FAILED, "engine start", False),
        (Stage.FETCH, Reason.FETCH_FAILED, "freed capacity", False),
        (Stage.FETCH, Reason.STORE_FULL, "freed capacity", False),
        (Stage.FETCH, Reason.STORE_FULL, "evicted files", True),
        (Stage.FETCH, Reason.FETCH_FAILED, "evicted files", False),
        (Stage.FETCH, Reason.FETCH_FAILED, "nothing", False),
    ],
)
def test_a_transient_failure_waits_unless_its_cause_is_gone(stage, reason, change, due):
    later = replace(BASIS, **CHANGES[change])
    assert attempt(Severity.TRANSIENT, stage, reason).is_due(later, 100.1) is due


@pytest.mark.parametrize("severity", Severity)
def test_every_failure_is_due_at_its_time(severity):
    one = attempt(severity)
    assert not one.is_due(BASIS, one.retry_at - 0.001)
    assert one.is_due(BASIS, one.retry_at)


def again(before: Attempt, stage: Stage, severity: Severity) -> int:
    """Return the number of failures in a row after one more."""
    return failed(
        before,
        stage=stage,
        reason=Reason.FETCH_FAILED,
        message="no",
        severity=severity,
        basis=BASIS,
        now=0.0,
        jitter=0.0,
    ).failures


def test_only_failures_of_one_kind_in_a_row_are_counted():
    one = attempt(Severity.TRANSIENT)
    assert again(one, Stage.LOAD, Severity.TRANSIENT) == 2
    assert again(one, Stage.CHECK, Severity.TRANSIENT) == 1
    assert again(one, Stage.LOAD, Severity.REJECTED) == 1
