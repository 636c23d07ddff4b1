"""Convergence, proved by interruption: any prefix of any plan, then again from what is there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest

from sidecar.core.desired import Desired
from sidecar.core.memory import Held, Owned
from sidecar.core.view import Policy
from tests.support.simulated import STORE, TRITON, VLLM, document, entry, kind_of, revision
from tests.support.world import Mode, Trial

ENGINES = {"vllm": (VLLM, 1), "vllm-ranks": (VLLM, 2), "triton": (TRITON, 1)}
FOREIGN = "/elsewhere/a"


@dataclass(frozen=True)
class Start:
    """Where one trial with the target ``a`` begins."""

    engine: str
    held: tuple[str | None, ...]
    """By rank: the revision that answers, ``foreign``, or None."""
    on_disk: frozenset[str]
    remembered: str | None
    """The revision of the last confirmed load."""
    asked: str
    """A revision, or what the document says otherwise."""
    warmup: bool = False


def starts():
    """Every start that makes a difference."""
    remembered = (None, "v1")
    asked = ("v2", "dropped", "undecided", "absent", "incomplete")
    for engine, (_, ranks) in ENGINES.items():
        answers = (None, "v1", "v2", "foreign")
        holds: list[tuple[str | None, ...]] = [(one,) for one in answers]
        if ranks == 2:
            holds = [("v1", None), ("v2", None), ("v1", "v2"), ("v1", "v1")]
        for held, memory, want in itertools.product(holds, remembered, asked):
            resident = frozenset(one for one in held if one in ("v1", "v2"))
            for extra in (frozenset(), frozenset({"v1", "v2"})):
                yield Start(engine, held, resident | extra, memory, want)
        yield Start(engine, holds[0], frozenset({"v1"}), "v1", "v2", warmup=True)


def begin(start: Start) -> Trial:
    """Build the trial of a start."""
    capabilities, ranks = ENGINES[start.engine]
    trial = Trial(capabilities, ranks=ranks)
    kind = kind_of(capabilities)
    for number in sorted(start.on_disk):
        trial.disk.make("a", number)
    places = {number: revision("a", number, kind=kind).path for number in ("v1", "v2")}
    places["foreign"] = FOREIGN
    for rank, answers in zip(trial.engine.serving, start.held, strict=True):
        if answers is not None:
            rank["a"] = trial.engine.links["a"] = places[answers]
            trial.engine.may_read[places[answers]] = None
    if start.held[0] == "foreign" and start.remembered is None:
        trial.strangers = frozenset({"a"})
    held = {"a": Held(path=places[start.remembered])} if start.remembered else {}
    owned = {"a": Owned()} if start.remembered else {}
    trial.world.memory = replace(trial.world.memory, held=held, owned=owned)
    trial.disk.sources = {"s3://a": start.asked, "s3://b": "v1"}
    trial.accept(document_of(start))
    trial.look()
    return trial


def document_of(start: Start) -> Desired:
    """Return the document of a start; a second target keeps an engine of models serving."""
    listed = [entry("b"), *([entry("a", warmup=start.warmup)] if start.asked == "v2" else [])]
    return document(
        *listed,
        absent=["a"] if start.asked == "absent" else [],
        undecided=["a"] if start.asked == "undecided" else [],
        incomplete=start.asked == "incomplete",
    )


def assert_settled(trial: Trial, start: Start) -> None:
    """The plan is empty, the engine holds what is asked for, and no promise broke on the way."""
    trial.settle()
    assert not trial.plan(), start
    assert not trial.broken, start
    assert not trial.held_as_desired(), start


def assert_dropped_as_asked(start: Start, trial: Trial) -> None:
    """What left the document left the engine, if it is ours."""
    ours = start.remembered is not None or (
        # An engine that reports no paths gives a link's: that is a claim on our store all the same.
        all(one in ("v1", "v2", None) for one in start.held) and any(start.held)
    )
    if start.asked == "absent" or (start.asked == "dropped" and ours):
        assert "a" not in trial.engine.names()
    elif start.asked != "v2":
        held = [rank.get("a") for rank in trial.engine.serving]
        assert [one is not None for one in held] == [one is not None for one in start.held]


@pytest.mark.parametrize("engine", ENGINES)
def test_any_prefix_of_any_plan_converges(engine):
    for start in (one for one in starts() if one.engine == engine):
        ahead = begin(start).actions()
        for length, restarted in itertools.product(range(len(ahead) + 1), (False, True)):
            trial = begin(start)
            trial.apply_all(trial.actions()[:length])
            if restarted:
                trial.restart_agent()
            assert_settled(trial, start)
            assert_dropped_as_asked(start, trial)


@pytest.mark.parametrize("mode", [one for one in Mode if one is not Mode.DONE])
@pytest.mark.parametrize("engine", ENGINES)
def test_any_failing_step_of_any_plan_converges(engine, mode):
    for start in (one for one in starts() if one.engine == engine):
        for length, restarted in itertools.product(
            range(len(begin(start).actions())), (False, True)
        ):
            trial = begin(start)
            *before, last = trial.actions()[: length + 1]
            trial.apply_all(before)
            trial.apply(last, mode)
            if restarted:
                trial.restart_agent()
            assert_settled(trial, start)
            assert_dropped_as_asked(start, trial)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_restart_after_any_prefix_heals(engine):
    for start in (one for one in starts() if one.engine == engine and one.asked == "v2"):
        ahead = begin(start).actions()
        for length, restarted in itertools.product(range(len(ahead) + 1), (False, True)):
            trial = begin(start)
            trial.apply_all(trial.actions()[:length])
            trial.restart_engine()
            if restarted:
                trial.restart_agent()
            assert_settled(trial, start)


@pytest.mark.parametrize("engine", ENGINES)
def test_another_document_after_any_prefix_converges(engine):
    for start in (one for one in starts() if one.engine == engine):
        ahead = begin(start).actions()
        for length, next_asked in itertools.product(
            range(len(ahead) + 1), ("v2", "absent", "dropped")
        ):
            trial = begin(start)
            trial.apply_all(trial.actions()[:length])
            trial.accept(document_of(replace(start, asked=next_asked)))
            trial.disk.sources["s3://a"] = "v1"
            trial.move("a")
            assert_settled(trial, start)


def disturb(trial: Trial, what: str) -> None:
    """Let something happen between two steps of a replacement."""
    match what:
        case "agent restarted":
            trial.restart_agent()
        case "engine restarted":
            trial.restart_engine()
        case "edited back":
            trial.accept(document(entry("a"), entry("b")))
        case "edited on":
            trial.disk.sources["s3://third"] = "v3"
            trial.accept(document(entry("a", "s3://third"), entry("b")))
        case "moved on":
            trial.disk.sources |= dict.fromkeys(("s3://a", "s3://other"), "v3")
            trial.move("a")
        case "files vanished":
            trial.disk.whole.pop(revision("a", "v1", kind=trial.disk.kind).path, None)


WINDOW_SECONDS = 50.0
DISTURBANCES = (
    "nothing",
    "agent restarted",
    "engine restarted",
    "edited back",
    "edited on",
    "moved on",
    "files vanished",
)


@pytest.mark.parametrize("change", ["edited", "moved"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_replacement_that_has_its_turn_is_interrupted_anywhere(engine, change):
    capabilities, ranks = ENGINES[engine]
    cases = itertools.product(DISTURBANCES, (10.0, 60.0), range(4), Mode)
    for what, pause, length, mode in cases:
        policy = Policy(store_root=STORE, replace_after_seconds=WINDOW_SECONDS)
        trial = Trial(capabilities, ranks=ranks, policy=policy)
        trial.disk.sources = {"s3://a": "v1", "s3://b": "v1", "s3://other": "v2"}
        trial.accept(document(entry("a"), entry("b")))
        trial.settle()
        if change == "edited":
            trial.accept(document(entry("a", "s3://other"), entry("b")))
        else:
            trial.disk.sources["s3://a"] = "v2"
            trial.move("a")
        began = trial.now
        trial.now += pause
        for _ in range(length):
            trial.look()
            for one in trial.actions()[:1]:
                trial.apply(one, mode)
        disturb(trial, what)
        trial.settle()
        assert not trial.broken, (what, pause, length, mode)
        assert not trial.held_as_desired(), (what, pause, length, mode)
        slack = 700.0 if mode is Mode.REJECTED else 100.0
        assert trial.now <= began + pause + WINDOW_SECONDS + slack, (what, pause, length, mode)
