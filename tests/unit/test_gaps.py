"""For how long a name is unknown while another revision takes it."""

from __future__ import annotations

import pytest

from adapters.base import Kind, Target
from sidecar.core.actions import Load, Unload
from sidecar.core.backoff import Severity
from sidecar.core.gaps import ReplacementGaps
from sidecar.core.inventory import Revision
from sidecar.core.outcome import Done, Failed
from sidecar.core.status import Reason

TARGET = Target(name="sql", kind=Kind.LORA)
LOAD = Load(
    name="sql",
    target=TARGET,
    revision=Revision(name="sql", kind=Kind.LORA, revision="r2", path="/r2"),
)
REPLACING = Unload(name="sql", target=TARGET, replacing=True)
DROPPING = Unload(name="sql", target=TARGET)
REFUSED = Failed(reason=Reason.ENGINE_REJECTED, message="no", severity=Severity.REJECTED)
UNKNOWN = Failed(reason=Reason.ENGINE_TIMEOUT, message="late", severity=Severity.TRANSIENT)


@pytest.fixture
def gaps():
    return ReplacementGaps()


def test_a_gap_lasts_from_the_start_of_the_unload_to_the_end_of_the_load(gaps):
    assert gaps.ended(REPLACING, Done(), began=10.0, now=10.5) is None
    assert gaps.ended(LOAD, Done(), began=10.5, now=12.0) == 2.0
    assert gaps.ended(LOAD, Done(), began=20.0, now=21.0) is None


def test_a_load_that_fails_leaves_the_gap_open(gaps):
    gaps.ended(REPLACING, Done(), began=10.0, now=10.5)
    assert gaps.ended(LOAD, REFUSED, began=10.5, now=12.0) is None
    assert gaps.ended(LOAD, Done(), began=12.0, now=13.0) == 3.0


@pytest.mark.parametrize(
    ("unload", "outcome"), [(DROPPING, Done()), (REPLACING, REFUSED)], ids=["dropped", "refused"]
)
def test_a_name_that_nobody_replaces_or_that_stayed_has_no_gap(gaps, unload, outcome):
    gaps.ended(unload, outcome, began=10.0, now=10.5)
    assert gaps.ended(LOAD, Done(), began=10.5, now=12.0) is None


def test_an_unload_of_unknown_outcome_may_have_begun_the_gap(gaps):
    gaps.ended(REPLACING, UNKNOWN, began=10.0, now=15.0)
    assert gaps.ended(LOAD, Done(), began=16.0, now=17.0) == 7.0


def test_an_unload_after_one_of_unknown_outcome_begins_it_anew(gaps):
    gaps.ended(REPLACING, UNKNOWN, began=10.0, now=15.0)
    gaps.ended(REPLACING, Done(), began=16.0, now=16.5)
    assert gaps.ended(LOAD, Done(), began=16.5, now=17.0) == 1.0


def test_a_name_that_left_the_documents_or_the_engine_is_waited_for_by_nobody(gaps):
    gaps.ended(REPLACING, Done(), began=10.0, now=10.5)
    gaps.keep({"sql"})
    assert gaps.ended(LOAD, Done(), began=11.0, now=12.0) == 2.0
    gaps.ended(REPLACING, Done(), began=10.0, now=10.5)
    gaps.keep({"other"})
    assert gaps.ended(LOAD, Done(), began=11.0, now=12.0) is None
    gaps.ended(REPLACING, Done(), began=10.0, now=10.5)
    gaps.restarted()
    assert gaps.ended(LOAD, Done(), began=11.0, now=12.0) is None
