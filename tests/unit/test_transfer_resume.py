import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sidecar.artifacts.files import Stopped
from sidecar.artifacts.remote.checkpoints import MAX_UNNOTED_BYTES
from sidecar.artifacts.remote.port import Packing
from tests.support.faulty import (
    FaultyServer,
    Slow,
)
from tests.support.transfer import LARGE, MIB, SMALL, Place, data_of, fetch, put, sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server():
    before = {*threading.enumerate()}
    with FaultyServer() as one:
        yield one
    assert {*threading.enumerate()} <= before, "a fetch left a thread behind"


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_stopping_ends_every_read_soon_and_keeps_what_came(server, place):
    blob = put(server, "large", LARGE)
    server.add(Slow(4e6), times=None)
    timer = threading.Thread(
        target=lambda: (server.wait(lambda: server.sent_bytes > 3e6), place.workspace.stop.set())
    )
    timer.start()
    with pytest.raises(Stopped):
        fetch(server, [blob], place)
    stopped_at = time.monotonic()
    timer.join()
    assert time.monotonic() - stopped_at < 1
    server.wait(lambda: server.open_connections == 0)
    before = server.sent_bytes
    server.clear()
    again = Place(place.workspace.directory.parent)
    fetch(server, [blob], again)
    assert again.read("large") == LARGE
    assert sum(again.told) == len(LARGE)
    assert server.sent_bytes < len(LARGE) - before + 3 * MIB


def test_what_is_complete_is_not_asked_for_again(server, place):
    blobs = [put(server, f"{i}", data_of(5000, i)) for i in range(70)]
    blobs += [put(server, "large", LARGE), put(server, "t", SMALL, packing=Packing.ZIP)]
    first = fetch(server, blobs, place)
    server.clear()
    again = Place(place.workspace.directory.parent)
    assert fetch(server, blobs, again) == first
    assert server.seen == []
    assert sum(again.told) == sum(place.told)


def test_a_complete_file_that_was_damaged_is_read_again(server, place):
    blobs = [put(server, "small", SMALL), put(server, "large", LARGE)]
    fetch(server, blobs, place)
    for path, data in (("small", SMALL), ("large", LARGE)):
        server.clear()
        with (place.workspace.directory / path).open("r+b") as file:
            file.seek(1000)
            file.write(bytes([data[1000] ^ 1]))
        again = Place(place.workspace.directory.parent)
        fetch(server, blobs, again)
        assert again.read(path) == data
        assert server.sent_bytes == len(data)
        assert sum(again.told) == len(SMALL) + len(LARGE)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_file_that_is_gone_or_shorter_is_read_again(server, place, data):
    blob = put(server, "x", data)
    fetch(server, [blob], place)
    file = place.workspace.directory / "x"
    os.truncate(file, 1000)
    fetch(server, [blob], place)
    assert file.read_bytes() == data
    file.unlink()
    fetch(server, [blob], place)
    assert file.read_bytes() == data


def test_other_bytes_under_the_same_name_take_nothing_over(server, place):
    old = put(server, "x", LARGE)
    fetch(server, [old], place)
    new_data = data_of(len(LARGE), 5)
    new = put(server, "x", new_data)
    assert new.size == old.size
    server.clear()
    fetch(server, [new], place)
    assert place.read("x") == new_data
    assert server.sent_bytes == len(LARGE)
    # What was noted of the old ones before is not believed again.
    put(server, "x", LARGE)
    fetch(server, [old], place)
    assert place.read("x") == LARGE


def interrupt(server, blob, place):
    """Fetch about half of a blob."""
    server.add(Slow(20e6), times=None)
    timer = threading.Thread(
        target=lambda: (
            server.wait(lambda: server.sent_bytes > blob.size / 2),
            place.workspace.stop.set(),
        )
    )
    timer.start()
    with pytest.raises(Stopped):
        fetch(server, [blob], place)
    timer.join()
    server.wait(lambda: server.open_connections == 0)
    place.workspace.stop.clear()
    server.clear()


def test_what_was_noted_before_other_bytes_came_is_forgotten(server, place):
    old = put(server, "x", LARGE)
    interrupt(server, old, place)
    new = put(server, "x", data_of(len(LARGE), 5))
    fetch(server, [new], place)
    put(server, "x", LARGE)
    fetch(server, [old], place)
    assert place.read("x") == LARGE


def test_of_an_interrupted_file_no_more_is_believed_than_is_there(server, place):
    blob = put(server, "x", LARGE)
    interrupt(server, blob, place)
    os.truncate(place.workspace.directory / "x", 5 * MIB)
    fetch(server, [blob], place)
    assert place.read("x") == LARGE
    assert len(LARGE) - 5 * MIB <= server.sent_bytes < len(LARGE)


def test_bytes_that_nothing_identifies_are_not_trusted_later(server, place):
    blob = put(server, "x", SMALL, tag="")
    fetch(server, [blob], place)
    server.put("/x", data_of(len(SMALL), 1))
    fetch(server, [blob], place)
    assert place.read("x") == data_of(len(SMALL), 1)


@pytest.mark.parametrize("damage", [b"", b"\0" * 500, b"{}\n" * 9, None])
def test_a_damaged_journal_makes_it_begin_anew(server, place, damage):
    blob = put(server, "x", SMALL)
    fetch(server, [blob], place)
    journal = place.workspace.scratch / "journal"
    text = journal.read_bytes()
    journal.write_bytes(text.replace(b'"format":1', b'"format":2') if damage is None else damage)
    server.clear()
    fetch(server, [blob], place)
    assert place.read("x") == SMALL
    assert server.sent_bytes == len(SMALL)


@pytest.mark.parametrize("seed", range(15))
def test_killed_anywhere_the_next_fetch_reads_what_is_missing(server, tmp_path, seed):
    dice = random.Random(seed)
    contents = {"large": data_of(110 * MIB, 7), "archive": data_of(40 * MIB, 8)}
    contents |= {f"small/{i}": data_of(dice.randrange(60_000), i) for i in range(60)}
    blobs = [
        put(server, path, data, packing=Packing.TAR if path == "archive" else None)
        for path, data in contents.items()
    ]
    place, total = Place(tmp_path), sum(map(len, contents.values()))
    order = {
        "port": server.port,
        "root": str(tmp_path),
        "blobs": [dataclasses.asdict(one) for one in blobs],
    }
    killed_at = dice.randrange(total)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.killed_fetch"], cwd=ROOT, stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
        server.wait(lambda: server.sent_bytes >= killed_at, 60)
        process.kill()
    server.wait(lambda: server.open_connections == 0)
    sent = server.sent_bytes
    server.clear()
    brought = fetch(server, blobs, place)
    for one in brought:
        data = contents[one.blob.path]
        assert one.record.sha256 == sha256(data)
        assert one.file.read_bytes() == data
    assert sum(place.told) == total
    # What a checkpoint that was under way was about, what came since, and what was in sockets.
    assert server.sent_bytes <= total - sent + 2 * MAX_UNNOTED_BYTES + 24 * MIB
    assert server.sent_bytes >= total - sent
