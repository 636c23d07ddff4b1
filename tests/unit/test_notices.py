"""What is worth an Event, and how few Events are made of much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Kind
from sidecar.cluster.notices import Happening, Notice, Watched, watch
from sidecar.cluster.outbox import (
    EVERYBODY,
    GATHER_SECONDS,
    MAX_PENDING,
    REPEAT_SECONDS,
    WRITES_A_MINUTE,
    Outbox,
    Record,
)
from sidecar.core.status import (
    DocumentStatus,
    EngineCondition,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
)


def target(
    name: str, state: State = State.RESIDENT, revision: str = "r1", **more: Any
) -> TargetStatus:
    known: dict[str, Any] = {
        "kind": Kind.LORA,
        "source": "/x",
        "desired": True,
        "readiness": "initial",
    }
    return TargetStatus(name=name, state=state, revision=revision, **(known | more))


def status(*targets: TargetStatus, engine=EngineCondition.UP, restarts: int = 0) -> Status:
    return Status(
        version="1",
        pod="chat-0",
        ready=True,
        converged=True,
        reasons=(),
        cycle="",
        document=DocumentStatus(),
        engine=EngineStatus(kind="vllm", urls=(), state=engine, restarts=restarts),
        store=StoreStatus(),
        targets={one.name: one for one in targets},
    )


def told(*statuses: Status) -> list[str]:
    """What is told of these statuses, one a second."""
    watched: Watched | None = None
    said: list[str] = []
    for now, one in enumerate(statuses):
        watched, notices = watch(watched, one, now)
        said += [f"{notice.happening}: {notice.message}" for notice in notices]
    return said


def test_a_target_that_comes_is_told_once():
    come = status(target("sql", revision="abcdef0123456789"))
    assert told(status(target("sql", State.LOADING)), come, come) == [
        "TargetLoaded: lora sql revision abcdef012345 is resident"
    ]


def test_another_revision_is_told():
    assert told(status(target("sql")), status(target("sql", revision="r2"))) == [
        "TargetLoaded: lora sql revision r2 is resident"
    ]


def test_what_the_engine_held_at_the_first_look_is_no_news():
    assert told(status(engine=EngineCondition.UNKNOWN), status(target("sql"))) == []


def test_what_nobody_asked_for_is_no_news():
    assert told(status(), status(target("other", desired=False))) == []


def test_failures_are_told_and_each_attempt_is_another():
    failed = target("sql", State.FAILED, "", reason="NotFound", message="no such key")
    first, second = (status(replace(failed, attempts=count)) for count in (1, 2))
    assert told(status(), first, first, second) == [
        "TargetFailed: lora sql: NotFound: no such key",
        "TargetFailed: lora sql: NotFound: no such key",
    ]


def test_an_entry_that_is_wrong_is_told_although_the_old_one_serves():
    wrong = target("sql", reason="InvalidEntry", message="models[0].rank: no such field")
    assert told(status(target("sql")), status(wrong)) == [
        "TargetFailed: lora sql: InvalidEntry: models[0].rank: no such field"
    ]


def test_another_reason_is_told_although_nothing_was_attempted():
    wrong, taken = (target("sql", reason=one) for one in ("InvalidEntry", "NameConflict"))
    assert told(status(target("sql")), status(wrong), status(taken)) == [
        "TargetFailed: lora sql: InvalidEntry",
        "TargetFailed: lora sql: NameConflict",
    ]


def test_what_only_waits_is_no_failure():
    waits = target("sql", State.STAGED, reason="Spread", message="its turn comes")
    assert told(status(), status(waits)) == []


def test_a_restart_is_told_when_all_is_back_and_not_target_by_target():
    both = status(target("a"), target("b"))
    down = status(target("a"), target("b"), engine=EngineCondition.DOWN)
    gone = status(target("a", State.ABSENT), target("b", State.LOADING), restarts=1)
    half = status(target("a"), target("b", State.LOADING), restarts=1)
    back = status(target("a"), target("b"), restarts=1)
    assert told(both, down, gone, half, back, back) == [
        "EngineHealed: the engine restarted; 2 targets that it held are back after 2 s"
    ]


def test_a_restart_during_healing_is_the_same_healing():
    statuses = (
        status(target("a"), target("b")),
        status(target("a", State.ABSENT), target("b", State.ABSENT), restarts=1),
        status(target("a"), target("b", State.ABSENT), restarts=1),
        status(target("a", State.ABSENT), target("b", State.ABSENT), restarts=2),
        status(target("a"), target("b"), restarts=2),
    )
    assert told(*statuses) == [
        "EngineHealed: the engine restarted; 2 targets that it held are back after 3 s"
    ]


def test_what_left_the_document_during_a_restart_is_not_waited_for():
    statuses = (
        status(target("a"), target("b")),
        status(target("a", State.ABSENT), target("b", State.ABSENT), restarts=1),
        status(target("a"), restarts=1),
    )
    assert [one.split(":")[0] for one in told(*statuses)] == ["EngineHealed"]


def test_another_revision_after_a_restart_is_told_as_well():
    statuses = (
        status(target("a")),
        status(target("a", State.ABSENT), restarts=1),
        status(target("a", revision="r2"), restarts=1),
    )
    assert [one.split(":")[0] for one in told(*statuses)] == ["TargetLoaded", "EngineHealed"]


def test_a_restart_of_an_engine_that_held_nothing_is_no_healing():
    assert told(status(), status(restarts=1), status(target("a"), restarts=1)) == [
        "TargetLoaded: lora a revision r1 is resident"
    ]


def failed(name: str, message: str = "no") -> Notice:
    return Notice(happening=Happening.FAILED, target=name, message=message)


def drain(outbox: Outbox, now: float) -> list[Record]:
    """Take and write what is due."""
    taken: list[Record] = []
    while (record := outbox.take(now)) is not None:
        event, whole = outbox.repeated(record)
        outbox.written(whole, event or f"event-{now}-{len(taken)}")
        taken.append(whole)
    return taken


def test_a_record_waits_for_what_comes_with_it():
    outbox = Outbox()
    assert outbox.due_in(0.0) is None
    outbox.add([failed("a")], 10.0)
    assert outbox.due_in(10.0) == GATHER_SECONDS
    assert outbox.take(10.0) is None
    (record,) = drain(outbox, 11.0)
    assert (record.message, record.count, record.first_at, record.last_at) == ("no", 1, 10.0, 10.0)
    assert outbox.due_in(11.0) is None


def test_repeats_are_counted_on_the_event_that_is_there():
    outbox = Outbox()
    outbox.add([failed("a")], 0.0)
    drain(outbox, 1.0)
    outbox.add([failed("a", "still no")], 100.0)
    record = outbox.take(101.0)
    assert record is not None
    event, whole = outbox.repeated(record)
    assert event == "event-1.0-0"
    assert (whole.message, whole.count, whole.first_at, whole.last_at) == (
        "still no",
        2,
        0.0,
        100.0,
    )


def test_the_same_much_later_is_a_new_event():
    outbox = Outbox()
    outbox.add([failed("a")], 0.0)
    drain(outbox, 1.0)
    outbox.add([failed("a")], REPEAT_SECONDS + 1)
    (record,) = drain(outbox, REPEAT_SECONDS + 2)
    assert record.count == 1


def test_a_burst_is_one_event():
    outbox = Outbox()
    outbox.add([failed(f"t{number}") for number in range(40)], 0.0)
    outbox.add([Notice(happening=Happening.HEALED, target="", message="well")], 0.0)
    records = drain(outbox, 1.0)
    assert {record.key for record in records} == {
        (Happening.FAILED, EVERYBODY),
        (Happening.HEALED, ""),
    }
    (group,) = (record for record in records if record.key[1] == EVERYBODY)
    assert group.count == 40
    assert group.message == "40 targets: t0, t1, t2, t3, t4 and 35 more; the last: no"


def test_what_could_not_be_written_is_kept_and_held():
    outbox = Outbox()
    outbox.add([failed("a")], 0.0)
    record = outbox.take(1.0)
    assert record is not None
    outbox.give_back(record)
    outbox.hold(31.0)
    outbox.add([failed("a", "newer")], 5.0)
    assert outbox.due_in(5.0) == 26.0
    (record,) = drain(outbox, 31.0)
    assert (record.message, record.count, record.first_at) == ("newer", 2, 0.0)


def test_what_goes_on_and_on_is_written_seldom():
    outbox, writes = Outbox(), 0
    for second in range(60):
        outbox.add([failed(f"t{second}")], float(second))
        writes += len(drain(outbox, float(second)))
    assert writes == WRITES_A_MINUTE
    (rest,) = drain(outbox, 61.5)
    assert rest.key == (Happening.FAILED, EVERYBODY)


steps = st.lists(st.tuples(st.integers(0, 8), st.floats(0, 30)), max_size=60)


@given(steps)
def test_never_more_than_so_many_in_a_minute_and_nothing_is_lost(steps):
    outbox, now, noticed = Outbox(), 0.0, 0
    writes: list[float] = []
    counted = 0
    for name, pause in steps:
        outbox.add([failed(f"t{name}")], now)
        noticed += 1
        now += pause
        while (record := outbox.take(now)) is not None:
            writes.append(now)
            counted += record.count
    while (due := outbox.due_in(now)) is not None:
        now += due + 1e-6
        if (record := outbox.take(now)) is not None:
            writes.append(now)
            counted += record.count
    assert counted == noticed
    for first in writes:
        assert sum(1 for at in writes if first <= at < first + 60.0) <= WRITES_A_MINUTE


def test_what_is_pending_is_bounded():
    outbox = Outbox()
    for number in range(MAX_PENDING + 100):
        outbox.add([failed(f"t{number}")], 0.0)
    (record,) = drain(outbox, 1.0)
    assert record.count == MAX_PENDING
