"""Areas: what an interrupted fetch leaves to the next, and what is collected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.artifacts.areas import KEPT_SECONDS
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.files import Stopped
from sidecar.errors import (
    AccessDenied,
    DigestMismatch,
    FetchFailed,
    InvalidArtifact,
    SourceMoved,
    StoreFull,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "store", "pod-a")
    disk.open()
    yield disk
    disk.close()


def interrupt(disk, error, *, key="sql", signature="v1", size=1000):
    with suppress(type(error)), disk.areas.of_fetch(key, signature) as area:
        (area.new / "weights").write_bytes(os.urandom(size))
        raise error


def left(disk, key="sql", signature="v1"):
    """What the next fetch of the same finds."""
    with suppress(FetchFailed), disk.areas.of_fetch(key, signature) as area:
        found = sorted(one.name for one in area.new.iterdir())
        raise FetchFailed("looked only")
    return found


@pytest.mark.parametrize("error", [Stopped(), FetchFailed("cut"), AccessDenied("token expired")])
def test_an_interrupted_fetch_leaves_its_files_to_the_next(disk, error):
    interrupt(disk, error)
    assert left(disk) == ["weights"]


@pytest.mark.parametrize(
    "error",
    [
        SourceMoved("other bytes"),
        DigestMismatch("not pinned"),
        InvalidArtifact("no LoRA"),
        StoreFull("no room"),
    ],
)
def test_a_fetch_that_cannot_go_on_leaves_nothing(disk, error):
    interrupt(disk, error)
    assert disk.areas.bytes_of("sql") == 0
    assert left(disk) == []


def test_a_source_that_moved_is_not_mixed_with_what_it_was(disk):
    interrupt(disk, FetchFailed("cut"))
    assert left(disk, signature="v2") == []


def test_a_source_that_cannot_be_recognised_is_fetched_anew(disk):
    interrupt(disk, FetchFailed("cut"), signature="")
    assert disk.areas.bytes_of("sql") == 0


def test_what_one_fetch_left_is_not_given_to_another(disk):
    interrupt(disk, FetchFailed("cut"))
    assert left(disk, key="other") == []


def test_a_restarted_agent_finds_what_a_killed_one_left(tmp_path):
    root = tmp_path / "store"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from sidecar.artifacts.disk import Disk\n"
        "disk = Disk(Path(sys.argv[1]), 'pod-a'); disk.open()\n"
        "with disk.areas.of_fetch('sql', 'v1') as area:\n"
        "    (area.new / 'weights').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=ROOT, timeout=60, check=False
    )
    assert killed.returncode == -9
    disk = Disk(root, "pod-a")
    disk.open()
    assert left(disk) == ["weights"]
    disk.close()


def test_what_nobody_went_on_with_for_a_day_is_collected(disk, tmp_path):
    interrupt(disk, FetchFailed("cut"))
    now = disk.now()
    assert disk.areas.bytes_besides("other", now) >= 1000
    assert disk.areas.bytes_besides("other", now + KEPT_SECONDS + 60) == 0
    assert list((tmp_path / "store" / ".staging").iterdir()) == []


def test_an_agent_that_fetches_nothing_collects_too(disk, tmp_path):
    interrupt(disk, FetchFailed("cut"))
    disk.collect()
    assert left(disk) == ["weights"]
    day_ago = disk.now() - KEPT_SECONDS - 60
    for one in (area_of(tmp_path), area_of(tmp_path) / "scratch"):
        os.utime(one, (day_ago, day_ago))
    disk.collect()
    assert list((tmp_path / "store" / ".staging").iterdir()) == []


def test_an_interrupted_fetch_gives_its_room_to_others_but_not_its_own(disk):
    interrupt(disk, FetchFailed("cut"), key="mine")
    assert not disk.areas.drop_interrupted("mine")
    assert left(disk, key="mine") == ["weights"]
    assert disk.areas.drop_interrupted("other")
    assert disk.areas.bytes_of("mine") == 0


def test_a_running_fetch_is_never_collected_for_its_room(disk, tmp_path):
    neighbour = Disk(tmp_path / "store", "pod-b")
    neighbour.open()
    with disk.areas.of_fetch("sql", "v1") as area:
        (area.new / "weights").write_bytes(bytes(1000))
        for other in (disk, neighbour):
            assert not other.areas.drop_interrupted("other")
            other.areas.bytes_besides("other", disk.now() + 2 * KEPT_SECONDS)
        assert (area.new / "weights").exists()
    neighbour.close()


def test_a_fetch_counts_what_is_really_on_disk(disk):
    with disk.areas.of_fetch("sql", "v1") as area:
        with (area.new / "weights").open("wb") as handle:
            handle.truncate(1 << 30)
            handle.write(os.urandom(1 << 16))
        assert (1 << 16) <= disk.areas.bytes_of("sql") < (1 << 20)


def area_of(tmp_path):
    (area,) = (tmp_path / "store" / ".staging").iterdir()
    return area


@pytest.mark.parametrize("gone", ["new", "scratch"])
def test_an_area_whose_deletion_or_commit_was_cut_off_is_made_anew(disk, tmp_path, gone):
    interrupt(disk, FetchFailed("cut"))
    shutil.rmtree(area_of(tmp_path) / gone)
    assert left(disk) == []


@pytest.mark.parametrize("damage", ["not utf-8", "a pipe", "a link", "a directory"])
def test_whatever_lies_in_place_of_a_signature_is_collected(disk, tmp_path, damage):
    interrupt(disk, FetchFailed("cut"))
    signature = area_of(tmp_path) / "signature"
    signature.unlink()
    match damage:
        case "not utf-8":
            signature.write_bytes(b"\xff\xfe")
        case "a pipe":
            os.mkfifo(signature)
        case "a link":
            signature.symlink_to("/etc/hostname")
        case _:
            signature.mkdir()
    again = Disk(tmp_path / "store", "pod-b")
    again.open()
    again.close()
    assert list((tmp_path / "store" / ".staging").iterdir()) == []
    assert left(disk) == []


@pytest.mark.parametrize("name", ["new", "scratch"])
def test_a_link_in_place_of_an_area_is_not_followed(disk, tmp_path, name):
    interrupt(disk, FetchFailed("cut"))
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("kept")
    shutil.rmtree(area_of(tmp_path) / name)
    (area_of(tmp_path) / name).symlink_to(tmp_path / "victim")
    assert left(disk) == []
    assert (tmp_path / "victim" / "precious").read_text() == "kept"


def test_what_this_agent_is_fetching_is_not_counted_once_more(disk):
    with disk.areas.of_fetch("sql", "v1") as area:
        (area.new / "weights").write_bytes(bytes(1000))
        assert disk.areas.bytes_besides("other", disk.now()) == 0
