"""The plan's rules, one by one; that they fit together is proved by interruption."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.base import EngineState, Kind, Limits, Residency
from sidecar.core.actions import Check, Fetch, Load, Unload, Warm
from sidecar.core.memory import Held, Memory
from sidecar.core.outcome import Done, Failed
from sidecar.core.status import Reason
from sidecar.core.view import Policy, Prune, View, is_as_desired, parameters_key, residents_by_name
from tests.support.simulated import (
    TRITON,
    VLLM,
    document,
    entry,
    lora,
    revision,
)
from tests.support.trials import kinds, stay, trial_of, wait_of
from tests.support.world import Mode, Trial

# From a source to a serving target.


def test_a_new_target_is_fetched_checked_loaded_and_warmed_up():
    trial = trial_of(entry("a", warmup=True), settle=False)
    (fetch,) = trial.actions()
    trial.apply(fetch)
    assert kinds(trial.actions()) == [Check, Load, Warm]
    trial.settle()
    assert not trial.plan()
    assert not trial.plan().waits


def test_nothing_is_planned_before_a_document():
    trial = Trial()
    stay(trial, "stranger", "/elsewhere")
    assert not trial.plan()
    assert not trial.steps("stranger")


def test_fetching_does_not_wait_for_the_engine():
    trial = trial_of(entry("a"), settle=False)
    trial.world.lost_sight()
    assert kinds(trial.actions()) == [Fetch]
    trial.apply(trial.actions()[0])
    assert not trial.plan()


def test_an_engine_asleep_gets_no_loads_and_shows_no_drift():
    trial = trial_of(entry("a"))
    trial.engine.unload("a", trial.now)
    trial.engine.asleep = True
    trial.accept(document(entry("a"), entry("b")))
    trial.look()
    assert [(type(one), one.name) for one in trial.actions()] == [(Fetch, "b")]


def test_a_replacement_is_here_and_checked_before_the_old_one_goes():
    trial = trial_of(entry("a"))
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    assert kinds(trial.actions()) == [Fetch]
    trial.apply(trial.actions()[0])
    check, unload, load = trial.actions()
    assert isinstance(check, Check)
    assert unload.replacing
    assert load.revision.revision == "v2"


def test_an_engine_that_swaps_in_place_is_not_asked_to_unload():
    trial = trial_of(entry("a"), capabilities=TRITON)
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    trial.apply(trial.actions()[0])
    assert kinds(trial.actions()) == [Check, Load]


def test_other_parameters_are_another_load():
    trial = trial_of(entry("a", parameters={"x": 1, "y": 2}))
    trial.accept(document(entry("a", parameters={"y": 2, "x": 1})))
    assert not trial.plan()
    trial.accept(document(entry("a", parameters={"x": 2})))
    assert kinds(trial.actions()) == [Unload, Load]
    trial.settle()
    assert trial.world.memory.held["a"].parameters == '{"x": 2}'


def test_checks_are_made_anew_for_another_engine_process():
    trial = trial_of(entry("a"))
    trial.restart_engine()
    trial.look()
    assert kinds(trial.actions()) == [Check, Load]


def test_ranks_that_lack_it_are_filled_and_ranks_that_differ_let_go_first():
    trial = trial_of(entry("a"), ranks=2)
    del trial.engine.serving[1]["a"]
    trial.look()
    assert kinds(trial.actions()) == [Load]
    trial.engine.serving[1]["a"] = "/elsewhere"
    trial.look()
    assert kinds(trial.actions()) == [Unload, Load]


def test_a_name_that_the_engine_works_on_is_left_to_it():
    trial = trial_of(entry("a"), capabilities=TRITON)
    for state in (Residency.LOADING, Residency.UNLOADING):
        seen = EngineState(residents=(lora("a", "/p", state), lora("b", "/store/b", state)))
        mark = trial.world.begin_look()
        trial.world.saw(seen, mark, refused=False, now=trial.now)
        assert wait_of(trial).message == f"the engine is {state} it; looking again"
        assert not trial.steps("b")


def test_a_claim_that_memory_does_not_confirm_is_loaded_again():
    trial = trial_of(entry("a"), capabilities=TRITON)
    trial.world.memory = replace(trial.world.memory, held={})
    assert kinds(trial.actions()) == [Load]


def test_a_passthrough_source_needs_no_files():
    trial = trial_of(entry("a"), settle=False)
    hub = revision("a", "hub", source="org/repo", verified=False)
    (fetch,) = trial.actions()
    trial.world.apply(fetch, Done(revision=hub), basis=trial.world.basis, now=trial.now, jitter=0.5)
    load = trial.actions()[-1]
    assert load.revision.path == "org/repo"
    trial.apply(load)
    assert not trial.plan()


def test_an_unproved_warm_up_is_tried_again_later():
    trial = trial_of(entry("a"))
    trial.engine.numb = {"a"}
    trial.accept(document(entry("a", warmup=True)))
    trial.apply(trial.actions()[0])
    assert not trial.plan()
    assert wait_of(trial).reason is Reason.ENGINE_REJECTED
    trial.engine.numb = set()
    trial.settle()
    assert trial.world.progress["a"].warmed is not None


def test_an_engine_that_cannot_be_warmed_up_is_not_asked():
    trial = trial_of(entry("a", warmup=True), capabilities=TRITON)
    assert not trial.plan()
    assert trial.world.progress["a"].warmed is None


# What cannot be loaded.


@pytest.mark.parametrize(
    ("one", "base_names", "reason"),
    [
        (entry("a"), {"a"}, Reason.NAME_CONFLICT),
        (entry("a", kind=Kind.MODEL), set(), Reason.INVALID_ARTIFACT),
    ],
)
def test_what_can_never_be_loaded_waits_for_a_person(one, base_names, reason):
    trial = trial_of(one, settle=False)
    trial.engine.base_names = frozenset(base_names)
    trial.settle()
    wait = wait_of(trial)
    assert (wait.reason, wait.until) == (reason, None)


def test_a_kind_that_the_engine_cannot_hold_waits_for_a_person():
    trial = trial_of(entry("a"), settle=False)
    trial.disk.kind = Kind.MODEL
    trial.settle()
    assert wait_of(trial).message == "this engine holds loras, and a is a model"


def test_a_whole_waits_for_its_parts():
    trial = trial_of(entry("a"), entry("part"), capabilities=TRITON, settle=False)
    trial.disk.parts = {"a": ("part", "other")}
    del trial.disk.sources["s3://part"]
    for _ in range(3):
        trial.apply_all(trial.actions())
    assert wait_of(trial).message == "its parts must be resident first: part, other"
    trial.disk.parts = {"a": ("part",)}
    trial.disk.sources |= {"s3://part": "v1", "s3://a": "v2"}
    trial.move("a")
    trial.settle()
    assert not trial.held_as_desired()


def test_a_full_engine_makes_them_wait_until_one_leaves():
    trial = trial_of(entry("a"), entry("b"), capacity=1, settle=False)
    trial.apply_all(trial.actions())
    trial.apply_all(trial.steps("a"))
    assert wait_of(trial, "b").reason is Reason.OVER_CAPACITY
    trial.accept(document(entry("b")))
    unload = next(iter(trial.actions()))
    assert (type(unload), unload.name) == (Unload, "a")
    trial.apply(unload)
    trial.settle()
    assert trial.engine.names() == {"b"}


def test_loads_go_before_drops_where_there_is_room():
    trial = trial_of(entry("a"), capacity=5)
    trial.accept(document(entry("b")))
    trial.disk.sources["s3://b"] = "v1"
    trial.apply_all(one for one in trial.actions() if isinstance(one, Fetch))
    assert kinds(trial.actions())[-1] is Unload


# When it fails.


def test_a_bad_entry_hurts_itself_alone():
    trial = trial_of(entry("good"), entry("bad"), settle=False)
    del trial.disk.sources["s3://bad"]
    for _ in range(3):
        trial.apply_all(trial.actions())
    assert trial.engine.names() == {"good"}
    assert wait_of(trial, "bad").reason is Reason.NOT_FOUND


def test_when_the_new_one_fails_the_old_one_is_loaded_again_with_its_own_parameters():
    trial = trial_of(entry("a", parameters={"x": 1}))
    trial.disk.sources["s3://a"] = "v2"
    trial.engine.refuses = {revision("a", "v2").path}
    trial.accept(document(entry("a", parameters={"x": 2})))
    trial.move("a")
    for _ in range(2):
        trial.apply_all(trial.actions())
    (fallback,) = trial.actions()
    assert fallback.fallback
    assert fallback.target.parameters == {"x": 1}
    assert fallback.revision.revision == "v1"
    trial.apply(fallback, Mode.TRANSIENT)
    trial.look()
    assert not trial.plan()
    trial.now += 2.0
    trial.apply_all(trial.actions())
    assert trial.engine.serving == [{"a": revision("a").path}]
    assert not trial.plan()
    assert wait_of(trial).reason is Reason.ENGINE_REJECTED


def test_what_served_before_and_is_what_failed_is_no_fallback():
    trial = trial_of(entry("a"))
    trial.engine.refuses = {revision("a").path}
    trial.restart_engine()
    trial.look()
    trial.apply_all(trial.actions())
    assert not trial.plan()


def test_a_restarted_engine_is_healed_from_disk_while_the_source_fails():
    trial = trial_of(entry("a"))
    trial.disk.sources.clear()
    trial.move("a")
    trial.apply_all(trial.actions())
    trial.restart_engine()
    trial.look()
    trial.apply_all(trial.actions())
    assert trial.engine.names() == {"a"}


@pytest.mark.parametrize("capabilities", [VLLM, TRITON])
def test_both_restarted_and_the_source_away_heals_from_disk_before_it_asks(capabilities):
    trial = trial_of(entry("a"), capabilities=capabilities)
    trial.disk.sources.clear()
    trial.engine.restart(trial.now + 9.0)
    trial.restart_agent()
    trial.look()
    first, fetch = trial.steps("a")
    assert (type(first), type(fetch)) == (Load, Fetch)
    trial.apply(first)
    trial.apply(fetch)
    assert trial.engine.names() == {"a"}
    assert wait_of(trial).reason is Reason.NOT_FOUND


def test_a_source_that_fails_does_not_hold_up_the_proof_after_sleep():
    trial = trial_of(entry("a"))
    trial.disk.sources.clear()
    trial.move("a")
    trial.apply_all(trial.actions())
    trial.engine.asleep = True
    trial.look()
    trial.engine.asleep = False
    trial.look()
    assert kinds(trial.actions()) == [Warm]


def test_vanished_files_are_put_back_first_of_all():
    trial = trial_of(entry("a"), entry("b"))
    trial.accept(document(entry("new"), entry("a"), entry("b")))
    trial.disk.sources |= {"s3://new": "v1", "s3://b": "v2"}
    del trial.disk.whole[revision("b").path]
    first, *_ = trial.actions()
    assert isinstance(first, Fetch)
    assert first.restore is not None
    assert first.restore.path == revision("b").path
    trial.settle()
    assert revision("b").path in trial.disk.whole


def test_another_source_does_not_put_back_what_it_never_held():
    trial = trial_of(entry("a"))
    del trial.disk.whole[revision("a").path]
    other = entry("a", "s3://other")
    trial.disk.sources["s3://other"] = "v2"
    trial.accept(document(other))
    assert trial.actions() == (Fetch(name="a", entry=other),)
    trial.settle()
    assert not trial.held_as_desired()


# What was refused and may be mended where nobody looks.


def refused(stage: str, **entry_changes) -> Trial:
    """Return a trial whose first revision was refused by a check or by the engine."""
    trial = trial_of(entry("a", **entry_changes), settle=False)
    trial.apply(trial.actions()[0])
    check, load, *_ = trial.actions()
    if stage == "load":
        trial.apply(check)
    trial.apply(check if stage == "check" else load, Mode.REJECTED)
    trial.look()
    return trial


def until_of(trial: Trial) -> float:
    """Return until when ``a`` waits."""
    until = wait_of(trial).until
    assert until is not None
    return until


@pytest.mark.parametrize("stage", ["check", "load"])
def test_a_refused_artifact_is_looked_for_at_its_source_before_it_is_tried_again(stage):
    trial = refused(stage)
    assert not trial.plan()
    trial.now = until_of(trial)
    assert kinds(trial.actions()) == [Fetch]
    trial.disk.sources["s3://a"] = "v2"
    trial.settle()
    assert not trial.held_as_desired()


def test_an_artifact_that_is_still_the_same_is_looked_for_once_and_tried_again():
    trial = refused("load")
    trial.now = until_of(trial)
    trial.apply(trial.actions()[0])
    assert kinds(trial.actions()) == [Load]
    trial.apply(trial.actions()[-1], Mode.REJECTED)
    trial.look()
    assert until_of(trial) == pytest.approx(trial.now + 300.0)


def test_a_source_that_fails_then_does_not_keep_what_is_here_from_another_try():
    trial = refused("load")
    trial.now = until_of(trial)
    trial.apply(trial.actions()[0], Mode.TRANSIENT)
    assert kinds(trial.actions()) == [Load]


@pytest.mark.parametrize(
    "changes", [{"digest": "sha256:v1"}, {"refresh_seconds": 60.0}], ids=["pinned", "refreshed"]
)
def test_a_source_that_cannot_help_or_that_others_look_at_is_not_asked_again(changes):
    trial = refused("load", **changes)
    trial.now = until_of(trial)
    assert kinds(trial.actions()) == [Load]


def test_what_is_tried_again_before_its_time_is_not_looked_for():
    trial = refused("load")
    trial.restart_engine()
    trial.look()
    assert kinds(trial.actions()) == [Check, Load]


# Plain questions.


def test_parameters_are_equal_whatever_their_order():
    assert parameters_key({}) == ""
    assert parameters_key({"a": 1, "b": {1}}) == parameters_key({"b": {1}, "a": 1})


def test_an_engine_that_cannot_be_seen_has_no_residents_to_index():
    assert residents_by_name(None) == {}
    assert set(residents_by_name(EngineState(residents=(lora("a", "/a"),)))) == {"a"}


def test_what_was_never_fetched_is_not_as_desired():
    trial = trial_of(entry("a"), settle=False)
    view: View = trial.view()
    assert not is_as_desired(view, entry("a"))
    assert not trial.steps("nobody")


def test_an_engine_that_tells_its_limit_is_believed():
    seen = EngineState(limits=Limits(max_residents=0))
    trial = trial_of(entry("a"), settle=False)
    trial.apply(trial.actions()[0])
    trial.world.saw(seen, trial.world.begin_look(), refused=False, now=trial.now)
    assert wait_of(trial).message == "the engine holds 0 targets and can hold 0"


def test_memory_may_name_a_revision_that_is_gone():
    trial = Trial(memory=Memory(held={"a": Held(path="/store/lora/a/gone")}, incarnation=1))
    trial.accept(document(entry("a")))
    trial.look()
    assert kinds(trial.actions()) == [Fetch]


def test_a_fallback_of_unknown_outcome_is_looked_at_before_it_is_repeated():
    trial = trial_of(entry("a"))
    trial.disk.sources.clear()
    trial.engine.restart(trial.now + 9.0)
    trial.restart_agent()
    trial.look()
    trial.apply(trial.actions()[0], Mode.DROPPED)
    trial.now += 100.0
    assert kinds(trial.steps("a")) == [Fetch]
    trial.look()
    assert kinds(trial.steps("a")) == [Load, Fetch]


def test_a_load_that_took_effect_after_all_is_warmed_up_at_once():
    trial = trial_of(entry("a", warmup=True), settle=False)
    trial.apply(trial.actions()[0])
    check, load, warm = trial.actions()
    trial.apply(check)
    trial.apply(load, Mode.LOST)
    trial.look()
    assert trial.actions() == (warm,)


def test_a_failed_load_that_left_the_document_is_cleared_from_the_engine():
    trial = trial_of(entry("a"), capabilities=TRITON, settle=False)
    trial.engine.refuses = {revision("a", kind=Kind.MODEL).path}
    trial.apply_all(trial.actions())
    trial.apply_all(trial.actions())
    trial.look()
    assert trial.world.residents["a"].state is Residency.FAILED
    trial.accept(document())
    trial.settle()
    assert not trial.world.residents


def test_what_failed_without_us_is_left_to_the_engine():
    trial = trial_of(entry("a"), capabilities=TRITON, policy=Policy(prune=Prune.ALL))
    trial.engine.failed["stranger"] = "its own trouble"
    trial.look()
    assert not trial.plan()


# What a refused replacement leaves behind.


def refused_replacement(*others, **options) -> Trial:
    """Return a trial where ``a`` serves from v1 and v2 was refused."""
    trial = trial_of(entry("a"), *others, **options)
    engine = trial.engine
    refuses = engine.last_refuses if engine.ranks > 1 else engine.refuses
    refuses.add(revision("a", "v2", kind=trial.disk.kind).path)
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    calm(trial)
    return trial


def calm(trial: Trial) -> list[str]:
    """Do what is due without waiting for anything; return the calls to the engine."""
    calls = []
    for _ in range(8):
        trial.look()
        for one in trial.actions():
            if isinstance(one, Unload | Load):
                calls.append(f"{type(one).__name__} {one.name}")
            if isinstance(trial.apply(one), Failed):
                break
    return calls


def test_ranks_that_a_refused_replacement_split_are_given_back_what_served():
    trial = refused_replacement(ranks=2)
    old = revision("a", "v1").path
    assert [rank["a"] for rank in trial.engine.serving] == [old, old]
    assert not trial.broken
    attempt = trial.world.progress["a"].attempt
    assert attempt is not None
    assert attempt.reason is Reason.ENGINE_REJECTED
    assert calm(trial) == []


def test_a_serving_revision_is_not_taken_away_for_what_others_ask():
    trial = refused_replacement(entry("b"))
    for number in range(3):
        trial.disk.sources[f"s3://c{number}"] = "v1"
        trial.accept(document(entry("a"), entry("b"), entry(f"c{number}")))
        assert not [one for one in calm(trial) if one.endswith(" a")]
    trial.accept(document(entry("a")))
    assert sorted(calm(trial)) == ["Unload b", "Unload c2"]


@pytest.mark.parametrize("why", ["parameters", "restart", "time", "files"])
def test_a_refused_replacement_is_tried_again_for_its_own_sake(why):
    trial = refused_replacement(entry("b"))
    trial.engine.refuses.clear()
    if why == "parameters":
        trial.accept(document(entry("a", parameters={"rank": 8}), entry("b")))
    elif why == "restart":
        trial.restart_engine()
    elif why == "time":
        trial.now += 331.0
    else:
        trial.disk.sources["s3://a"] = "v3"
        trial.move("a")
    calm(trial)
    assert not trial.held_as_desired()


def test_a_link_left_on_what_was_refused_is_put_back_once():
    trial = trial_of(entry("a"), capabilities=TRITON)
    old, new = (revision("a", one, kind=Kind.MODEL).path for one in ("v1", "v2"))
    trial.disk.make("a", "v2")
    trial.disk.sources["s3://a"] = "v2"
    trial.engine.refuses.add(new)
    # The agent was killed between the swap of the link and the load.
    trial.engine.links["a"] = new
    trial.restart_agent()
    assert calm(trial) == ["Load a", "Load a"]
    assert trial.engine.links["a"] == old
    assert calm(trial) == []
