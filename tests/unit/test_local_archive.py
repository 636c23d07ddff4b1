import os
from dataclasses import replace

import pytest

from sidecar.artifacts.archive import packing_of
from sidecar.artifacts.files import Stopped
from sidecar.artifacts.listing import Limits
from sidecar.artifacts.local_archive import LocalArchive
from sidecar.artifacts.remote.port import Packing
from sidecar.errors import InvalidArtifact, NotFound, SourceMoved, StoreFull, UnsafeArtifact
from tests.support.archives import Place, ZipMember, pack, zipped

LORA = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(300_000)}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "place")


def _archive(path, files, *, max_files=100, max_bytes=None):
    packing = packing_of(path.name)
    assert packing is not None
    path.write_bytes(pack(files, packing))
    return _open(path, max_files=max_files, max_bytes=max_bytes)


def _open(path, *, max_files=100, max_bytes=None):
    limits = Limits(max_files=max_files, max_bytes=max_bytes)
    return LocalArchive(str(path), packing_of(path.name) or Packing.TAR, limits)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zip"])
def test_a_local_archive_is_unpacked_from_where_it_is(tmp_path, place, name):
    source = _archive(tmp_path / name, LORA)
    listing = source.list()
    size = (tmp_path / name).stat().st_size
    assert (listing.packed_bytes, listing.bytes, listing.files) == (size, size, ())
    records = source.bring(place.workspace)
    assert {one.path: one.size for one in records} == {k: len(v) for k, v in LORA.items()}
    assert (place.new / "adapter_config.json").read_bytes() == b"{}"
    assert (tmp_path / name).exists()
    source.close()


def test_its_own_directory_is_stripped(tmp_path, place):
    source = _archive(tmp_path / "x.zip", {f"sql/{path}": data for path, data in LORA.items()})
    source.list()
    assert [one.path for one in source.bring(place.workspace)] == sorted(LORA)


def test_the_room_of_the_listing_is_used_before_more_is_asked_for(tmp_path, place):
    source = _archive(tmp_path / "x.tar", LORA)
    source.list()
    source.bring(place.workspace)
    assert place.granted == 0
    other, small = Place(tmp_path / "other"), _archive(tmp_path / "x.tar.gz", LORA)
    small.list()
    small.bring(other.workspace)
    size = (tmp_path / "x.tar.gz").stat().st_size
    assert other.granted == sum(map(len, LORA.values())) - size


def test_a_full_store_is_told(tmp_path, place):
    source = _archive(tmp_path / "x.tar.gz", LORA)
    source.list()
    place.room = 10
    with pytest.raises(StoreFull):
        source.bring(place.workspace)


def test_progress_is_told_in_bytes_of_the_archive(tmp_path, place):
    source = _archive(tmp_path / "x.zip", LORA)
    done: list[int] = []
    fetched: list[int] = []
    listing = source.list()
    source.bring(replace(place.workspace, report=done.append, fetched=fetched.append))
    assert 0 < sum(done) <= listing.bytes
    assert sum(fetched) == sum(done)


def test_limits_hold(tmp_path, place):
    source = _archive(tmp_path / "x.tar", LORA, max_files=1)
    source.list()
    with pytest.raises(UnsafeArtifact, match="more than 1 files"):
        source.bring(place.workspace)
    source = _archive(tmp_path / "y.tar", LORA, max_bytes=300_001)
    source.list()
    with pytest.raises(UnsafeArtifact, match="300001 bytes, which is --max-artifact-bytes"):
        source.bring(Place(tmp_path / "other").workspace)


def test_the_signature_moves_with_any_change_and_stays_otherwise(tmp_path):
    path = tmp_path / "x.zip"
    source = _archive(path, LORA)
    first = source.list()
    assert _open(path).list().signature == first.signature
    seen = {first.signature}
    os.utime(path, ns=(1, 1))
    seen.add(source.list().signature)
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(1, 1))
    seen.add(source.list().signature)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(1, 1))
    copy.replace(path)
    seen.add(source.list().signature)
    assert len(seen) == 4


def test_a_time_set_into_the_future_is_not_a_change_in_the_future(tmp_path):
    source = _archive(tmp_path / "x.zip", LORA)
    before = source.list().newest_change
    os.utime(tmp_path / "x.zip", (9e9, 9e9))
    assert before <= source.list().newest_change < 9e9


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_archive_that_changes_while_it_is_read_is_a_source_that_moved(tmp_path, place, is_whole):
    path = tmp_path / "x.tar"
    source = _archive(path, LORA)
    source.list()

    def change(_):
        os.utime(path, ns=(1, 1))
        if not is_whole:
            os.truncate(path, 5000)

    with pytest.raises(SourceMoved, match="changed while it was unpacked"):
        source.bring(replace(place.workspace, report=change))


def test_an_archive_that_changed_since_it_was_listed_is_a_source_that_moved(tmp_path, place):
    source = _archive(tmp_path / "x.tar", LORA)
    source.list()
    _archive(tmp_path / "x.tar", {"other": b""})
    with pytest.raises(SourceMoved):
        source.bring(place.workspace)
    assert place.files() == {}


def test_a_damaged_archive_stays_a_damaged_archive(tmp_path, place):
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(ZipMember("a", b"x", crc=1)))
    source = _open(path)
    source.list()
    with pytest.raises(InvalidArtifact, match=r"x\.zip: the archive is damaged"):
        source.bring(place.workspace)


def test_a_link_to_an_archive_is_followed(tmp_path, place):
    _archive(tmp_path / "v2.tar", LORA)
    (tmp_path / "current.tar").symlink_to("v2.tar")
    source = _open(tmp_path / "current.tar")
    source.list()
    assert len(source.bring(place.workspace)) == 2


def test_an_archive_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        _open(tmp_path / "x.tar").list()


def test_a_directory_of_the_name_of_an_archive_is_none(tmp_path):
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(InvalidArtifact, match="no regular file"):
        _open(tmp_path / "x.tar").list()


def test_unpacking_stops_when_it_is_told_to(tmp_path, place):
    source = _archive(tmp_path / "x.tar", LORA)
    source.list()
    with pytest.raises(Stopped):
        source.bring(replace(place.workspace, report=lambda _: place.stop.set()))
