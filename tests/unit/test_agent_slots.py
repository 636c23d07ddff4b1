"""What the agent believes of the engine's slots, while looks and loads overtake each other."""

from __future__ import annotations

import asyncio

from adapters.base import EngineOptions, EngineState, Target
from adapters.fake import FakeAdapter, FakeEngine
from adapters.fake.engine import Faults
from tests.support.agent import running_agent
from tests.support.loras import write_tiny_lora


class LateLooks(FakeAdapter):
    """A look that began during a load tells of the time before it, after the load's answer."""

    late = 0

    def __init__(self, engine: FakeEngine, options: EngineOptions) -> None:
        super().__init__(engine, options)
        self._answered = asyncio.Event()
        self._answered.set()

    async def load(self, target: Target, path: str) -> None:
        self._answered.clear()
        try:
            await super().load(target, path)
        finally:
            self._answered.set()

    async def observe(self) -> EngineState:
        state = await super().observe()
        self.late += not self._answered.is_set()
        async with asyncio.timeout(5):
            await self._answered.wait()
        return state


async def test_a_look_of_before_the_load_takes_no_lora_out_of_its_slot(tmp_path):
    engine = FakeEngine(max_loras=1, max_cpu_loras=1, faults=Faults(load_seconds=0.3))
    adapters: list[LateLooks] = []

    def open_adapter(*arguments):
        adapters.append(LateLooks(*arguments))
        return adapters[0]

    async with running_agent(tmp_path, engine, adapter=open_adapter, resync_seconds=0.05) as agent:
        source = write_tiny_lora(tmp_path / "sql")
        status = await agent.apply([{"name": "sql", "source": str(source)}])
        assert adapters[0].late
        assert status.targets["sql"].in_slot


async def test_a_warm_up_is_known_to_bring_a_lora_into_its_slot(tmp_path):
    engine = FakeEngine(max_loras=1, max_cpu_loras=2)
    async with running_agent(tmp_path, engine) as agent:
        first, second = (
            {"name": name, "source": str(write_tiny_lora(tmp_path / name))}
            for name in ("first", "second")
        )
        await agent.apply([first])
        status = await agent.apply([first, second])
        assert [one.in_slot for one in status.targets.values()] == [False, True]
        # Nothing but the answer to the warm-up tells of it: nobody asks for the engine's page.
        status = await agent.apply([first | {"warmup": True}, second])
        assert [one.in_slot for one in status.targets.values()] == [True, False]
