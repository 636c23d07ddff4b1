"""Looks, answers and documents, in whatever order they arrive."""

from __future__ import annotations

import pytest

from adapters.base import EngineState, Kind, Residency, Target
from sidecar.core.actions import Evict, Fetch, Load, Unload, Wait, Warm
from sidecar.core.memory import Held, Memory
from sidecar.core.outcome import Done
from sidecar.core.status import Reason
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
    trial.world.moved("a")
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
    trial.world.moved("a")
    trial.world.moved("nobody")
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
        trial.world.moved(name)
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
