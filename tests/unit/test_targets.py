"""Each target's state in the published words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.base import EngineState, Kind, Residency, Target
from sidecar.core.actions import Check, Fetch, Load, Unload, Wait, Warm
from sidecar.core.desired import Problem, Readiness
from sidecar.core.memory import Latch
from sidecar.core.outcome import Done
from sidecar.core.readiness import Came
from sidecar.core.status import Reason, State
from sidecar.core.targets import Context, Underway, brought, came, is_failing, target_statuses
from tests.support.simulated import TRITON, VLLM, document, entry, lora, revision
from tests.support.world import Mode, Trial

A = entry("a")
V1 = revision("a")
TARGET = Target(name="a", kind=Kind.LORA)
FETCH = Fetch(name="a", entry=A)
CHECK = Check(name="a", entry=A, revision=V1)
LOAD = Load(name="a", target=TARGET, revision=V1)
UNLOAD = Unload(name="a", target=TARGET)
WARM = Warm(name="a", target=TARGET, path=V1.path)


def trial_of(*entries, capabilities=VLLM, settle: bool = True) -> Trial:
    trial = Trial(capabilities)
    trial.disk.sources = {one.source: "v1" for one in entries}
    trial.accept(document(*entries))
    if settle:
        trial.settle()
    else:
        trial.look()
    return trial


def context(trial: Trial, action=None, **changes) -> Context:
    """Return what reports need, with an action under way."""
    underway = {"a": Underway(action=action, bytes=7, total_bytes=9)} if action else {}
    waits = {wait.name: wait for wait in trial.plan().waits}
    return Context(view=trial.view(), waits=waits, underway=underway, **changes)


def status(trial: Trial, action=None, problems=(), **changes):
    return target_statuses(context(trial, action, **changes), problems)["a"]


def test_what_is_resident_is_told_with_its_revision_and_place():
    one = status(trial_of(entry("a", "s3://me:secret@b/a", everywhere=False)))
    assert (one.state, one.revision, one.path) == (State.RESIDENT, "v1", V1.path)
    assert (one.source, one.kind, one.desired) == ("s3://***@b/a", Kind.LORA, True)
    assert (one.reason, one.bytes, one.everywhere) == ("", 100, False)
    assert one.in_slot is None


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (None, State.ABSENT),
        (FETCH, State.FETCHING),
        (CHECK, State.LOADING),
        (LOAD, State.LOADING),
        (UNLOAD, State.UNLOADING),
    ],
)
def test_what_is_under_way_is_told(action, state):
    assert status(trial_of(A, settle=False), action).state is state


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (FETCH, State.RESIDENT),
        (LOAD, State.RESIDENT),
        (UNLOAD, State.UNLOADING),
        (WARM, State.LOADING),
    ],
)
def test_what_answers_requests_is_resident_while_its_successor_is_on_its_way(action, state):
    assert status(trial_of(A), action).state is state


def test_a_proof_after_sleep_takes_nothing_from_serving():
    trial = trial_of(entry("a", warmup=True))
    assert status(trial, WARM).state is State.RESIDENT


def test_bytes_of_a_fetch_are_those_that_came_so_far():
    trial = trial_of(A)
    assert (status(trial, FETCH).bytes, status(trial, FETCH).total_bytes) == (7, 9)
    unknown = {"a": Underway(action=FETCH, bytes=7)}
    one = target_statuses(replace(context(trial), underway=unknown), ())["a"]
    assert (one.bytes, one.total_bytes) == (7, None)


def test_what_is_on_disk_only_is_staged():
    trial = trial_of(A, settle=False)
    trial.apply(FETCH)
    one = status(trial)
    assert (one.state, one.revision, one.path) == (State.STAGED, "v1", "")


def test_what_failed_says_why_and_when_it_is_tried_again():
    trial = trial_of(A, settle=False)
    trial.apply(FETCH, Mode.TRANSIENT)
    one = status(trial)
    assert (one.state, one.reason, one.attempts) == (State.FAILED, "EngineRejected", 1)
    assert one.retry_at == trial.now + 1.0
    assert one.message == "it failed: EngineRejected"
    assert is_failing(one)


def test_a_call_that_took_effect_after_all_is_no_failure():
    trial = trial_of(A, settle=False)
    trial.apply(FETCH)
    trial.apply(CHECK)
    trial.apply(LOAD, Mode.LOST)
    assert status(trial).state is State.FAILED
    trial.look()
    one = status(trial)
    assert (one.state, one.reason, one.attempts) == (State.RESIDENT, "", 0)


def test_a_refused_warm_up_of_what_is_resident_is_told():
    trial = trial_of(A)
    trial.engine.numb = {"a"}
    trial.accept(document(entry("a", warmup=True)))
    trial.apply(WARM)
    one = status(trial)
    assert (one.state, one.reason) == (State.RESIDENT, "EngineRejected")


def test_the_old_revision_serves_and_the_new_ones_failure_is_told():
    trial = trial_of(A)
    trial.move("a")
    trial.apply(FETCH, Mode.TRANSIENT)
    one = status(trial)
    assert (one.state, one.revision, one.reason) == (State.RESIDENT, "v1", "EngineRejected")
    assert not is_failing(one)


@pytest.mark.parametrize("base", [frozenset(), frozenset({"a"})])
def test_what_waits_for_a_person_is_failing(base):
    trial = trial_of(entry("a", kind=None if base else Kind.MODEL), settle=False)
    trial.engine.base_names = base
    trial.settle()
    one = status(trial)
    assert one.state is State.STAGED
    assert one.reason == (Reason.NAME_CONFLICT if base else Reason.INVALID_ARTIFACT)
    assert is_failing(one)


def test_files_that_the_agent_cannot_see_are_told():
    trial = trial_of(A, settle=False)
    hub = revision("a", "hub", source="org/repo", verified=False)
    trial.world.apply(FETCH, Done(revision=hub), basis=trial.world.basis, now=trial.now, jitter=0.5)
    assert status(trial).reason == Reason.UNVERIFIED


@pytest.mark.parametrize("conflict", [True, False])
def test_a_spoiled_entry_is_told_with_its_place(conflict):
    problem = Problem(where="models[0]", what="no source", name="a", conflict=conflict)
    one = status(trial_of(settle=False), problems=[problem, Problem(where="key", what="odd")])
    assert (one.state, one.desired, one.kind) == (State.FAILED, False, None)
    assert one.reason == (Reason.NAME_CONFLICT if conflict else Reason.INVALID_ENTRY)
    assert one.message == "models[0]: no source"
    assert not is_failing(one)


def test_a_spoiled_entry_that_still_serves_is_resident():
    trial = trial_of(A)
    problem = Problem(where="models[0]", what="no source", name="a")
    assert status(trial, problems=[problem]).state is State.RESIDENT


@pytest.mark.parametrize(
    ("residency", "state", "reason"),
    [
        (Residency.RESIDENT, State.RESIDENT, ""),
        (Residency.LOADING, State.LOADING, ""),
        (Residency.UNLOADING, State.UNLOADING, ""),
        (Residency.PARTIAL, State.LOADING, ""),
        (Residency.FAILED, State.FAILED, "EngineRejected"),
    ],
)
def test_what_somebody_else_loaded_is_told_too(residency, state, reason):
    trial = trial_of(settle=False)
    seen = EngineState(residents=(lora("a", "/elsewhere", residency),))
    trial.world.saw(seen, trial.world.begin_look(), refused=False, now=trial.now)
    one = status(trial)
    assert (one.state, one.desired, one.reason) == (state, False, reason)
    assert one.path == ("/elsewhere" if residency is Residency.RESIDENT else "")
    assert one.readiness == "optional"


def test_a_base_model_is_no_target():
    trial = trial_of(settle=False)
    trial.engine.serving[0]["a"] = "/base"
    trial.engine.base_names = frozenset({"a"})
    trial.look()
    assert not target_statuses(context(trial), ())


def test_an_engine_asleep_has_its_targets_asleep():
    trial = trial_of(A)
    trial.engine.asleep = True
    trial.look()
    assert status(trial).state is State.ASLEEP


def test_since_moves_when_the_state_does():
    trial = trial_of(A)
    first = status(trial)
    trial.now += 10.0
    same = status(trial, previous={"a": first})
    other = status(trial, UNLOAD, previous={"a": first})
    assert (same.since, other.since) == (first.since, trial.now)


def test_slots_are_told_of_residents_where_they_are_known():
    trial = trial_of(A, entry("b"))
    trial.accept(document(A, entry("b"), entry("c")))
    told = target_statuses(context(trial, in_slot=frozenset({"a"})), ())
    assert [told[name].in_slot for name in "abc"] == [True, False, None]


def test_a_name_without_files_or_residence_has_the_kind_that_the_document_says():
    assert status(trial_of(entry("a", kind=Kind.MODEL), settle=False)).kind is Kind.MODEL


def test_a_source_that_cannot_be_looked_at_is_told_beside_what_serves():
    trial = trial_of(A)
    trial.world.looked("a", "403 from s3://a: no credentials found")
    one = status(trial)
    assert (one.state, one.reason, one.converged) == (State.RESIDENT, "", True)
    assert one.message == (
        "its source cannot be looked at for changes: 403 from s3://a: no credentials found"
    )
    assert not is_failing(one)
    trial.world.looked("a", "")
    assert status(trial).message == ""


def test_a_failure_is_told_before_a_source_that_cannot_be_looked_at():
    trial = trial_of(A, settle=False)
    trial.apply(FETCH, Mode.TRANSIENT)
    trial.world.looked("a", "403")
    one = status(trial)
    assert (one.reason, one.message) == ("EngineRejected", "it failed: EngineRejected")


# How fast it comes.


def fetched(trial: Trial, *heard: tuple[float, int, int | None]) -> Underway:
    """Return a fetch of which this was heard: seconds from now, bytes, bytes in all."""
    under = Underway(action=FETCH)
    for later, done, total in heard:
        under = under.heard(done, total, trial.now + later)
    return under


def test_the_rate_of_a_fetch_is_told_until_the_moment_it_is_asked_for():
    trial = trial_of(A, settle=False)
    under = fetched(trial, (0.0, 0, 9000), (2.0, 3000, 9000))
    rates = []
    for seconds in (2.0, 1.0):
        trial.now += seconds
        one = target_statuses(Context(view=trial.view(), underway={"a": under}), ())["a"]
        rates.append(one.bytes_per_second)
    assert (one.state, one.bytes, one.total_bytes) == (State.FETCHING, 3000, 9000)
    assert rates == [1500, 1000]


def test_a_fetch_of_which_nothing_was_heard_has_no_rate():
    trial = trial_of(A, settle=False)
    assert status(trial, FETCH).bytes_per_second is None
    assert status(trial).bytes_per_second is None


def test_fetches_are_summed_up_and_in_all_only_where_each_has_a_total():
    trial = trial_of(A, settle=False)
    one = fetched(trial, (0.0, 3, 10))
    assert brought([Underway(action=FETCH)]) is None
    assert brought([one, Underway(action=LOAD)]) == (3, 10)
    assert brought([one, one]) == (6, 20)
    assert brought([one, fetched(trial, (0.0, 4, None))]) == (7, None)


# How far readiness thinks they came.


def came_to(trial: Trial, one=A) -> Came:
    return came(context(trial), one)


def test_what_is_resident_came_whatever_its_revision():
    trial = trial_of(A)
    trial.disk.sources["s3://a"] = "v2"
    trial.move("a")
    assert came_to(trial) is Came.RESIDENT


def test_a_warm_up_counts_until_the_initial_pass_and_not_after():
    one = entry("a", warmup=True)
    trial = trial_of(one, settle=False)
    trial.apply(FETCH)
    trial.apply(CHECK)
    trial.apply(LOAD)
    assert came_to(trial, one) is Came.PENDING
    trial.world.memory = replace(trial.world.memory, latch=Latch(incarnation=1, passed=True))
    assert came_to(trial, one) is Came.RESIDENT


def test_a_warm_up_that_was_refused_is_a_rejection():
    one = entry("a", warmup=True)
    trial = trial_of(one, settle=False)
    trial.apply(FETCH)
    trial.apply(CHECK)
    trial.apply(LOAD)
    trial.apply(WARM, Mode.REJECTED)
    assert came_to(trial, one) is Came.REJECTED


def test_an_engine_that_cannot_be_warmed_up_is_not_waited_for():
    one = entry("a", warmup=True)
    assert came_to(trial_of(one, capabilities=TRITON), one) is Came.RESIDENT


@pytest.mark.parametrize("mode", [Mode.TRANSIENT, Mode.REJECTED])
@pytest.mark.parametrize("steps", [[FETCH], [FETCH, CHECK], [FETCH, CHECK, LOAD]])
def test_rejections_do_not_hold_up_readiness_and_other_failures_do(mode, steps):
    trial = trial_of(A, settle=False)
    for step in steps[:-1]:
        trial.apply(step)
    trial.apply(steps[-1], mode)
    assert came_to(trial) is (Came.REJECTED if mode is Mode.REJECTED else Came.PENDING)


def test_a_resident_that_refused_its_proof_is_pending():
    trial = trial_of(A)
    progress = trial.world.progress["a"]
    trial.world.progress["a"] = replace(progress, broken=True)
    assert came_to(trial) is Came.PENDING


def test_over_capacity_is_a_rejection_and_a_pause_is_not():
    trial = trial_of(A, settle=False)
    full = Wait(name="a", reason=Reason.OVER_CAPACITY, message="full")
    parts = replace(full, reason=Reason.WAITING_FOR_PARTS)
    for wait, expected in ((full, Came.REJECTED), (parts, Came.PENDING)):
        told = replace(context(trial), waits={"a": wait})
        assert came(told, A) is expected


def test_readiness_words_are_those_of_the_document():
    one = entry("a", readiness=Readiness.REQUIRED)
    assert status(trial_of(one)).readiness == "required"


def test_what_answers_although_its_link_leads_elsewhere_is_what_was_held():
    trial = trial_of(A, capabilities=TRITON)
    old = revision("a", kind=Kind.MODEL)
    new = trial.disk.make("a", "v2")
    trial.disk.sources["s3://a"] = "v2"
    # The agent was killed between the swap of the link and the load; then the load was refused.
    trial.engine.links["a"] = new.path
    trial.move("a")
    trial.apply(trial.actions()[0])
    trial.look()
    trial.apply(trial.actions()[-1], Mode.REJECTED)
    one = status(trial)
    assert (one.state, one.revision, one.path) == (State.RESIDENT, "v1", old.path)
    assert not one.converged
