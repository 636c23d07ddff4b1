"""The whole agent on the fake engine: sources that move, and many pods that follow one edit."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from lab.tiny_model import write_lora
from sidecar.artifacts.bring import CLOCK_TICK_SECONDS
from sidecar.core.places import place_of
from sidecar.core.status import State
from tests.support.agent import Running, running_agent
from tests.support.faulty import FaultyServer, Stall


@pytest.fixture
def loras(tmp_path):
    """Return a function that writes a LoRA with these weights and returns its path."""

    def write(seed: int, name: str) -> str:
        path = tmp_path / "sources" / name
        write_lora(path, seed=seed, rank=4, hidden=32, layers=1)
        return str(path)

    return write


async def fetched_bytes(run: Running) -> float:
    """Return what the agent counts as brought from sources."""
    _, page = await run.get("/metrics/all")
    (line,) = (
        one for one in page.splitlines() if one.startswith("model_sidecar_fetched_bytes_total ")
    )
    return float(line.split()[1])


def wait_older(directory: Path, seconds: float) -> None:
    """Wait until the files in a directory are so old."""
    newest = max(path.stat().st_ctime for path in (directory, *directory.iterdir()))
    while (left := newest + seconds - time.time()) > 0:  # noqa: TID251 - what files are dated by
        time.sleep(left)


async def serves(run: Running, name: str, *, other_than: str) -> str:
    """Wait until other bytes answer to a name; return which."""
    await run.wait(
        lambda status: (
            status.converged
            and (held := run.engine.held.get(name)) is not None
            and held.digest != other_than
        )
    )
    return run.engine.held[name].digest


async def test_a_source_is_looked_at_as_often_as_its_entry_says(tmp_path, loras):
    seldom = {"name": "seldom", "source": loras(1, "seldom"), "refresh_seconds": 3600}
    often = {"name": "often", "source": loras(2, "often"), "refresh_seconds": 1}
    async with running_agent(tmp_path) as run:
        await run.apply([seldom, often])
        before = {name: one.digest for name, one in run.engine.held.items()}
        loras(3, "seldom")
        loras(4, "often")
        after = await serves(run, "often", other_than=before["often"])
        # Nor when a document has all the others looked at.
        plain = {"name": "plain", "source": loras(5, "plain")}
        await run.apply([seldom, often, plain])
        loras(6, "plain")
        await serves(run, "plain", other_than=run.engine.held["plain"].digest)
        assert run.engine.held["seldom"].digest == before["seldom"]
        assert run.engine.held["often"].digest == after


async def test_a_source_that_went_away_is_told_and_serves_on(tmp_path, loras):
    source = Path(loras(1, "sql"))
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": str(source)}])
        source.rename(tmp_path / "away")
        status = await run.wait(lambda status: status.targets["sql"].message)
        assert "cannot be looked at for changes" in status.targets["sql"].message
        assert str(source) in status.targets["sql"].message
        assert (status.converged, status.targets["sql"].reason) == (True, "")
        (tmp_path / "away").rename(source)
        await run.wait(lambda status: not status.targets["sql"].message)


async def test_what_was_refused_is_fetched_again_as_soon_as_it_is_mended(tmp_path, loras):
    source = Path(loras(1, "sql"))
    (source / "adapter_config.json").rename(source / "misnamed.json")
    async with running_agent(tmp_path) as run:
        run.write([{"name": "sql", "source": str(source)}])
        await run.wait(
            lambda status: (
                "sql" in status.targets and status.targets["sql"].reason == "InvalidArtifact"
            )
        )
        (source / "misnamed.json").rename(source / "adapter_config.json")
        await run.wait(lambda status: status.converged and "sql" in run.engine.held)


async def test_bytes_are_counted_that_came_from_a_source_and_not_those_on_disk(tmp_path, loras):
    entries = [{"name": "sql", "source": loras(1, "sql")}]
    # Files that are younger than a tick of the clock are read once more.
    wait_older(tmp_path / "sources" / "sql", 2 * CLOCK_TICK_SECONDS)
    async with running_agent(tmp_path) as run:
        await run.apply(entries)
        size = run.status.targets["sql"].bytes
        assert await fetched_bytes(run) == size > 0
    async with running_agent(tmp_path) as run:
        await run.wait(lambda status: status.converged)
        assert await fetched_bytes(run) == 0


async def test_spread_seconds_delays_replacements_to_the_pods_turn_and_nothing_else(
    tmp_path, loras
):
    first, second = loras(1, "v1"), loras(2, "v2")
    gone, new = ({"name": name, "source": loras(3, name)} for name in ("gone", "new"))
    flags: dict[str, Any] = {"spread_seconds": 600.0, "pod_uid": "uid-7"}
    async with running_agent(tmp_path, **flags) as run:
        await run.apply([{"name": "sql", "source": first}, gone])
        before = run.engine.held["sql"]
        run.write([{"name": "sql", "source": second}, new])
        status = await run.wait(
            lambda status: (
                set(run.engine.held) == {"sql", "new"} and status.targets["sql"].reason == "Spread"
            )
        )
        one, accepted_at = status.targets["sql"], status.document.accepted_at
        assert accepted_at is not None
        assert one.retry_at == pytest.approx(accepted_at + 600.0 * place_of("uid-7"), abs=0.01)
        assert (one.state, status.converged) == (State.RESIDENT, False)
        assert run.engine.held["sql"] == before
        await run.apply([{"name": "sql", "source": first}, new])
        assert run.engine.held["sql"] == before


async def test_many_pods_that_follow_one_edit_begin_one_after_another(tmp_path, loras):
    seconds, pods = 4.0, [f"uid-{number}" for number in range(8)]
    first, second = loras(1, "v1"), loras(2, "v2")
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        runs = {
            pod: await stack.enter_async_context(
                running_agent(
                    tmp_path / pod, spread_seconds=seconds, pod_uid=pod, resync_seconds=60.0
                )
            )
            for pod in pods
        }
        await asyncio.gather(
            *(run.apply([{"name": "sql", "source": first}]) for run in runs.values())
        )
        edited_at = loop.time()
        for run in runs.values():
            run.write([{"name": "sql", "source": second}])

        async def replaced_at(run: Running) -> float:
            old = run.engine.held["sql"].digest
            await serves(run, "sql", other_than=old)
            return loop.time() - edited_at

        times = await asyncio.gather(*(replaced_at(run) for run in runs.values()))
    turns = [seconds * place_of(pod) for pod in pods]
    assert max(turns) - min(turns) > seconds / 2
    assert all(turn <= at <= turn + 5.0 for turn, at in zip(turns, times, strict=True))


async def test_servers_that_drip_keep_nobody_from_what_lies_on_a_disk(tmp_path):
    """Every place for fetches from the network is taken, and stays so."""
    with FaultyServer() as server:
        server.put("/x.tar", bytes(1 << 20))
        server.add(Stall(after=1000), method="GET", times=None)
        far = [{"name": f"far-{i}", "source": f"{server.url}/x.tar"} for i in range(6)]
        allowed = (server.url, str(tmp_path))
        async with running_agent(tmp_path, fetch_concurrency=2, allow_source=allowed) as agent:
            agent.write(far)
            await asyncio.to_thread(server.wait, lambda: server.peak_requests >= 2)
            near = {"name": "near", "source": str(write_lora(tmp_path / "near", seed=1))}
            agent.write([*far, near])
            await agent.wait(
                lambda status: (
                    status.targets.get("near") and status.targets["near"].state == "resident"
                )
            )
