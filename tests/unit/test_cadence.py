"""When the engine is sampled next, as a rule over every past."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import BusyTime, MetricMap, Series
from sidecar.core.cadence import CHANGING_SHARE, STEADY_SHARE, Cadence, has_changed
from sidecar.core.translate import Sample, translate

INTERVAL = 0.1
STALE_AFTER = 1.0
SLACK = 1e-9
QUICK = 0.002


def new(interval=INTERVAL, stale_after=STALE_AFTER):
    return Cadence(interval_seconds=interval, stale_after_seconds=stale_after)


def go_on(cadence, took, changed=False, failed=False, late=0.0):
    """Scrape when it is due, or ``late`` seconds after."""
    began = max(cadence.due_at, cadence.ended_at, 0.0) + late
    if failed:
        return cadence.failed(began, began + took)
    return cadence.sampled(began, began + took, began + took, changed=changed)


scrapes = st.fixed_dictionaries(
    {
        "took": st.floats(0.0005, 1.0),
        "changed": st.booleans(),
        "failed": st.booleans(),
        "late": st.sampled_from([0.0, 0.0, 0.05, 3.0]),
    }
)
pasts = st.lists(scrapes, min_size=1, max_size=30)


def after(past, cadence=None):
    cadence = cadence or new()
    for scrape in past:
        cadence = go_on(cadence, **scrape)
    return cadence


@given(pasts, st.booleans())
def test_never_more_often_than_configured(past, hasten):
    cadence = after(past)
    if hasten:
        cadence = cadence.hastened()
    assert cadence.due_at >= cadence.began_at + INTERVAL - SLACK


@given(pasts, st.floats(0.01, 0.5), st.floats(1.0, 20.0))
def test_never_so_late_that_figures_turn_stale_before_the_answer(past, interval, stale_after):
    cadence = after(past, new(interval, stale_after))
    longest = max(cadence.took_seconds, default=0.0)
    soonest = max(cadence.began_at + interval, cadence.ended_at)
    in_time = cadence.taken_at + stale_after - 2 * longest
    assert cadence.due_at <= max(soonest, in_time) + SLACK
    # There is time for another attempt, too.
    assert cadence.due_at <= max(soonest, cadence.taken_at + stale_after / 2) + SLACK


@given(pasts, st.floats(0.0005, 0.2))
def test_back_at_once_after_a_change(past, took):
    before = after(past)
    cadence = go_on(before, took, changed=True)
    cost = min(cadence.took_seconds)
    fastest = max(INTERVAL, cost / CHANGING_SHARE)
    assert cadence.due_at <= cadence.began_at + fastest + SLACK


@given(pasts)
def test_soon_after_a_failure_and_at_full_pace_after_the_good_answer_then(past):
    cadence = go_on(after(past), 0.2, failed=True)
    assert cadence.due_at == pytest.approx(cadence.began_at + INTERVAL)
    again = go_on(cadence, QUICK)
    assert again.due_at <= again.began_at + max(INTERVAL, QUICK / CHANGING_SHARE) + SLACK


@given(pasts)
def test_after_a_long_silence_at_full_pace(past):
    cadence = go_on(after(past), QUICK, late=5.0)
    assert cadence.due_at <= cadence.began_at + max(INTERVAL, QUICK / CHANGING_SHARE) + SLACK


@given(pasts)
def test_hastened_is_as_soon_as_configured(past):
    cadence = after(past).hastened()
    assert cadence.due_at == pytest.approx(cadence.began_at + INTERVAL)


@given(st.floats(0.0005, 0.02), st.booleans())
def test_the_share_of_the_engines_time_is_bounded(took, changed):
    cadence = after([{"took": took, "changed": changed}] * 30)
    begun, spent, first = 0, 0.0, cadence.began_at
    while cadence.began_at < first + 60.0:
        cadence = go_on(cadence, took, changed=changed)
        begun, spent = begun + 1, spent + took
    share = CHANGING_SHARE if changed else STEADY_SHARE
    # What is dearer than that share within the time that figures are fresh is sampled for it.
    bound = max(share, took / (STALE_AFTER / 2))
    assert spent / (cadence.began_at - first) <= bound * 1.02


def test_slower_step_by_step_while_nothing_changes():
    cadence, pauses = new(), []
    for _ in range(8):
        cadence = go_on(cadence, 0.006)
        pauses.append(cadence.due_at - cadence.began_at)
    assert pauses == pytest.approx([0.15, 0.225, 0.3375, *[0.506] * 5], abs=0.001)


def test_an_engine_that_costs_nothing_is_not_asked_less_often():
    cadence = after([{"took": 0.0005}] * 10)
    assert cadence.due_at == pytest.approx(cadence.began_at + INTERVAL)


def test_one_scrape_that_took_long_is_no_reason_to_be_slow():
    cadence = after([{"took": QUICK, "changed": True}] * 5)
    cadence = go_on(cadence, 0.2, changed=True)
    assert cadence.due_at - cadence.began_at <= cadence.took_seconds[-1] + INTERVAL


def test_a_reader_is_made_to_wait_only_when_nobody_asked_for_long():
    cadence = go_on(new(), QUICK)
    assert not cadence.is_late(cadence.taken_at + 0.5)
    assert cadence.is_late(cadence.taken_at + 0.51)
    failed = go_on(cadence, 0.9, failed=True)
    assert not failed.is_late(failed.ended_at + INTERVAL)
    assert failed.is_late(failed.ended_at + INTERVAL + 0.51)
    assert new().is_late(0.0)


SAMPLE = Sample(taken_at=1.0, queued=1.0, running=2.0, kv_usage=0.5, started_at=7.0)


@pytest.mark.parametrize(
    "difference",
    [
        {"queued": 2.0},
        {"running": 3.0},
        {"kv_usage": 0.6},
        {"block_size": 16},
        {"num_blocks": 100},
        {"lora_running": ("a",)},
        {"lora_waiting": ("a",)},
        {"max_loras": 4},
        {"started_at": 8.0},
        {"lora_activity": ((5.0, ("a",)),)},
        {"busy": {(0, "x", ""): 1.0}},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_any_figure_is_a_change(difference):
    assert has_changed(SAMPLE, dataclasses.replace(SAMPLE, taken_at=2.0, **difference))


def test_time_alone_is_no_change():
    assert not has_changed(SAMPLE, dataclasses.replace(SAMPLE, taken_at=2.0))
    assert has_changed(None, SAMPLE)


def test_a_mean_that_falls_by_itself_is_no_change():
    before = dataclasses.replace(SAMPLE, busy={(0, "x", ""): 5.0})
    assert not has_changed(before, dataclasses.replace(before, running=1.5))


COUNTERS = MetricMap(
    running_time=BusyTime(microseconds=(Series(name="busy_us"),)), present=("busy_us",)
)


def mean_running(moments, busy_seconds):
    """Sample counters of busy time at these moments; return the mean the page then says."""
    sample = None
    for at in moments:
        page = b"busy_us %d\n" % round(busy_seconds(at) * 1e6)
        sample = translate((page,), COUNTERS, sample, at)
    assert sample is not None
    return sample.running


steps = st.lists(st.floats(0.1, 0.6), min_size=1, max_size=40)


@given(steps, st.floats(0.0, 50.0))
def test_the_mean_of_running_requests_does_not_depend_on_when_it_was_sampled(pauses, load):
    moments = [0.0]
    for pause in [*pauses, *[0.5] * 30]:
        moments.append(moments[-1] + pause)
    assert mean_running(moments, lambda at: load * at) == pytest.approx(load, rel=0.01, abs=1e-4)


@given(steps)
def test_a_load_that_ends_is_forgotten_at_one_pace_whatever_the_sampling(pauses):
    moments = [0.0]
    for pause in [*[0.1] * 300, *pauses]:
        moments.append(moments[-1] + pause)

    def busy(at):
        return 8.0 * min(at, moments[300])

    even = [*moments[:301], moments[-1]]
    assert mean_running(moments, busy) == pytest.approx(mean_running(even, busy), abs=0.001)
