"""Drives: what is under way at once, what waits for what, and what a failure of one means."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adapters.base import EngineRejected
from sidecar.core.actions import Evict, Fetch, Load, Plan
from sidecar.core.outcome import Done, Failed
from sidecar.core.status import Reason, State
from sidecar.core.view import Policy
from sidecar.drives import ENGINE_CONCURRENCY, STALL_SECONDS
from sidecar.known import MANY_FETCHES
from tests.support.loop import LATE, Loop
from tests.support.simulated import STORE, TRITON, VLLM, entry, revision

pytestmark = pytest.mark.looptime


async def pause(seconds: float) -> None:
    """Let the fake clock go on."""
    await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=seconds)


async def test_a_long_load_holds_up_nobody_else():
    agent = Loop(VLLM)
    long = agent.scripted.hold("load", "slow")
    async with agent.running():
        agent.ask("slow", "a", "b")
        await agent.wait(lambda _: agent.engine.names() == {"a", "b"})
        status = await agent.wait(lambda one: one.targets["a"].state is State.RESIDENT)
        assert status.targets["slow"].state is State.LOADING
        agent.ask("slow", "a", "b", "c")
        await agent.wait(lambda _: agent.engine.names() == {"a", "b", "c"})
        assert agent.loads("slow") == 1
        long.set()
        await agent.converge()


async def test_a_fetch_never_waits_for_the_engine():
    agent = Loop(VLLM)
    names = [f"n{number}" for number in range(ENGINE_CONCURRENCY)]
    for name in names:
        agent.scripted.hold("load", name)
    async with agent.running():
        agent.ask(*names)
        await agent.wait(lambda _: all(agent.loads(name) for name in names))
        agent.ask(*names, "late")
        await agent.wait(lambda _: ("check", "late") in agent.calls)
        assert not agent.loads("late")
        for name in names:
            agent.scripted.hold("load", name).set()
        await agent.converge()


async def test_no_more_fetches_at_once_than_asked_for():
    agent = Loop(VLLM, fetch_concurrency=2)
    gates = [agent.scripted.hold("fetch", name) for name in "abc"]
    async with agent.running():
        agent.ask("a", "b", "c")
        await agent.wait(lambda _: len(agent.calls) == 2)
        await asyncio.wait_for(asyncio.shield(agent.wait(lambda one: True)), 1.0)
        gates[0].set()
        await agent.wait(lambda _: ("fetch", "c") in agent.calls)
        for gate in gates:
            gate.set()
        await agent.converge()


async def test_a_fetch_that_nobody_asks_for_any_more_is_cancelled():
    agent = Loop(VLLM)
    agent.scripted.hold("fetch", "a")
    agent.scripted.hold("fetch", "b")
    async with agent.running():
        agent.ask("a", "b", "c")
        await agent.wait(lambda _: agent.engine.names() == {"c"})
        agent.disk.sources["s3://a/v2"] = "v2"
        agent.scripted.held.pop(("fetch", "a"))
        agent.ask("a", "c", number="v2")
        await agent.converge()
        assert sorted(agent.scripted.cancelled) == [("fetch", "a"), ("fetch", "b")]
        assert agent.engine.serving[0]["a"] == revision("a", "v2").path


async def test_a_fetch_that_is_still_asked_for_goes_on():
    agent = Loop(VLLM)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: ("fetch", "a") in agent.calls)
        agent.ask("a", "b")
        await agent.wait(lambda _: agent.engine.names() == {"b"})
        gate.set()
        await agent.converge()
        assert not agent.scripted.cancelled
        assert agent.calls.count(("fetch", "a")) == 1


async def test_progress_of_a_fetch_is_published():
    agent = Loop(VLLM)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        status = await agent.wait(
            lambda one: "a" in one.targets and one.targets["a"].state is State.FETCHING
        )
        assert (status.targets["a"].bytes, status.targets["a"].total_bytes) == (50, 100)
        gate.set()
        await agent.converge()


async def test_an_unload_keeps_its_place_at_the_engine_until_its_load():
    agent = Loop(VLLM)
    crowd = [f"n{number}" for number in range(ENGINE_CONCURRENCY)]
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        unloading = agent.scripted.hold("unload", "a")
        agent.ask("a", number="v2")
        await agent.wait(lambda _: ("unload", "a") in agent.calls)
        for name in crowd:
            agent.scripted.hold("load", name)
        agent.disk.sources |= {f"s3://{name}/v1": "v1" for name in crowd}
        agent.ask("a", *crowd, number="v2")
        busy = ENGINE_CONCURRENCY - 1
        await agent.wait(lambda _: sum(agent.loads(name) for name in crowd) == busy)
        unloading.set()
        await agent.wait(lambda _: agent.engine.serving[0].get("a") == revision("a", "v2").path)
        for name in crowd:
            agent.scripted.hold("load", name).set()
        await agent.converge()
        assert agent.calls.index(("unload", "a")) < len(agent.calls) - agent.calls[::-1].index(
            ("load", "a")
        )
        assert agent.forgotten == ["a"]
        assert agent.loaded.count("a") == 2


async def test_after_a_timeout_it_looks_before_it_acts_again():
    agent = Loop(VLLM)
    agent.scripted.errors["load", "a"] = LATE
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: agent.loads("a") == 1)
        looks = agent.scripted.looks
        await agent.wait(lambda _: agent.loads("a") == 2)
        assert agent.scripted.looks > looks
        agent.scripted.errors.clear()
        await agent.converge()


async def test_a_timeout_that_took_effect_is_seen_and_not_repeated():
    agent = Loop(VLLM)
    agent.scripted.errors["load", "a"] = LATE
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: agent.loads("a") == 1)
        agent.engine.serving[0]["a"] = revision("a").path
        status = await agent.converge()
        assert agent.loads("a") == 1
        assert status.targets["a"].reason == ""


async def test_a_rejection_is_told_and_the_rest_goes_on():
    agent = Loop(VLLM)
    agent.scripted.errors["load", "bad"] = EngineRejected("rank too high")
    async with agent.running():
        agent.ask("bad", "good")
        status = await agent.wait(
            lambda one: "bad" in one.targets and one.targets["bad"].state is State.FAILED
        )
        assert status.targets["bad"].message == "rank too high"
        await agent.wait(lambda _: agent.engine.names() == {"good"})
        await agent.wait(lambda _: agent.loads("bad") == 2, timeout=400.0)
        retries = [action for action, outcome in agent.ended if isinstance(outcome, Failed)]
        assert {type(one) for one in retries} == {Load}


async def test_a_defect_in_one_drive_ends_neither_the_loop_nor_its_pauses(caplog):
    agent = Loop(VLLM)
    agent.scripted.errors["load", "a"] = ZeroDivisionError("a bug")
    async with agent.running():
        agent.ask("a", "b")
        status = await agent.wait(
            lambda one: "a" in one.targets and one.targets["a"].reason == Reason.INTERNAL_ERROR
        )
        assert "ZeroDivisionError" in status.targets["a"].message
        await agent.wait(lambda _: agent.engine.names() == {"b"})
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=30.0)
        assert agent.loads("a") == 1
        agent.scripted.errors.clear()
        await agent.converge(timeout=120.0)
    assert "a defect of the agent" in caplog.text


async def test_a_defect_of_the_decisions_ends_the_drive_alone(caplog):
    agent = Loop(VLLM)
    boom = iter([True])

    def ended(*_):
        if next(boom, False):
            raise ZeroDivisionError("a bug")

    agent.ended = type("Ended", (list,), {"append": ended})()
    async with agent.running():
        agent.ask("a")
        await agent.converge()
    assert "target a is tried again" in caplog.text


async def test_evictions_are_planned_anew_before_each():
    agent = Loop(VLLM, policy=Policy(store_root=STORE, retain_seconds=0.0))
    old = agent.disk.make("a", "v1", used_at=2.0)
    agent.disk.make("0", "v1", used_at=1.0)
    gate = agent.scripted.hold("evict", "0")
    async with agent.running():
        agent.offer("models: []\n")
        await agent.wait(lambda _: ("evict", "0") in agent.calls)
        agent.ask("a")
        await agent.wait(lambda _: agent.engine.names() == {"a"})
        gate.set()
        await agent.converge()
        assert old.path in agent.disk.whole
        assert ("evict", "a") not in agent.calls


async def test_evictions_go_one_after_another_and_a_failing_one_waits():
    agent = Loop(VLLM, policy=Policy(store_root=STORE, retain_seconds=0.0))
    for number in range(3):
        agent.disk.make(f"n{number}", "v1")
    agent.scripted.errors["evict", "n1"] = OSError(13, "Permission denied")
    async with agent.running():
        agent.offer("models: []\n")
        await agent.wait(lambda _: len(agent.disk.whole) == 1)
        tries = agent.calls.count(("evict", "n1"))
        assert tries <= 2
        agent.scripted.errors.clear()
        await agent.wait(lambda _: not agent.disk.whole)
        evictions = [outcome for action, outcome in agent.ended if isinstance(action, Evict)]
        assert sum(isinstance(one, Done) for one in evictions) == 3


async def test_a_target_that_needs_more_steps_than_one_drive_has_goes_on_later(monkeypatch):
    monkeypatch.setattr("sidecar.drives.MAX_STEPS", 1)
    agent = Loop(TRITON)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        assert [verb for verb, _ in agent.calls] == ["fetch", "check", "load"]


async def test_idle_is_waited_for_with_a_limit():
    agent = Loop(VLLM)
    assert await agent.drives.wait_idle(1.0)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: bool(agent.calls))
        assert not await agent.reconciler.wait_idle(1.0)
        gate.set()
        assert await agent.reconciler.wait_idle(1.0)
    assert any(isinstance(action, Fetch) for action, _ in agent.ended)


async def test_a_document_mended_while_its_load_is_under_way_is_tried_at_once():
    agent = Loop(VLLM)
    gate = agent.scripted.hold("load", "a")
    agent.scripted.errors["load", "a"] = EngineRejected("wrong parameter")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: agent.loads("a") == 1)
        agent.offer("models:\n- {name: a, source: 's3://a/v1', parameters: {right: 1}}\n")
        await agent.wait(lambda one: one.document.generation == 2)
        agent.scripted.errors["load", "a"] = EngineRejected("wrong parameter")
        gate.set()
        await agent.wait(lambda _: agent.loads("a") == 2, timeout=10.0)


MANY = [f"n{number:03}" for number in range(100)]


async def test_what_many_targets_have_on_disk_is_found_at_once():
    agent = Loop(VLLM)
    for name in MANY[1:]:
        agent.disk.make(name, "v1")
    async with agent.running():
        agent.ask(*MANY)
        await agent.converge()
    assert [name for verb, name in agent.calls if verb == "fetch"] == MANY[:1]


async def test_a_defect_in_finding_them_leaves_each_to_its_own_fetch(caplog):
    agent = Loop(VLLM)
    agent.scripted.errors["fetch_known", ""] = ZeroDivisionError("a bug")
    async with agent.running():
        agent.ask(*MANY)
        await agent.converge()
    assert "each target is fetched by itself" in caplog.text


async def test_a_source_that_hangs_holds_up_nobody_else_whose_files_are_on_disk():
    agent = Loop(VLLM)
    names = MANY[:MANY_FETCHES]
    for name in names[1:]:
        agent.disk.make(name, "v1")
    agent.scripted.hold("fetch_known", "")
    agent.scripted.hold("fetch", names[0])
    async with agent.running():
        agent.ask(*names)
        await agent.wait(lambda _: agent.engine.names() == set(names[1:]), timeout=10.0)
        agent.scripted.hold("fetch", names[0]).set()
        await agent.converge()


async def test_what_served_before_is_loaded_before_any_source_answers():
    agent = Loop(VLLM)
    names = MANY[:MANY_FETCHES]
    async with agent.running():
        agent.ask(*names)
        await agent.converge()
    again = Loop(VLLM, memory=agent.saved[-1], disk=agent.disk, engine=agent.engine)
    agent.engine.restart(123.0)
    known = again.scripted.hold("fetch_known", "")
    for name in names:
        again.scripted.hold("fetch", name)
    async with again.running():
        again.ask(*names)
        await again.wait(lambda _: again.engine.names() == set(names), timeout=1.0)
        known.set()
        await again.converge()
    assert not any(verb == "fetch" for verb, _ in again.calls)


async def test_a_fetch_of_which_nothing_is_heard_gives_its_place_to_others():
    agent = Loop(VLLM, fetch_concurrency=1)
    agent.scripted.hold("fetch", "hung")
    async with agent.running():
        agent.ask("hung")
        await agent.wait(lambda _: ("fetch", "hung") in agent.calls)
        agent.ask("hung", "good")
        await agent.wait(lambda _: agent.engine.names() == {"good"}, timeout=STALL_SECONDS + 10.0)
        status = agent.board.status.targets["hung"]
        assert status.reason == Reason.FETCH_FAILED
        assert "nothing was heard" in status.message
        agent.scripted.hold("fetch", "hung").set()
        await agent.converge(timeout=STALL_SECONDS)


async def test_a_slow_fetch_that_reports_goes_on():
    agent = Loop(VLLM)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: ("fetch", "a") in agent.calls)
        for done in range(60, 63):
            await asyncio.wait(
                [asyncio.create_task(asyncio.Event().wait())], timeout=STALL_SECONDS - 1
            )
            agent.scripted.reports["a"](done, 100)
        gate.set()
        await agent.converge()
        assert agent.calls.count(("fetch", "a")) == 1


async def test_a_fetch_that_reports_the_same_bytes_was_heard_of():
    agent = Loop(VLLM)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: ("fetch", "a") in agent.calls)
        for _ in range(3):
            await pause(STALL_SECONDS - 1)
            agent.scripted.reports["a"](50, 100)
        gate.set()
        await agent.converge()
        assert agent.calls.count(("fetch", "a")) == 1


async def test_progress_and_rate_are_told_a_few_times_a_second_however_often_they_are_heard():
    agent = Loop(VLLM)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: ("fetch", "a") in agent.calls)
        told: list[tuple[int, float | None]] = []

        async def follow() -> None:
            while True:
                await agent.board.wait_changed(60.0)
                one = agent.board.status.targets["a"]
                told.append((one.bytes, one.bytes_per_second))

        following = asyncio.create_task(follow())
        for done in range(0, 1_000_000, 1000):
            agent.scripted.reports["a"](done, 1_000_000)
            await pause(0.01)
        following.cancel()
        assert 20 <= len(told) <= 40
        assert told[-1][1] == pytest.approx(100_000, rel=0.05)
        gate.set()
        await agent.converge()
        assert agent.board.status.targets["a"].bytes_per_second is None


async def test_the_sentence_tells_how_far_a_fetch_has_come_and_the_log_does_not(caplog):
    caplog.set_level("INFO")
    agent = Loop(VLLM)
    gate = agent.scripted.hold("fetch", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda one: "fetching a (50 % 50 B of 100 B)" in one.cycle)
        agent.scripted.reports["a"](60, 100)
        await agent.wait(lambda one: "fetching a (60 % 60 B of 100 B)" in one.cycle)
        agent.scripted.reports["a"](70, None)
        await agent.wait(lambda one: "fetching a (70 B)" in one.cycle)
        gate.set()
        await agent.converge()
    assert len([one for one in caplog.messages if "fetching a" in one]) == 1


async def test_a_replacement_begins_at_the_pods_turn_and_meanwhile_all_else_goes_on():
    agent = Loop(VLLM, policy=Policy(store_root=STORE, replace_after_seconds=20.0))
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        edited_at = asyncio.get_running_loop().time()
        agent.disk.sources["s3://a/v2"] = "v2"
        agent.offer("models:\n- {name: a, source: 's3://a/v2'}\n- {name: b, source: 's3://a/v1'}\n")
        status = await agent.wait(lambda _: agent.engine.names() == {"a", "b"}, timeout=5.0)
        status = await agent.wait(lambda one: one.targets["a"].reason == Reason.SPREAD)
        assert not status.converged
        assert status.targets["a"].state is State.RESIDENT
        await agent.converge()
        assert asyncio.get_running_loop().time() - edited_at == pytest.approx(20.0, abs=0.5)
        assert agent.engine.serving[0]["a"] == revision("a", "v2").path


async def test_a_late_report_of_a_cancelled_fetch_is_not_listened_to():
    agent = Loop(VLLM)
    agent.scripted.hold("fetch", "b")
    async with agent.running():
        agent.ask("a", "b")
        await agent.wait(lambda _: agent.engine.names() == {"a"})
        agent.ask("a")
        await agent.converge()
        assert agent.scripted.cancelled == [("fetch", "b")]
        agent.scripted.reports["b"](60, 100)
        assert not agent.drives.underway
        agent.ask("a", "c")
        await agent.converge()


async def test_a_drive_that_is_cancelled_before_its_first_step_is_forgotten():
    agent = Loop(VLLM)
    async with asyncio.TaskGroup() as group:
        agent.drives.start(Plan(actions=(Fetch(name="a", entry=entry("a")),)), group)
        assert agent.drives
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    assert not agent.drives


async def test_when_closed_it_begins_nothing_but_the_load_of_what_was_unloaded():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        unloading = agent.scripted.hold("unload", "a")
        loading = agent.scripted.hold("load", "b")
        agent.ask("a", "b", number="v2")
        await agent.wait(lambda _: ("unload", "a") in agent.calls and ("load", "b") in agent.calls)
        agent.reconciler.close()
        agent.ask("a", "b", "c", number="v2")
        before = len(agent.calls)
        unloading.set()
        loading.set()
        assert await agent.reconciler.wait_idle(5.0)
        agent.reconciler.wake()
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=20.0)
        assert agent.calls[before:] == [("load", "a")]
        assert agent.engine.serving[0]["a"] == revision("a", "v2").path


async def test_a_defect_that_stays_is_met_once_a_second():
    agent = Loop(VLLM)
    world: Any = agent.world
    world.apply = lambda *_, **__: 1 // 0
    async with agent.running():
        agent.ask("a")
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=10.0)
    assert 1 < agent.calls.count(("fetch", "a")) <= 11
