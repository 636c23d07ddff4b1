"""Whole agents without room: a disk that is really full, and a store with a size limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.s3 import S3
from sidecar.artifacts.manifest import MARKER
from sidecar.directory_watch import wait_event
from tests.support.agent import Running, running_agent
from tests.support.agent_process import AgentProcess
from tests.support.faulty import Cut, Slow, Status
from tests.support.s3_front import S3Front, native, tree_of, write_lora_of
from tests.support.small_disk import SmallDiskAgent

pytestmark = pytest.mark.sources

MIB = 1 << 20
DISK = 64 * MIB
RETAIN_SECONDS = 2.0


@pytest.fixture
def front(s3: S3) -> Iterator[S3Front]:
    """The S3 server with a proxy of this test's own."""
    with S3Front(s3) as front:
        yield front


# A disk that is full


@pytest.fixture
def agent(front: S3Front, tmp_path: Path) -> Iterator[SmallDiskAgent]:
    """An agent whose store lies on a disk of 64 MiB."""
    with SmallDiskAgent(
        tmp_path / "agent",
        disk_bytes=DISK,
        engine="fake",
        flags=["--resync-seconds=1", f"--retain-seconds={RETAIN_SECONDS}"],
        env=front.environment(),
    ) as agent:
        yield agent


def wait_full(agent: AgentProcess, name: str) -> str:
    """Wait until a target has no room; return what is said of it."""
    full = agent.wait_target(name, lambda one: one["reason"] == "StoreFull")
    assert (full["state"], full["path"]) == ("failed", "")
    return str(full["message"])


def fill(path: Path) -> None:
    """Write until the disk takes no more, and raise what it says then."""
    with path.open("wb", buffering=0) as file:
        for _ in range(2 * DISK // MIB):
            file.write(bytes(MIB))


def test_two_targets_that_do_not_fit_on_the_disk_take_turns_as_the_document_says(
    front, agent, tmp_path
):
    sources = {
        name: front.put_tree(name, write_lora_of(tmp_path / name, size=40 * MIB))
        for name in ("first", "second")
    }
    agent.apply(native({"first": sources["first"]}))
    agent.edit(native(sources))
    assert "free space or enlarge it" in wait_full(agent, "second")
    assert front.read_bytes("second") == 0
    assert agent.target("first")["state"] == "resident"
    agent.edit(native({"second": sources["second"]}))
    second = agent.wait_converged()["targets"]["second"]
    assert tree_of(f"{agent.disk}/lora/second/{second['revision']}") == tree_of(tmp_path / "second")
    assert not (agent.disk / "lora" / "first").exists()


def test_a_disk_that_runs_full_while_a_target_is_fetched_is_told_and_tried_again(
    front, agent, tmp_path
):
    lora = write_lora_of(tmp_path / "sql", size=40 * MIB)
    front.proxy.add(Slow(4 * MIB), path=front.path("sql"), times=None)
    agent.write(native({"sql": front.put_tree("sql", lora)}))
    front.proxy.wait(lambda: front.read_bytes() > MIB)
    somebody = agent.disk / "somebody-elses"
    with pytest.raises(OSError, match="No space left"):
        fill(somebody)
    assert "free space or enlarge it" in wait_full(agent, "sql")
    # By then it may have been tried again.
    assert "is full (No space left on device): free space or enlarge it" in agent.log_text()
    assert list(agent.disk.glob("lora/*/*")) == []
    assert list((agent.disk / ".staging").iterdir()) == []
    assert agent.get("/live").status == 200
    front.proxy.clear()
    somebody.unlink()
    revision = agent.wait_converged()["targets"]["sql"]["revision"]
    assert tree_of(agent.disk / "lora" / "sql" / revision) == tree_of(lora)


# A store with a limit


def kept(store: Path) -> list[str]:
    """Names whose files are complete on disk, once for each revision."""
    return sorted(one.parent.parent.name for one in store.glob(f"lora/*/*/{MARKER}"))


async def wait_short(agent: Running, name: str) -> str:
    """Wait until a target has no room; return what is said of it."""
    status = await agent.wait(
        lambda status: name in status.targets and status.targets[name].reason == "StoreFull"
    )
    return status.targets[name].message


async def test_a_store_with_a_limit_drops_what_was_used_longest_ago_and_nothing_that_is_needed(
    front, tmp_path
):
    """Five and a half artifacts fit."""
    store = tmp_path / "agent" / "store"
    sources = {
        name: front.put_tree(name, write_lora_of(tmp_path / name, size=MIB, seed=seed))
        for seed, name in enumerate(("old", "older", "resident", "next", "last", "pin", "pin-2"))
    }
    pin_1 = {"name": "pin", "source": sources["pin"], "pinned": True}
    pin_2 = {**pin_1, "source": sources["pin-2"]}
    async with running_agent(
        tmp_path / "agent",
        environment=front.environment(),
        store_max_bytes=int(5.5 * MIB),
        retain_seconds=RETAIN_SECONDS,
    ) as agent:
        # The pinned one's first revision is the one that was used longest ago.
        await agent.apply([pin_1])
        await agent.apply([pin_2])
        for name in ("older", "old", "resident"):
            await agent.apply([pin_2, *native({name: sources[name]})])
        assert kept(store) == ["old", "older", "pin", "pin", "resident"]
        # Until the engine reads none of those that left.
        await wait_event(asyncio.Event(), RETAIN_SECONDS)
        both = native({one: sources[one] for one in ("resident", "next")})
        await agent.apply([pin_2, *both])
        assert kept(store) == ["next", "old", "pin", "pin", "resident"]
        # A retired one stays as long as the engine may read it, also when room is asked for.
        before = time.monotonic()
        await agent.apply([pin_2, *native({"next": sources["next"]})])
        await agent.apply(
            [pin_2, *native({one: sources[one] for one in ("next", "last", "older")})]
        )
        assert time.monotonic() - before > RETAIN_SECONDS
        assert kept(store) == ["last", "next", "older", "pin", "pin"]
        # What is left is desired or pinned: nothing goes, and it is said what to do.
        more = native({one: sources[one] for one in ("next", "last", "older", "old")})
        agent.write([pin_2, *more])
        said = await wait_short(agent, "old")
        assert "evict something or raise --store-max-bytes" in said
        assert kept(store) == ["last", "next", "older", "pin", "pin"]
        assert {"pin", "next", "last", "older"} <= agent.engine.held.keys()


async def test_what_an_interrupted_fetch_left_goes_before_anything_complete(front, tmp_path):
    store, staging = tmp_path / "agent" / "store", tmp_path / "agent" / "store" / ".staging"
    sources = {
        name: front.put_tree(name, write_lora_of(tmp_path / name, size=4 * MIB, seed=seed))
        for seed, name in enumerate(("spare", "half", "new"))
    }
    half = f"{front.path('half')}more"
    front.proxy.add(Cut(after=3 * MIB), path=half)
    front.proxy.add(Status(500), path=half, times=None)
    async with running_agent(
        tmp_path / "agent",
        environment=front.environment(),
        store_max_bytes=10 * MIB,
        retain_seconds=0.0,
    ) as agent:
        await agent.apply(native({"spare": sources["spare"]}))
        agent.write(native({"half": sources["half"]}))
        await agent.wait(
            lambda status: (
                "half" in status.targets and status.targets["half"].reason == "FetchFailed"
            )
        )
        agent.write([])
        await agent.wait(lambda status: status.converged and not status.targets)
        assert sum(one.stat().st_size for one in staging.rglob("more")) > 2.5 * MIB
        # With it there is no room for a third; without it there is, beside the spare one.
        await agent.apply(native({"new": sources["new"]}))
        assert kept(store) == ["new", "spare"]
        assert list(staging.iterdir()) == []
