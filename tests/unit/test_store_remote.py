"""The store with sources on the network: exactly once, never half there, resumed."""

from __future__ import annotations

import asyncio
import io
import os
import random
import subprocess
import sys
import tarfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.base import Kind
from sidecar.artifacts.fetch import SourceOptions
from sidecar.artifacts.listing import Limits
from sidecar.artifacts.manifest import MARKER
from sidecar.artifacts.store import Store
from sidecar.artifacts.threads import Workers
from sidecar.errors import (
    AccessDenied,
    DigestMismatch,
    FetchFailed,
    InvalidArtifact,
    SourceNotAllowed,
    StoreFull,
    UnsafeArtifact,
)
from tests.support.faulty import Cut, FaultyServer, Run, Slow, Status
from tests.support.loras import entry_for, write_tiny_lora

ROOT = Path(__file__).parents[2]
SIZE = 6 << 20


@pytest.fixture
def server():
    with FaultyServer() as server:
        yield server


@asynccontextmanager
async def open_store(root, server, *, pod="pod-a", max_bytes=None, limit=None, **options):
    store = Store(
        root,
        max_bytes=max_bytes,
        pod_uid=pod,
        options=SourceOptions(
            allowed=(server.url,), limits=Limits(max_files=1000, max_bytes=limit), **options
        ),
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fetch(store, source, told=None, **fields):
    progress = (lambda *_: None) if told is None else (lambda *args: told.append(args))
    return await store.fetch(entry_for(source, **fields), restore=None, progress=progress)


def packed_lora(directory: Path, *, size: int = SIZE, seed: int = 0) -> bytes:
    """A LoRA with ``size`` bytes beside it, as a tar."""
    source = write_tiny_lora(directory)
    (source / "more").write_bytes(random.Random(seed).randbytes(size))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(source, arcname=".")
    return packed.getvalue()


def tree(path):
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in Path(path).rglob("*")
        if one.is_file() and one.name != MARKER
    }


def start(root, server, pod, *, max_bytes=0):
    command = [sys.executable, "-m", "tests.support.fetching_agent", root, pod]
    command += [f"{server.url}/sql.tar", server.url, str(max_bytes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def visible(root):
    """Everything that is no part of the agents' own bookkeeping."""
    return [one for kind in ("lora", "model") for one in (root / kind).rglob("*") if one.is_file()]


# Exactly once


async def test_an_archive_over_http_becomes_a_revision_and_is_read_once(tmp_path, server):
    server.put("/sql.tar", packed_lora(tmp_path / "lora"))
    async with open_store(tmp_path / "store", server) as store:
        first = await fetch(store, f"{server.url}/sql.tar")
        assert tree(first.path) == tree(tmp_path / "lora")
        sent = server.sent_bytes
        assert (await fetch(store, f"{server.url}/sql.tar")).path == first.path
        assert server.sent_bytes == sent
    async with open_store(tmp_path / "store", server) as store:
        assert (await fetch(store, f"{server.url}/sql.tar")).path == first.path
        assert server.sent_bytes == sent


def test_two_agents_of_one_store_read_a_source_once(tmp_path, server):
    data = packed_lora(tmp_path / "lora")
    server.put("/sql.tar", data)
    server.add(Slow(8 << 20), method="GET", times=None)
    running = [start(tmp_path / "store", server, pod) for pod in ("a", "b")]
    said = [one.communicate(timeout=60)[0].strip() for one in running]
    assert said[0] == said[1]
    assert tree(said[0]) == tree(tmp_path / "lora")
    assert server.sent_bytes == len(data)


async def test_an_agent_that_waits_for_another_tells_how_far_that_one_is(tmp_path, server):
    data = packed_lora(tmp_path / "lora")
    server.put("/sql.tar", data)
    server.add(Slow(3 << 20), method="GET", times=None)
    async with (
        open_store(tmp_path / "store", server) as ours,
        open_store(tmp_path / "store", server, pod="pod-b") as theirs,
    ):
        first = asyncio.create_task(fetch(theirs, f"{server.url}/sql.tar"))
        await asyncio.to_thread(server.wait, lambda: server.sent_bytes > 0)
        told: list[tuple[int, int | None]] = []
        found = await fetch(ours, f"{server.url}/sql.tar", told)
        assert found.path == (await first).path
    assert server.sent_bytes == len(data)
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert any(0 < one < len(data) for one in done), told


@pytest.mark.parametrize("seed", range(6))
def test_an_agent_killed_at_any_byte_leaves_nothing_visible_and_the_next_goes_on(
    tmp_path, server, seed
):
    data = packed_lora(tmp_path / "lora")
    server.put("/sql.tar", data)
    server.add(Slow(16 << 20), method="GET", times=None)
    at = random.Random(seed).randrange(1, len(data))
    victim = start(tmp_path / "store", server, "a")
    server.wait(lambda: server.sent_bytes >= at)
    victim.kill()
    victim.communicate(timeout=30)
    assert visible(tmp_path / "store") == []
    said = start(tmp_path / "store", server, "a").communicate(timeout=60)[0].strip()
    assert tree(said) == tree(tmp_path / "lora")
    assert list((tmp_path / "store" / ".staging").iterdir()) == []


def test_an_agent_killed_late_does_not_read_again_what_it_had(tmp_path, server):
    size = 160 << 20
    server.put("/sql.tar", packed_lora(tmp_path / "lora", size=size))
    server.add(Slow(100 << 20), method="GET", times=None)
    victim = start(tmp_path / "store", server, "a")
    server.wait(lambda: server.sent_bytes >= 0.9 * size, 60)
    victim.kill()
    victim.communicate(timeout=30)
    before = server.sent_bytes
    said = start(tmp_path / "store", server, "a").communicate(timeout=60)[0].strip()
    assert (Path(said) / "more").stat().st_size == size
    assert server.sent_bytes - before < 0.6 * size


# What goes wrong on the way


async def test_a_connection_that_is_cut_again_and_again_costs_no_byte_twice(tmp_path, server):
    data = packed_lora(tmp_path / "lora")
    server.put("/sql.tar", data)
    server.add(Cut(after=1 << 20), method="GET", times=4)
    async with open_store(tmp_path / "store", server) as store:
        found = await fetch(store, f"{server.url}/sql.tar")
    assert tree(found.path) == tree(tmp_path / "lora")
    assert server.sent_bytes < len(data) + (1 << 20)


async def test_a_source_that_changes_while_it_is_read_is_read_anew_and_never_mixed(
    tmp_path, server
):
    new = packed_lora(tmp_path / "new", seed=2)
    server.put("/sql.tar", packed_lora(tmp_path / "old", seed=1))
    server.add(Cut(after=1 << 20), Run(lambda: server.put("/sql.tar", new)), method="GET")
    async with open_store(tmp_path / "store", server) as store:
        with pytest.raises(FetchFailed, match="changed"):
            await fetch(store, f"{server.url}/sql.tar")
        assert visible(tmp_path / "store") == []
        found = await fetch(store, f"{server.url}/sql.tar")
    assert tree(found.path) == tree(tmp_path / "new")


async def test_a_fetch_that_failed_goes_on_where_it_was(tmp_path, server):
    size = 100 << 20
    server.put("/sql.tar", packed_lora(tmp_path / "lora", size=size))
    async with open_store(tmp_path / "store", server) as store:
        server.add(Status(403), method="GET", skip=3, times=None)
        with pytest.raises(AccessDenied):
            await fetch(store, f"{server.url}/sql.tar")
        before = server.sent_bytes
        server.clear()
        found = await fetch(store, f"{server.url}/sql.tar")
    assert (Path(found.path) / "more").stat().st_size == size
    assert server.sent_bytes - before < size


async def test_bytes_that_were_refused_are_read_again_when_the_source_looks_different(
    tmp_path, server
):
    server.put("/sql.tar", b"this is no archive, whatever its name")
    async with open_store(tmp_path / "store", server) as store:
        for _ in range(3):
            with pytest.raises(InvalidArtifact):
                await fetch(store, f"{server.url}/sql.tar")
        assert sum(seen.method == "GET" for seen in server.seen) == 1
        server.put("/sql.tar", packed_lora(tmp_path / "lora"))
        found = await fetch(store, f"{server.url}/sql.tar")
        assert tree(found.path) == tree(tmp_path / "lora")


async def test_bytes_that_are_not_pinned_are_refused_once_and_another_pin_is_tried(
    tmp_path, server
):
    server.put("/sql.tar", packed_lora(tmp_path / "lora", size=1000))
    async with open_store(tmp_path / "store", server) as store:
        wrong = "sha256:" + 64 * "0"
        for _ in range(2):
            with pytest.raises(DigestMismatch) as raised:
                await fetch(store, f"{server.url}/sql.tar", digest=wrong)
        right = str(raised.value).split(" holds ")[1].split(",")[0]
        assert sum(seen.method == "GET" for seen in server.seen) == 1
        assert (await fetch(store, f"{server.url}/sql.tar", digest=right)).digest == right


# Limits


async def test_a_store_without_room_says_so_before_anything_is_read(tmp_path, server):
    server.put("/sql.tar", packed_lora(tmp_path / "lora"))
    async with open_store(tmp_path / "store", server, max_bytes=1 << 20) as store:
        with pytest.raises(StoreFull, match="--store-max-bytes"):
            await fetch(store, f"{server.url}/sql.tar")
    assert server.sent_bytes == 0


async def test_an_archive_that_unpacks_to_more_than_there_is_room_for_is_stopped(tmp_path, server):
    source = write_tiny_lora(tmp_path / "lora")
    (source / "zeros").write_bytes(bytes(50 << 20))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(source, arcname=".")
    server.put("/sql.tgz", packed.getvalue())
    async with open_store(tmp_path / "store", server, max_bytes=20 << 20) as store:
        with pytest.raises(StoreFull):
            await fetch(store, f"{server.url}/sql.tgz")
        assert list((tmp_path / "store" / ".staging").iterdir()) == []
    async with open_store(tmp_path / "other", server, limit=20 << 20) as store:
        with pytest.raises((InvalidArtifact, UnsafeArtifact), match=r"bytes|more"):
            await fetch(store, f"{server.url}/sql.tgz")


async def test_an_interrupted_fetch_gives_its_room_to_another(tmp_path, server):
    data = packed_lora(tmp_path / "lora")
    server.put("/half.tar", data)
    server.put("/sql.tar", data)
    server.add(Cut(after=4 << 20), method="GET", path="/half")
    server.add(Status(500), method="GET", path="/half", times=None)
    async with open_store(tmp_path / "store", server, max_bytes=15 << 20) as store:
        with pytest.raises(FetchFailed):
            await fetch(store, f"{server.url}/half.tar", name="half")
        assert list((tmp_path / "store" / ".staging").iterdir()) != []
        found = await fetch(store, f"{server.url}/sql.tar")
        assert tree(found.path) == tree(tmp_path / "lora")


async def test_plain_http_is_meant_only_where_it_is_pinned_or_named(tmp_path, server):
    server.put("/sql.tar", packed_lora(tmp_path / "lora", size=10))
    store = Store(tmp_path / "store", max_bytes=None, pod_uid="a")
    await store.open()
    with pytest.raises(SourceNotAllowed, match="https"):
        await fetch(store, f"{server.url}/sql.tar")
    with pytest.raises(DigestMismatch):
        await fetch(store, f"{server.url}/sql.tar", digest="sha256:" + 64 * "0")
    await store.close()


async def test_a_local_archive_is_unpacked(tmp_path, server):
    (tmp_path / "sql.tar").write_bytes(packed_lora(tmp_path / "lora"))
    os.utime(tmp_path / "sql.tar", (1, 1))
    async with open_store(tmp_path / "store", server) as store:
        store_all = Store(tmp_path / "all", max_bytes=None, pod_uid="a")
        await store_all.open()
        found = await fetch(store_all, tmp_path / "sql.tar")
        assert tree(found.path) == tree(tmp_path / "lora")
        await store_all.close()
        with pytest.raises(SourceNotAllowed):
            await fetch(store, tmp_path / "sql.tar")


async def test_pickles_are_refused_unless_they_are_allowed(tmp_path, server):
    source = write_tiny_lora(tmp_path / "lora")
    (source / "adapter_model.bin").write_bytes(b"pickle")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(source, arcname=".")
    server.put("/sql.tar", packed.getvalue())
    async with open_store(tmp_path / "store", server) as store:
        with pytest.raises(UnsafeArtifact, match="--allow-pickle"):
            await fetch(store, f"{server.url}/sql.tar")
    async with open_store(tmp_path / "store", server, allow_pickle=True) as store:
        assert "adapter_model.bin" in tree((await fetch(store, f"{server.url}/sql.tar")).path)


async def test_two_fetches_of_one_agent_take_their_room_once(tmp_path, server):
    """40 of 60 MiB are reserved by the first while it runs: the second one's 10 fit beside it."""
    mib = 1 << 20
    for name, size in (("a", 20), ("b", 5)):
        server.put(f"/{name}.tar", packed_lora(tmp_path / name, size=size * mib))
    server.add(Slow(20 * mib), method="GET", path="/a", times=None)
    async with open_store(tmp_path / "store", server, max_bytes=55 * mib) as store:
        first = asyncio.create_task(fetch(store, f"{server.url}/a.tar", name="a"))
        await asyncio.to_thread(server.wait, lambda: server.sent_bytes > 15 * mib)
        await fetch(store, f"{server.url}/b.tar", name="b")
        await first


async def test_a_refusal_is_forgotten_when_the_entry_says_something_else(tmp_path, server):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "weights.onnx").write_bytes(b"onnx")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(odd, arcname=".")
    server.put("/odd.tar", packed.getvalue())
    async with open_store(tmp_path / "store", server) as store:
        with pytest.raises(InvalidArtifact, match="neither"):
            await fetch(store, f"{server.url}/odd.tar")
        assert (await fetch(store, f"{server.url}/odd.tar", kind=Kind.MODEL)).kind is Kind.MODEL


async def test_what_nobody_listed_counts_against_the_limit_of_an_artifact(tmp_path, server):
    data = packed_lora(tmp_path / "lora", size=64 << 20)
    server.put("/sql.tar", data, is_chunked=True, has_ranges=False)
    async with open_store(tmp_path / "store", server, limit=1 << 20) as store:
        with pytest.raises(InvalidArtifact, match="--max-artifact-bytes"):
            await fetch(store, f"{server.url}/sql.tar")
    assert server.sent_bytes < len(data) / 2


async def test_agents_of_one_store_put_lost_files_back_once(tmp_path, server):
    data = packed_lora(tmp_path / "lora")
    server.put("/sql.tar", data)
    async with (
        open_store(tmp_path / "store", server) as ours,
        open_store(tmp_path / "store", server, pod="pod-b") as theirs,
    ):
        found = await fetch(ours, f"{server.url}/sql.tar")
        await theirs.rescan()
        (Path(found.path) / "more").unlink()
        before, entry = server.sent_bytes, entry_for(f"{server.url}/sql.tar")
        await asyncio.gather(
            *(one.fetch(entry, restore=found, progress=lambda *_: None) for one in (ours, theirs))
        )
        assert tree(found.path) == tree(tmp_path / "lora")
    assert server.sent_bytes - before == len(data)


async def test_the_limit_of_a_store_counts_what_other_pods_brought(tmp_path, server):
    for name in ("a", "b"):
        server.put(f"/{name}.tar", packed_lora(tmp_path / name))
    limit = 20 << 20
    async with (
        open_store(tmp_path / "store", server, max_bytes=limit) as ours,
        open_store(tmp_path / "store", server, max_bytes=limit, pod="pod-b") as theirs,
    ):
        await fetch(theirs, f"{server.url}/a.tar", name="a")
        await fetch(theirs, f"{server.url}/b.tar", name="b")
        with pytest.raises(StoreFull):
            await fetch(ours, f"{server.url}/a.tar", name="c")


async def test_a_panic_of_a_library_is_an_error_of_one_fetch(tmp_path):
    class Panic(BaseException):
        pass

    def panic(_):
        raise Panic

    workers = Workers("test", 1)
    with pytest.raises(RuntimeError, match="Panic"):
        await workers.run(panic)
    assert await workers.run(lambda _: "still at work") == "still at work"
    workers.close()


def test_an_agent_without_remote_sources_imports_nothing_for_them():
    code = (
        "import sys, sidecar.agent, sidecar.commands.run\n"
        "late = ('obstore', 'huggingface_hub', 'tarfile', 'zipfile', 'sidecar.artifacts.remote')\n"
        "print([name for name in late if name in sys.modules])\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout.strip() == "[]"
