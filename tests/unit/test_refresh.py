"""When sources that may move by themselves are looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.desired import Desired, Entry
from sidecar.core.places import place_of
from sidecar.core.refresh import Turn, after_looks, due_names, turns_of
from sidecar.errors import FetchFailed
from sidecar.patrol import RefreshPatrol
from sidecar.patrol.refresh import LOOKS, TICK_SECONDS, TURN_SECONDS
from tests.support.simulated import document, entry

A = entry("a", refresh_seconds=100.0)


def place(name: str, pod: str = "uid-0") -> float:
    return place_of("refresh", name, pod)


def test_a_first_turn_comes_at_the_place_of_pod_and_name():
    turns = turns_of([A, entry("b", refresh_seconds=50.0)], {}, pod="uid-0", now=1000.0)
    assert turns["a"].due_at == 1000.0 + 100.0 * place("a")
    assert turns["b"].due_at == 1000.0 + 50.0 * place("b")
    other = turns_of([A], {}, pod="uid-1", now=1000.0)["a"]
    assert other.due_at == 1000.0 + 100.0 * place("a", "uid-1") != turns["a"].due_at


def test_an_entry_that_does_not_say_how_often_has_no_turn():
    assert turns_of([entry("a")], {}, pod="uid-0", now=0.0) == {}


def test_a_turn_that_is_known_stays_whatever_else_is_edited():
    before = turns_of([A], {}, pod="uid-0", now=0.0)
    after = turns_of([A, entry("b", refresh_seconds=9.0)], before, pod="uid-0", now=70.0)
    assert after["a"] == before["a"]


@pytest.mark.parametrize(
    "changed", [entry("a", "s3://b", refresh_seconds=100.0), entry("a", refresh_seconds=10.0)]
)
def test_another_source_or_interval_is_another_turn(changed):
    before = turns_of([A], {}, pod="uid-0", now=0.0)
    assert turns_of([changed], before, pod="uid-0", now=500.0)["a"].due_at >= 500.0


def test_what_left_is_forgotten():
    before = turns_of([A], {}, pod="uid-0", now=0.0)
    assert turns_of([], before, pod="uid-0", now=0.0) == {}


def test_whoever_waits_longest_goes_first():
    turns = {
        name: Turn(source=name, seconds=1.0, due_at=due_at)
        for name, due_at in {"a": 3.0, "b": 1.0, "c": 2.0, "late": 9.0}.items()
    }
    assert due_names(turns, now=3.0, limit=2) == ["b", "c"]
    assert due_names(turns, now=3.0, limit=9) == ["b", "c", "a"]
    assert due_names(turns, now=0.5, limit=9) == []


@given(st.lists(st.floats(0.0, 300.0), max_size=40), st.floats(1.0, 100.0))
def test_no_source_is_looked_at_more_often_than_it_says(pauses, seconds):
    now, looks = 0.0, []
    turns = turns_of([entry("a", refresh_seconds=seconds)], {}, pod="uid-0", now=now)
    for pause in pauses:
        now += pause
        if due_names(turns, now=now, limit=9):
            looks.append(now)
            turns = after_looks(turns, {"a"}, now=now)
    assert all(later >= one + seconds for one, later in pairwise(looks))


# The task that keeps the turns.


class Watch:
    """Writes down when it looks at what."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.looks: list[tuple[float, list[str]]] = []
        self.blind: set[str] = set()
        self.seconds = seconds
        self.error: Exception | None = None

    def is_watched(self, entry: Entry) -> bool:
        return entry.name not in self.blind

    async def look(self, entries: Iterable[Entry], *, quiet_since: float) -> frozenset[str]:
        now = asyncio.get_running_loop().time()
        assert quiet_since < now
        self.looks.append((now, [one.name for one in entries]))
        if self.error is not None:
            raise self.error
        if self.seconds:
            await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=self.seconds)
        return frozenset()

    def times(self, name: str) -> list[float]:
        return [at for at, names in self.looks if name in names]


class Turns:
    """A refresh patrol over a document, on the clock of the loop."""

    def __init__(self, watch: Watch, *entries: Entry) -> None:
        self.desired: Desired | None = document(*entries)
        self.beats: list[float] = []
        self.patrol = RefreshPatrol(
            watch,
            desired=lambda: self.desired,
            pod="uid-0",
            beat=self.beats.append,
            now=lambda: asyncio.get_running_loop().time(),
        )

    async def run(self, seconds: float) -> None:
        task = asyncio.create_task(self.patrol.run())
        await asyncio.wait([task], timeout=seconds)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.looptime
async def test_each_source_is_looked_at_at_its_own_time():
    watch = Watch()
    turns = Turns(watch, A, entry("b", refresh_seconds=30.0), entry("never"))
    await turns.run(1000.0)
    for name, seconds in (("a", 100.0), ("b", 30.0)):
        first, *_ = times = watch.times(name)
        assert first == pytest.approx(seconds * place(name), abs=0.5)
        gaps = [later - one for one, later in pairwise(times)]
        assert gaps == pytest.approx([seconds] * len(gaps), abs=0.5)
        assert min(gaps) >= seconds - 1e-6
    assert watch.times("never") == []
    assert len(turns.beats) > 1000.0 / TICK_SECONDS


@pytest.mark.looptime
async def test_nothing_is_looked_at_without_a_document_or_before_it_is_worth_it():
    watch = Watch()
    watch.blind = {"a"}
    turns = Turns(watch, A)
    await turns.run(300.0)
    turns.desired = None
    await turns.run(300.0)
    assert watch.looks == []
    turns.desired, watch.blind = document(A), set()
    await turns.run(300.0)
    assert len(watch.looks) >= 2


@pytest.mark.looptime
@pytest.mark.parametrize("error", [FetchFailed("the store is gone"), None])
async def test_looks_that_fail_or_hang_come_again_at_their_time_and_not_sooner(error, caplog):
    watch = Watch(seconds=0.0 if error else 10 * TURN_SECONDS)
    watch.error = error
    await Turns(watch, A).run(1000.0)
    times = watch.times("a")
    assert len(times) >= 4
    assert min(later - one for one, later in pairwise(times)) >= 100.0 - 1e-6
    assert "could not" in caplog.text


@pytest.mark.looptime
async def test_many_whose_turn_it_is_are_looked_at_some_at_a_time_and_none_is_left_out():
    # All of them are due by the end of the first look.
    watch = Watch(seconds=5.0)
    names = [f"n{number}" for number in range(LOOKS + 50)]
    turns = Turns(watch, *(entry(name, refresh_seconds=1.0) for name in names))
    await turns.run(20.0)
    assert max(len(names) for _, names in watch.looks) == LOOKS
    assert all(watch.times(name) for name in names)
