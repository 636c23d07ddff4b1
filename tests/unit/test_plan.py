"""The plan's rules, one by one; that they fit together is proved by interruption."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.base import EngineState, Kind, Limits, Residency, Resident, Target
from sidecar.core.actions import Check, Evict, Fetch, Load, Unload, Wait, Warm
from sidecar.core.desired import DropOut
from sidecar.core.memory import Held, Memory, Owned
from sidecar.core.outcome import Done
from sidecar.core.status import Reason
from sidecar.core.view import Policy, Prune, View, is_as_desired, parameters_key, residents_by_name
from tests.support.simulated import (
    STORE,
    TRITON,
    VLLM,
    document,
    entry,
    failure,
    lora,
    revision,
)
from tests.support.world import Mode, Trial

KEEP = DropOut.KEEP


def trial_of(*entries, capabilities=VLLM, settle: bool = True, **options) -> Trial:
    """Return a trial with a document; each source holds v1."""
    words = {
        key: options.pop(key)
        for key in ("absent", "undecided", "incomplete", "drop_out")
        if key in options
    }
    trial = Trial(capabilities, **options)
    trial.disk.sources = {one.source: "v1" for one in entries}
    trial.accept(document(*entries, **words))
    if settle:
        trial.settle()
    else:
        trial.look()
    return trial


def kinds(steps) -> list[type]:
    return [type(step) for step in steps]


def wait_of(trial: Trial, name: str = "a") -> Wait:
    (wait,) = (step for step in trial.steps(name) if isinstance(step, Wait))
    return wait


def stay(trial: Trial, name: str, path: str) -> None:
    """Let the engine hold a name that it was started with."""
    for rank in trial.engine.serving:
        rank[name] = path
    trial.strangers |= {name}
    trial.look()


# From a source to a serving target.


def test_a_new_target_is_fetched_checked_loaded_and_warmed_up():
    trial = trial_of(entry("a", warmup=True), settle=False)
    (fetch,) = trial.plan().actions
    trial.apply(fetch)
    assert kinds(trial.plan().actions) == [Check, Load, Warm]
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
    assert kinds(trial.plan().actions) == [Fetch]
    trial.apply(trial.plan().actions[0])
    assert not trial.plan()


def test_an_engine_asleep_gets_no_loads_and_shows_no_drift():
    trial = trial_of(entry("a"))
    trial.engine.unload("a", trial.now)
    trial.engine.asleep = True
    trial.accept(document(entry("a"), entry("b")))
    trial.look()
    assert [(type(one), one.name) for one in trial.plan().actions] == [(Fetch, "b")]


def test_a_replacement_is_here_and_checked_before_the_old_one_goes():
    trial = trial_of(entry("a"))
    trial.disk.sources["s3://a"] = "v2"
    trial.world.moved("a")
    assert kinds(trial.plan().actions) == [Fetch]
    trial.apply(trial.plan().actions[0])
    check, unload, load = trial.plan().actions
    assert isinstance(check, Check)
    assert unload.replacing
    assert load.revision.revision == "v2"


def test_an_engine_that_swaps_in_place_is_not_asked_to_unload():
    trial = trial_of(entry("a"), capabilities=TRITON)
    trial.disk.sources["s3://a"] = "v2"
    trial.world.moved("a")
    trial.apply(trial.plan().actions[0])
    assert kinds(trial.plan().actions) == [Check, Load]


def test_other_parameters_are_another_load():
    trial = trial_of(entry("a", parameters={"x": 1, "y": 2}))
    trial.accept(document(entry("a", parameters={"y": 2, "x": 1})))
    assert not trial.plan()
    trial.accept(document(entry("a", parameters={"x": 2})))
    assert kinds(trial.plan().actions) == [Unload, Load]
    trial.settle()
    assert trial.world.memory.held["a"].parameters == '{"x": 2}'


def test_checks_are_made_anew_for_another_engine_process():
    trial = trial_of(entry("a"))
    trial.restart_engine()
    trial.look()
    assert kinds(trial.plan().actions) == [Check, Load]


def test_ranks_that_lack_it_are_filled_and_ranks_that_differ_let_go_first():
    trial = trial_of(entry("a"), ranks=2)
    del trial.engine.serving[1]["a"]
    trial.look()
    assert kinds(trial.plan().actions) == [Load]
    trial.engine.serving[1]["a"] = "/elsewhere"
    trial.look()
    assert kinds(trial.plan().actions) == [Unload, Load]


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
    assert kinds(trial.plan().actions) == [Load]


def test_a_passthrough_source_needs_no_files():
    trial = trial_of(entry("a"), settle=False)
    hub = revision("a", "hub", source="org/repo", verified=False)
    (fetch,) = trial.plan().actions
    trial.world.apply(fetch, Done(revision=hub), basis=trial.world.basis, now=trial.now, jitter=0.5)
    load = trial.plan().actions[-1]
    assert load.revision.path == "org/repo"
    trial.apply(load)
    assert not trial.plan()


def test_an_unproved_warm_up_is_tried_again_later():
    trial = trial_of(entry("a"))
    trial.engine.numb = {"a"}
    trial.accept(document(entry("a", warmup=True)))
    trial.apply(trial.plan().actions[0])
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
        trial.apply_all(trial.plan().actions)
    assert wait_of(trial).message == "its parts must be resident first: part, other"
    trial.disk.parts = {"a": ("part",)}
    trial.disk.sources |= {"s3://part": "v1", "s3://a": "v2"}
    trial.world.moved("a")
    trial.settle()
    assert not trial.held_as_desired()


def test_a_full_engine_makes_them_wait_until_one_leaves():
    trial = trial_of(entry("a"), entry("b"), capacity=1, settle=False)
    trial.apply_all(trial.plan().actions)
    trial.apply_all(trial.steps("a"))
    assert wait_of(trial, "b").reason is Reason.OVER_CAPACITY
    trial.accept(document(entry("b")))
    unload = next(iter(trial.plan().actions))
    assert (type(unload), unload.name) == (Unload, "a")
    trial.apply(unload)
    trial.settle()
    assert trial.engine.names() == {"b"}


def test_loads_go_before_drops_where_there_is_room():
    trial = trial_of(entry("a"), capacity=5)
    trial.accept(document(entry("b")))
    trial.disk.sources["s3://b"] = "v1"
    trial.apply_all(one for one in trial.plan().actions if isinstance(one, Fetch))
    assert kinds(trial.plan().actions)[-1] is Unload


# When it fails.


def test_a_bad_entry_hurts_itself_alone():
    trial = trial_of(entry("good"), entry("bad"), settle=False)
    del trial.disk.sources["s3://bad"]
    for _ in range(3):
        trial.apply_all(trial.plan().actions)
    assert trial.engine.names() == {"good"}
    assert wait_of(trial, "bad").reason is Reason.NOT_FOUND


def test_when_the_new_one_fails_the_old_one_is_loaded_again_with_its_own_parameters():
    trial = trial_of(entry("a", parameters={"x": 1}))
    trial.disk.sources["s3://a"] = "v2"
    trial.engine.refuses = {revision("a", "v2").path}
    trial.accept(document(entry("a", parameters={"x": 2})))
    trial.world.moved("a")
    for _ in range(2):
        trial.apply_all(trial.plan().actions)
    (fallback,) = trial.plan().actions
    assert fallback.fallback
    assert fallback.target.parameters == {"x": 1}
    assert fallback.revision.revision == "v1"
    trial.apply(fallback, Mode.TRANSIENT)
    trial.look()
    assert not trial.plan()
    trial.now += 2.0
    trial.apply_all(trial.plan().actions)
    assert trial.engine.serving == [{"a": revision("a").path}]
    assert not trial.plan()
    assert wait_of(trial).reason is Reason.ENGINE_REJECTED


def test_what_served_before_and_is_what_failed_is_no_fallback():
    trial = trial_of(entry("a"))
    trial.engine.refuses = {revision("a").path}
    trial.restart_engine()
    trial.look()
    trial.apply_all(trial.plan().actions)
    assert not trial.plan()


def test_a_restarted_engine_is_healed_from_disk_while_the_source_fails():
    trial = trial_of(entry("a"))
    trial.disk.sources.clear()
    trial.world.moved("a")
    trial.apply_all(trial.plan().actions)
    trial.restart_engine()
    trial.look()
    trial.apply_all(trial.plan().actions)
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
    trial.world.moved("a")
    trial.apply_all(trial.plan().actions)
    trial.engine.asleep = True
    trial.look()
    trial.engine.asleep = False
    trial.look()
    assert kinds(trial.plan().actions) == [Warm]


def test_vanished_files_are_put_back_first_of_all():
    trial = trial_of(entry("a"), entry("b"))
    trial.accept(document(entry("new"), entry("a"), entry("b")))
    trial.disk.sources |= {"s3://new": "v1", "s3://b": "v2"}
    del trial.disk.whole[revision("b").path]
    first, *_ = trial.plan().actions
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
    assert trial.plan().actions == (Fetch(name="a", entry=other),)
    trial.settle()
    assert not trial.held_as_desired()


# What leaves the engine (P1, P2).


@pytest.mark.parametrize("prune", Prune)
@pytest.mark.parametrize("path", ["/elsewhere/stranger", f"{STORE}/lora/stranger/v1"])
def test_what_nobody_listed_is_ours_by_its_path(prune, path):
    trial = trial_of(entry("a"), policy=Policy(store_root=STORE, prune=prune))
    stay(trial, "stranger", path)
    ours = path.startswith(STORE) and prune is Prune.OWNED
    assert (Unload in kinds(trial.plan().actions)) == (ours or prune is Prune.ALL)


def test_a_name_beginning_like_the_store_is_not_in_it():
    trial = trial_of(entry("a"))
    stay(trial, "stranger", f"{STORE}-of-somebody-else/x")
    assert not trial.plan()


@pytest.mark.parametrize(
    ("owned", "drop_out", "leaves"),
    [
        (None, DropOut.UNLOAD, True),
        (None, KEEP, False),
        (Owned(dropped_at=0.0), KEEP, True),
        (Owned(dropped_at=0.0, drop_out=KEEP), DropOut.UNLOAD, False),
    ],
)
def test_dropping_out_means_what_the_format_says(owned, drop_out, leaves):
    trial = Trial(memory=Memory(owned={"a": owned} if owned else {}))
    trial.engine.serving[0]["a"] = revision("a").path
    trial.look()
    trial.accept(document(drop_out=drop_out))
    assert (Unload in kinds(trial.plan().actions)) == leaves


def test_ensure_not_exist_unloads_whoever_loaded_it_but_never_a_base_model():
    trial = trial_of(absent=["stranger", "base"], incomplete=True, settle=False)
    trial.engine.base_names = frozenset({"base"})
    stay(trial, "stranger", "/elsewhere")
    stay(trial, "base", "/base")
    assert [one.name for one in trial.plan().actions] == ["stranger"]
    trial.world.apply(
        trial.plan().actions[0], failure(), basis=trial.world.basis, now=trial.now, jitter=0.5
    )
    assert not trial.plan()


def test_a_grace_passes_before_what_dropped_out_is_unloaded():
    trial = trial_of(entry("a", unload_grace_seconds=150.0))
    trial.accept(document())
    wait = wait_of(trial)
    assert (wait.reason, wait.until) == (Reason.DROPPED, trial.now + 150.0)
    trial.restart_agent()
    trial.look()
    trial.now += 149.0
    assert not trial.plan()
    trial.now += 1.0
    assert kinds(trial.plan().actions) == [Unload]


@pytest.mark.parametrize("words", [{"undecided": ["a"]}, {"incomplete": True}])
def test_nothing_is_dropped_by_a_document_that_cannot_be_read(words):
    trial = trial_of(entry("a"))
    trial.accept(document(**words))
    trial.disk.make("a", "v0")
    assert not trial.plan()


def test_an_unload_that_fails_is_tried_again_and_other_failures_do_not_delay_it():
    trial = trial_of(entry("a"))
    trial.apply(Fetch(name="a", entry=entry("a")), Mode.TRANSIENT)
    trial.apply(
        Load(name="a", target=Target(name="a", kind=Kind.LORA), revision=revision("a")),
        Mode.TRANSIENT,
    )
    trial.accept(document())
    trial.look()
    (unload,) = trial.plan().actions
    trial.apply(unload, Mode.TRANSIENT)
    trial.look()
    assert wait_of(trial).reason is Reason.ENGINE_UNAVAILABLE


def test_the_last_model_stays_until_another_serves():
    trial = trial_of(entry("a"), capabilities=TRITON)
    trial.disk.sources["s3://b"] = "v1"
    trial.accept(document(entry("b")))
    assert "serves until one that the document lists does" in wait_of(trial).message
    trial.settle()
    assert trial.engine.names() == {"b"}
    assert not trial.broken


@pytest.mark.parametrize("how", ["rejected", "refused"])
def test_the_last_model_goes_when_nothing_better_can_come(how):
    trial = trial_of(entry("a"), capabilities=TRITON)
    trial.disk.sources["s3://b"] = "v1"
    one = entry("b", kind=Kind.LORA if how == "refused" else None)
    trial.engine.refuses = {revision("b", kind=Kind.MODEL).path}
    trial.accept(document(one))
    for _ in range(3):
        trial.apply_all(trial.plan().actions)
    assert not trial.engine.names()


@pytest.mark.parametrize("prune", [Prune.OWNED, Prune.ALL])
def test_a_failed_load_leaves_the_engine_with_its_entry_and_only_if_it_was_ours(prune):
    policy = Policy(store_root=STORE, prune=prune)
    trial = trial_of(entry("a"), capabilities=TRITON, policy=policy)
    trial.accept(document(entry("b")))
    for name in ("a", "stranger"):
        failed = Resident(name=name, kind=Kind.MODEL, state=Residency.FAILED)
        trial.world.residents[name] = failed
    unloads = [one.name for one in trial.plan().actions if isinstance(one, Unload)]
    # It serves nobody, so that it need not wait for b.
    assert unloads == ["a"]


def test_an_empty_list_unloads_the_last_model():
    trial = trial_of(entry("a"), capabilities=TRITON)
    trial.accept(document())
    trial.settle()
    assert not trial.engine.names()


def test_where_there_is_no_room_for_both_the_last_model_goes_when_the_next_one_is_here():
    trial = trial_of(entry("a"), capabilities=TRITON, capacity=1)
    trial.accept(document(entry("b")))
    trial.apply_all(trial.plan().actions)
    assert trial.engine.names() == {"a"}
    trial.disk.sources["s3://b"] = "v1"
    trial.settle()
    assert trial.engine.names() == {"b"}


# What leaves the disk (P5).


def evicted(trial: Trial) -> list[str]:
    return [one.revision.revision for one in trial.plan().actions if isinstance(one, Evict)]


def test_a_retired_revision_stays_for_its_time_or_until_the_engine_restarts():
    for restart in (False, True):
        trial = trial_of(entry("a"), entry("b"))
        trial.disk.sources["s3://a"] = "v2"
        trial.world.moved("a")
        trial.settle(rounds=3)
        assert not evicted(trial)
        if restart:
            trial.restart_engine()
            trial.settle(rounds=3)
        else:
            trial.now += trial.policy.retain_seconds
            assert evicted(trial) == ["v1"]
        trial.settle()
        assert revision("a").path not in trial.disk.whole
        assert not trial.broken


@pytest.mark.parametrize(
    "words",
    [{"undecided": ["a"]}, {"incomplete": True}],
)
def test_of_names_of_which_nothing_is_known_nothing_is_evicted(words):
    trial = trial_of(**words)
    trial.disk.make("a", "v1")
    assert not evicted(trial)


def test_pinned_files_stay():
    trial = trial_of(entry("a", pinned=True))
    trial.disk.make("a", "v0")
    assert not evicted(trial)
    trial.accept(document(entry("a")))
    assert evicted(trial) == ["v0"]


def test_files_are_not_evicted_while_the_engine_cannot_be_seen():
    trial = trial_of(entry("a"))
    trial.disk.make("a", "v0")
    trial.world.lost_sight()
    assert not evicted(trial)


def test_until_its_source_was_seen_any_revision_may_be_the_desired_one():
    trial = trial_of(entry("a"), capacity=0)
    assert not evicted(trial)
    trial.restart_agent()
    trial.accept(document(entry("a")))
    trial.look()
    assert not evicted(trial)
    trial.settle()
    assert revision("a").path in trial.disk.whole


def test_what_a_moved_source_may_hold_by_now_stays():
    trial = trial_of(entry("a"))
    trial.world.moved("a")
    trial.disk.make("a", "v2")
    assert not evicted(trial)


def test_a_load_under_way_keeps_its_files_although_its_entry_left():
    trial = trial_of(entry("a"), settle=False)
    trial.apply(trial.plan().actions[0])
    trial.accept(document())
    assert not evicted(trial)
    trial.world.forget_strangers(["a"])
    assert not evicted(trial)
    trial.world.forget_strangers(())
    assert evicted(trial) == ["v1"]


def full(max_bytes: int | None) -> Trial:
    """Return a trial with three revisions of 100 bytes that nobody needs."""
    trial = trial_of(entry("a"))
    trial.disk.max_bytes = max_bytes
    for number, used_at in (("x3", 3.0), ("x1", 1.0), ("x2", 2.0)):
        trial.disk.make("old", number, used_at=used_at)
    return trial


@pytest.mark.parametrize(
    ("max_bytes", "numbers"),
    [
        (None, ["x1", "x2", "x3"]),
        (400, []),
        (250, ["x1", "x2"]),
        (399, ["x1"]),
        (0, ["x1", "x2", "x3"]),
    ],
)
def test_the_oldest_go_first_and_only_as_many_as_there_must(max_bytes, numbers):
    assert evicted(full(max_bytes)) == numbers


def test_a_fetch_that_lacks_room_gets_some_and_is_tried_at_once():
    trial = full(400)
    trial.accept(document(entry("a"), entry("b")))
    no_room = failure(Reason.STORE_FULL)
    fetch = Fetch(name="b", entry=entry("b"))
    trial.world.apply(fetch, no_room, basis=trial.world.basis, now=trial.now, jitter=0.5)
    (evict,) = trial.plan().actions
    trial.apply(evict)
    assert fetch in trial.plan().actions


def test_a_target_that_lacks_room_gives_up_its_own_other_revisions():
    trial = trial_of(entry("a"))
    trial.accept(document(entry("a"), entry("b")))
    trial.disk.make("b", "v0")
    assert not evicted(trial)
    fetch = Fetch(name="b", entry=entry("b"))
    trial.world.apply(
        fetch,
        failure(Reason.STORE_FULL),
        basis=trial.world.basis,
        now=trial.now,
        jitter=0.5,
    )
    assert evicted(trial) == ["v0"]


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
    trial.apply(trial.plan().actions[0])
    trial.world.saw(seen, trial.world.begin_look(), refused=False, now=trial.now)
    assert wait_of(trial).message == "the engine holds 0 targets and can hold 0"


def test_memory_may_name_a_revision_that_is_gone():
    trial = Trial(memory=Memory(held={"a": Held(path="/store/lora/a/gone")}, incarnation=1))
    trial.accept(document(entry("a")))
    trial.look()
    assert kinds(trial.plan().actions) == [Fetch]


def test_a_fallback_of_unknown_outcome_is_looked_at_before_it_is_repeated():
    trial = trial_of(entry("a"))
    trial.disk.sources.clear()
    trial.engine.restart(trial.now + 9.0)
    trial.restart_agent()
    trial.look()
    trial.apply(trial.plan().actions[0], Mode.DROPPED)
    trial.now += 100.0
    assert kinds(trial.steps("a")) == [Fetch]
    trial.look()
    assert kinds(trial.steps("a")) == [Load, Fetch]


def test_a_load_that_took_effect_after_all_is_warmed_up_at_once():
    trial = trial_of(entry("a", warmup=True), settle=False)
    trial.apply(trial.plan().actions[0])
    check, load, warm = trial.plan().actions
    trial.apply(check)
    trial.apply(load, Mode.LOST)
    trial.look()
    assert trial.plan().actions == (warm,)


def test_a_failed_load_that_left_the_document_is_cleared_from_the_engine():
    trial = trial_of(entry("a"), capabilities=TRITON, settle=False)
    trial.engine.refuses = {revision("a", kind=Kind.MODEL).path}
    trial.apply_all(trial.plan().actions)
    trial.apply_all(trial.plan().actions)
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
