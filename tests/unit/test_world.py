"""Looks, answers and documents, in whatever order they arrive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters.base import EngineState, Kind, Residency, Target
from sidecar.core.actions import Evict, Fetch, Load, Unload, Wait, Warm
from sidecar.core.backoff import Basis
from sidecar.core.denials import Claim, blame, judge
from sidecar.core.incarnation import follow
from sidecar.core.memory import Held, Memory
from sidecar.core.outcome import Done
from sidecar.core.progress import Progress
from sidecar.core.status import Reason
from sidecar.world import FORGET_SECONDS
from tests.support.simulated import (
    BUSY,
    REJECTED,
    TIMEOUT,
    TRITON,
    VLLM,
    document,
    entry,
    failure,
    lora,
    revision,
)
from tests.support.world import Mode, Trial


def settled(capabilities=VLLM, *names: str, **options) -> Trial:
    """Return a trial that holds these names."""
    trial = Trial(capabilities, **options)
    trial.disk.sources = {f"s3://{name}": "v1" for name in (*names, "late")}
    trial.accept(document(*(entry(name) for name in names)))
    trial.settle()
    return trial


def load_of(trial: Trial, name: str) -> Load:
    """Return the load of a revision that is on disk."""
    kind = trial.disk.kind
    one = trial.disk.make(name, "v1")
    return Load(name=name, target=Target(name=name, kind=kind), revision=one)


def unload_of(name: str, kind: Kind = Kind.LORA) -> Unload:
    return Unload(name=name, target=Target(name=name, kind=kind))


def test_an_answer_newer_than_a_look_wins():
    trial = settled(VLLM, "a")
    mark, stale = trial.world.begin_look(), trial.engine.observe()
    trial.apply(load_of(trial, "late"))
    trial.apply(unload_of("a"))
    trial.world.saw(stale, mark, refused=False, now=trial.now)
    assert set(trial.world.residents) == {"late"}
    trial.look()
    assert set(trial.world.residents) == {"late"}


def test_a_look_newer_than_an_answer_wins():
    trial = settled(VLLM, "a", "b")
    trial.apply(load_of(trial, "late"))
    trial.engine.unload("late", trial.now)
    trial.look()
    assert set(trial.world.residents) == {"a", "b"}


def test_a_failed_look_concludes_nothing():
    trial = settled(VLLM, "a")
    trial.accept(document())
    trial.world.lost_sight()
    assert set(trial.world.residents) == {"a"}
    assert trial.world.last_engine is not None
    assert not trial.plan()


@pytest.mark.parametrize("tells_start", [True, False])
def test_an_engine_restart_is_noticed_and_healed(tells_start):
    trial = settled(VLLM if tells_start else TRITON, "a")
    trial.restart_engine()
    assert trial.look()
    assert trial.world.basis.incarnation == 2
    trial.settle()
    assert not trial.held_as_desired()


def test_a_look_older_than_the_first_load_is_no_restart():
    trial = Trial(TRITON)
    trial.accept(document(entry("a")))
    trial.look()
    mark, stale = trial.world.begin_look(), trial.engine.observe()
    trial.apply(load_of(trial, "a"))
    assert not trial.world.saw(stale, mark, refused=False, now=trial.now)
    assert set(trial.world.residents) == {"a"}


@pytest.mark.parametrize("state", [Residency.FAILED, Residency.UNLOADING, Residency.LOADING])
def test_what_only_failed_or_was_on_its_way_may_leave_without_a_restart(state):
    trial = Trial(TRITON)
    passing = EngineState(residents=(lora("a", "/p", state),))
    for seen in (EngineState(), passing, passing, EngineState()):
        mark = trial.world.begin_look()
        assert not trial.world.saw(seen, mark, refused=False, now=trial.now)


def test_an_unload_that_timed_out_and_took_effect_is_no_restart():
    trial = settled(TRITON, "a")
    trial.accept(document())
    trial.apply(unload_of("a", Kind.MODEL), Mode.LOST)
    assert not trial.look()


def test_an_agent_restart_is_no_engine_restart():
    for capabilities in (VLLM, TRITON):
        trial = settled(capabilities, "a")
        trial.restart_agent()
        assert not trial.look()
        assert trial.world.basis.incarnation == 1


def test_both_restarts_at_once_are_an_engine_restart():
    trial = settled(TRITON, "a")
    trial.engine.restart(trial.now)
    trial.restart_agent()
    assert trial.look()


@pytest.mark.parametrize("outcome", [TIMEOUT, BUSY])
def test_after_an_unknown_outcome_comes_a_look(outcome):
    trial = settled(VLLM, "a")
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    fetch, *_ = trial.actions()
    trial.apply(fetch)
    *_, unload, load = trial.actions()
    trial.apply(unload)
    mark = trial.world.begin_look()
    stale = trial.engine.observe()
    trial.world.apply(load, outcome, basis=trial.world.basis, now=trial.now, jitter=0.5)
    trial.world.saw(stale, mark, refused=False, now=trial.now)
    trial.now += 100.0
    # Also what served before may not be loaded: the engine may hold the new one by now.
    (wait,) = trial.steps("a")
    assert isinstance(wait, Wait)
    assert wait.reason is Reason.ENGINE_TIMEOUT
    trial.look()
    assert any(isinstance(step, Load) for step in trial.steps("a"))


def test_an_unload_of_unknown_outcome_is_looked_at_before_it_is_repeated():
    trial = settled(VLLM, "a")
    trial.accept(document())
    trial.apply(unload_of("a"), Mode.DROPPED)
    trial.now += 100.0
    assert not trial.actions()
    trial.look()
    assert trial.actions() == (unload_of("a"),)


def test_after_waking_every_resident_is_proved_and_what_refuses_is_loaded_again():
    trial = settled(VLLM, "a", "b")
    trial.engine.serving[0]["stranger"] = "/elsewhere"
    trial.engine.asleep = True
    trial.look()
    assert not trial.plan()
    trial.engine.asleep = False
    trial.engine.numb = {"b"}
    trial.look()
    warms = trial.actions()
    assert {(type(one), one.name) for one in warms} == {(Warm, "a"), (Warm, "b")}
    trial.apply_all(warms)
    assert not trial.steps("a")
    assert [type(one) for one in trial.steps("b")] == [Unload, Load]
    trial.settle()
    assert not trial.broken
    assert not trial.held_as_desired()


def test_waking_is_told_from_never_having_been_seen_asleep():
    trial = settled(VLLM, "a")
    trial.restart_agent()
    trial.settle()
    assert not trial.world.progress["a"].suspect


def test_a_moved_source_is_fetched_at_once_and_a_stranger_cannot_move():
    trial = settled(VLLM, "a")
    (attempt,) = (trial.apply(Fetch(name="a", entry=entry("a")), Mode.REJECTED),)
    assert attempt == REJECTED
    trial.move("a")
    trial.move("nobody")
    assert [type(one) for one in trial.steps("a")] == [Fetch]
    assert "nobody" not in trial.world.progress


def test_failures_count_against_what_they_were_tried_against():
    trial = settled(VLLM, "a")
    trial.accept(document(entry("a"), entry("late", parameters={"wrong": True})))
    trial.apply_all(trial.actions()[:1])
    action, began = load_of(trial, "late"), trial.world.basis
    # The document is mended while the engine still works on what it said before.
    trial.accept(document(entry("a"), entry("late", parameters={"right": True})))
    trial.world.apply(action, REJECTED, basis=began, now=trial.now, jitter=0.5)
    assert any(isinstance(step, Load) for step in trial.steps("late"))


def test_two_refused_replacements_do_not_wake_each_other():
    trial = settled(VLLM, "a", "b")
    for name in ("a", "b"):
        trial.disk.sources[f"s3://{name}"] = "v2"
        trial.engine.refuses.add(revision(name, "v2").path)
        trial.move(name)
    calls = 0
    for _ in range(20):
        trial.look()
        for one in trial.actions():
            calls += isinstance(one, Load) and not one.fallback
            trial.apply(one)
    assert calls == 2
    assert trial.engine.names() == {"a", "b"}


def test_freed_capacity_is_worth_another_try():
    trial = settled(VLLM, "a")
    trial.accept(document(entry("late")))
    trial.apply_all(trial.actions()[:1])
    trial.apply(load_of(trial, "late"), Mode.REJECTED)
    assert not any(isinstance(step, Load) for step in trial.steps("late"))
    trial.apply(unload_of("a"))
    assert any(isinstance(step, Load) for step in trial.steps("late"))


def test_files_that_cannot_be_deleted_are_no_trouble_of_their_target():
    trial = settled(VLLM, "a")
    old = trial.disk.make("a", "v0")
    (evict,) = trial.actions()
    assert evict == Evict(name="a", revision=old)
    trial.apply(evict, Mode.TRANSIENT)
    assert not trial.world.progress["a"].failures
    assert not trial.plan()
    trial.now += 2.0
    (evict,) = trial.actions()
    trial.apply(evict, Mode.TRANSIENT)
    trial.now += 1.5
    assert not trial.plan()
    trial.now += 2.0
    trial.settle()
    assert old.path not in trial.disk.whole
    assert not trial.view().evictions


def test_an_unload_by_somebody_else_retires_the_files_too():
    trial = settled(VLLM, "a")
    trial.accept(document())
    trial.engine.unload("a", trial.now)
    trial.look()
    assert not trial.plan()
    trial.now += trial.policy.retain_seconds
    trial.world.forget_strangers(())
    assert [type(one) for one in trial.actions()] == [Evict]


def test_the_retirement_of_files_outside_the_store_is_forgotten_in_the_end():
    trial = settled(VLLM, "a")
    trial.world.memory = replace(trial.world.memory, retired={"/outside": trial.now})
    trial.now += trial.policy.retain_seconds
    assert "/outside" in trial.view().memory.retired
    trial.now += FORGET_SECONDS + 1.0
    assert "/outside" not in trial.view().memory.retired


def test_progress_of_names_that_nobody_asks_for_and_nobody_holds_is_dropped():
    trial = settled(VLLM, "a", "b", "c")
    trial.accept(document(undecided=["a"]))
    trial.apply(unload_of("b"))
    trial.apply(unload_of("c"))
    trial.world.forget_strangers(["c"])
    assert set(trial.world.progress) == {"a", "c"}


def test_progress_is_dropped_only_where_there_is_a_document_to_go_by():
    trial = Trial()
    trial.world.apply(
        Fetch(name="a", entry=entry("a")),
        failure(),
        basis=trial.world.basis,
        now=trial.now,
        jitter=0.5,
    )
    trial.world.forget_strangers(())
    assert not trial.world.progress


def test_answers_that_a_look_confirmed_are_not_kept():
    trial = settled(VLLM, "a")
    trial.look()
    mark = trial.world.begin_look()
    trial.engine.unload("a", trial.now)
    trial.world.saw(trial.engine.observe(), mark, refused=False, now=trial.now)
    assert not trial.world.residents


def test_memory_of_what_was_held_tells_a_restart_that_nobody_saw():
    memory = Memory(incarnation=3, held={"a": Held(path="/store/model/a/v1")})
    trial = Trial(TRITON, memory=memory)
    assert trial.look()


def test_an_outcome_of_nothing_resident_changes_no_residency():
    trial = settled(VLLM)
    trial.apply(unload_of("a"))
    assert not trial.world.residents
    assert isinstance(trial.apply(load_of(trial, "late")), Done)


# What an engine confirms and then denies.


def loads_in(trial: Trial, name: str, rounds: int) -> int:
    """Return how often a name is loaded in so many looks, each followed by what is due."""
    loads = 0
    for _ in range(rounds):
        trial.look()
        for _ in range(4):
            steps = [step for step in trial.steps(name) if not isinstance(step, Wait)]
            if not steps:
                break
            loads += isinstance(steps[0], Load)
            trial.apply(steps[0])
    return loads


@pytest.mark.parametrize("capabilities", [VLLM, TRITON])
@pytest.mark.parametrize("elsewhere", ["/another/place", None])
def test_a_load_that_the_next_look_denies_again_and_again_is_a_failure(capabilities, elsewhere):
    trial = settled(capabilities, "a", "b")
    path = revision("a", kind=trial.disk.kind).path
    forgets = trial.engine.observe

    def observe() -> EngineState:
        state = forgets()
        others = tuple(one for one in state.residents if one.name != "a")
        moved = replace(lora("a", elsewhere), kind=trial.disk.kind) if elsewhere else None
        return replace(state, residents=(*others, *([moved] if moved else [])))

    engine: Any = trial.engine
    engine.observe = observe
    assert loads_in(trial, "a", 20) == 2
    attempt = trial.world.progress["a"].attempt
    assert attempt is not None
    assert attempt.reason is Reason.ENGINE_PROTOCOL
    assert path in attempt.message
    pauses = []
    for _ in range(3):
        attempt = trial.world.progress["a"].attempt
        assert attempt is not None
        pauses.append(attempt.retry_at - trial.now)
        trial.now = attempt.retry_at
        assert loads_in(trial, "a", 5) == 1
    assert pauses == [1.0, 2.0, 4.0]
    engine.observe = forgets
    trial.look()
    assert not trial.world.progress["a"].failures
    trial.settle()
    assert not trial.held_as_desired()


def test_what_somebody_else_unloads_is_healed_at_once_every_time():
    trial = settled(VLLM, "a")
    for _ in range(5):
        trial.engine.unload("a", trial.now)
        assert loads_in(trial, "a", 3) == 1
    # Also when nobody looked between the load and the hand.
    trial.engine.unload("a", trial.now)
    assert loads_in(trial, "a", 1) == 1
    trial.engine.unload("a", trial.now)
    assert loads_in(trial, "a", 2) == 1
    assert not trial.held_as_desired()


def test_an_engine_that_restarts_after_each_load_denies_nothing():
    trial = settled(VLLM, "a")
    for _ in range(4):
        trial.restart_engine()
        assert loads_in(trial, "a", 1) == 1
    assert not trial.world.progress["a"].failures


def test_an_engine_asleep_or_at_work_denies_nothing():
    claim = Claim(path="/p", denials=3)
    asleep = EngineState(asleep=True)
    assert judge(claim, asleep, None, basis=Basis(), now=0.0) == claim
    at_work = lora("a", "/p", Residency.LOADING)
    assert judge(claim, EngineState(), at_work, basis=Basis(), now=0.0) == claim
    assert judge(claim, EngineState(), lora("a", "/p"), basis=Basis(), now=0.0) is None


def test_a_fallback_that_is_denied_pauses_the_fallback():
    claim = Claim(path="/p", denials=1, fallback=True)
    judged = judge(claim, EngineState(), None, basis=Basis(), now=0.0)
    assert judged is not None
    progress = blame(Progress(), judged)
    assert progress.attempt is None
    assert progress.fallback_attempt == judged.attempt


# Paths that the agent was told in the engine's view.


@pytest.mark.parametrize("restarted", [False, True])
def test_a_source_told_in_the_engines_view_is_as_desired(restarted):
    told, ours = "/mnt/mine/a", "/store/mine/a"
    trial = Trial(VLLM)
    trial.accept(document(entry("a", told)))
    trial.look()
    fetch = Fetch(name="a", entry=entry("a", told))
    one = revision("a", source=told, verified=False)
    held = replace(lora("a", ours), aliases=frozenset({(ours, told)}))

    def tell(action, found=None) -> None:
        trial.world.apply(
            action, Done(revision=found), basis=trial.world.basis, now=trial.now, jitter=0.5
        )

    def look() -> None:
        mark = trial.world.begin_look()
        state = EngineState(residents=(held,), started_at=1.0)
        trial.world.saw(state, mark, refused=False, now=trial.now)

    if restarted:
        # Seen before it is known what the document means by it.
        look()
        tell(fetch, one)
    else:
        tell(fetch, one)
        tell(Load(name="a", target=Target(name="a", kind=Kind.LORA), revision=one))
        look()
    assert trial.world.residents["a"].paths == {told}
    assert trial.steps("a") == ()


# Ranks.


def test_after_a_refused_load_ranks_are_looked_at():
    trial = settled(VLLM, "a", ranks=2)
    trial.accept(document(entry("a"), entry("late")))
    trial.apply(trial.steps("late")[0])
    trial.apply(load_of(trial, "late"), Mode.REJECTED)
    (wait,) = trial.steps("late")
    assert isinstance(wait, Wait)
    assert wait.reason is Reason.ENGINE_TIMEOUT


@pytest.mark.parametrize(
    ("oldest", "kept"),
    [
        (None, set()),
        (100.0, {"/old", "/older"}),
        (200.0, {"/old"}),
        (300.0, set()),
        (0.0, {"/old", "/older"}),
    ],
)
def test_files_stay_readable_for_the_rank_that_lives_longest(oldest, kept):
    memory = Memory(incarnation=1, started_at=50.0, retired={"/older": 150.0, "/old": 250.0})
    state = EngineState(started_at=400.0, oldest_started_at=oldest, ranks=2)
    after = follow(memory, state, refused=False, before=frozenset())
    assert after.incarnation == 2
    assert set(after.retired) == kept


def test_a_look_during_a_refused_load_does_not_have_the_old_model_loaded_again():
    trial = settled(TRITON, "a")
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    fetch, *_ = trial.actions()
    trial.apply(fetch)
    load = trial.actions()[-1]
    # The link leads to the new revision while Triton reads it, and back once it said no.
    during = replace(
        lora("a", revision("a", "v2", kind=trial.disk.kind).path), kind=trial.disk.kind
    )
    state = replace(trial.engine.observe(), residents=(during,))
    trial.world.saw(state, trial.world.begin_look(), refused=False, now=trial.now)
    trial.world.apply(load, REJECTED, basis=trial.world.basis, now=trial.now, jitter=0.5)
    assert not any(isinstance(step, Load) for step in trial.steps("a"))
    trial.look()
    assert not any(isinstance(step, Load) for step in trial.steps("a"))
    assert trial.world.residents["a"].state is Residency.RESIDENT
