"""What leaves the engine and the disk, and what never does (P1, P2, P5)."""

from __future__ import annotations

import pytest

from adapters.base import Kind, Residency, Resident, Target
from sidecar.core.actions import Evict, Fetch, Load, Unload
from sidecar.core.desired import DropOut
from sidecar.core.memory import Memory, Owned
from sidecar.core.status import Reason
from sidecar.core.view import Policy, Prune
from tests.support.simulated import (
    STORE,
    TRITON,
    document,
    entry,
    failure,
    revision,
)
from tests.support.trials import kinds, stay, trial_of, wait_of
from tests.support.world import Mode, Trial

KEEP = DropOut.KEEP


# What leaves the engine (P1, P2).


@pytest.mark.parametrize("prune", Prune)
@pytest.mark.parametrize("path", ["/elsewhere/stranger", f"{STORE}/lora/stranger/v1"])
def test_what_nobody_listed_is_ours_by_its_path(prune, path):
    trial = trial_of(entry("a"), policy=Policy(store_root=STORE, prune=prune))
    stay(trial, "stranger", path)
    ours = path.startswith(STORE) and prune is Prune.OWNED
    assert (Unload in kinds(trial.actions())) == (ours or prune is Prune.ALL)


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
    assert (Unload in kinds(trial.actions())) == leaves


def test_ensure_not_exist_unloads_whoever_loaded_it_but_never_a_base_model():
    trial = trial_of(absent=["stranger", "base"], incomplete=True, settle=False)
    trial.engine.base_names = frozenset({"base"})
    stay(trial, "stranger", "/elsewhere")
    stay(trial, "base", "/base")
    assert [one.name for one in trial.actions()] == ["stranger"]
    trial.world.apply(
        trial.actions()[0], failure(), basis=trial.world.basis, now=trial.now, jitter=0.5
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
    assert kinds(trial.actions()) == [Unload]


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
    (unload,) = trial.actions()
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
        trial.apply_all(trial.actions())
    assert not trial.engine.names()


@pytest.mark.parametrize("prune", [Prune.OWNED, Prune.ALL])
def test_a_failed_load_leaves_the_engine_with_its_entry_and_only_if_it_was_ours(prune):
    policy = Policy(store_root=STORE, prune=prune)
    trial = trial_of(entry("a"), capabilities=TRITON, policy=policy)
    trial.accept(document(entry("b")))
    for name in ("a", "stranger"):
        failed = Resident(name=name, kind=Kind.MODEL, state=Residency.FAILED)
        trial.world.residents[name] = failed
    unloads = [one.name for one in trial.actions() if isinstance(one, Unload)]
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
    trial.apply_all(trial.actions())
    assert trial.engine.names() == {"a"}
    trial.disk.sources["s3://b"] = "v1"
    trial.settle()
    assert trial.engine.names() == {"b"}


# What leaves the disk (P5).


def evicted(trial: Trial) -> list[str]:
    return [one.revision.revision for one in trial.actions() if isinstance(one, Evict)]


def test_a_retired_revision_stays_for_its_time_or_until_the_engine_restarts():
    for restart in (False, True):
        trial = trial_of(entry("a"), entry("b"))
        trial.disk.sources["s3://a"] = "v2"
        trial.move("a")
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
    trial.move("a")
    trial.disk.make("a", "v2")
    assert not evicted(trial)


def test_a_load_under_way_keeps_its_files_although_its_entry_left():
    trial = trial_of(entry("a"), settle=False)
    trial.apply(trial.actions()[0])
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
    (evict,) = trial.actions()
    trial.apply(evict)
    assert fetch in trial.actions()
    # As long as it is under way nobody knows whether that was enough.
    assert not evicted(trial)
    trial.world.apply(fetch, no_room, basis=trial.world.basis, now=trial.now, jitter=0.5)
    assert evicted(trial) == ["x2"]


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
