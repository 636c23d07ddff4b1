import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from adapters.base import Kind
from sidecar.artifacts import store as store_module
from sidecar.artifacts import threads
from sidecar.artifacts.bring import fetch_key
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.fetch import SourceOptions
from sidecar.artifacts.local import LocalSource
from sidecar.artifacts.locks import LockFile
from sidecar.artifacts.looks import THREADS
from sidecar.artifacts.manifest import MARKER
from sidecar.artifacts.store import Store
from sidecar.errors import (
    ArtifactError,
    DigestMismatch,
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceNotAllowed,
    StoreFull,
    UnsafeArtifact,
)
from tests.support.loras import entry_for, write_tiny_lora, write_tiny_model

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def open_store(root, *, pod_uid="pod-a", max_bytes=None, allowed=()):
    options = SourceOptions(allowed=tuple(allowed))
    store = Store(root, max_bytes=max_bytes, pod_uid=pod_uid, options=options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fetch(store, entry, restore=None):
    return await store.fetch(entry, restore=restore, progress=lambda done, total: None)


def _tree(path):
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in Path(path).rglob("*")
        if one.is_file() and one.name != MARKER
    }


def _staged(root):
    return list((root / ".staging").iterdir())


async def _wait_until_settled(store, entry):
    """Wait until a later change of the source would bear another time."""
    async with asyncio.timeout(10):
        while True:
            revision = await fetch(store, entry)
            marker = json.loads(Path(revision.path, MARKER).read_text())
            if marker["source_signature"]:
                return revision


# Fetching.


async def test_a_fetched_lora_is_a_whole_copy_at_its_place(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        seen = []
        revision = await store.fetch(
            entry_for(source), restore=None, progress=lambda done, total: seen.append((done, total))
        )
        await asyncio.to_thread(lambda: None)
        assert revision.path == str(tmp_path / "store" / "lora" / "sql" / revision.revision)
        assert _tree(revision.path) == _tree(source)
        assert revision.kind is Kind.LORA
        assert revision.digest.removeprefix("sha256:").startswith(revision.revision)
        assert revision.bytes == sum(map(len, _tree(source).values()))
        assert store.inventory().find("sql", revision.revision) == revision
        assert seen[-1] == (revision.bytes, revision.bytes)
        assert _staged(tmp_path / "store") == []


async def test_modes_do_not_depend_on_the_umask_or_the_source(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    (source / "config.pbtxt").chmod(0o600)
    (source / "1").chmod(0o700)
    before = os.umask(0o077)
    try:
        async with open_store(tmp_path / "store") as store:
            revision = await fetch(store, entry_for(source))
    finally:
        os.umask(before)
    for one in [Path(revision.path), *Path(revision.path).rglob("*"), *Path(revision.path).parents]:
        if tmp_path in one.parents:
            assert one.stat().st_mode & 0o777 == (0o755 if one.is_dir() else 0o644), one


async def test_the_copy_is_no_link_to_the_source(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        revision = await fetch(store, entry_for(source))
        before = _tree(revision.path)
        (source / "adapter_model.safetensors").write_bytes(b"changed in place")
        assert _tree(revision.path) == before


async def test_other_bytes_are_another_revision_and_equal_bytes_the_same(tmp_path):
    one, two = write_tiny_lora(tmp_path / "one"), write_tiny_lora(tmp_path / "two", seed=2)
    same = shutil.copytree(one, tmp_path / "same")
    async with open_store(tmp_path / "store") as store:
        first = await fetch(store, entry_for(one))
        second = await fetch(store, entry_for(two))
        third = await fetch(store, entry_for(same))
        assert first.revision != second.revision
        assert third.path == first.path
        assert len(store.inventory().revisions["sql"]) == 2


async def test_a_source_that_looks_as_it_did_is_not_read_again(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    entry = entry_for(source)
    async with open_store(tmp_path / "store") as store:
        first = await _wait_until_settled(store, entry)
        inode = Path(first.path).stat().st_ino
    # What reads it now would find another digest, for the marker is what it trusts.
    async with open_store(tmp_path / "store") as store:
        seen = []
        again = await store.fetch(entry, restore=None, progress=lambda *args: seen.append(args))
        assert (again.path, Path(again.path).stat().st_ino) == (first.path, inode)
        assert seen == []
        assert list(await store.fetch_known([entry, entry_for(tmp_path, "other")])) == ["sql"]


async def test_a_source_that_was_just_written_is_not_trusted_to_look_the_same(tmp_path):
    """A change within one tick of the clock bears the same times: only reading tells."""
    source = write_tiny_lora(tmp_path / "source")
    path = source / "adapter_model.safetensors"
    async with open_store(tmp_path / "store") as store:
        revisions = set()
        for fill in range(8):
            path.write_bytes(path.read_bytes()[:-1] + bytes([fill]))
            revisions.add((await fetch(store, entry_for(source))).revision)
        assert len(revisions) == 8


async def test_a_pin_on_disk_needs_no_source(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        first = await fetch(store, entry_for(source))
        shutil.rmtree(source)
        assert (await fetch(store, entry_for(source, digest=first.digest))).path == first.path
        with pytest.raises(NotFound):
            await fetch(store, entry_for(source))


async def test_another_digest_than_the_pinned_one_is_refused_naming_both(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    pinned = f"sha256:{'0' * 64}"
    async with open_store(tmp_path / "store") as store:
        with pytest.raises(DigestMismatch, match=pinned):
            await fetch(store, entry_for(source, digest=pinned))
        assert store.inventory().revisions == {}
        assert _staged(tmp_path / "store") == []
        known = await _wait_until_settled(store, entry_for(source))
        with pytest.raises(DigestMismatch, match=known.digest):
            await fetch(store, entry_for(source, digest=pinned))


async def test_what_must_not_be_there_is_refused_before_a_byte_is_copied(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    async with open_store(tmp_path / "store", allowed=[str(tmp_path / "source")]) as store:
        with pytest.raises(UnsafeArtifact):
            await fetch(store, entry_for(source))
        with pytest.raises(SourceNotAllowed):
            await fetch(store, entry_for(write_tiny_lora(tmp_path / "other")))
        with pytest.raises(SourceNotAllowed):
            await store.look(entry_for(tmp_path / "other"))
        assert not (tmp_path / "store" / "lora").exists()


async def test_the_store_is_not_copied_into_itself(tmp_path):
    write_tiny_lora(tmp_path)
    async with open_store(tmp_path / "store") as store:
        with pytest.raises(InvalidArtifact, match="store"):
            await fetch(store, entry_for(tmp_path))


async def test_an_empty_directory_is_no_artifact(tmp_path):
    (tmp_path / "source" / "1").mkdir(parents=True)
    async with open_store(tmp_path / "store") as store:
        with pytest.raises(InvalidArtifact, match="no files"):
            await fetch(store, entry_for(tmp_path / "source"))


async def test_empty_version_directories_survive_and_parts_are_told(tmp_path):
    text = 'platform: "ensemble" ensemble_scheduling { step [ { model_name: "a" } ] }'
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.pbtxt").write_text(text)
    async with open_store(tmp_path / "store") as store:
        revision = await fetch(store, entry_for(source))
        assert Path(revision.path, "1").is_dir()
        assert revision.parts == ("a",)
        (source / "3").mkdir()
        assert (await fetch(store, entry_for(source))).path == revision.path
        assert Path(revision.path, "3").is_dir()
    async with open_store(tmp_path / "store") as store:
        assert [one.parts for one in store.inventory().all()] == [("a",)]


async def test_names_that_are_no_file_names_stay_in_their_place(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    names = ["..", "a/../../b", ".hidden", "x" * 253, "模" * 253, "%41", "A"]
    async with open_store(tmp_path / "store") as store:
        for name in names:
            revision = await fetch(store, entry_for(source, name))
            assert Path(revision.path).parents[1] == tmp_path / "store" / "lora"
    async with open_store(tmp_path / "store") as store:
        assert sorted(store.inventory().revisions) == sorted(names)


async def test_many_entries_at_once_are_all_fetched(tmp_path):
    entries = [entry_for(write_tiny_lora(tmp_path / str(i), seed=i), f"l{i}") for i in range(30)]
    async with open_store(tmp_path / "store") as store:
        await asyncio.gather(*(fetch(store, entry) for entry in entries))
        assert len(list(store.inventory().all())) == 30
        looks = await store.look_all([*entries, entry_for(tmp_path / "none", "gone")])
        assert isinstance(looks.pop("gone"), NotFound)
        assert len({one.signature for one in looks.values()}) == 30


async def test_a_passthrough_never_moves_and_is_not_in_the_store(tmp_path):
    async with open_store(tmp_path / "store") as store:
        entry = entry_for("org/repo", passthrough=True)
        revision = await fetch(store, entry)
        assert (revision.verified, revision.path) == (False, "org/repo")
        assert (await store.look(entry)) == (await store.look(entry))
        assert store.inventory().revisions == {}
        assert await store.fetch_known([entry]) == {}


# Sources that hang.


@pytest.fixture
def hanging(monkeypatch):
    """Paths of sources whose server is gone: a look at them returns when the test is over."""
    paths, back, listing = set(), Event(), LocalSource.list

    def hang(source):
        if source._path in paths:
            back.wait(30)
        return listing(source)

    monkeypatch.setattr(LocalSource, "list", hang)
    # Under load a healthy look takes more than a tenth of it.
    monkeypatch.setattr(store_module, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(store_module, "FIND_SECONDS", 0.1)
    monkeypatch.setattr(threads, "STOP_GRACE_SECONDS", 0.01)
    hanging = SimpleNamespace(add=lambda path: paths.add(str(path)), back=back)
    yield hanging
    back.set()


async def test_sources_that_hang_hide_nothing_of_the_others_until_they_answer(tmp_path, hanging):
    entries = [entry_for(write_tiny_lora(tmp_path / str(i), seed=i), f"l{i}") for i in range(30)]
    hung, before = {f"l{i}" for i in range(0, 24, 2)}, set(threading.enumerate())
    async with open_store(tmp_path / "store") as store, asyncio.timeout(20):
        for i in range(0, 24, 2):
            hanging.add(tmp_path / str(i))
        for _ in range(2):
            looks = await store.look_all(entries)
            assert {n for n, one in looks.items() if isinstance(one, FetchFailed)} == hung
        lookers = {one for one in set(threading.enumerate()) - before if one.name == "looks"}
        assert len(lookers) <= len(hung) + THREADS
        hanging.back.set()
        while sum(one.is_alive() for one in lookers) > THREADS:
            await asyncio.to_thread(next(filter(Thread.is_alive, lookers)).join, 0.01)
        looks = await store.look_all(entries)
        assert not any(isinstance(one, FetchFailed) for one in looks.values())


async def test_known_revisions_are_found_though_the_source_of_one_hangs(tmp_path, hanging):
    entries = [entry_for(write_tiny_lora(tmp_path / str(i), seed=i), f"l{i}") for i in range(9)]
    async with open_store(tmp_path / "store") as store, asyncio.timeout(20):
        for entry in entries:
            await _wait_until_settled(store, entry)
        hanging.add(tmp_path / "4")
        known = await store.fetch_known(entries)
        assert known.keys() == {entry.name for entry in entries} - {"l4"}


async def test_a_round_over_many_sources_that_hang_ends_in_its_time(tmp_path, hanging, monkeypatch):
    monkeypatch.setattr(store_module, "LOOK_ALL_SECONDS", 0.25)
    entries = [entry_for(tmp_path / str(i), f"l{i}") for i in range(40)]
    for i in range(40):
        hanging.add(tmp_path / str(i))
    loop = asyncio.get_running_loop()
    async with open_store(tmp_path / "store") as store:
        began = loop.time()
        looks = await store.look_all(entries)
        assert loop.time() - began < 5.0
        # Of those that it did not come to nothing is said: the next round begins with them.
        assert 0 < len(looks) < len(entries)
        assert all(isinstance(one, FetchFailed) for one in looks.values())


async def test_fetches_that_were_given_up_and_hang_keep_neither_disk_nor_fetches(tmp_path, hanging):
    async with open_store(tmp_path / "store") as store, asyncio.timeout(20):
        for i in range(20):
            hanging.add(tmp_path / f"gone{i}")
        given_up = [
            asyncio.create_task(fetch(store, entry_for(tmp_path / f"gone{i}", f"g{i}")))
            for i in range(20)
        ]
        await store.look_all([entry_for(tmp_path / "gone0", "g0")])
        revision = await _within_disk(store, write_tiny_lora(tmp_path / "disk"), given_up)
        await store.evict(revision)
        assert not Path(revision.path).exists()


async def _within_disk(store, source, given_up):
    await store.rescan()
    assert await store.verify(store.inventory().all()) == ()
    for task in given_up:
        task.cancel()
    await asyncio.wait(given_up)
    return await fetch(store, entry_for(source))


def test_the_process_ends_while_a_thread_hangs():
    code = (
        "import asyncio, threading\n"
        "from sidecar.artifacts.threads import Workers\n"
        "async def main():\n"
        "    begun = threading.Event()\n"
        "    def hang(_):\n"
        "        begun.set(); threading.Event().wait()\n"
        "    task = asyncio.ensure_future(Workers('one', 1).run(hang, grace_seconds=0))\n"
        "    await asyncio.to_thread(begun.wait)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, check=False)
    assert ended.returncode == 0


# Room.


async def test_an_artifact_beyond_the_limit_is_refused_until_room_is_made(tmp_path):
    one, two = write_tiny_lora(tmp_path / "one"), write_tiny_lora(tmp_path / "two", seed=2)
    size = sum(map(len, _tree(one).values()))
    async with open_store(tmp_path / "store", max_bytes=size + 10) as store:
        first = await fetch(store, entry_for(one))
        with pytest.raises(StoreFull, match="--store-max-bytes"):
            await fetch(store, entry_for(two))
        assert _staged(tmp_path / "store") == []
        await store.evict(first)
        assert (await fetch(store, entry_for(two))).bytes == size
        assert store.inventory().max_bytes == size + 10


async def test_a_disk_without_room_is_told_before_copying(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    with (source / "1" / "huge").open("wb") as handle:
        os.truncate(handle.fileno(), 1 << 43)
    async with open_store(tmp_path / "store") as store:
        with pytest.raises(StoreFull, match="free space"):
            await fetch(store, entry_for(source))


# Faults.


async def test_what_a_killed_agent_left_is_collected_and_never_seen(tmp_path):
    root = tmp_path / "store"
    code = (
        "import asyncio, os, sys; from pathlib import Path\n"
        "from sidecar.artifacts import disk\n"
        "disk.Disk._place = lambda *args: os.kill(os.getpid(), 9)\n"
        "from sidecar.artifacts.store import Store\n"
        "from tests.support.loras import entry_for\n"
        "async def main():\n"
        "    store = Store(Path(sys.argv[1]), max_bytes=None, pod_uid='dead')\n"
        "    await store.open()\n"
        "    await store.fetch(entry_for(sys.argv[2]), restore=None, progress=lambda *a: None)\n"
        "asyncio.run(main())\n"
    )
    source = write_tiny_lora(tmp_path / "source")
    killed = subprocess.run(
        [sys.executable, "-c", code, str(root), str(source)], cwd=ROOT, timeout=60, check=False
    )
    assert killed.returncode == -9
    assert len(_staged(root)) == 1
    async with open_store(root) as store:
        assert store.inventory().revisions == {}
        assert _staged(root) == []
        assert _tree((await fetch(store, entry_for(source))).path) == _tree(source)


async def test_what_a_living_agent_is_staging_is_left_alone(tmp_path):
    with Disk(tmp_path / "store", "pod-a").areas.fresh() as area:
        async with open_store(tmp_path / "store", pod_uid="pod-b"):
            assert area.path.is_dir()
    assert not area.path.exists()


@pytest.mark.parametrize("damage", ["truncated", "file gone", "marker gone", "marker damaged"])
async def test_an_incomplete_revision_is_not_in_the_inventory_and_is_mended(tmp_path, damage):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        revision = await fetch(store, entry_for(source))
    weights, marker = Path(revision.path, "adapter_model.safetensors"), Path(revision.path, MARKER)
    match damage:
        case "truncated":
            os.truncate(weights, 10)
        case "file gone":
            weights.unlink()
        case "marker gone":
            marker.unlink()
        case _:
            marker.write_text('{"format": 1}')
    async with open_store(tmp_path / "store") as store:
        assert store.inventory().revisions == {}
        assert (await fetch(store, entry_for(source))).path == revision.path
        assert _tree(revision.path) == _tree(source)
        await store.rescan()
        assert store.inventory().find("sql", revision.revision) is not None


async def test_vanished_files_are_found_and_put_back_at_the_same_path(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    entry = entry_for(source)
    async with open_store(tmp_path / "store") as store:
        revision = await _wait_until_settled(store, entry)
        assert await store.verify([revision]) == ()
        shutil.rmtree(revision.path)
        assert [one.path for one in await store.verify([revision])] == [revision.path]
        assert store.inventory().revisions == {}
        restored = await fetch(store, entry, restore=revision)
        assert restored.path == revision.path
        assert _tree(revision.path) == _tree(source)


async def test_a_known_source_whose_revision_was_damaged_is_read_again(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        revision = await _wait_until_settled(store, entry_for(source))
        Path(revision.path, "adapter_model.safetensors").unlink()
        assert (await fetch(store, entry_for(source))).path == revision.path
        assert _tree(revision.path) == _tree(source)


async def test_a_stray_file_where_a_revision_belongs_is_moved_away(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        revision = await fetch(store, entry_for(source))
        await store.evict(revision)
        Path(revision.path).parent.mkdir()
        Path(revision.path).write_text("stray")
        with pytest.raises(FetchFailed):
            await fetch(store, entry_for(source))
        assert _tree((await fetch(store, entry_for(source))).path) == _tree(source)


async def test_a_cancelled_fetch_leaves_nothing_behind(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    with (source / "1" / "weights").open("wb") as handle:
        os.truncate(handle.fileno(), 256 << 20)
    begun = asyncio.Event()
    async with open_store(tmp_path / "store") as store:
        task = asyncio.create_task(
            store.fetch(entry_for(source), restore=None, progress=lambda *args: begun.set())
        )
        async with asyncio.timeout(10):
            await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _staged(tmp_path / "store") == []
        assert store.inventory().revisions == {}


async def test_a_store_that_cannot_be_written_reports_and_never_crashes(tmp_path):
    (tmp_path / "file").write_text("no directory")
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "file" / "store") as store:
        assert "--store-dir" in store.problem
        assert store.inventory().revisions == {}
        await store.rescan()
        await store.hold([])
        with pytest.raises(ArtifactError, match="--store-dir"):
            await fetch(store, entry_for(source))


async def test_a_store_that_becomes_writable_works_from_then_on(tmp_path):
    (tmp_path / "store").write_text("in the way")
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        with pytest.raises(ArtifactError):
            await fetch(store, entry_for(source))
        (tmp_path / "store").unlink()
        assert Path((await fetch(store, entry_for(source))).path).is_dir()
        assert store.problem == ""


# Eviction.


async def test_an_evicted_revision_leaves_no_trace(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    outside = tmp_path / "outside"
    outside.write_text("stays")
    async with open_store(tmp_path / "store") as store:
        revision = await fetch(store, entry_for(source))
        Path(revision.path, "made by the engine").symlink_to(outside)
        Path(revision.path, "__pycache__").symlink_to(tmp_path / "source")
        await store.evict(revision)
        assert store.inventory().revisions == {}
        assert not Path(revision.path).parent.exists()
        assert _staged(tmp_path / "store") == []
        await store.evict(revision)
    assert outside.read_text() == "stays"
    assert len(_tree(source)) == 2


async def test_a_name_with_another_revision_keeps_its_directory(tmp_path):
    async with open_store(tmp_path / "store") as store:
        one = await fetch(store, entry_for(write_tiny_lora(tmp_path / "1")))
        two = await fetch(store, entry_for(write_tiny_lora(tmp_path / "2", seed=2)))
        await store.evict(one)
        assert store.inventory().revisions == {"sql": (two,)}
        assert Path(two.path).is_dir()


# Several pods.


async def test_what_another_pod_holds_is_not_evicted_until_it_lets_go(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with (
        open_store(tmp_path / "store") as ours,
        open_store(tmp_path / "store", pod_uid="pod-b") as theirs,
    ):
        revision = await fetch(theirs, entry_for(source))
        await ours.rescan()
        with pytest.raises(ArtifactError, match="another pod"):
            await ours.evict(revision)
        assert _tree(revision.path) == _tree(source)
        await theirs.hold([revision])
        with pytest.raises(ArtifactError, match="another pod"):
            await ours.evict(revision)
        await theirs.hold([])
        await ours.evict(revision)
        assert [one.path for one in await theirs.verify([revision])] == [revision.path]


@pytest.mark.parametrize("kept", ["held", "retired"])
async def test_what_the_memory_of_a_pod_whose_agent_is_away_names_is_not_evicted(tmp_path, kept):
    root = tmp_path / "store"
    async with open_store(root, pod_uid="pod-b") as theirs:
        one = await fetch(theirs, entry_for(write_tiny_lora(tmp_path / "1")))
        two = await fetch(theirs, entry_for(write_tiny_lora(tmp_path / "2", seed=2)))
    elsewhere = one.path.replace(str(root), "/mounted/elsewhere")
    theirs = root / ".agent" / "pod-b.json"
    theirs.parent.mkdir()
    # Of a version that this agent does not know.
    saved = {"version": 99, "held": {}, "retired": {}}
    theirs.write_text(
        json.dumps(saved | {kept: {"sql": [elsewhere, ""]} if kept == "held" else {elsewhere: 1.0}})
    )
    (root / ".agent" / "pod-a.json").write_text(json.dumps(saved | {"retired": {one.path: 1.0}}))
    (root / ".agent" / "pod-c.json").write_text("[damaged")
    async with open_store(root) as ours:
        await ours.evict(two)
        for _ in range(2):
            with pytest.raises(ArtifactError, match="pod-b") as refusal:
                await ours.evict(one)
            assert refusal.value.retryable
        assert _tree(one.path) == _tree(tmp_path / "1")
        theirs.write_text(json.dumps(saved))
        await ours.evict(one)
        assert not Path(one.path).exists()


async def test_the_memory_of_a_pod_that_is_long_gone_keeps_nothing(tmp_path):
    root = tmp_path / "store"
    async with open_store(root) as store:
        one = await fetch(store, entry_for(write_tiny_lora(tmp_path / "source")))
        (root / ".agent").mkdir()
        memory = root / ".agent" / "pod-b.json"
        memory.write_text(json.dumps({"held": {"sql": [one.path, ""]}, "retired": {}}))
        with pytest.raises(ArtifactError, match="pod-b"):
            await store.evict(one)
        os.utime(memory, (1000, 1000))
        await store.evict(one)
        assert not Path(one.path).exists()


async def test_the_hold_of_a_pod_that_died_does_not_count(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store", pod_uid="dead") as theirs:
        revision = await fetch(theirs, entry_for(source))
    async with open_store(tmp_path / "store") as ours:
        await ours.evict(revision)
        assert not Path(revision.path).exists()


async def test_two_processes_fetch_one_source_and_both_get_it_whole(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    (source / "1" / "weights").write_bytes(os.urandom(8 << 20))
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from sidecar.artifacts.store import Store\n"
        "from tests.support.loras import entry_for\n"
        "async def main():\n"
        "    store = Store(Path(sys.argv[1]), max_bytes=None, pod_uid=sys.argv[3])\n"
        "    await store.open()\n"
        "    one = await store.fetch(\n"
        "        entry_for(sys.argv[2]), restore=None, progress=lambda *args: None)\n"
        "    print(one.path)\n"
        "asyncio.run(main())\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "store"), str(source)]
    running = [
        subprocess.Popen([*arguments, pod], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for pod in ("a", "b")
    ]
    said = [one.communicate(timeout=60)[0].strip() for one in running]
    assert said[0] == said[1]
    assert _tree(said[0]) == _tree(source)
    assert _staged(tmp_path / "store") == []


async def test_one_pod_fetches_while_the_other_waits_and_finds_it(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    entry = entry_for(source)
    async with open_store(tmp_path / "elsewhere") as store:
        fetched = await _wait_until_settled(store, entry)
    async with open_store(tmp_path / "store") as store:
        seen = []
        with Disk(tmp_path / "store", "pod-b").fetching(fetch_key(entry)) as is_theirs:
            assert is_theirs
            waiting = asyncio.create_task(
                store.fetch(entry, restore=None, progress=lambda *args: seen.append(args))
            )
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done
            shutil.copytree(tmp_path / "elsewhere" / "lora", tmp_path / "store" / "lora")
        found = await waiting
        assert found.revision == fetched.revision
        assert seen == [(0, found.bytes)]


def test_locks_are_shared_or_exclusive_and_die_with_their_file(tmp_path):
    one, two = LockFile(tmp_path / "locks"), LockFile(tmp_path / "locks")
    assert one.acquire("a", exclusive=False)
    assert two.acquire("a", exclusive=False)
    assert not one.acquire("a", exclusive=True)
    assert one.acquire("b", exclusive=True)
    assert not two.acquire("b", exclusive=False)
    one.release("b")
    assert two.acquire("b", exclusive=True)
    two.close()
    assert one.acquire("a", exclusive=True)
    assert one.acquire("b", exclusive=True)
    one.close()


async def test_old_memories_of_pods_that_are_gone_are_collected(tmp_path):
    agents = tmp_path / "store" / ".agent"
    agents.mkdir(parents=True)
    for name in ("gone", "young", "pod-a", "alive"):
        (agents / f"{name}.json").write_text("{}")
        if name != "young":
            os.utime(agents / f"{name}.json", (1000, 1000))
    alive = LockFile(tmp_path / "store" / ".locks" / "store")
    alive.acquire("agent alive", exclusive=False)
    async with open_store(tmp_path / "store"):
        assert sorted(one.stem for one in agents.iterdir()) == ["alive", "pod-a", "young"]
    alive.close()


async def test_opening_and_looking_at_a_thousand_revisions_is_quick(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    async with open_store(tmp_path / "store") as store:
        revision = await fetch(store, entry_for(source))
    text = Path(revision.path, MARKER).read_text()
    for i in range(1000):
        place = tmp_path / "store" / "lora" / f"l{i}" / revision.revision
        place.mkdir(parents=True)
        for name in _tree(source):
            os.link(Path(revision.path, name), place / name)
        (place / MARKER).write_text(text.replace('"name": "sql"', f'"name": "l{i}"'))
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with open_store(tmp_path / "store") as store:
        inventory = store.inventory()
        assert len(inventory.revisions) == 1001
        assert await store.verify(inventory.all()) == ()
        await store.hold(inventory.all())
        assert store.inventory() is inventory
    assert loop.time() - began < 5.0
