import dataclasses
import os
import stat
import threading
import time
from collections import Counter
from itertools import pairwise

import pytest

from sidecar.artifacts.files import Stopped
from sidecar.artifacts.remote.port import Packing
from sidecar.artifacts.remote.reading import PACE_SECONDS, PROGRESS_BYTES, Pace
from sidecar.artifacts.remote.transfer import PART_BYTES, fetch_blobs
from sidecar.errors import AccessDenied, FetchFailed, InvalidArtifact, SourceMoved, StoreFull
from tests.support.faulty import (
    Close,
    Cut,
    Endless,
    FaultyServer,
    Flip,
    Length,
    Run,
    Slow,
    Stall,
    Status,
)
from tests.support.transfer import LARGE, MIB, SMALL, Place, data_of, fetch, put, sha256
from tests.support.wire_source import WireSource


@pytest.fixture
def server():
    before = {*threading.enumerate()}
    with FaultyServer() as one:
        yield one
    assert {*threading.enumerate()} <= before, "a fetch left a thread behind"


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_brings_files_of_every_size_with_their_hashes_and_modes(server, place):
    contents = {
        "a/b/large.bin": LARGE,
        "whole.bin": data_of(2 * PART_BYTES),
        "a/small": SMALL,
        "empty": b"",
        "a/one": b"1",
    }
    blobs = [put(server, path, data) for path, data in contents.items()]
    blobs.append(put(server, "model.tar", SMALL, path="", packing=Packing.TAR))
    before = os.umask(0o077)
    try:
        brought = fetch(server, blobs, place)
    finally:
        os.umask(before)
    assert [one.blob for one in brought] == blobs
    for one, data in zip(brought, [*contents.values(), SMALL], strict=True):
        assert one.file.read_bytes() == data
        assert (one.record.size, one.record.sha256) == (len(data), sha256(data))
        assert stat.S_IMODE(one.file.stat().st_mode) == 0o644
    assert brought[-1].file.parent == place.workspace.scratch
    assert {one.record.path: place.read(one.record.path) for one in brought[:-1]} == contents
    for one in ("a", "a/b"):
        assert stat.S_IMODE((place.workspace.directory / one).stat().st_mode) == 0o755
    assert sum(place.told) == sum(len(data) for data in contents.values()) + len(SMALL)
    assert server.sent_bytes == sum(place.told)
    assert place.grown == []


def test_a_large_blob_is_read_in_parts_at_the_same_time(server, place):
    gate = threading.Barrier(4, timeout=10)
    server.add(Run(gate.wait), times=None)
    fetch(server, [put(server, "large", LARGE)], place)
    asked = sorted(one.range for one in server.seen)
    assert [start for start, _ in asked] == [0, PART_BYTES, 2 * PART_BYTES, 3 * PART_BYTES]


def test_no_more_than_so_many_reads_run_at_once(server, place):
    blobs = [put(server, f"{i}", data_of(1000, i)) for i in range(40)]
    fetch(server, [*blobs, put(server, "large", LARGE)], place, streams=3)
    assert server.peak_requests == 3


def test_the_largest_are_read_first(server, place):
    blobs = [put(server, f"{size}", data_of(size)) for size in (5, 900, 0, 70_000, 30)]
    fetch(server, blobs, place, streams=1)
    assert [one.target for one in server.seen][:4] == ["/70000", "/900", "/30", "/5"]


def test_a_cut_read_goes_on_from_the_byte_it_had(server, place):
    blob = put(server, "small", SMALL)
    server.add(Cut(after=100_000))
    server.add(Close(after=70_000))
    server.add(Status(503))
    fetch(server, [blob], place)
    assert place.read("small") == SMALL
    assert [one.range for one in server.seen] == [
        None,
        (100_000, None),
        (170_000, None),
        (170_000, None),
    ]
    assert all(one.headers["if-match"] == blob.tag for one in server.seen)
    assert server.sent_bytes == len(SMALL) + len(b"faulty")
    assert sum(place.told) == len(SMALL)


def test_a_cut_part_goes_on_from_the_byte_it_had(server, place):
    server.add(Cut(after=5 * MIB), when=lambda request: request.range[0] == PART_BYTES)
    [brought] = fetch(server, [put(server, "large", LARGE)], place)
    assert brought.record.sha256 == sha256(LARGE)
    assert place.read("large") == LARGE
    again = (PART_BYTES + 5 * MIB, 2 * PART_BYTES)
    assert again in [one.range for one in server.seen]
    assert server.sent_bytes == len(LARGE)


def test_a_read_that_leads_nowhere_is_tried_five_times(server, place):
    server.add(Cut(after=1000), times=None)
    with pytest.raises(FetchFailed, match=r"5 attempts in a row .* byte 5000 of small"):
        fetch(server, [put(server, "small", SMALL)], place)
    assert [one.range for one in server.seen] == [
        None,
        (1000, None),
        (2000, None),
        (3000, None),
        (4000, None),
    ]
    gaps = [b.at - a.at for a, b in pairwise(server.seen)]
    assert all(gap > pause for gap, pause in zip(gaps, (0.2, 0.5, 1, 2), strict=True))


def test_a_read_that_gets_on_may_be_cut_any_number_of_times(server, place):
    data = data_of(2 * MIB)
    server.add(Cut(after=100_000), times=10)
    fetch(server, [put(server, "small", data)], place)
    assert place.read("small") == data
    assert len(server.seen) == 11


@pytest.mark.parametrize(
    ("status", "error"), [(403, AccessDenied), (404, None), (412, SourceMoved)]
)
def test_what_another_attempt_cannot_mend_is_raised_at_once(server, place, status, error):
    server.add(Status(status), path="denied")
    server.add(Slow(100_000), path="slow", times=None)
    blobs = [put(server, f"slow/{i}", SMALL) for i in range(6)] + [put(server, "denied", b"x")]
    began = time.monotonic()
    with pytest.raises(error or Exception, match=str(status) if status != 412 else "changed"):
        fetch(server, blobs, place)
    assert time.monotonic() - began < 2
    assert Counter(one.target for one in server.seen)["/denied"] == 1
    server.wait(lambda: server.open_connections == 0)


def test_a_source_that_changes_between_two_parts_is_not_mixed(server, place):
    blob = put(server, "large", LARGE)
    other = data_of(len(LARGE), 1)
    server.add(Run(lambda: server.put("/large", other)), skip=2)
    with pytest.raises(SourceMoved):
        fetch(server, [blob], place)


def test_stopping_ends_a_pause_between_attempts(server, place):
    server.add(Status(503), times=None)
    timer = threading.Thread(
        target=lambda: (server.wait(lambda: len(server.seen) == 4), place.workspace.stop.set())
    )
    timer.start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        fetch(server, [put(server, "small", SMALL)], place)
    assert time.monotonic() - began < 2.6
    timer.join()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_bytes_that_are_not_those_promised_are_read_once_more(server, place, data):
    blob = put(server, "x", data, sha256=sha256(data))
    server.add(Flip(at=1234))
    [brought] = fetch(server, [blob], place)
    assert place.read("x") == data
    assert brought.record.sha256 == sha256(data)
    assert server.sent_bytes == 2 * len(data)
    assert sum(place.told) == len(data)
    assert min(place.told) >= 0


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_bytes_that_are_never_those_promised_are_refused(server, place, data):
    blob = put(server, "x", data, sha256=sha256(b"other"))
    with pytest.raises(InvalidArtifact, match="x has the sha256"):
        fetch(server, [blob], place)
    assert server.sent_bytes == 2 * len(data)


@pytest.mark.parametrize("blob", [{}, {"tag": ""}, {"has_ranges": False}])
def test_more_bytes_than_listed_end_it_at_once(server, place, blob):
    server.add(Endless(), times=None)
    with pytest.raises(SourceMoved, match="longer than the 300000 bytes"):
        fetch(server, [put(server, "small", SMALL, **blob)], place)
    assert len(server.seen) == 1
    server.wait(lambda: server.open_connections == 0)
    assert server.sent_bytes < len(SMALL) + 4 * MIB


def test_fewer_bytes_than_listed_are_no_file(server, place):
    blob = dataclasses.replace(put(server, "small", SMALL), size=len(SMALL) + 1, has_ranges=False)
    with pytest.raises(FetchFailed, match="small was cut short, 300000 of 300001 bytes came"):
        fetch(server, [blob], place)


@pytest.mark.parametrize("by", [-5, 5])
def test_a_wrong_length_on_the_wire_is_mended(server, place, by):
    server.add(Length(by))
    fetch(server, [put(server, "small", SMALL)], place)
    assert place.read("small") == SMALL


def test_without_ranges_a_cut_blob_is_read_from_its_first_byte(server, place):
    server.add(Cut(after=200_000), times=2)
    blob = put(server, "small", SMALL, has_ranges=False)
    fetch(server, [blob], place)
    assert place.read("small") == SMALL
    assert [one.range for one in server.seen] == [None, None, None]
    assert sum(place.told) == len(SMALL)


def test_without_anything_that_identifies_its_bytes_two_reads_are_not_mixed(server, place):
    server.add(Cut(after=200_000))
    server.add(Run(lambda: server.put("/small", data_of(len(SMALL), 1))), skip=0)
    fetch(server, [put(server, "small", SMALL, tag="")], place)
    assert place.read("small") == data_of(len(SMALL), 1)


def test_a_large_blob_without_ranges_is_read_in_one(server, place):
    fetch(server, [put(server, "large", LARGE, has_ranges=False)], place)
    assert place.read("large") == LARGE
    assert len(server.seen) == 1


def test_of_an_unknown_size_room_is_asked_for_once_for_each_byte(server, place):
    server.add(Cut(after=200_000), times=2)
    blob = put(server, "small", SMALL, size=None, has_ranges=False)
    [brought] = fetch(server, [blob], place)
    assert brought.record.size == len(SMALL)
    assert place.read("small") == SMALL
    assert sum(place.grown) == len(SMALL)
    assert sum(place.told) == len(SMALL)


def test_a_blob_of_unknown_size_that_shrank_between_attempts_is_whole(server, place):
    server.add(Cut(after=200_000))
    server.add(Run(lambda: server.put("/small", b"")))
    [brought] = fetch(server, [put(server, "small", SMALL, size=None, tag="")], place)
    assert place.read("small") == b""
    assert brought.record.sha256 == sha256(b"")


def test_an_endless_blob_of_unknown_size_ends_where_there_is_no_room(server, tmp_path):
    asked = []

    def grow(size):
        asked.append(size)
        if sum(asked) > MIB:
            raise StoreFull("no room")

    place = Place(tmp_path, grow)
    server.add(Endless())
    with pytest.raises(StoreFull):
        fetch(server, [put(server, "small", SMALL, size=None)], place)
    assert sum(one.stat().st_size for one in place.workspace.directory.iterdir()) <= MIB


def test_a_disk_that_cannot_be_written_ends_everything(server, place):
    server.add(Slow(100_000), path="slow", times=None)
    blobs = [put(server, f"slow{i}", SMALL) for i in range(3)]
    with pytest.raises(FetchFailed, match=r"the store .* cannot be used \(File name too long"):
        fetch(server, [*blobs, put(server, "n" * 300, b"x")], place)


def test_nothing_else_stays_in_the_directory(server, place, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    new = place.workspace.directory
    (new / "link").symlink_to(outside)
    (new / "a").symlink_to(outside)
    (new / "old").mkdir()
    (new / "old" / "file").write_text("x")
    (new / "x").mkdir()
    (new / "y").symlink_to(outside / "kept")
    (place.workspace.scratch / "packed-old").write_text("x")
    blobs = [put(server, path, data_of(100, i)) for i, path in enumerate(("a/b", "x", "y"))]
    fetch(server, blobs, place)
    found = {str(one.relative_to(new)) for one in new.rglob("*")}
    assert found == {"a", "a/b", "x", "y"}
    assert not any(one.is_symlink() for one in new.rglob("*"))
    assert [one.name for one in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"
    assert [one.name for one in place.workspace.scratch.iterdir()] == ["journal"]


def test_equal_archives_have_a_file_each(server, place):
    layer = put(server, "layer", SMALL, path="", packing=Packing.TAR)
    brought = fetch(server, [layer, layer], place)
    assert len({one.file for one in brought}) == 2
    assert all(one.file.read_bytes() == SMALL for one in brought)
    server.clear()
    assert fetch(server, [layer, layer], place) == brought
    assert server.seen == []


def test_nothing_at_all_is_nothing(server, place):
    assert fetch(server, [], place) == ()


def test_no_descriptor_is_left_open(server, place):
    blobs = [put(server, "small", SMALL), put(server, "large", LARGE)]
    before = len(os.listdir("/proc/self/fd"))
    fetch(server, blobs, place)
    server.add(Status(403), path="large", skip=1)
    for one in place.workspace.scratch.iterdir():
        one.unlink()
    with pytest.raises(AccessDenied):
        fetch(server, blobs, place)
    server.wait(lambda: server.open_connections == 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stalled_read_is_given_up_and_read_on(server, place):
    blob = put(server, "small", SMALL)
    server.add(Stall(after=100_000))
    source = WireSource(server.port, read_seconds=0.3)
    fetch_blobs(source, [blob], place.workspace)
    assert place.read("small") == SMALL
    assert [one.range for one in server.seen] == [None, (100_000, None)]


def test_what_drips_is_given_up_and_what_is_slow_is_not():
    slow, dripping = Pace(), Pace()
    for _ in range(10 * int(PACE_SECONDS)):
        slow.came(PROGRESS_BYTES // int(PACE_SECONDS) + 1, 1.0, "s3://bucket/x/")
    for _ in range(int(PACE_SECONDS) - 1):
        dripping.came(1, 1.0, "s3://bucket/x/")
    with pytest.raises(FetchFailed, match=r"60 bytes in 60 s are too few"):
        dripping.came(1, 1.0, "s3://bucket/x/")
