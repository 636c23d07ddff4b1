import hashlib
import os
import random
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.artifacts.remote.checkpoints import CHECKPOINT_FILES, Checkpoints
from sidecar.artifacts.remote.journal import Journal, Note, merge, missing, read_notes
from sidecar.artifacts.remote.landing import WINDOW_BYTES, Landing
from sidecar.artifacts.remote.port import Blob
from sidecar.errors import FetchFailed

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
NOTES = st.dictionaries(
    st.text(max_size=8),
    st.builds(Note, ranges=RANGES.map(merge), sha256=st.sampled_from(["", "ab" * 32])),
    max_size=6,
)


def numbers(ranges):
    return {number for start, end in ranges for number in range(start, end)}


def same_landing(path, size, part_bytes):
    landing = Landing(
        Blob(path="x", key="x", size=size), path, hashlib.sha256, part_bytes=part_bytes
    )
    landing.open(())
    return landing


@settings(deadline=None)
@given(RANGES)
def test_merged_ranges_hold_the_same_bytes_apart_from_each_other(ranges):
    merged = merge(ranges)
    assert numbers(merged) == numbers(ranges)
    assert all(start < end for start, end in merged)
    assert all(one[1] < after[0] for one, after in pairwise(merged))


@settings(deadline=None)
@given(RANGES)
def test_what_is_missing_is_all_that_is_not_there(ranges):
    left = missing(merge(ranges), 60)
    assert numbers(left) == set(range(60)) - numbers(ranges)
    assert merge(left) == left


@settings(deadline=None)
@given(NOTES, NOTES)
def test_the_last_note_on_a_blob_holds(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal(path, first)
    for blob, note in second.items():
        journal.add(blob, note)
    assert read_notes(path) == first
    journal.flush()
    journal.close()
    assert read_notes(path) == first | second


@settings(deadline=None)
@given(NOTES, st.integers(0), st.sampled_from([b"", b"\0\0\0\0", b"garbage\n"]))
def test_torn_anywhere_what_stood_before_still_holds(tmp_path_factory, notes, at, then):
    path = tmp_path_factory.mktemp("journal") / "journal"
    Journal(path, notes).close()
    text = path.read_bytes()
    at %= len(text) + 1
    path.write_bytes(text[:at] + then)
    # A line that only lacks its end is whole.
    is_line = text[at : at + 1] == b"\n" and not then
    whole = max(0, text[:at].count(b"\n") + is_line - 1)
    expected = dict(list(notes.items())[:whole])
    assert read_notes(path) == expected


@settings(deadline=None)
@given(NOTES.filter(bool), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_ends_what_is_believed(tmp_path_factory, notes, at, change):
    path = tmp_path_factory.mktemp("journal") / "journal"
    Journal(path, notes).close()
    text = bytearray(path.read_bytes())
    at %= len(text)
    whole = max(0, text[:at].count(b"\n") - 1)
    text[at] ^= change
    path.write_bytes(text)
    assert read_notes(path) == dict(list(notes.items())[:whole])


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 70), RANGES, st.randoms(use_true_random=False))
def test_a_file_is_hashed_whatever_the_order_of_its_parts(
    tmp_path_factory, size, part_bytes, resumed, dice
):
    path = tmp_path_factory.mktemp("landing") / "file"
    data = dice.randbytes(size)
    resumed = merge((start, min(end, size)) for start, end in resumed)
    path.write_bytes(data[: max((end for _, end in resumed), default=0)])
    landing = Landing(
        Blob(path="x", key="x", size=size), path, hashlib.sha256, part_bytes=part_bytes
    )
    assert landing.open(resumed) == len(numbers(resumed))
    claims, running = int(_settle(landing)), []
    while True:
        if (part := landing.take_part()) is not None:
            running.append([part, part[0]])
        if not running:
            break
        one = dice.choice(running)
        part, position = one
        if position == part[1]:
            assert claims == 0
            running.remove(one)
            landing.end_part(part)
            claims += _settle(landing)
        else:
            chunk = data[position : min(part[1], position + dice.randrange(1, 40))]
            landing.write(part, position, memoryview(chunk))
            one[1] += len(chunk)
    assert landing.snapshot() == ((0, size),)
    assert claims == 1
    assert not landing.claim()
    assert landing.sha256 == hashlib.sha256(data).hexdigest()
    landing.close()
    assert path.read_bytes() == data


def _settle(landing):
    landing.hash_on(lambda: None)
    return landing.claim()


def test_threads_that_bring_parts_of_a_file_claim_it_once(tmp_path):
    data = random.Random(1).randbytes(4_000_000)
    landing = same_landing(tmp_path / "file", len(data), 10_000)
    claimed = []

    def work():
        while (part := landing.take_part()) is not None:
            start, end = part
            for position in range(start, end, 1000):
                landing.write(part, position, memoryview(data)[position : position + 1000])
            landing.end_part(part)
            if _settle(landing):
                claimed.append(landing.sha256)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    landing.close()
    assert claimed == [hashlib.sha256(data).hexdigest()]


def test_parts_do_not_run_far_ahead_of_the_hash(tmp_path):
    part_bytes = WINDOW_BYTES // 4
    landing = same_landing(tmp_path / "file", 3 * WINDOW_BYTES, part_bytes)
    parts = [landing.take_part() for _ in range(5)]
    assert parts[-1] is None
    assert parts[3] == (3 * part_bytes, 4 * part_bytes)
    landing.write(parts[0], 0, memoryview(b"hashed at once"))
    assert landing.take_part() == (4 * part_bytes, 5 * part_bytes)
    assert landing.take_part() is None
    landing.close()


def test_a_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "other").write_text("kept")
    (tmp_path / "file").symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        same_landing(tmp_path / "file", 100, 50)
    assert (tmp_path / "other").read_text() == "kept"


def test_a_file_that_somebody_cuts_off_is_noticed(tmp_path):
    landing = same_landing(tmp_path / "file", 100, 50)
    first, second = landing.take_part(), landing.take_part()
    landing.write(second, 50, memoryview(bytes(50)))
    landing.end_part(second)
    landing.write(first, 0, memoryview(bytes(50)))
    landing.end_part(first)
    os.truncate(tmp_path / "file", 60)
    with pytest.raises(FetchFailed, match="cut off"):
        landing.hash_on(lambda: None)
    landing.close()


def test_after_a_failed_sync_nothing_is_noted_any_more(tmp_path):
    path = tmp_path / "journal"
    checkpoints = Checkpoints(Journal(path, {}))
    landings = [same_landing(tmp_path / name, 100, 50) for name in ("a", "b")]
    for blob, landing in zip("ab", landings, strict=True):
        checkpoints.begin(landing, blob)
        part = landing.take_part()
        landing.write(part, 0, memoryview(bytes(50)))
    checkpoints.flush()
    expected = {blob: Note(ranges=((0, 50),)) for blob in "ab"}
    assert read_notes(path) == expected
    # A descriptor that can be written but not synced stands for a disk that failed.
    read, write = os.pipe()
    os.dup2(write, landings[0].descriptor)
    with pytest.raises(OSError, match="Invalid argument"):
        checkpoints.end(landings[0])
    for number in range(2 * CHECKPOINT_FILES):
        checkpoints.add(str(number), "ab" * 32)
    checkpoints.close()
    assert read_notes(path) == expected
    os.close(read)
    os.close(write)


def test_many_small_files_are_noted_now_and_then(tmp_path):
    path = tmp_path / "journal"
    checkpoints = Checkpoints(Journal(path, {}))
    for number in range(2 * CHECKPOINT_FILES - 1):
        checkpoints.add(str(number), "ab" * 32)
    assert len(read_notes(path)) == CHECKPOINT_FILES
    checkpoints.close()
    assert len(read_notes(path)) == 2 * CHECKPOINT_FILES - 1
