"""Mounted documents: every way they change is seen, and no mixture of two versions ever."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from lab.configmap import MountedConfigMap
from sidecar.core.snapshot import Presence
from sidecar.directory_watch import DirectoryWatch
from sidecar.sources import directory as directory_module
from sidecar.sources import file as file_module
from sidecar.sources.directory import MAX_KEY_BYTES, MAX_KEYS, read_directory
from sidecar.sources.file import FileSource, nearest_directory
from tests.support.snapshots import running

NEVER = 3600.0
"""A tick that does not come within a test: what is seen, is seen by its event."""
SOON = 0.05
QUEUED_EVENTS = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def config_dir(path: Path, resync_seconds: float = NEVER) -> FileSource:
    return FileSource(path, single=False, resync_seconds=resync_seconds)


def config_file(path: Path, resync_seconds: float = NEVER) -> FileSource:
    return FileSource(path, single=True, resync_seconds=resync_seconds)


def is_absent(snapshot) -> bool:
    return snapshot.presence is Presence.ABSENT


def is_unreadable(snapshot) -> bool:
    return snapshot.presence is Presence.UNREADABLE


async def test_a_swap_is_seen_by_its_event(tmp_path):
    mounted = MountedConfigMap(tmp_path / "config")
    mounted.write({"models.yaml": "one"})
    async with running(config_dir(mounted.path)) as published:
        await published.wait_files({"models.yaml": "one"})
        before = time.monotonic()
        mounted.write({"models.yaml": "two", "more.yaml": "new"})
        seen = await published.wait_files({"models.yaml": "two", "more.yaml": "new"})
    assert seen.presence is Presence.PRESENT
    assert seen.source == f"dir {mounted.path}"
    assert before <= seen.seen_at <= time.monotonic()


async def test_a_deleted_optional_configmap_is_absent_not_empty(tmp_path):
    mounted = MountedConfigMap(tmp_path / "config")
    mounted.write({"models.yaml": "one"})
    async with running(config_dir(mounted.path)) as published:
        await published.wait_files({"models.yaml": "one"})
        mounted.delete()
        gone = await published.wait_for(is_absent)
        mounted.write({"models.yaml": "two"})
        await published.wait_files({"models.yaml": "two"})
    assert gone.reason == f"{mounted.path} holds no files"
    assert not gone.files


async def test_an_empty_directory_is_absent(tmp_path):
    assert is_absent(await config_dir(tmp_path).read_once())


async def test_a_hundred_fast_swaps_never_mix_two_versions(tmp_path):
    mounted = MountedConfigMap(tmp_path / "config")
    keys = [f"key-{number}.yaml" for number in range(20)]

    def version(number: int) -> dict[str, str]:
        return dict.fromkeys(keys, f"version {number}")

    def swap_all() -> None:
        for number in range(1, 101):
            mounted.write(version(number))

    mounted.write(version(0))
    async with running(config_dir(mounted.path)) as published:
        await published.wait_files(version(0))
        await asyncio.to_thread(swap_all)
        await published.wait_files(version(100))
    present = [one for one in published.all if one.presence is Presence.PRESENT]
    assert all(list(one.files) == sorted(keys) for one in present)
    assert all(len(set(one.files.values())) == 1 for one in present)
    assert not [one for one in published.all if is_absent(one)]


def test_a_read_that_is_overtaken_by_a_swap_is_repeated(tmp_path, monkeypatch):
    mounted = MountedConfigMap(tmp_path)
    mounted.write({"a": "1", "b": "1"})
    read_text = directory_module._read_text
    swaps: list[Path] = []

    def read_and_swap(path, limit):
        text = read_text(path, limit)
        if not swaps:
            swaps.append(path)
            mounted.write({"a": "2", "b": "2"})
        return text

    monkeypatch.setattr(directory_module, "_read_text", read_and_swap)
    assert read_directory(tmp_path).texts == {"a": "2", "b": "2"}


def test_a_directory_that_never_rests_is_an_error_and_not_a_guess(tmp_path, monkeypatch):
    mounted = MountedConfigMap(tmp_path)
    mounted.write({"a": "1"})
    read_text = directory_module._read_text
    reads: list[object] = []

    def read_and_swap(path, limit):
        text = read_text(path, limit)
        reads.append(text)
        mounted.write({"a": f"{len(reads)}"})
        return text

    monkeypatch.setattr(directory_module, "_read_text", read_and_swap)
    with pytest.raises(OSError, match="replaced during each attempt"):
        read_directory(tmp_path)
    assert len(reads) == directory_module.READ_ATTEMPTS


async def test_a_file_edited_in_place_is_seen(tmp_path):
    document = tmp_path / "models.yaml"
    document.write_text("one")
    async with running(config_dir(tmp_path)) as published:
        await published.wait_files({"models.yaml": "one"})
        document.write_text("two")
        await published.wait_files({"models.yaml": "two"})


async def test_a_file_renamed_over_another_is_seen(tmp_path):
    document = tmp_path / "models.yaml"
    document.write_text("one")
    async with running(config_file(document)) as published:
        await published.wait_files({"models.yaml": "one"})
        (tmp_path / "fresh").write_text("two")
        (tmp_path / "fresh").rename(document)
        await published.wait_files({"models.yaml": "two"})


async def test_a_file_that_is_being_written_is_not_read_half(tmp_path):
    document = tmp_path / "models.yaml"
    document.write_text("a\nb\n")
    async with running(config_dir(tmp_path)) as published:
        await published.wait_files({"models.yaml": "a\nb\n"})
        with document.open("w") as half:
            half.write("a\n")
            half.flush()
            # This one wakes the source while the other is half written.
            (tmp_path / "other.yaml").write_text("x")
            with pytest.raises(TimeoutError):
                await published.wait_for(lambda one: "other.yaml" in one.files, timeout=0.2)
            half.write("c\n")
        await published.wait_files({"models.yaml": "a\nc\n", "other.yaml": "x"})
    assert len(published.all) == 2


async def test_a_tick_waits_for_a_writer_but_not_for_ever(tmp_path):
    document = tmp_path / "models.yaml"
    document.write_text("one")
    with document.open("a") as never_closed:
        never_closed.write("more")
        async with running(config_dir(tmp_path, resync_seconds=SOON)) as published:
            await published.wait_files({"models.yaml": "one"})
            never_closed.flush()
            await published.wait_files({"models.yaml": "onemore"})


async def test_one_file_ignores_its_neighbours(tmp_path):
    document = tmp_path / "models.yaml"
    document.write_text("one")
    (tmp_path / "other.yaml").write_text("other")
    source = config_file(document)
    assert (await source.read_once()).files == {"models.yaml": "one"}
    assert source.describe() == f"file {document}"


async def test_one_file_inside_a_mounted_configmap_follows_its_swap(tmp_path):
    mounted = MountedConfigMap(tmp_path)
    mounted.write({"models.yaml": "one"})
    async with running(config_file(tmp_path / "models.yaml")) as published:
        await published.wait_files({"models.yaml": "one"})
        mounted.write({"models.yaml": "two"})
        await published.wait_files({"models.yaml": "two"})


async def test_a_missing_file_is_absent_until_it_comes(tmp_path):
    document = tmp_path / "deep" / "er" / "models.yaml"
    async with running(config_file(document)) as published:
        assert is_absent(await published.wait_for(is_absent))
        document.parent.mkdir(parents=True)
        document.write_text("one")
        await published.wait_files({"models.yaml": "one"})


async def test_a_directory_that_vanishes_and_returns_is_followed(tmp_path):
    mounted = MountedConfigMap(tmp_path / "config")
    mounted.write({"models.yaml": "one"})
    async with running(config_dir(mounted.path)) as published:
        await published.wait_files({"models.yaml": "one"})
        mounted.path.rename(tmp_path / "away")
        gone = await published.wait_for(is_absent)
        assert gone.reason == f"{mounted.path} does not exist"
        again = MountedConfigMap(mounted.path)
        again.write({"models.yaml": "two"})
        await published.wait_files({"models.yaml": "two"})
        again.write({"models.yaml": "three"})
        await published.wait_files({"models.yaml": "three"})


async def test_a_change_without_an_event_is_seen_on_the_tick(tmp_path):
    # The documents are reached through a symlink in an unwatched directory, which is made to lead
    # elsewhere: nothing happens in the directory that is watched.
    for name in ("one", "two"):
        (tmp_path / "real" / name).mkdir(parents=True)
        (tmp_path / "real" / name / "models.yaml").write_text(name)
    link = tmp_path / "config"
    link.symlink_to(tmp_path / "real" / "one")
    async with running(config_dir(link, resync_seconds=SOON)) as published:
        await published.wait_files({"models.yaml": "one"})
        (tmp_path / "fresh").symlink_to(tmp_path / "real" / "two")
        (tmp_path / "fresh").rename(link)
        await published.wait_files({"models.yaml": "two"})
        (tmp_path / "real" / "two" / "models.yaml").write_text("three")
        await published.wait_files({"models.yaml": "three"})


async def test_without_a_watch_the_tick_alone_does_it(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_module, "DirectoryWatch", refuse)
    mounted = MountedConfigMap(tmp_path)
    mounted.write({"models.yaml": "one"})
    async with running(config_dir(tmp_path, resync_seconds=SOON)) as published:
        await published.wait_files({"models.yaml": "one"})
        mounted.write({"models.yaml": "two"})
        await published.wait_files({"models.yaml": "two"})
    warnings = [one for one in caplog.records if one.name == file_module.__name__]
    assert len(warnings) == 1
    assert "read every 0.05 s instead" in warnings[0].getMessage()


async def test_what_does_not_change_is_published_once(tmp_path):
    document = tmp_path / "models.yaml"
    document.write_text("one")
    async with running(config_dir(tmp_path)) as published:
        await published.wait_files({"models.yaml": "one"})
        document.write_text("one")
        (tmp_path / "other.yaml").write_text("x")
        await published.wait_files({"models.yaml": "one", "other.yaml": "x"})
    assert len(published.all) == 2


async def test_one_bad_key_spoils_no_other(tmp_path):
    (tmp_path / "good.yaml").write_text("good")
    (tmp_path / "latin.yaml").write_bytes(b"caf\xe9")
    (tmp_path / "large.yaml").write_text("x" * (MAX_KEY_BYTES + 1))
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder").mkdir()
    (tmp_path / "..hidden").write_text("hidden")
    snapshot = await config_dir(tmp_path).read_once()
    assert snapshot.presence is Presence.PRESENT
    assert snapshot.files == {"good.yaml": "good"}
    assert snapshot.unreadable == {
        "latin.yaml": "not UTF-8 text (byte 3)",
        "large.yaml": "too large: at most 1048576 bytes in one file",
        "dangling.yaml": "No such file or directory",
        "pipe.yaml": "it is not a regular file",
    }


async def test_all_files_together_are_bounded(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_text("x" * MAX_KEY_BYTES)
    snapshot = await config_dir(tmp_path).read_once()
    assert len(snapshot.files) == 8
    assert snapshot.unreadable == {
        "8.yaml": "too large: at most 8388608 bytes in all files together"
    }


async def test_a_file_of_exactly_the_limit_is_read(tmp_path):
    (tmp_path / "large.yaml").write_text("x" * MAX_KEY_BYTES)
    snapshot = await config_file(tmp_path / "large.yaml").read_once()
    assert len(snapshot.files["large.yaml"]) == MAX_KEY_BYTES


async def test_a_directory_of_far_too_many_files_is_unreadable(tmp_path):
    for number in range(MAX_KEYS + 1):
        (tmp_path / f"{number}").touch()
    snapshot = await config_dir(tmp_path).read_once()
    assert is_unreadable(snapshot)
    assert "more than 1000 files" in snapshot.reason


async def test_a_link_that_leads_nowhere_is_unreadable_not_absent(tmp_path):
    (tmp_path / "..data").symlink_to("..gone")
    snapshot = await config_dir(tmp_path).read_once()
    assert is_unreadable(snapshot)
    assert "..data leads nowhere" in snapshot.reason


async def test_a_file_where_a_directory_should_be_is_unreadable(tmp_path):
    (tmp_path / "config").write_text("not a directory")
    snapshot = await config_dir(tmp_path / "config").read_once()
    assert is_unreadable(snapshot)
    assert "Not a directory" in snapshot.reason


async def test_a_directory_where_a_file_should_be_is_unreadable(tmp_path):
    snapshot = await config_file(tmp_path).read_once()
    assert is_unreadable(snapshot)
    assert "not a regular file" in snapshot.reason


async def test_a_disk_that_hangs_is_reported_and_read_again_when_it_answers(tmp_path, monkeypatch):
    (tmp_path / "models.yaml").write_text("one")
    answers = threading.Event()
    reads: list[object] = []

    def hang_once(directory):
        reads.append(directory)
        if len(reads) == 1:
            answers.wait(10)
            raise OSError("it took too long")
        return read_directory(directory)

    monkeypatch.setattr(file_module, "read_directory", hang_once)
    monkeypatch.setattr(file_module, "READ_TIMEOUT_SECONDS", SOON)
    source = config_dir(tmp_path, resync_seconds=SOON)
    try:
        async with running(source) as published:
            hung = await published.wait_for(is_unreadable)
            assert hung.reason == f"{tmp_path} could not be read within 0.05 s"
            (tmp_path / "models.yaml").write_text("two")
            assert len(reads) == 1, "a disk that hangs is not asked by more threads"
            answers.set()
            await published.wait_files({"models.yaml": "two"})
    finally:
        answers.set()


async def test_a_watch_ends_when_its_directory_goes(tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    with DirectoryWatch(watched, lambda _: True) as watch:
        assert await watch.wait_changed(0.0) is None
        watched.rmdir()
        assert await watch.wait_changed(5.0) is not None
        assert watch.ended


async def test_only_relevant_events_wake(tmp_path):
    with DirectoryWatch(tmp_path, lambda name: name == "mine") as watch:
        (tmp_path / "other").touch()
        assert await watch.wait_changed(SOON) is None
        (tmp_path / "mine").touch()
        assert await watch.wait_changed(5.0) is not None


async def test_lost_events_count_as_a_change(tmp_path):
    if QUEUED_EVENTS > 100_000:
        pytest.skip(f"this machine queues {QUEUED_EVENTS} events")
    for name in ("one", "two"):
        (tmp_path / name).touch()
    with DirectoryWatch(tmp_path, lambda name: name == "mine") as watch:
        for _ in range(QUEUED_EVENTS // 2 + 2):
            os.utime(tmp_path / "one")
            os.utime(tmp_path / "two")
        assert await watch.wait_changed(5.0) is not None


async def test_a_path_that_the_system_refuses_is_unreadable_and_ends_nothing(tmp_path):
    async with running(config_dir(tmp_path / ("x" * 300), resync_seconds=SOON)) as published:
        refused = await published.wait_for(is_unreadable)
        (tmp_path / "wakes it").touch()
        with pytest.raises(TimeoutError):
            await published.wait_for(lambda one: not is_unreadable(one), timeout=2 * SOON)
    assert "File name too long" in refused.reason
    assert len(published.all) == 1


async def test_closing_a_watch_leaves_no_descriptor(tmp_path):
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(3):
        with DirectoryWatch(tmp_path, lambda _: True):
            pass
        with pytest.raises(NotADirectoryError):
            DirectoryWatch(Path("/dev/null"), lambda _: True)
    assert opened() == before


def test_the_nearest_directory_exists(tmp_path):
    (tmp_path / "file").touch()
    assert nearest_directory(tmp_path) == tmp_path
    assert nearest_directory(tmp_path / "a" / "b") == tmp_path
    assert nearest_directory(tmp_path / "file" / "b") == tmp_path
