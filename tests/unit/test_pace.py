"""How fast a fetch gets on, and bytes in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.pace import WINDOW_SECONDS, Pace, begin
from sidecar.core.sizes import share, size


def paced(*heard: tuple[float, int]) -> Pace:
    """Return the pace after this was heard, each at its time."""
    (since, done), *rest = heard
    pace = begin(done, since)
    for now, more in rest:
        pace = pace.heard(more, now)
    return pace


def steady(rate: int, *, until: float, begins: int = 0, every: float = 0.1) -> Pace:
    """Return the pace of a fetch that tells of ``rate`` bytes a second."""
    times = [number * every for number in range(round(until / every) + 1)]
    return paced(*((now, begins + round(rate * now)) for now in times))


def test_a_steady_fetch_has_its_rate():
    assert steady(1000, until=20.0).per_second(20.0) == pytest.approx(1000, rel=0.01)
    assert steady(1000, until=2.0).per_second(2.0) == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("now", [0.0, 0.9])
def test_too_little_heard_is_no_rate(now):
    assert steady(1000, until=now).per_second(now) is None


def test_what_an_interrupted_fetch_had_left_was_brought_at_no_rate():
    left = 10**12
    pace = paced((0.0, 0), (0.1, left), (2.1, left + 2000))
    assert pace.per_second(2.1) == pytest.approx(1000)
    assert steady(1000, until=5.0, begins=left).per_second(5.0) == pytest.approx(1000, rel=0.01)


def test_a_fetch_that_slows_down_is_seen_to_within_the_window():
    pace = steady(1_000_000, until=20.0)
    for tenth in range(1, 101):
        pace = pace.heard(20_000_000 + tenth, 20.0 + tenth / 10)
    assert pace.per_second(30.0) == pytest.approx(10, rel=0.1)


def test_a_fetch_that_is_heard_of_no_more_comes_to_nothing():
    pace = steady(1000, until=10.0)
    rates = [pace.per_second(10.0 + later) or 0.0 for later in (0.0, 4.0, 8.0, 60.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 20


def test_one_that_begins_anew_is_paced_anew():
    pace = steady(1000, until=10.0).heard(0, 10.1)
    assert pace.per_second(10.1) is None
    assert pace.heard(5000, 12.1).per_second(12.1) == pytest.approx(2500)


@given(
    st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(0, 10**12)), min_size=1, max_size=60),
    st.floats(0.0, 100.0),
)
def test_whatever_is_heard_the_rate_is_none_or_sane_and_little_is_kept(heard, later):
    now, pace = 0.0, begin(0, 0.0)
    for pause, done in heard:
        now += pause
        pace = pace.heard(done, now)
    rate = pace.per_second(now + later)
    assert rate is None or 0 <= rate <= 10**12
    inside = [step for step in pace.steps if step[0] > now - WINDOW_SECONDS]
    assert len(pace.steps) <= len(inside) + 1 <= 18


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes(number, shown):
    assert size(number) == shown


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (1 << 20, 3 << 20, "33 % 1.0 MiB of 3.0 MiB"),
        (5, 4, "100 % 5 B of 4 B"),
        (5, None, "5 B"),
        (5, 0, "5 B"),
    ],
)
def test_shares(done, total, shown):
    assert share(done, total) == shown
