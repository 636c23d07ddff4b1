"""Whole agents on a real S3 whose wire has bad days, and whose objects move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from lab.s3 import S3
from sidecar.artifacts.manifest import MARKER, parse_manifest
from sidecar.core.status import Status
from tests.support.agent import Running, running_agent
from tests.support.faulty import Close, Cut, Fault, Length, Request, Run, Slow, Stall
from tests.support.faulty import Status as Answers
from tests.support.s3_front import S3Front, is_listing, native, size_of, tree_of, write_lora_of
from tests.support.store_watch import StoreWatch

pytestmark = pytest.mark.sources

MIB = 1 << 20
SIZE = 40 * MIB
"""Beyond it objects are read in parts at once."""
RESTART_SECONDS = 60.0
SILENCE_SECONDS = 30.0
"""A server that says nothing for so long is given up."""


@pytest.fixture
def front(s3: S3) -> Iterator[S3Front]:
    """The S3 server with a proxy of this test's own."""
    with S3Front(s3) as front:
        yield front


@asynccontextmanager
async def watched_agent(front: S3Front, work: Path, **flags: Any) -> AsyncIterator[Running]:
    """An agent of which nothing incomplete must ever be seen."""
    with StoreWatch(work / "store") as watch:
        async with running_agent(work, environment=front.environment(), **flags) as agent:
            yield agent
    assert watch.looks > 0
    assert watch.faults == []


def holds(agent: Running, name: str, directory: Path) -> bool:
    """Tell whether the engine holds exactly these files."""
    held = agent.engine.held.get(name)
    return held is not None and tree_of(held.path) == tree_of(directory)


def says(name: str, reason: str, *words: str) -> Callable[[Status], bool]:
    """Tell whether a status gives this reason for a target, in these words."""

    def look(status: Status) -> bool:
        target = status.targets.get(name)
        return (
            target is not None
            and target.reason == reason
            and all(word in target.message for word in words)
        )

    return look


# Faults that a fetch gets over


@pytest.mark.parametrize(
    ("fault", "times", "again"),
    [
        pytest.param(Cut(after=5 * MIB), 6, 0.3, id="cut"),
        pytest.param(Slow(20 * MIB), None, 0.0, id="slow"),
        pytest.param(Close(after=5 * MIB), 6, 0.3, id="short"),
        pytest.param(Length(+1000), 2, 0.3, id="says more than it sends"),
        pytest.param(Length(-1000), 2, 1.0, id="says less than it sends"),
        pytest.param(Answers(500), 3, 0.0, id="500"),
        pytest.param(Answers(503), 3, 0.0, id="503"),
    ],
)
async def test_a_fetch_gets_over_what_the_wire_does_to_it(
    front, tmp_path, fault: Fault, times: int | None, again: float
):
    lora = write_lora_of(tmp_path / "sql", size=SIZE)
    source = front.put_tree("sql", lora)
    front.proxy.add(fault, path=f"{front.path('sql')}more", times=times)
    async with watched_agent(front, tmp_path / "agent") as agent:
        status = await agent.apply(native({"sql": source}))
        assert status.targets["sql"].reason == ""
        assert holds(agent, "sql", lora)
        # What was under way when it was cut is read again, and not what had come.
        assert front.read_bytes() <= (1 + again) * SIZE + 10_000
        assert (await agent.get("/live"))[0] == 200


async def test_a_refusal_is_told_and_tried_again(front, tmp_path):
    lora = write_lora_of(tmp_path / "sql", size=SIZE)
    source = front.put_tree("sql", lora)
    front.proxy.add(Answers(403), path=f"{front.path('sql')}more", skip=1)
    async with watched_agent(front, tmp_path / "agent") as agent:
        agent.write(native({"sql": source}))
        await agent.wait(says("sql", "AccessDenied", "403 from ", "the agent's environment"))
        await agent.wait(lambda status: status.converged)
        assert holds(agent, "sql", lora)


async def test_objects_that_are_overwritten_while_they_are_read_are_never_mixed(
    front, tmp_path, caplog
):
    old, new = (write_lora_of(tmp_path / f"v{seed}", size=SIZE, seed=seed) for seed in (1, 2))
    source = front.put_tree("sql", old)
    path = f"{front.path('sql')}more"
    front.proxy.add(Run(lambda: front.put_tree("sql", new)), path=path, skip=1)
    async with watched_agent(front, tmp_path / "agent") as agent:
        with caplog.at_level(logging.WARNING):
            await agent.apply(native({"sql": source}))
        assert "another one than was listed" in caplog.text
        assert holds(agent, "sql", new)


# A server that is not there, or says nothing


async def test_a_server_that_hangs_at_one_listing_holds_up_nobody_else(front, tmp_path):
    loras = {
        name: write_lora_of(tmp_path / name, seed=seed)
        for seed, name in enumerate(("fine", "later", "hung"))
    }
    sources = {name: front.put_tree(name, lora) for name, lora in loras.items()}
    hanging = Event()
    hanging.set()

    def hangs(request: Request) -> bool:
        return hanging.is_set() and is_listing(request) and "prefix=hung" in request.target

    front.proxy.add(Stall(after=None), when=hangs, times=None)
    # Of two places for fetches, one is taken.
    async with watched_agent(front, tmp_path / "agent", fetch_concurrency=2) as agent:
        agent.write(native({name: sources[name] for name in ("hung", "fine")}))
        await agent.wait(lambda _: "fine" in agent.engine.held)
        agent.write(native(sources))
        await agent.wait(lambda _: "later" in agent.engine.held)
        assert agent.status.targets["hung"].state == "fetching"
        waited = asyncio.create_task(
            agent.wait(says("hung", "FetchFailed", "is silent; it is retried"), 2 * SILENCE_SECONDS)
        )
        while not waited.done():
            assert (await agent.get("/live"))[0] == 200
            await asyncio.wait([waited], timeout=1.0)
        await waited
        assert {"fine", "later"} == agent.engine.held.keys()
        hanging.clear()
        await agent.wait(lambda status: status.converged)
        assert all(holds(agent, name, lora) for name, lora in loras.items())


async def test_a_server_that_is_down_when_the_agent_starts_is_awaited(s3, front, tmp_path):
    lora = write_lora_of(tmp_path / "sql")
    entries = native({"sql": front.put_tree("sql", lora)})
    s3.stop()
    try:
        # The server itself: a proxy would still accept connections.
        async with running_agent(tmp_path / "agent", environment=s3.environment()) as agent:
            agent.write(entries)
            await agent.wait(
                says("sql", "FetchFailed", "refuses the connection; check AWS_ENDPOINT_URL"),
                RESTART_SECONDS,
            )
            s3.start()
            await agent.wait(lambda status: status.converged and status.targets)
            assert holds(agent, "sql", lora)
    finally:
        s3.stop()
        s3.start()


# Sources that move


async def test_a_source_that_moved_is_replaced_and_one_that_did_not_is_only_listed(front, tmp_path):
    old, new = (write_lora_of(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2))
    names = ("moving", "still", "pinned")
    sources = {name: front.put_tree(name, old) for name in names}
    async with watched_agent(front, tmp_path / "agent") as agent:
        status = await agent.apply(native({"pinned": sources["pinned"]}))
        marker = Path(status.targets["pinned"].path) / MARKER
        pin = parse_manifest(marker.read_bytes()).digest
        entries = [
            *native({name: sources[name] for name in ("moving", "still")}, refresh_seconds=1),
            *native({"pinned": sources["pinned"]}, refresh_seconds=1, digest=pin),
        ]
        status = await agent.apply(entries)
        before = status.targets["moving"]
        calls, read = list(agent.engine.calls), front.read_bytes()
        fetched, seen = len(looks(front, "still")), len(front.listings("pinned"))
        await asyncio.to_thread(
            front.proxy.wait, lambda: len(looks(front, "still")) >= fetched + 4, 20.0
        )
        # Nothing moved: it is listed, never sooner than it was asked for, and nothing is read.
        assert front.read_bytes() == read
        front.put_tree("moving", new)
        status = await agent.wait(
            lambda status: status.targets["moving"].revision != before.revision and status.converged
        )
        assert holds(agent, "moving", new)
        assert agent.engine.calls[len(calls) :] == ["unload moving", "load moving"]
        # The engine may read the old one again (P5).
        assert tree_of(before.path) == tree_of(old)
        assert front.read_bytes() == read + size_of(new)
        assert len(front.listings("pinned")) == seen
        assert min(pauses(looks(front, "still")[fetched:])) > 0.95


def looks(front: S3Front, prefix: str) -> list[Request]:
    """The first request of each look at a prefix."""
    return [one for one in front.listings(prefix) if "start-after" not in one.target]


def pauses(requests: list[Request]) -> list[float]:
    """Seconds between requests."""
    return [after.at - before.at for before, after in pairwise(requests)]


async def test_a_bucket_that_vanishes_changes_nothing(front, tmp_path):
    old, new = (write_lora_of(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2))
    source = front.put_tree("sql", old)
    async with watched_agent(front, tmp_path / "agent") as agent:
        await agent.apply(native({"sql": source}, refresh_seconds=1))
        calls = list(agent.engine.calls)
        front.delete_tree("sql", old)
        status = await agent.wait(lambda status: "no object" in status.targets["sql"].message)
        assert (status.converged, status.ready) == (True, True)
        assert front.s3.send("DELETE", f"/{front.bucket}").status == 204
        status = await agent.wait(lambda status: "bucket" in status.targets["sql"].message)
        assert (status.converged, status.ready) == (True, True)
        assert holds(agent, "sql", old)
        front.s3.make_bucket(front.bucket)
        front.put_tree("sql", old)
        status = await agent.wait(lambda status: not status.targets["sql"].message)
        assert agent.engine.calls == calls
        front.put_tree("sql", new)
        await agent.wait(lambda _: holds(agent, "sql", new))
