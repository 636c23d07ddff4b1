"""What outcomes mean for progress, memory and residency."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.base import Kind, Target
from sidecar.core.actions import Check, Evict, Fetch, Load, Unload, Warm
from sidecar.core.backoff import Basis
from sidecar.core.memory import Held, Memory, Owned
from sidecar.core.outcome import Done, Effect, after, is_unknown
from sidecar.core.progress import Progress, Stage, asks, for_entry, tries
from tests.support.simulated import BUSY, REJECTED, TIMEOUT, entry, failure, lora, revision

A = entry("a")
V1, V2 = revision("a"), revision("a", "v2")
TARGET = Target(name="a", kind=Kind.LORA, parameters={"p": 1})
BASIS = Basis(generation=1, incarnation=2, freed=3)
FETCH = Fetch(name="a", entry=A)
KNOWN = Progress(about=tries(A), asked=asks(A), revision=V1)
ENGINE_ACTIONS = [
    Load(name="a", target=TARGET, revision=V1),
    Unload(name="a", target=TARGET),
    Warm(name="a", target=TARGET, path=V1.path),
]


def effect(progress: Progress = KNOWN, memory: Memory | None = None, resident=None) -> Effect:
    return Effect(progress=progress, memory=memory or Memory(), resident=resident)


def take(before: Effect, action, outcome=None, *, now: float = 50.0) -> Effect:
    """Return the state after an action that ended at ``now``."""
    return after(before, action, outcome or Done(), basis=BASIS, now=now, jitter=0.5)


def failing(*actions, before: Progress = KNOWN, outcome=REJECTED) -> Progress:
    state = effect(before)
    for action in actions:
        state = take(state, action, outcome)
    return state.progress


LOAD = Load(name="a", target=TARGET, revision=V1)
CHECK = Check(name="a", entry=A, revision=V1)


def test_other_credentials_are_worth_a_fetch_at_once_and_no_load():
    before = failing(FETCH, before=failing(LOAD), outcome=failure())
    mended = for_entry(replace(before, unseen="403"), entry("a", credentials="team-a"))
    assert (mended.fetch_attempt, mended.unseen) == (None, "")
    assert mended.attempt == before.attempt is not None
    assert for_entry(mended, entry("a", credentials="team-a")) is mended


def test_a_fetch_has_seen_the_source_unless_it_put_something_back():
    unseen = effect(replace(KNOWN, unseen="403", due_at=40.0))
    seen = take(unseen, FETCH, Done(revision=V1)).progress
    assert (seen.unseen, seen.due_at) == ("", 0.0)
    restored = take(unseen, replace(FETCH, restore=V1), Done(revision=V1)).progress
    assert (restored.unseen, restored.due_at) == ("403", 40.0)


def test_a_fetch_answers_what_was_asked():
    progress = take(effect(Progress(moved=2)), replace(FETCH, moves=2), Done(revision=V1)).progress
    assert progress == replace(KNOWN, fetched_at=50.0)


def test_other_bytes_are_worth_a_try_at_once_and_the_same_ones_are_not():
    rejected = failing(LOAD)
    same = take(effect(rejected), FETCH, Done(revision=V1)).progress
    other = take(effect(rejected), FETCH, Done(revision=V2)).progress
    assert same.attempt == rejected.attempt is not None
    assert other.attempt is None


def test_a_failing_source_does_not_hide_what_the_engine_said():
    progress = failing(FETCH, before=failing(LOAD), outcome=failure())
    assert [one.stage for one in progress.failures] == [Stage.LOAD, Stage.FETCH]
    fetched = take(effect(progress), FETCH, Done(revision=V1)).progress
    assert [one.stage for one in fetched.failures] == [Stage.LOAD]


def test_parts_that_a_check_found_outlive_the_next_fetch_of_the_same_bytes():
    checked = take(effect(), CHECK, Done(revision=replace(V1, parts=("p",)))).progress
    assert take(effect(checked), FETCH, Done(revision=V1)).progress.revision == replace(
        V1, parts=("p",)
    )
    other = take(effect(checked), FETCH, Done(revision=V2)).progress
    assert other.revision == V2


def test_what_was_put_back_says_nothing_of_a_source_that_moved():
    moved = replace(KNOWN, moved=1)
    restored = take(effect(moved), replace(FETCH, restore=V1), Done(revision=V1)).progress
    assert restored.moved
    looked = replace(FETCH, moves=1)
    assert not take(effect(moved), looked, Done(revision=V1)).progress.moved


def test_a_source_that_moves_while_it_is_fetched_is_fetched_again():
    moved_twice = replace(KNOWN, moved=2)
    assert take(effect(moved_twice), replace(FETCH, moves=1), Done(revision=V2)).progress.moved


def test_a_check_holds_for_one_engine_incarnation_and_clears_its_own_failure_only():
    checked = take(effect(failing(CHECK)), CHECK, Done(revision=V1)).progress
    assert checked.checked == ("v1", 2)
    assert checked.attempt is None
    assert take(effect(failing(LOAD)), CHECK, Done(revision=V1)).progress.attempt is not None


@pytest.mark.parametrize("progress", [Progress(), replace(KNOWN, revision=V2)])
def test_a_check_of_what_is_no_longer_asked_for_changes_nothing(progress):
    assert take(effect(progress), CHECK, Done(revision=V1)).progress == progress


def test_a_load_makes_it_resident_and_retires_what_was_there():
    memory = Memory(held={"a": Held(path="/held"), "b": Held(path="/b")}, retired={V1.path: 1.0})
    state = take(effect(failing(LOAD), memory, lora("a", "/resident")), LOAD)
    assert state.resident == lora("a", V1.path)
    assert state.memory.held == {
        "a": Held(path=V1.path, parameters='{"p": 1}'),
        "b": Held(path="/b"),
    }
    assert state.memory.retired == {"/held": 50.0, "/resident": 50.0}
    assert state.progress.attempt is None


def test_a_load_is_not_warm_yet_and_no_longer_suspect():
    before = replace(KNOWN, warmed=(V1.path, 2), suspect=True, broken=True)
    progress = take(effect(before), LOAD).progress
    assert (progress.warmed, progress.suspect, progress.broken) == (None, False, False)


def test_a_fallback_leaves_the_desired_revisions_failure_alone():
    fallback = Load(name="a", target=TARGET, revision=V1, fallback=True)
    failed = failing(fallback, before=failing(LOAD))
    assert failed.fallback_attempt is not None
    loaded = take(effect(failed), fallback).progress
    assert loaded.fallback_attempt is None
    assert loaded.attempt == failed.attempt is not None


def test_an_unload_frees_and_forgets_but_one_that_makes_room_for_itself_does_not():
    memory = Memory(held={"a": Held(path=V1.path)}, owned={"a": Owned()})
    before = effect(failing(ENGINE_ACTIONS[1]), memory, lora("a", V1.path))
    dropped = take(before, Unload(name="a", target=TARGET))
    assert dropped.freed
    assert dropped.resident is None
    assert dropped.progress.attempt is None
    assert not dropped.memory.held
    assert not dropped.memory.owned
    assert dropped.memory.retired == {V1.path: 50.0}
    replaced = take(before, Unload(name="a", target=TARGET, replacing=True))
    assert not replaced.freed
    assert replaced.memory.held == memory.held
    assert replaced.memory.owned == memory.owned
    assert replaced.memory.retired == {V1.path: 50.0}


def test_an_eviction_frees_and_is_retired_no_more():
    memory = Memory(retired={V1.path: 1.0, V2.path: 1.0})
    state = take(effect(memory=memory), Evict(name="a", revision=V1))
    assert state.evicted
    assert not state.freed
    assert state.memory.retired == {V2.path: 1.0}


def test_a_warm_up_proves_the_resident_of_this_incarnation():
    warm = Warm(name="a", target=TARGET, path=V1.path)
    progress = take(effect(replace(failing(warm), suspect=True)), warm).progress
    assert progress.warmed == (V1.path, 2)
    assert not progress.suspect
    assert progress.attempt is None


@pytest.mark.parametrize(
    ("suspect", "outcome", "broken"),
    [(True, REJECTED, True), (True, BUSY, False), (False, REJECTED, False)],
)
def test_a_suspect_that_refuses_is_broken(suspect, outcome, broken):
    warm = Warm(name="a", target=TARGET, path=V1.path)
    progress = failing(warm, before=replace(KNOWN, suspect=suspect), outcome=outcome)
    assert progress.broken is broken
    assert (progress.attempt is None) is broken
    assert progress.suspect == (suspect and not broken)


@pytest.mark.parametrize("action", ENGINE_ACTIONS)
@pytest.mark.parametrize("outcome", [TIMEOUT, BUSY])
def test_an_engine_call_without_an_answer_is_unknown(action, outcome):
    assert is_unknown(action, outcome)
    assert not is_unknown(action, REJECTED)
    assert not is_unknown(action, Done())


@pytest.mark.parametrize("action", [FETCH, CHECK, Evict(name="a", revision=V1)])
def test_what_asks_no_engine_is_never_unknown(action):
    assert not is_unknown(action, TIMEOUT)


@pytest.mark.parametrize("action", ENGINE_ACTIONS[:2])
@pytest.mark.parametrize("outcome", [TIMEOUT, REJECTED])
def test_files_that_the_engine_may_have_taken_or_left_stay_for_a_while(action, outcome):
    state = take(effect(resident=lora("a", V1.path)), action, outcome)
    assert (V1.path in state.memory.retired) == (outcome is TIMEOUT)
    assert state.resident == lora("a", V1.path)


def test_a_failure_is_about_what_was_asked_when_it_began():
    other = entry("a", "s3://other")
    for action in (FETCH, CHECK):
        late = failing(action, before=for_entry(KNOWN, other))
        assert late.about == tries(A)
        assert not for_entry(late, other).failures


def test_asking_for_other_bytes_starts_anew_and_for_the_same_ones_does_not():
    progress = failing(FETCH, LOAD)
    assert for_entry(progress, A) is progress
    assert not for_entry(progress, entry("a", digest="sha256:1")).failures
    assert for_entry(None, A) == Progress(about=tries(A))
