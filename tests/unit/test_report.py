"""The sentences that people read."""

from __future__ import annotations

import pytest

from adapters.base import Kind, Target
from sidecar.core.actions import Check, Evict, Fetch, Load, Unload, Wait, Warm
from sidecar.core.outcome import Done
from sidecar.core.report import Cycle, Step, describe_action
from sidecar.core.status import Reason
from tests.support.simulated import REJECTED, entry, revision


def fetch(name: str, source: str | None = None) -> Fetch:
    return Fetch(name=name, entry=entry(name, source))


def load(name: str, **changes) -> Load:
    target = Target(name=name, kind=Kind.LORA)
    return Load(name=name, target=target, revision=revision(name), **changes)


def unload(name: str, **changes) -> Unload:
    return Unload(name=name, target=Target(name=name, kind=Kind.LORA), **changes)


def done(action, seconds: float = 1.8) -> Step:
    return Step(action=action, outcome=Done(), seconds=seconds)


def failed(action) -> Step:
    return Step(action=action, outcome=REJECTED, seconds=1.0)


CHECK = Check(name="a", entry=entry("a"), revision=revision("a"))
WARM = Warm(name="a", target=Target(name="a", kind=Kind.LORA), path="/store/lora/a/v1")
EVICT = Evict(name="a", revision=revision("a"))
WAITS = Wait(name="b", reason=Reason.ACCESS_DENIED, message="fetch failed: 403", until=130.0)
TURN = Wait(name="b", reason=Reason.SPREAD, message="the pods begin in turn", until=130.0)
HELD_UP = Wait(name="e", reason=Reason.OVER_CAPACITY, message="the engine is full")


@pytest.mark.parametrize(
    ("cycle", "sentence"),
    [
        (
            Cycle(generation=7, steps=(done(load("a")),), waits=(WAITS,), targets=4, now=100.0),
            "generation 7: loaded lora a in 1.8 s; "
            "1 of 4 waits (b: fetch failed: 403, retry in 30 s)",
        ),
        (Cycle(generation=7, targets=4), "generation 7: converged, 4 targets"),
        (Cycle(generation=7, targets=1), "generation 7: converged, 1 target"),
        (
            Cycle(generation=7, steps=(done(fetch("a")), done(CHECK), done(load("a"), 0.04))),
            "generation 7: loaded lora a in 40 ms",
        ),
        (
            Cycle(generation=7, steps=(done(fetch("a"), 123.4),)),
            "generation 7: fetched a in 123 s",
        ),
        (
            Cycle(generation=7, steps=(done(load("a")), done(load("b")), done(unload("c"), 0.2))),
            "generation 7: loaded 2 targets, unloaded lora c in 0.2 s",
        ),
        (Cycle(generation=7, steps=(done(CHECK),)), "generation 7: checked a in 1.8 s"),
        (
            Cycle(generation=7, steps=(failed(load("a")), done(load("b")))),
            "generation 7: loaded lora b in 1.8 s, 1 step failed",
        ),
        (
            Cycle(generation=7, steps=(failed(load("a")), failed(unload("b")))),
            "generation 7: 2 steps failed",
        ),
        (Cycle(generation=7, running=(fetch("a"),)), "generation 7: fetching a"),
        (
            Cycle(generation=7, running=(fetch("a"),), brought=(512 << 20, 2 << 30)),
            "generation 7: fetching a (25 % 512.0 MiB of 2.0 GiB)",
        ),
        (
            Cycle(generation=7, running=(fetch("a"), load("b")), brought=(512 << 20, None)),
            "generation 7: 2 targets under way (512.0 MiB)",
        ),
        (
            Cycle(generation=7, waits=(TURN,), targets=2, now=100.0),
            "generation 7: 1 of 2 waits (b: the pods begin in turn, due in 30 s)",
        ),
        (Cycle(generation=7, running=(load("a"), load("b"))), "generation 7: 2 targets under way"),
        (
            Cycle(generation=7, waits=(HELD_UP, WAITS), targets=2, now=200.0),
            "generation 7: 2 of 2 wait (e: the engine is full)",
        ),
        (
            Cycle(generation=7, waits=(WAITS,), now=200.0),
            "generation 7: 1 of 1 waits (b: fetch failed: 403, retry in 0 s)",
        ),
        (Cycle(generation=7, trouble="the engine is asleep"), "generation 7: the engine is asleep"),
    ],
)
def test_a_cycle_says_in_one_sentence_what_it_came_to(cycle, sentence):
    assert str(cycle) == sentence


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (
            fetch("a", "https://me:secret@host/a?sig=secret"),
            "fetch a from https://***@host/a?sig=*** (to see what it holds)",
        ),
        (
            Fetch(name="a", entry=entry("a"), restore=revision("a")),
            "fetch a from s3://a (its files vanished)",
        ),
        (CHECK, "check lora a revision v1"),
        (load("a"), "load lora a revision v1"),
        (load("a", fallback=True), "load lora a revision v1 (it served before)"),
        (WARM, "warm up lora a with one tiny request"),
        (unload("a"), "unload lora a (no document lists it)"),
        (unload("a", replacing=True), "unload lora a (another revision takes its name)"),
        (EVICT, "evict a revision v1 from disk"),
    ],
)
def test_an_action_says_what_it_would_do_and_why(action, line):
    assert describe_action(action) == line
