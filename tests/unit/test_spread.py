"""Many pods, one edit: what waits for a pod's turn, and what never does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.base import Kind
from sidecar.core.actions import Fetch, Load, Unload
from sidecar.core.memory import Held
from sidecar.core.outcome import Done
from sidecar.core.places import place_of
from sidecar.core.status import Reason, State
from sidecar.core.targets import Context, target_statuses
from sidecar.core.view import Policy
from tests.support.simulated import STORE, TRITON, VLLM, document, entry, revision
from tests.support.trials import kinds, stay, trial_of, wait_of
from tests.support.world import Mode, Trial

SECONDS = 60.0
A, OTHER = entry("a"), entry("a", "s3://other")


def spread(*entries, settle: bool = True, capabilities=VLLM, **options) -> Trial:
    """Return a trial whose turn to replace comes a minute after an edit."""
    policy = Policy(store_root=STORE, replace_after_seconds=SECONDS)
    trial = trial_of(*entries, settle=settle, capabilities=capabilities, policy=policy, **options)
    trial.disk.sources |= {"s3://other": "v2", "s3://third": "v3"}
    return trial


def edited(**options) -> Trial:
    """Return a trial where ``a`` serves and a document asks for another source of it."""
    trial = spread(A, **options)
    trial.accept(document(OTHER))
    return trial


def waits_until(trial: Trial) -> float | None:
    """Return until when ``a`` waits for its turn, or None where it does not."""
    waits = [one for one in trial.plan().waits if one.reason is Reason.SPREAD]
    return waits[0].until if waits else None


def assert_begins_now(trial: Trial) -> None:
    assert waits_until(trial) is None
    assert any(isinstance(step, Fetch) for step in trial.steps("a"))


# What waits.


@pytest.mark.parametrize("capabilities", [VLLM, TRITON])
def test_an_edit_of_what_serves_begins_at_the_pods_turn(capabilities):
    trial = edited(capabilities=capabilities)
    assert not trial.plan()
    assert wait_of(trial).until == trial.now + SECONDS
    trial.now += SECONDS - 0.1
    assert not trial.plan()
    trial.now += 0.1
    assert kinds(trial.actions()) == [Fetch]
    trial.settle()
    assert not trial.held_as_desired()


def test_a_source_that_moved_begins_at_the_pods_turn():
    trial = spread(A)
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    assert waits_until(trial) == trial.now + SECONDS
    trial.now += SECONDS
    assert_begins_now(trial)


def test_a_pin_of_other_bytes_begins_at_the_pods_turn():
    trial = spread(A)
    trial.accept(document(entry("a", digest="sha256:v2")))
    assert waits_until(trial) == trial.now + SECONDS


def test_what_the_engine_was_started_with_is_replaced_at_the_pods_turn():
    trial = spread(entry("b"))
    stay(trial, "a", "/elsewhere/a")
    trial.accept(document(entry("b"), A))
    assert waits_until(trial) == trial.now + SECONDS


def test_a_source_that_the_agent_cannot_see_is_replaced_at_the_pods_turn():
    trial = spread(A, settle=False)
    hub = revision("a", "hub", source="org/repo", verified=False)
    (fetch,) = trial.actions()
    trial.world.apply(fetch, Done(revision=hub), basis=trial.world.basis, now=trial.now, jitter=0.5)
    trial.apply(trial.actions()[-1])
    trial.accept(document(OTHER))
    assert waits_until(trial) == trial.now + SECONDS


def test_while_it_waits_the_target_says_so_and_is_not_converged():
    trial = edited()
    waits = {one.name: one for one in trial.plan().waits}
    status = target_statuses(Context(view=trial.view(), waits=waits), ())["a"]
    assert (status.state, status.revision) == (State.RESIDENT, "v1")
    assert (status.reason, status.retry_at) == ("Spread", trial.now + SECONDS)
    assert "--spread-seconds" in status.message
    assert not status.converged


def test_an_edit_while_another_waits_keeps_the_turn():
    trial = edited()
    due_at = trial.now + SECONDS
    trial.now += 40.0
    trial.accept(document(entry("a", "s3://third")))
    assert waits_until(trial) == due_at
    trial.now = due_at
    assert_begins_now(trial)
    trial.accept(document(OTHER))
    assert waits_until(trial) == due_at + SECONDS


def test_a_move_while_an_edit_waits_keeps_the_turn():
    trial = spread(A)
    due_at = trial.now + SECONDS
    trial.move("a")
    trial.now += 40.0
    trial.move("a")
    assert waits_until(trial) == due_at
    trial.accept(document(OTHER))
    assert waits_until(trial) == due_at


def test_a_move_soon_after_a_first_load_has_a_turn_of_its_own():
    trial = spread(entry("b"))
    trial.disk.sources["s3://a"] = "v1"
    trial.accept(document(entry("b"), A))
    trial.settle()
    trial.now += 30.0
    trial.move("a")
    assert waits_until(trial) == trial.now + SECONDS


def test_an_edit_of_others_moves_no_turn():
    trial = edited()
    due_at = trial.now + SECONDS
    trial.now += 40.0
    trial.accept(document(OTHER, entry("b")))
    assert waits_until(trial) == due_at


def test_an_edit_that_came_while_the_agent_was_away_waits_from_its_start():
    trial = spread(A)
    trial.restart_agent()
    trial.accept(document(OTHER))
    trial.look()
    assert waits_until(trial) == trial.now + SECONDS


def test_another_name_waits_for_its_own_edit_only():
    trial = spread(A, entry("b"))
    trial.accept(document(OTHER, entry("b")))
    assert trial.steps("b") == ()


# What does not wait.


def test_first_loads_and_unloads_do_not_wait():
    trial = spread(A)
    trial.disk.sources["s3://b"] = "v1"
    trial.accept(document(entry("b")))
    assert kinds(trial.actions()) == [Fetch, Unload]
    assert waits_until(trial) is None


def test_the_first_document_that_is_known_of_waits_for_nothing():
    trial = spread(settle=False)
    trial.world.desired = None
    stay(trial, "a", "/elsewhere/a")
    trial.accept(document(A))
    assert_begins_now(trial)


@pytest.mark.parametrize("remembers", [True, False])
def test_files_that_vanished_are_put_back_at_once_while_a_move_waits(remembers):
    trial = spread(A)
    trial.move("a")
    if not remembers:
        trial.world.memory = replace(trial.world.memory, held={})
    del trial.disk.whole[revision("a").path]
    (fetch,) = trial.steps("a")
    assert isinstance(fetch, Fetch)
    assert fetch.restore is not None
    trial.apply(fetch)
    assert waits_until(trial) == trial.now + SECONDS


def test_files_that_vanished_and_that_nobody_asks_for_any_more_are_replaced_at_once():
    trial = edited()
    del trial.disk.whole[revision("a").path]
    assert_begins_now(trial)


def test_what_served_before_is_loaded_at_once_while_the_new_one_waits():
    trial = edited()
    due_at = trial.now + SECONDS
    trial.restart_engine()
    trial.look()
    (load,) = trial.actions()
    assert isinstance(load, Load)
    assert load.fallback
    trial.apply(load)
    assert waits_until(trial) == due_at


@pytest.mark.parametrize("why", ["no files", "it is refused"])
def test_when_nothing_can_serve_the_new_one_is_fetched_at_once(why):
    trial = edited()
    if why == "no files":
        del trial.disk.whole[revision("a").path]
    trial.restart_engine()
    trial.look()
    if why == "it is refused":
        trial.apply(trial.actions()[0], Mode.REJECTED)
        trial.look()
    assert_begins_now(trial)


def test_what_the_engine_failed_to_load_keeps_nobody_waiting():
    trial = spread(A, capabilities=TRITON, settle=False)
    trial.engine.refuses.add(revision("a", kind=Kind.MODEL).path)
    for _ in range(2):
        trial.apply_all(trial.actions())
        trial.look()
    trial.accept(document(OTHER))
    assert_begins_now(trial)


def test_a_resident_that_refuses_requests_is_replaced_at_once():
    trial = edited()
    trial.world.progress["a"] = replace(trial.world.progress["a"], broken=True)
    assert_begins_now(trial)


@pytest.mark.parametrize("moves_again", [False, True])
def test_what_has_begun_is_tried_again_at_its_own_time(moves_again):
    trial = edited()
    trial.now += SECONDS
    trial.apply(trial.actions()[0], Mode.TRANSIENT)
    assert wait_of(trial).reason is not Reason.SPREAD
    if moves_again:
        trial.move("a")
    else:
        trial.now += 2.0
    assert_begins_now(trial)


def test_a_source_that_moves_again_while_it_is_fetched_is_fetched_on():
    trial = spread(A)
    trial.move("a")
    trial.now += SECONDS
    fetch = trial.actions()[0]
    trial.move("a")
    trial.apply(fetch)
    assert_begins_now(trial)


def test_going_back_while_it_waits_needs_nothing_and_forgets_the_turn():
    trial = edited()
    trial.accept(document(A))
    assert not trial.plan()
    assert not trial.plan().waits
    trial.now += 30.0
    trial.accept(document(OTHER))
    assert waits_until(trial) == trial.now + SECONDS


def test_going_back_to_a_source_that_moved_keeps_the_turn():
    trial = spread(A)
    due_at = trial.now + SECONDS
    trial.move("a")
    trial.now += 30.0
    trial.accept(document(OTHER))
    trial.accept(document(A))
    assert waits_until(trial) == due_at


def test_going_back_to_what_is_held_does_not_wait():
    trial = edited()
    trial.engine.refuses.add(revision("a", "v2").path)
    trial.now += SECONDS
    for _ in range(3):
        trial.apply_all(trial.actions())
        trial.look()
    trial.accept(document(A))
    assert_begins_now(trial)
    trial.settle()
    assert not trial.held_as_desired()


def test_a_pin_of_what_is_held_does_not_wait():
    trial = spread(A)
    trial.accept(document(entry("a", "s3://elsewhere", digest="sha256:v1")))
    assert_begins_now(trial)


def test_an_agent_that_restarts_within_the_window_begins_at_once():
    trial = edited()
    trial.restart_agent()
    trial.look()
    assert_begins_now(trial)


def test_other_parameters_and_other_credentials_do_not_wait():
    trial = spread(A)
    trial.accept(document(entry("a", parameters={"p": 1}, credentials="team-a")))
    assert kinds(trial.actions()) == [Unload, Load]


def test_without_a_window_nothing_waits():
    trial = trial_of(A)
    trial.disk.sources["s3://other"] = "v2"
    trial.accept(document(OTHER))
    assert_begins_now(trial)


def test_a_held_revision_that_nobody_sees_serving_and_nobody_has_is_no_reason_to_wait():
    trial = spread(settle=False)
    trial.world.memory = replace(trial.world.memory, held={"a": Held(path=f"{STORE}/lora/a/gone")})
    trial.accept(document(A))
    assert_begins_now(trial)


def test_a_source_of_which_nobody_knows_whether_it_moved_is_read_at_once():
    trial = spread(A)
    trial.world.moved("a", now=trial.now, is_sure=False)
    assert_begins_now(trial)
    trial = spread(A)
    trial.move("a")
    due_at = trial.now + SECONDS
    trial.world.moved("a", now=trial.now, is_sure=False)
    assert waits_until(trial) == due_at


# Places.


def test_pods_have_places_of_their_own_evenly_over_the_window():
    places = sorted(place_of(f"uid-{number}") for number in range(1000))
    assert 0.0 <= places[0] < places[-1] < 1.0
    # What chance does to a thousand places is within 5 %.
    assert max(abs(place - rank / 1000) for rank, place in enumerate(places)) < 0.05


def test_a_place_is_that_of_all_names_in_their_order():
    assert place_of("a", "b") == place_of("a", "b")
    assert len({place_of("a", "b"), place_of("b", "a"), place_of("ab"), place_of("a")}) == 4
