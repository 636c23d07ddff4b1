"""Losses under the engine: every way a resident's files go is told, and nothing of our own is."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from asyncinotify import Inotify

from sidecar import directory_watch
from sidecar.artifacts import losses
from sidecar.artifacts.losses import LossWatch

SOON = 0.05
LONG = 10.0


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[LossWatch]:
    watch = LossWatch()
    try:
        await watch.set_paths(map(str, paths))
        yield watch
    finally:
        watch.close()


def resident(path: Path) -> Path:
    (path / "1").mkdir(parents=True)
    (path / "config").write_text("config")
    (path / "1" / "weights").write_text("weights")
    return path


def rename_over(path: Path) -> None:
    fresh = path.parent / "fresh"
    fresh.write_text("other")
    fresh.rename(path / "config")


LOSSES: dict[str, Callable[[Path], object]] = {
    "a file is deleted": lambda path: (path / "config").unlink(),
    "a file below is deleted": lambda path: (path / "1" / "weights").unlink(),
    "a file is moved away": lambda path: (path / "config").rename(path.parent / "away"),
    "a file is renamed over it": rename_over,
    "a file is truncated": lambda path: os.truncate(path / "1" / "weights", 0),
    "a file is rewritten": lambda path: (path / "config").write_text("other"),
    "the directory is deleted": shutil.rmtree,
    "the directory is moved": lambda path: path.rename(path.parent / "away"),
    "a directory below is moved": lambda path: (path / "1").rename(path.parent / "away"),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
async def test_a_loss_names_the_resident_and_no_other(tmp_path, lose):
    one, other = resident(tmp_path / "one"), resident(tmp_path / "other")
    async with watching(one, other) as watch:
        lose(one)
        assert await watch.wait_lost(LONG) == {str(one)}


async def test_what_we_do_ourselves_is_no_loss(tmp_path):
    one = resident(tmp_path / "one")
    async with watching(one) as watch:
        os.utime(one / "config")
        os.utime(one)
        (one / "1" / "weights").read_text()
        os.listdir(one)
        assert await watch.wait_lost(SOON) == set()


async def test_a_path_that_left_is_not_told_of(tmp_path):
    one, other = resident(tmp_path / "one"), resident(tmp_path / "other")
    async with watching(one, other) as watch:
        (one / "config").unlink()
        await watch.set_paths([str(other)])
        (one / "1" / "weights").unlink()
        (other / "config").unlink()
        assert await watch.wait_lost(LONG) == {str(other)}


async def test_a_resident_put_back_is_watched_again(tmp_path):
    one = resident(tmp_path / "one")
    async with watching(one) as watch:
        shutil.rmtree(one)
        assert await watch.wait_lost(LONG) == {str(one)}
        await watch.set_paths([str(one)])
        assert await watch.wait_lost(SOON) == set(), "it was told once"
        resident(one)
        await watch.set_paths([str(one)])
        (one / "1" / "weights").unlink()
        assert await watch.wait_lost(LONG) == {str(one)}


async def test_a_resident_that_is_not_there_is_lost(tmp_path):
    (tmp_path / "file").touch()
    async with watching(tmp_path / "gone", tmp_path / "file") as watch:
        assert await watch.wait_lost(LONG) == {str(tmp_path / "gone"), str(tmp_path / "file")}


async def test_two_paths_to_one_directory_are_both_told_of(tmp_path):
    one = resident(tmp_path / "one")
    (tmp_path / "link").symlink_to(one)
    async with watching(one, tmp_path / "link") as watch:
        (one / "config").unlink()
        assert await watch.wait_lost(LONG) == {str(one), str(tmp_path / "link")}
        await watch.set_paths([str(one)])
        (one / "1" / "weights").unlink()
        assert await watch.wait_lost(LONG) == {str(one)}


async def test_without_watches_left_a_path_is_skipped_and_said_once(tmp_path, monkeypatch, caplog):
    held = [resident(tmp_path / f"{number}") for number in range(4)]
    add_watch = Inotify.add_watch
    left = 4

    def add_while_left(self, path, mask):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return add_watch(self, path, mask)

    monkeypatch.setattr(Inotify, "add_watch", add_while_left)
    async with watching(*held) as watch:
        await watch.set_paths(map(str, held))
        assert [one.name for one in caplog.records] == [losses.__name__]
        said = caplog.records[0].getMessage()
        assert said == (
            f"cannot watch 2 directories of residents, the first is {held[2]} "
            "(No space left on device)"
        )
        for one in held:
            (one / "config").unlink()
        assert await watch.wait_lost(LONG) == {str(held[0]), str(held[1])}
        left = 4
        await watch.set_paths(map(str, held[1:]))
        (held[2] / "1" / "weights").unlink()
        assert await watch.wait_lost(LONG) == {str(held[2])}, "one left, so there is room again"


async def test_a_directory_that_may_not_be_watched_is_no_loss(tmp_path, monkeypatch):
    def refuse(self, path, mask):
        raise PermissionError(errno.EACCES, "Permission denied")

    one = resident(tmp_path / "one")
    monkeypatch.setattr(Inotify, "add_watch", refuse)
    async with watching(one) as watch:
        assert await watch.wait_lost(SOON) == set()


async def test_a_disk_that_hangs_is_given_up_and_asked_again(tmp_path, monkeypatch, caplog):
    one = resident(tmp_path / "one")
    list_directories = losses._list_directories

    def hang(paths, stop):
        stop.wait(LONG)
        return list_directories(paths, stop)

    monkeypatch.setattr(losses, "LIST_TIMEOUT_SECONDS", SOON)
    monkeypatch.setattr(losses, "_list_directories", hang)
    async with watching(one) as watch:
        assert "not listed within 0.05 s" in caplog.text
        monkeypatch.setattr(losses, "LIST_TIMEOUT_SECONDS", LONG)
        monkeypatch.setattr(losses, "_list_directories", list_directories)
        await watch.set_paths([str(one)])
        (one / "config").unlink()
        assert await watch.wait_lost(LONG) == {str(one)}


async def test_unchanged_paths_are_not_looked_at_again(tmp_path, monkeypatch):
    one = resident(tmp_path / "one")
    async with watching(one) as watch:
        listed: list[object] = []
        monkeypatch.setattr(losses, "_list_directories", lambda *args: listed.append(args))
        await watch.set_paths([str(one)])
        assert not listed


async def test_a_resident_of_very_many_directories_takes_no_more_than_its_share(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(losses, "MAX_DIRECTORIES", 2)
    one = resident(tmp_path / "one")
    (one / "1" / "deep").mkdir()
    (one / "1" / "deep" / "file").touch()
    async with watching(one) as watch:
        (one / "1" / "deep" / "file").unlink()
        assert await watch.wait_lost(SOON) == set()
        (one / "1" / "weights").unlink()
        assert await watch.wait_lost(LONG) == {str(one)}


async def test_lost_events_concern_every_resident(tmp_path):
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"this machine queues {limit} events")
    one, other = resident(tmp_path / "one"), resident(tmp_path / "other")
    async with watching(one, other) as watch:
        # Alternating, since the kernel keeps one of equal events in a row.
        for _ in range(limit // 2 + 2):
            os.truncate(one / "config", 1)
            os.truncate(one / "1" / "weights", 1)
        told: set[str] = set()
        async with asyncio.timeout(LONG):
            while str(other) not in told:
                told |= await watch.wait_lost(LONG)
    assert told == {str(one), str(other)}


async def test_events_beyond_one_turn_of_the_loop_are_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(directory_watch, "MAX_EVENTS_PER_WAKE", 1)
    held = [resident(tmp_path / f"{number}") for number in range(20)]
    async with watching(*held) as watch:
        for one in held:
            (one / "config").unlink()
        told: set[str] = set()
        async with asyncio.timeout(LONG):
            while len(told) < len(held):
                told |= await watch.wait_lost(LONG)


async def test_closing_leaves_no_descriptor_and_no_task(tmp_path):
    resident(tmp_path / "one")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        async with watching(tmp_path / "one") as watch:
            (tmp_path / "one" / "1").touch()
            await watch.wait_lost(0.0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert asyncio.all_tasks() == {asyncio.current_task()}
