"""The loop: what wakes it, what it publishes, and what it lives through."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from adapters.base import EngineState, Resident
from sidecar.core.memory import Memory
from sidecar.core.plan import plan
from sidecar.core.readiness import GRACE_SECONDS, STEADY_SECONDS
from sidecar.core.snapshot import Presence
from sidecar.core.status import EngineCondition, State
from tests.support.loop import DOWN, Loop
from tests.support.simulated import TRITON, VLLM, document, entry, revision
from tests.support.world import Trial

pytestmark = pytest.mark.looptime


async def pause(seconds: float) -> None:
    """Let the fake clock run on."""
    await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=seconds)


@pytest.mark.parametrize("capabilities", [VLLM, TRITON])
async def test_it_converges_and_says_so(capabilities, caplog):
    caplog.set_level("INFO")
    agent = Loop(capabilities)
    async with agent.running():
        await agent.wait(lambda one: "no document yet" in one.cycle)
        agent.ask("a", "b")
        status = await agent.converge()
        assert status.ready
        assert {name: one.state for name, one in status.targets.items()} == {
            "a": State.RESIDENT,
            "b": State.RESIDENT,
        }
        assert status.document.observed_generation == status.document.generation == 1
        assert status.engine.state is EngineCondition.UP
        await agent.wait(lambda one: one.cycle == "generation 1: converged, 2 targets")
        assert "generation 1: loaded 2 targets" in caplog.text
        assert agent.saved[-1].observed_generation == 1
        assert agent.saved[-1].documents


async def test_propagation_is_told_once_from_the_documents_event_to_convergence():
    agent = Loop(VLLM)
    agent.scripted.hold("load", "a")
    async with agent.running():
        agent.ask("a")
        await agent.wait(lambda _: agent.loads("a") == 1)
        await pause(3.0)
        agent.scripted.hold("load", "a").set()
        await agent.converge()
        await pause(20.0)
        (seconds,) = agent.propagated
        assert 3.0 <= seconds < 4.0


async def test_an_empty_list_unloads_and_a_missing_document_does_not():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        for presence in (Presence.ABSENT, Presence.UNREADABLE, Presence.PRESENT):
            agent.offer(None, presence)
            await pause(20.0)
            assert agent.engine.names() == {"a"}
        agent.ask()
        await agent.converge()
        assert not agent.engine.names()


async def test_an_invalid_document_keeps_the_last_good_one_and_is_told():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.offer("models: [")
        status = await agent.wait(lambda one: not one.document.valid)
        assert status.document.problems
        assert not status.converged
        assert status.ready
        await agent.wait(lambda one: "the document is not valid (models.yaml" in one.cycle)
        await pause(20.0)
        assert agent.engine.names() == {"a"}
        agent.ask("b")
        await agent.converge()
        assert agent.engine.names() == {"b"}


async def test_an_engine_that_does_not_answer_is_unknown_and_healed_when_it_does():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a", "b")
        await agent.converge()
        agent.scripted.down = DOWN
        agent.ask("a")
        status = await agent.wait(lambda one: one.engine.state is EngineCondition.DOWN)
        assert status.engine.message == "connection refused"
        assert "the engine cannot be seen (connection refused)" in status.cycle
        status = await agent.wait(lambda one: not one.ready)
        assert not any(verb == "unload" for verb, _ in agent.calls)
        agent.engine.restart(agent.clock.now())
        agent.scripted.down = None
        status = await agent.wait(lambda one: one.ready and one.converged)
        assert agent.engine.names() == {"a"}
        assert agent.restarts == 1
        assert status.engine.restarts == 1


async def test_one_slow_answer_does_not_unready():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.scripted.down = DOWN
        await agent.wait(lambda one: one.engine.state is EngineCondition.DOWN)
        agent.scripted.down = None
        status = await agent.wait(lambda one: one.engine.state is EngineCondition.UP)
        assert status.ready


@pytest.mark.parametrize("patience", [2.0, 5.0, 60.0])
async def test_a_silent_engine_unreadies_after_the_grace_whatever_a_looks_own_deadline(patience):
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.scripted.silent, agent.scripted.patience = asyncio.Event(), patience
        agent.reconciler.wake()
        hung_at = agent.clock.now()
        status = await agent.wait(lambda one: not one.ready)
        assert GRACE_SECONDS < agent.clock.now() - hung_at <= GRACE_SECONDS + 0.6
        assert status.reasons[0].startswith("The engine has not answered for ")
        agent.scripted.silent.set()
        await agent.wait(lambda one: one.ready, STEADY_SECONDS + 1.5)


@pytest.mark.parametrize("after", [0.1, 2.5, 4.9])
async def test_an_engine_that_hangs_between_looks_unreadies_by_the_next_one_and_the_grace(after):
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        await pause(after)
        agent.scripted.silent = asyncio.Event()
        hung_at = agent.clock.now()
        await agent.wait(lambda one: not one.ready)
        assert GRACE_SECONDS < agent.clock.now() - hung_at <= 5.0 + GRACE_SECONDS + 0.6


async def test_an_answer_that_comes_late_within_the_grace_unreadies_nobody():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        for _ in range(10):
            agent.scripted.silent = asyncio.Event()
            agent.reconciler.wake()
            assert not await agent.unready_within(4.9)
            agent.scripted.silent.set()
            assert not await agent.unready_within(0.1)


async def test_samples_keep_a_pod_ready_while_one_look_waits_and_no_longer():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.scripted.silent, agent.scripted.patience = asyncio.Event(), 8.0
        agent.reconciler.wake()
        for _ in range(70):
            agent.heard_at = agent.clock.now()
            assert not await agent.unready_within(0.1)
        last = agent.heard_at
        await agent.wait(lambda one: not one.ready)
        assert GRACE_SECONDS < agent.clock.now() - last <= GRACE_SECONDS + 0.6


async def test_an_engine_asleep_is_told_and_not_converged():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.engine.asleep = True
        agent.reconciler.wake()
        status = await agent.wait(lambda one: one.engine.state is EngineCondition.ASLEEP)
        assert not status.ready
        assert not status.converged
        assert "the engine is asleep" in status.cycle
        agent.engine.asleep = False
        agent.reconciler.wake()
        await agent.converge()
        assert ("warm", "a") in agent.calls


async def test_an_agent_restart_keeps_a_pod_ready_and_loads_nothing():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
    again = Loop(VLLM, memory=agent.saved[-1], disk=agent.disk, engine=agent.engine)
    # The engine is slow to answer, the new document's target fails: neither unreadies the pod.
    again.scripted.down = DOWN
    async with again.running():
        await again.wait(lambda one: one.engine.state is EngineCondition.DOWN)
        again.scripted.down = None
        again.ask("a", "missing")
        again.disk.sources.pop("s3://missing/v1")
        status = await again.wait(lambda one: one.ready)
        assert status.targets["a"].state is State.RESIDENT
        assert again.calls.count(("load", "a")) == 0


async def test_an_agent_restart_without_documents_goes_on_with_the_last_good_ones():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
    again = Loop(VLLM, memory=agent.saved[-1], disk=agent.disk, engine=agent.engine)
    agent.engine.restart(123.0)
    async with again.running():
        again.offer(None, Presence.UNREADABLE)
        await again.wait(lambda one: again.engine.names() == {"a"})
        assert not again.board.status.document.valid


async def test_a_source_that_moved_is_fetched_and_loaded():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.disk.sources["s3://a/v1"] = "v2"
        agent.reconciler.moved(["a"])
        await agent.wait(lambda _: agent.engine.serving[0].get("a") == revision("a", "v2").path)
        await agent.converge()


async def test_a_wait_is_over_when_it_is_due_and_not_at_the_next_tick():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        agent.disk.sources.clear()
        await agent.wait(lambda one: bool(one.targets) and one.targets["a"].attempts == 1)
        agent.disk.sources["s3://a/v1"] = "v1"
        before = agent.clock.monotonic()
        await agent.converge()
        assert agent.clock.monotonic() - before < 1.2


async def test_it_looks_at_the_engine_now_and_then_and_heals_drift():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.engine.unload("a", 0.0)
        await agent.wait(lambda _: agent.engine.names() == {"a"})
        assert agent.restarts == 0


async def test_an_idle_agent_is_quiet():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        looks, saves = agent.scripted.looks, len(agent.saved)
        await pause(50.0)
        assert agent.scripted.looks - looks <= 11
        assert len(agent.saved) - saves <= 1


async def test_stopping_unreadies_for_good():
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.publisher.stop()
        assert agent.board.status.reasons == ("The agent is shutting down.",)
        agent.reconciler.wake()
        await pause(10.0)
        assert not agent.board.status.ready


async def test_it_is_converged_without_any_document_and_not_while_one_cannot_be_read():
    agent = Loop(VLLM)
    async with agent.running():
        agent.offer(None, Presence.UNREADABLE)
        status = await agent.wait(lambda one: bool(one.document.problems))
        assert not status.ready
        assert not status.converged
        agent.offer(None, Presence.ABSENT)
        status = await agent.wait(lambda one: one.converged)
        assert status.ready


async def test_a_thousand_targets_converge_with_few_looks():
    agent = Loop(VLLM, fetch_concurrency=64)
    names = [f"lora-{number:04}" for number in range(1000)]
    began = time.perf_counter()
    async with agent.running():
        agent.ask(*names)
        await agent.converge(timeout=600.0)
    assert len(agent.engine.names()) == 1000
    assert sum(agent.loads(name) for name in names) == 1000
    # Far above what it takes; what grows with the square of the targets takes longer.
    assert time.perf_counter() - began < 30.0


async def test_a_defect_of_the_look_means_that_the_engine_cannot_be_seen(caplog):
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        agent.scripted.down = ZeroDivisionError("a bug")
        status = await agent.wait(lambda one: not one.ready)
        assert status.engine.state is EngineCondition.DOWN
        assert not status.converged
        assert "ZeroDivisionError" in status.engine.message
        await pause(20.0)
        assert caplog.text.count("ZeroDivisionError: a bug") == 1
        agent.scripted.down = None
        await agent.wait(lambda one: one.ready and one.converged)


async def test_a_defect_of_a_cycle_is_published_and_stops_no_drive(caplog):
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        gate = agent.scripted.hold("load", "b")
        agent.ask("a", "b")
        await agent.wait(lambda _: agent.loads("b") == 1)
        forget = agent.world.forget_strangers
        failed = []

        def fail(names):
            failed.append(names)
            raise ZeroDivisionError("a bug")

        world: Any = agent.world
        world.forget_strangers = fail
        agent.reconciler.wake()
        await agent.wait(lambda one: "ZeroDivisionError" in one.cycle)
        gate.set()
        await agent.wait(lambda _: agent.engine.names() == {"a", "b"})
        cycles = len(failed)
        await pause(10.0)
        assert 1 <= len(failed) - cycles <= 11
        assert not agent.board.status.converged
        assert "ZeroDivisionError" in agent.board.status.cycle
        world.forget_strangers = forget
        await agent.converge()
        assert not agent.scripted.cancelled


async def test_a_defect_in_reading_a_document_keeps_the_one_before_and_says_so(monkeypatch):
    agent = Loop(VLLM)
    async with agent.running():
        agent.ask("a")
        await agent.converge()
        with monkeypatch.context() as broken:
            broken.setattr("sidecar.reconciler.accept", lambda *_: 1 // 0)
            agent.ask("b")
            await agent.wait(lambda one: "was not understood" in one.cycle)
            await pause(10.0)
        assert not agent.board.status.converged
        assert agent.engine.names() == {"a"}
        agent.ask("b")
        await agent.converge()
        assert agent.engine.names() == {"b"}


@pytest.mark.parametrize("capabilities", [VLLM, TRITON])
def test_a_plan_of_a_thousand_targets_is_made_in_no_time(capabilities):
    def seconds(number: int) -> float:
        trial = Trial(capabilities)
        for index in range(number):
            trial.disk.make(f"n{index}", "v1")
        held = (
            Resident(
                name=f"old{index}", kind=trial.disk.kind, paths=frozenset({f"/store/old{index}"})
            )
            for index in range(number)
        )
        trial.world.memory = Memory()
        trial.accept(document(*(entry(f"n{index}") for index in range(number))))
        state = EngineState(residents=tuple(held), started_at=1.0)
        trial.world.saw(state, trial.world.begin_look(), refused=False, now=trial.now)
        view = trial.view()
        began = time.perf_counter()
        ahead = plan(view)
        assert len(ahead.actions) + len(ahead.waits) == 2 * number
        return time.perf_counter() - began

    assert seconds(1000) < 1.0
