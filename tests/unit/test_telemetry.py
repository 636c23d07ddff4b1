"""The agent's own series."""

import dataclasses

from adapters.base import Kind
from sidecar.core.status import (
    DocumentStatus,
    EngineCondition,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
)
from sidecar.telemetry import PREFIX, Telemetry
from tests.support import picker_oracle as oracle


def target(name, state=State.RESIDENT, kind=Kind.LORA):
    return TargetStatus(
        name=name,
        kind=kind,
        source="",
        desired=True,
        readiness="initial",
        state=state,
        revision="r1",
    )


def status(*targets):
    return Status(
        version="1.2.3",
        pod="pod-a",
        ready=True,
        converged=False,
        reasons=(),
        cycle="",
        document=DocumentStatus(
            digest="abc", valid=True, problems=({"where": "x", "what": "y", "hint": ""},)
        ),
        engine=EngineStatus(kind="vllm", urls=(), state=EngineCondition.UP),
        store=StoreStatus(bytes=77),
        targets={one.name: one for one in targets},
    )


def families(telemetry, **arguments):
    return oracle.parse(telemetry.render_own(**arguments))


def value(telemetry, name, **labels):
    found = [
        figure
        for told, figure, _ in families(telemetry)[f"{PREFIX}_{name}"].samples
        if labels.items() <= told.items()
    ]
    assert len(found) == 1, found
    return found[0]


def test_every_promised_series_is_there():
    telemetry = Telemetry(lambda: status(target("a")))
    telemetry.action_done("load", "done", 1.5)
    telemetry.sampled("done")
    promised = """ready converged document_info document_valid document_problems targets
        target_state target_reason actions_total action_duration_seconds propagation_seconds
        replacement_gap_seconds engine_up engine_asleep engine_restarts_total
        engine_sample_age_seconds engine_sample_interval_seconds engine_samples_total store_bytes
        fetched_bytes_total event_loop_lag_seconds build_info"""
    names = families(telemetry, sample_age_seconds=0.5, sample_interval_seconds=0.1).keys()
    assert names == {f"{PREFIX}_{name}" for name in promised.split()}


def test_states_are_read_off_the_status():
    telemetry = Telemetry(lambda: status(target("a"), target("b", State.FAILED), target("c")))
    assert value(telemetry, "ready") == 1
    assert value(telemetry, "converged") == 0
    assert value(telemetry, "document_info", digest="abc") == 1
    assert value(telemetry, "document_valid") == 1
    assert value(telemetry, "document_problems") == 1
    assert value(telemetry, "engine_up") == 1
    assert value(telemetry, "store_bytes") == 77
    assert value(telemetry, "build_info", version="1.2.3") == 1
    assert value(telemetry, "targets", kind="lora", state="resident") == 2
    assert value(telemetry, "targets", kind="lora", state="failed") == 1
    assert value(telemetry, "targets", kind="model", state="resident") == 0
    assert value(telemetry, "target_state", target="b", revision="r1", state="failed") == 1


def test_a_target_that_went_leaves_no_series_behind():
    published = [status(target("a"), target("b"))]
    telemetry = Telemetry(lambda: published[-1])
    assert len(families(telemetry)[f"{PREFIX}_target_state"].samples) == 2
    published.append(status(target("b", State.LOADING, kind=None)))
    (sample,) = families(telemetry)[f"{PREFIX}_target_state"].samples
    assert sample[0] == {"target": "b", "kind": "unknown", "revision": "r1", "state": "loading"}


def test_a_reason_has_a_series_for_as_long_as_it_stands():
    spoiled = dataclasses.replace(target("b", State.RESIDENT), reason="AccessDenied")
    published = [status(target("a"), spoiled)]
    telemetry = Telemetry(lambda: published[-1])
    (sample,) = families(telemetry)[f"{PREFIX}_target_reason"].samples
    assert sample[0] == {"target": "b", "kind": "lora", "reason": "AccessDenied"}
    published.append(status(target("a"), target("b")))
    assert families(telemetry)[f"{PREFIX}_target_reason"].samples == []


def test_what_happened_is_counted():
    telemetry = Telemetry(status)
    telemetry.action_done("load", "done", 2.0)
    telemetry.action_done("load", "rejected", 0.1)
    telemetry.propagated(3.0)
    telemetry.replaced(0.03)
    telemetry.engine_restarted()
    telemetry.sampled("timeout")
    telemetry.fetched(1000)
    telemetry.fetched(24)
    telemetry.loop_lag(0.01)
    assert value(telemetry, "actions_total", action="load", outcome="done") == 1
    assert value(telemetry, "actions_total", action="load", outcome="rejected") == 1
    assert value(telemetry, "engine_restarts_total") == 1
    assert value(telemetry, "engine_samples_total", outcome="timeout") == 1
    assert value(telemetry, "fetched_bytes_total") == 1024
    text = telemetry.render_own().decode()
    assert f'{PREFIX}_action_duration_seconds_sum{{action="load"}} 2.1\n' in text
    assert f"{PREFIX}_propagation_seconds_sum 3.0\n" in text
    assert f"{PREFIX}_replacement_gap_seconds_sum 0.03\n" in text
    assert f"{PREFIX}_event_loop_lag_seconds_count 1.0\n" in text


def test_an_engine_that_was_never_sampled_has_no_age():
    assert f"{PREFIX}_engine_sample_age_seconds" not in families(Telemetry(status))


def test_an_engine_that_does_not_answer_is_not_up():
    down = dataclasses.replace(
        status(), engine=EngineStatus(kind="vllm", urls=(), state=EngineCondition.DOWN)
    )
    assert value(Telemetry(lambda: down), "engine_up") == 0
    assert value(Telemetry(lambda: down), "engine_asleep") == 0


def test_an_engine_that_sleeps_is_told_whatever_it_holds():
    sleeping = dataclasses.replace(
        status(), engine=EngineStatus(kind="vllm", urls=(), state=EngineCondition.ASLEEP)
    )
    assert value(Telemetry(lambda: sleeping), "engine_up") == 1
    assert value(Telemetry(lambda: sleeping), "engine_asleep") == 1
    assert value(Telemetry(status), "engine_asleep") == 0


def test_a_name_that_no_utf8_can_say_does_not_break_the_page():
    telemetry = Telemetry(lambda: status(target('od"d\\\ud800')))
    (sample,) = families(telemetry)[f"{PREFIX}_target_state"].samples
    assert sample[0]["target"] == 'od"d\\?'


def test_two_agents_in_one_process_do_not_share_series():
    first, second = Telemetry(status), Telemetry(status)
    first.fetched(5)
    assert value(second, "fetched_bytes_total") == 0
