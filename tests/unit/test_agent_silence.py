"""The whole agent beside an engine that hangs, and over a disk that does: what probes are told."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace

import pytest

from adapters.base import EngineOptions
from adapters.fake import FakeAdapter, FakeEngine
from tests.support.agent import Running, running_agent

PATIENCE_SECONDS = 30.0
"""As long as one look waits, and the pause between looks: nobody notices a hang by them."""
SCRAPE_SECONDS = 0.2


def patient_adapter(engine: FakeEngine, options: EngineOptions) -> FakeAdapter:
    """An adapter whose looks wait much longer than the grace."""
    return FakeAdapter(engine, replace(options, observe_timeout_seconds=PATIENCE_SECONDS))


async def scrape(run: Running) -> None:
    """Ask as a picker does, until cancelled."""
    while True:
        await run.get("/metrics")
        await run.agent.board.wait_changed(SCRAPE_SECONDS)


@pytest.fixture
async def scraped(tmp_path):
    """An agent that a picker scrapes; its own looks are far apart."""
    async with running_agent(
        tmp_path, adapter=patient_adapter, resync_seconds=PATIENCE_SECONDS
    ) as run:
        picker = asyncio.create_task(scrape(run))
        await run.apply([])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await run.get("/metrics"))[0] != 200:
                await run.agent.board.wait_changed(SCRAPE_SECONDS)
        yield run
        run.engine.release()
        picker.cancel()
        await asyncio.wait([picker])


async def test_pickers_who_wait_in_vain_make_a_hung_engine_known(scraped):
    began = asyncio.get_running_loop().time()
    scraped.engine.hang()
    status = await scraped.wait(lambda one: not one.ready, PATIENCE_SECONDS / 2)
    assert "has not answered" in status.reasons[0]
    assert asyncio.get_running_loop().time() - began > 5.0
    assert (await scraped.get("/ready"))[0] == 503
    scraped.engine.release()
    await scraped.wait(lambda one: one.ready)


async def test_an_engine_that_is_late_within_the_grace_unreadies_nobody(scraped):
    scraped.engine.hang()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await scraped.get("/metrics"))[0] != 503:
            await scraped.agent.board.wait_changed(SCRAPE_SECONDS)
    assert scraped.status.ready
    scraped.engine.release()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await scraped.get("/metrics"))[0] != 200:
            assert scraped.status.ready
            await scraped.agent.board.wait_changed(SCRAPE_SECONDS)
    assert scraped.status.ready


async def test_who_asks_while_the_store_is_slow_to_open_is_answered(tmp_path):
    # A pipe instead of the agent's memory is a file whose reading takes as long as one likes.
    memory = tmp_path / "store" / ".agent" / "uid-0.json"
    memory.parent.mkdir(parents=True)
    os.mkfifo(memory)
    async with running_agent(tmp_path) as run:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert (await run.get("/live"))[0] == 200
                code, body = await run.get("/ready")
                assert (code, json.loads(body)["reasons"]) == (
                    503,
                    ["The agent has just started."],
                )
                assert (await run.get("/metrics"))[0] == 503
                assert (await run.get("/metrics/all"))[0] == 200
                assert (await run.get("/status"))[0] == 200
        finally:
            async with asyncio.timeout(PATIENCE_SECONDS):
                os.close(await asyncio.to_thread(os.open, memory, os.O_WRONLY))
        await run.apply([])
        assert run.status.ready
