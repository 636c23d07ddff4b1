import gzip
import io
import os
import random
import struct
import subprocess
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.artifacts.archive import packing_of, strip_enclosing, unpack
from sidecar.artifacts.archive_links import MAX_HOPS
from sidecar.artifacts.archive_tar import (
    MAX_ALL_EXTENSIONS_BYTES,
    MAX_EXTENSION_BYTES,
    MAX_PADDING_BYTES,
)
from sidecar.artifacts.archive_zip import MAX_LISTING_BYTES
from sidecar.artifacts.files import Stopped
from sidecar.artifacts.local import LocalSource
from sidecar.artifacts.manifest import MARKER, content_digest
from sidecar.artifacts.remote.port import Packing
from sidecar.errors import ArtifactError, FetchFailed, InvalidArtifact, StoreFull, UnsafeArtifact
from tests.support.archives import (
    TAR_END,
    Place,
    ZipMember,
    deflated,
    pack,
    padded,
    pax,
    pax_record,
    tar,
    tar_header,
    tar_member,
    zip_end,
    zipped,
)

MODEL = {"config.pbtxt": b'backend: "onnxruntime"\n', "1/model.onnx": bytes(range(256)) * 9}
PACKINGS = list(Packing)
TAR, GZIP, ZIP = Packing.TAR, Packing.TAR_GZIP, Packing.ZIP


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def _refused(place, data, kind, match, packing=TAR, **limits):
    with pytest.raises(kind, match=match) as raised:
        place.unpack(data, packing, **limits)
    assert str(raised.value).startswith("s3://bucket/model: ")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
    place.files()


# Honest archives.


@pytest.mark.parametrize("packing", PACKINGS)
def test_files_come_out_as_they_went_in(place, packing):
    records = place.unpack(pack(MODEL, packing), packing)
    assert place.files() == MODEL
    assert [one.path for one in records] == ["1/model.onnx", "config.pbtxt"]
    assert place.granted == sum(map(len, MODEL.values()))


@pytest.mark.parametrize("packing", PACKINGS)
def test_reading_is_reported_by_the_bytes_of_the_archive(place, packing):
    data = pack({"a": random.Random(1).randbytes(100_000)}, packing)
    place.unpack(data, packing)
    assert 100_000 <= place.read <= len(data)


def _with_tarfile(files, format):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo("./" + name)
            info.size, info.mode, info.uid, info.uname = len(data), 0o6777, 4711, "someone"
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _with_zipfile(files, method):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def _streamed_zip(files):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise OSError

        def tell(self):
            raise OSError

    target = Pipe()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return target.getvalue()


PACKERS = {
    "hand-made tar": (TAR, lambda files: pack(files, TAR)),
    "hand-made tar.gz": (GZIP, lambda files: pack(files, GZIP)),
    "hand-made zip": (ZIP, lambda files: pack(files, ZIP)),
    "pax": (TAR, lambda files: _with_tarfile(files, tarfile.PAX_FORMAT)),
    "gnu": (TAR, lambda files: _with_tarfile(files, tarfile.GNU_FORMAT)),
    "gzipped gnu": (GZIP, lambda files: gzip.compress(_with_tarfile(files, tarfile.GNU_FORMAT))),
    "stored": (ZIP, lambda files: _with_zipfile(files, zipfile.ZIP_STORED)),
    "deflated": (ZIP, lambda files: _with_zipfile(files, zipfile.ZIP_DEFLATED)),
    "streamed": (ZIP, _streamed_zip),
}
NAME = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\", exclude_categories=["C", "Z"]),
    min_size=1,
    max_size=60,
).filter(lambda name: not name.startswith(".") and name not in {"__MACOSX", "pax_global_header"})
TREES = st.recursive(
    st.binary(max_size=2000), lambda inside: st.dictionaries(NAME, inside, max_size=4), max_leaves=8
).map(lambda tree: dict(_flat(tree)) if isinstance(tree, dict) else {"file": tree})


def _flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


@settings(max_examples=60)
@given(st.sampled_from(sorted(PACKERS)), TREES)
def test_any_tree_has_the_same_digest_packed_and_as_a_directory(packer, files):
    packing, packed = PACKERS[packer]
    with tempfile.TemporaryDirectory() as name:
        place, copy = Place(Path(name) / "place"), Place(Path(name) / "copy")
        records = place.unpack(packed(files), packing)
        assert place.files() == files
        source = Path(name) / "source"
        source.mkdir()
        for path, data in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        local = LocalSource(str(source))
        local.list()
        assert content_digest(records) == content_digest(local.bring(copy.workspace))


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@pytest.mark.parametrize("options", [["-c"], ["-cz"], ["-c", "--blocking-factor=200"]])
def test_what_the_tar_program_packs_is_unpacked(tmp_path, format, options):
    place, source = Place(tmp_path / "place"), tmp_path / "source"
    deep = "deep/" * 30 + "ü" if format in {"oldgnu", "gnu", "posix"} else "1"
    for path in (deep, "empty"):
        (source / path).mkdir(parents=True)
    (source / deep / "a b.bin").write_bytes(b"x" * 1000)
    (source / "same").symlink_to(f"{deep}/a b.bin")
    os.link(source / deep / "a b.bin", source / "hard")
    subprocess.run(
        ["tar", f"--format={format}", *options, "-f", tmp_path / "x", "-C", source, "."],
        check=True,
        timeout=30,
    )
    place.unpack((tmp_path / "x").read_bytes())
    assert place.files() == dict.fromkeys([f"{deep}/a b.bin", "same", "hard"], b"x" * 1000)
    assert (place.new / "empty").is_dir()


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("model.tar", TAR),
        ("MODEL.TAR", TAR),
        ("x/y.tar.gz", GZIP),
        ("y.Tgz", GZIP),
        ("y.zip", ZIP),
        ("y.tar.zst", None),
        ("tar", None),
        ("model.tar/", None),
        ("model.pt", None),
        ("zip.json", None),
    ],
)
def test_the_packing_is_known_by_the_name(name, packing):
    assert packing_of(name) is packing


@pytest.mark.parametrize("named", PACKINGS)
@pytest.mark.parametrize("packed", PACKINGS)
def test_what_it_begins_with_counts_more_than_its_name(place, named, packed):
    place.unpack(pack(MODEL, packed), named)
    assert place.files() == MODEL


@pytest.mark.parametrize("named", [TAR, GZIP])
def test_a_tar_of_before_posix_is_one_by_its_name(place, named):
    data = tar(tar_header("a", size=1, magic=bytes(8), prefix=b"garbage") + padded(b"x"))
    place.unpack(data, named)
    assert place.files() == {"a": b"x"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "begins with b''"),
        (b"<?xml version='1.0'?>", "begins with b\"<\\?xml version='1"),
        (b"<!DOCTYPE html>" + b" " * 600, "begins with"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version https://"),
        (b"\xfd7zXZ\0" + bytes(600), "packed with xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "packed with zstd"),
        (b"BZh91AY" + bytes(600), "packed with bzip2"),
    ],
)
@pytest.mark.parametrize("named", [TAR, ZIP])
def test_what_is_no_archive_is_told_by_what_it_begins_with(place, data, why, named):
    _refused(place, data, InvalidArtifact, why, named)


@pytest.mark.parametrize("packing", [TAR, ZIP])
def test_an_archive_without_files_has_none(place, packing):
    assert place.unpack(pack({}, packing), packing) == ()


def test_michelangelos_members_with_a_leading_dot_are_below_the_top(place):
    place.unpack(tar(tar_member("./", kind=b"5"), tar_member("./1//./m", b"x")))
    assert place.files() == {"1/m": b"x"}


def test_empty_directories_are_kept_and_may_come_twice_and_late(place):
    place.unpack(tar(*(tar_member(name, kind=b"5") for name in ("a/b/", "a", "a/b"))))
    assert (place.new / "a" / "b").is_dir()
    assert place.files() == {}


def test_modes_owners_and_set_user_id_are_not_taken_over(place):
    place.unpack(_with_tarfile(MODEL, tarfile.PAX_FORMAT))
    assert place.files() == MODEL
    assert (place.new / "config.pbtxt").stat().st_uid == os.getuid()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(place, umask):
    before = os.umask(umask)
    try:
        place.unpack(tar(tar_member("1/a", b"x"), tar_member("b", kind=b"1", target="1/a")))
    finally:
        os.umask(before)
    assert place.files() == {"1/a": b"x", "b": b"x"}


def test_what_macos_and_git_add_is_left_out(place):
    files = ["__MACOSX/1/._m", "1/._m", "._1", ".DS_Store", "1/.DS_Store", "pax_global_header"]
    data = tar(*(tar_member(name, b"x") for name in [*files, MARKER, f"{MARKER}/x", "1/m"]))
    records = place.unpack(data)
    assert [one.path for one in records] == ["1/m"]
    assert place.files() == {"1/m": b"x"}


def test_what_is_left_out_still_counts(place):
    data = tar(tar_member("._m", bytes(2000)))
    _refused(place, data, UnsafeArtifact, "more than 1000 bytes", max_bytes=1000)


def test_unpacking_stops_between_chunks(place):
    place.stop.set()
    with pytest.raises(Stopped):
        place.unpack(tar(tar_member("a", b"x")))


def test_unpacking_stops_in_what_is_left_out(place):
    (place.base / "archive").write_bytes(tar(tar_member("._x", bytes(3 << 20))))
    with pytest.raises(Stopped):
        unpack(
            place.base / "archive",
            TAR,
            place.workspace,
            where="/x.tar",
            max_files=9,
            max_bytes=None,
            report=lambda _: place.stop.set(),
        )


def test_unpacking_stops_within_what_little_inflates_to(place):
    data, asked = pack({"a": bytes(8 << 20)}, GZIP), []

    def grow(size):
        asked.append(size)
        place.granted += size
        place.stop.set()

    (place.base / "archive").write_bytes(data)
    with pytest.raises(Stopped):
        unpack(
            place.base / "archive",
            GZIP,
            replace(place.workspace, grow=grow),
            where="/x.tar",
            max_files=9,
            max_bytes=None,
        )
    assert len(place.files()["a"]) <= 1 << 20


@pytest.mark.parametrize("packing", PACKINGS)
def test_room_is_asked_for_before_anything_is_written(place, packing):
    place.room = 2999
    with pytest.raises(StoreFull):
        place.unpack(pack({"a": bytes(1000), "b": bytes(2000)}, packing), packing)
    assert place.files() in ({"a": bytes(1000)}, {"a": bytes(1000), "b": b""})


def test_a_directory_that_cannot_be_written_is_a_failed_fetch(place):
    place.new.rmdir()
    with pytest.raises(FetchFailed, match="cannot be used"):
        place.unpack(tar(tar_member("a", b"x")))


def test_a_pipe_is_no_archive_and_is_not_waited_for(place):
    os.mkfifo(place.base / "archive")
    with pytest.raises(InvalidArtifact, match="no regular file"):
        unpack(
            place.base / "archive",
            TAR,
            place.workspace,
            where="/x.tar",
            max_files=1,
            max_bytes=None,
        )


# Names and kinds.


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", ["../outside/x", "1/../../outside/x", "/tmp/x", "//x", ".."])
def test_a_name_that_leads_out_is_refused(place, packing, name):
    _refused(place, pack({name: b"x"}, packing), UnsafeArtifact, "leads out", packing)


@pytest.mark.parametrize("packing", [TAR, ZIP])
def test_an_absolute_name_of_an_existing_neighbour_is_refused(place, packing):
    name = str(place.base / "outside" / "secret")
    _refused(place, pack({name: b"x"}, packing), UnsafeArtifact, "leads out", packing)


@pytest.mark.parametrize("packing", [TAR, ZIP])
@pytest.mark.parametrize("name", ["..\\x", "a\\b", "a\nb", "a\x1bb", "\udcff"])
def test_a_name_that_cannot_be_kept_is_refused(place, packing, name):
    _refused(place, pack({name: b"x"}, packing), InvalidArtifact, "cannot be kept", packing)


def test_a_name_is_not_cut_at_a_zero_byte(place):
    _refused(place, pack({"a.txt\0.exe": b"x"}, ZIP), InvalidArtifact, "cannot be kept", ZIP)
    _refused(place, tar(pax({"path": b"a\0b"}), tar_member("a")), InvalidArtifact, "cannot be kept")


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_file_without_a_name_is_refused(place, name):
    data = tar(tar_member(name, b"x")) if not name.endswith("/") else pack({name: b"x"}, ZIP)
    with pytest.raises(InvalidArtifact, match=r"no plain path|directory with content|content"):
        place.unpack(data)


@pytest.mark.parametrize(
    ("kind", "what"), [(b"3", "a device"), (b"4", "a device"), (b"6", "a named pipe")]
)
def test_devices_and_pipes_of_a_tar_are_refused(place, kind, what):
    _refused(place, tar(tar_member("odd", kind=kind)), UnsafeArtifact, f"'odd' is {what}")


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (0o020666, "a device"),
        (0o060666, "a device"),
        (0o010666, "a named pipe"),
        (0o140666, "a socket"),
    ],
)
def test_devices_pipes_and_sockets_of_a_zip_are_refused(place, mode, what):
    data = zipped(ZipMember("odd", mode=mode))
    _refused(place, data, UnsafeArtifact, f"'odd' is {what}", ZIP)


@pytest.mark.parametrize("kind", [b"S", b"D", b"M", b"V", b"A", b"\xff"])
def test_other_kinds_of_a_tar_are_refused_by_name(place, kind):
    _refused(place, tar(tar_member("odd", kind=kind)), InvalidArtifact, "'odd' is .*not unpacked")


@pytest.mark.parametrize("key", ["GNU.sparse.map", "GNU.sparse.major", "SCHILY.realsize"])
def test_sparse_files_in_a_pax_header_are_refused(place, key):
    data = tar(pax({key: "1"}), tar_member("a", b"x"))
    _refused(place, data, InvalidArtifact, "sparse")


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_path_that_is_there_twice_is_refused(place, packing):
    if packing is ZIP:
        data = zipped(ZipMember("a", b"1"), ZipMember("./a", b"2"))
    else:
        data = tar(tar_member("a", b"1"), tar_member("./a", b"2"))
    _refused(place, data, UnsafeArtifact, "'a' is there twice", packing)
    assert place.files() == {"a": b"1"}


def test_names_that_differ_in_case_are_two_files(place):
    place.unpack(pack({"a": b"1", "A": b"2"}, ZIP), ZIP)
    assert place.files() == {"a": b"1", "A": b"2"}


@pytest.mark.parametrize(
    "members",
    [
        [tar_member("a", b"x"), tar_member("a/b", b"x")],
        [tar_member("a/b", b"x"), tar_member("a", b"x")],
        [tar_member("a", b"x"), tar_member("a", kind=b"5")],
        [tar_member("a", kind=b"5"), tar_member("a", b"x")],
        [tar_member("a", b"x"), tar_member("a/b", kind=b"5")],
    ],
)
def test_a_file_where_a_directory_is_is_refused(place, members):
    _refused(place, tar(*members), UnsafeArtifact, "a file and a directory at once")


def test_a_path_that_another_part_of_the_artifact_has_is_refused(place):
    (place.new / "a").write_text("1")
    with pytest.raises(UnsafeArtifact, match="'a' is there twice"):
        place.unpack(pack({"a": b"2"}, TAR))
    with pytest.raises(UnsafeArtifact, match="'a' is there twice"):
        place.unpack(pack({"a/b": b"2"}, TAR))


def test_nothing_is_written_through_a_link_that_was_there_before(place):
    (place.new / "a").symlink_to(place.base / "outside" / "secret")
    with pytest.raises(UnsafeArtifact, match="there twice"):
        place.unpack(pack({"a": b"2"}, TAR))
    assert (place.base / "outside" / "secret").read_text() == "secret"


def test_directories_of_another_part_of_the_artifact_are_shared(place):
    (place.new / "a").mkdir(mode=0o755)
    place.unpack(pack({"a/b": b"2"}, TAR))
    assert place.files() == {"a/b": b"2"}


# Links.


def _link(name, target, packing=TAR):
    if packing is ZIP:
        return ZipMember(name, target.encode(), mode=0o120777)
    return tar_member(name, kind=b"2", target=target)


def _file(name, data, packing=TAR):
    return ZipMember(name, data, mode=0o100644) if packing is ZIP else tar_member(name, data)


def _join(packing, *members):
    return zipped(*members) if packing is ZIP else tar(*members)


@pytest.mark.parametrize("packing", [TAR, ZIP])
def test_links_inside_become_copies_whatever_their_order(place, packing):
    data = _join(
        packing,
        _link("lib.so", "lib.so.1", packing),
        _link("lib.so.1", "./real/../real/lib.so.1.2", packing),
        _file("real/lib.so.1.2", b"code", packing),
        _file("1/model.py", b"x", packing),
        _link("1/up", "../real/lib.so.1.2", packing),
        _link("2", "1", packing),
    )
    records = place.unpack(data, packing)
    code = ("lib.so", "lib.so.1", "real/lib.so.1.2", "1/up", "2/up")
    expected = {**dict.fromkeys(code, b"code"), "1/model.py": b"x", "2/model.py": b"x"}
    assert place.files() == expected
    assert {one.path: one.size for one in records} == {k: len(v) for k, v in expected.items()}
    assert place.granted == sum(map(len, expected.values()))


def test_a_tree_with_links_has_the_same_digest_packed_and_as_a_directory(tmp_path):
    place, source, copy = Place(tmp_path / "place"), tmp_path / "source", Place(tmp_path / "copy")
    (source / "1" / "deep").mkdir(parents=True)
    (source / "1" / "model.py").write_text("x")
    (source / "1" / "deep" / "same").symlink_to("../model.py")
    os.link(source / "1" / "model.py", source / "hard")
    (source / "2").symlink_to("1")
    (source / "3").symlink_to("2/deep")
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(source, ".")
    records = place.unpack(target.getvalue())
    local = LocalSource(str(source))
    local.list()
    assert content_digest(records) == content_digest(local.bring(copy.workspace))
    assert len(place.files()) == 6


@pytest.mark.parametrize("packing", [TAR, ZIP])
@pytest.mark.parametrize("target", ["/etc/passwd", "../outside/secret", "d/../../outside", "../.."])
def test_a_link_that_leads_out_is_refused(place, packing, target):
    data = _join(packing, _file("d/x", b"x", packing), _link("a", target, packing))
    _refused(place, data, UnsafeArtifact, "the link 'a' leads out", packing)


def test_a_link_out_and_in_again_leads_out(place):
    data = tar(tar_member("new/x", b"x"), _link("a", "../new/x"))
    _refused(place, data, UnsafeArtifact, "leads out")


@pytest.mark.parametrize(
    "links",
    [
        {"a": "a"},
        {"a": "b", "b": "a"},
        {"d/a": ".."},
        {"d/a": "../d"},
        {"a": "."},
        {"d/a": "../e", "e/b": "../d"},
        {"a/l": "../e", "e/b": "../d", "d/c": "../e"},
        {f"{i:02}": f"{i + 1:02}" for i in range(MAX_HOPS + 2)},
    ],
)
def test_links_in_a_circle_are_refused(place, links):
    data = tar(
        tar_member("d/x", b"x"), tar_member("e/x", b"x"), *(map(_link, links, links.values()))
    )
    _refused(place, data, UnsafeArtifact, "in a circle")


def test_copies_for_links_have_names_that_can_be_kept(place):
    deep = "/".join(["x" * 200] * 9)
    data = tar(
        pax({"path": f"d/{deep}/f"}), tar_member("f"), _link("y" * 90 + "/" + "z" * 9, "../d")
    )
    place.unpack(data)
    more = tar(
        pax({"path": f"d/{deep}/f"}), tar_member("f"), pax({"path": "y" * 250}), _link("y", "d")
    )
    _refused(Place(place.base / "1"), more, InvalidArtifact, "longer than 2048 bytes")


@pytest.mark.parametrize("target", ["none", "d/none", "d/x/y", "d/x/.", "._x", "", "none/../d/x"])
def test_a_link_to_nothing_is_refused(place, target):
    data = tar(tar_member("d/x", b"x"), tar_member("._x", b"x"), _link("a", target))
    _refused(place, data, (InvalidArtifact, UnsafeArtifact), r"the link 'a' (names nothing|leads)")


@pytest.mark.parametrize("target", [".", "/etc", "../outside", "d"])
def test_nothing_is_written_through_a_link(place, target):
    data = tar(tar_member("d/x", b"x"), _link("a", target), tar_member("a/secret", b"owned"))
    _refused(place, data, UnsafeArtifact, "'a' is a file and a directory at once")


def test_a_link_cannot_take_the_place_of_a_file_that_was_written(place):
    data = tar(tar_member("a", b"x"), _link("a", "/etc/passwd"))
    _refused(place, data, UnsafeArtifact, "there twice")


def test_links_that_double_with_every_level_are_limited(place):
    levels = [_link(f"{i}/{side}", f"../{i + 1}") for i in range(30) for side in "ab"]
    data = tar(tar_member("30/x", b"x"), *levels)
    _refused(place, data, UnsafeArtifact, "more than 1000 files")


def test_copies_for_links_count_as_bytes(place):
    data = tar(tar_member("x", bytes(1000)), *(_link(f"l{i}", "x") for i in range(9)))
    _refused(place, data, UnsafeArtifact, "more than 5000 bytes", max_bytes=5000)
    assert place.granted <= 5000


def test_a_hard_link_to_an_earlier_member_is_a_copy(place):
    data = tar(tar_member("d/a", b"xyz"), tar_member("b", kind=b"1", target="./d/a"))
    records = place.unpack(data)
    assert place.files() == {"d/a": b"xyz", "b": b"xyz"}
    assert records[0].sha256 == records[1].sha256


@pytest.mark.parametrize(
    "target", ["later", "b", "../outside/secret", "/etc/passwd", "d", "", MARKER]
)
def test_a_hard_link_to_anything_else_is_refused(place, target):
    data = tar(
        tar_member("d", kind=b"5"),
        tar_member("b", kind=b"1", target=target),
        tar_member("later", b"x"),
    )
    _refused(place, data, ArtifactError, r"no earlier file|leads out|no plain path")


def test_copies_for_hard_links_count_as_bytes(place):
    links = [tar_member(f"l{i}", kind=b"1", target="x") for i in range(9)]
    data = tar(tar_member("x", bytes(1000)), *links)
    _refused(place, data, UnsafeArtifact, "more than 5000 bytes", max_bytes=5000)


@pytest.mark.parametrize("kind", [b"1", b"2", b"5", b"3"])
def test_a_member_without_content_that_claims_some_is_refused(place, kind):
    data = tar(tar_member("x", b"x"), tar_member("y", tar_member("z", b"z"), kind=kind, target="x"))
    _refused(place, data, InvalidArtifact, "with content")


# Bombs.


@pytest.mark.parametrize("packing", PACKINGS)
def test_more_files_than_may_be_are_refused(place, packing):
    files = {f"{i}": b"" for i in range(11)}
    data = pack(files, packing)
    _refused(place, data, UnsafeArtifact, "more than 10 files", packing, max_files=10)
    # The end of a zip tells beforehand.
    assert len(place.files()) <= (0 if packing is ZIP else 10)
    Place(place.base / "other").unpack(data, packing, max_files=11)


@pytest.mark.parametrize("name", ["d/", "._x"])
def test_members_that_make_no_file_count_too(place, name):
    data = tar(*[tar_member(name, kind=b"5")] * 11)
    _refused(place, data, UnsafeArtifact, "more than 10 files", max_files=10)


def test_directories_count_as_files(place):
    data = tar(tar_member("/".join("abcdefghijk"), b""))
    _refused(place, data, UnsafeArtifact, "more than 10 files", max_files=10)


@pytest.mark.parametrize("packing", PACKINGS)
def test_more_bytes_than_may_be_are_refused(place, packing):
    data = pack({"a": bytes(600), "b": bytes(401)}, packing)
    _refused(place, data, UnsafeArtifact, "more than 1000 bytes", packing, max_bytes=1000)
    Place(place.base / "other").unpack(data, packing, max_bytes=1001)


@pytest.mark.parametrize("packing", [GZIP, ZIP])
def test_what_unpacks_to_a_hundred_times_its_size_is_refused_beyond_a_gibibyte(place, packing):
    size = (1 << 30) + 1
    if packing is ZIP:
        data = zipped(ZipMember("a", b"", method=8, packed=deflated(bytes(1000)), size=size))
    else:
        data = gzip.compress(tar_header("a", size=size))
    _refused(place, data, UnsafeArtifact, "no model shrinks like that", packing)
    assert place.granted == 0


def test_an_archive_that_begins_with_less_than_its_member_claims_takes_no_more_room(place):
    with pytest.raises(InvalidArtifact, match="too early"):
        place.unpack(gzip.compress(tar_header("a", size=1 << 29) + bytes(10)), GZIP)
    assert place.granted <= 64 << 20


@pytest.mark.parametrize("packing", [GZIP, ZIP])
def test_memory_does_not_grow_with_what_is_unpacked(place, packing):
    data = pack({"b": b"", "a": bytes(64 << 20)}, packing)
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        place.unpack(data, packing)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])
def test_a_huge_header_is_refused_before_it_is_read(place, kind):
    # What follows would be a gigabyte: were it read, it would be found to be cut.
    data = tar_header("h", kind=kind, size=MAX_EXTENSION_BYTES + 1)
    _refused(place, data, InvalidArtifact, "header is longer than")


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, 1 << 80, -1])
@pytest.mark.parametrize("kind", [b"0", b"x"])
def test_absurd_sizes_are_refused(place, size, kind):
    with pytest.raises(ArtifactError, match=r"more than|negative|longer than"):
        place.unpack(tar(tar_header("h", kind=kind, size=size)))


def test_headers_in_a_row_without_end_are_refused(place):
    _refused(place, pax({}) * 5000 + tar(tar_member("a")), InvalidArtifact, "is of the kind b'x'")


def test_zeros_without_end_behind_the_end_are_refused(place):
    data = gzip.compress(tar(tar_member("a")) + bytes(MAX_PADDING_BYTES + (2 << 20)))
    _refused(place, data, InvalidArtifact, "zeros after its end", GZIP)


def test_files_that_share_their_bytes_are_refused(place):
    # David Fifield's bomb: each header is quoted by the one before.
    kernel = ZipMember("b", bytes(1000), method=8)
    quoted = kernel.local()
    around = struct.pack("<B2H", 0, len(quoted), len(quoted) ^ 0xFFFF) + quoted + kernel.content
    first = ZipMember("a", quoted + kernel.data, method=8, packed=around)
    start = len(first.local()) - len(kernel.content) - len(quoted)
    listing = first.central(0) + kernel.central(start)
    body = first.local()
    data = body + listing + zip_end(2, len(listing), len(body))
    _refused(place, data, UnsafeArtifact, "'b' shares its bytes", ZIP)


def test_two_names_for_the_same_bytes_are_refused(place):
    one = ZipMember("a", b"x" * 100)
    listing = one.central(0) + one.central(0)
    data = one.local() + listing + zip_end(2, len(listing), len(one.local()))
    _refused(place, data, UnsafeArtifact, "'a' shares its bytes", ZIP)


def test_a_listing_that_is_too_long_is_not_read(place):
    size = MAX_LISTING_BYTES + 1
    data = b"PK\3\4" + bytes(size - 4) + zip_end(1, size, 0)
    _refused(place, data, UnsafeArtifact, "listing is longer", ZIP)


# Damage.


def _small(packing):
    return pack({"a": b"aaa", "b/c": b"c" * 600}, packing)


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_that_is_cut_is_never_taken_for_whole(tmp_path, packing):
    data = _small(packing)
    # A tar by blocks and around them: nothing else in it is looked at.
    ends = {i + j for i in range(0, len(data), 512) for j in (-1, 0, 1)} if packing is TAR else ()
    for end in ends or range(len(data)):
        if 0 <= end < len(data):
            place = Place(tmp_path / str(end))
            _refused(
                place, data[:end], InvalidArtifact, "too early|no archive|cut off|no zip", packing
            )


@pytest.mark.parametrize("packing", [GZIP, ZIP])
def test_a_flipped_bit_is_found_or_does_not_matter(tmp_path, packing):
    data = bytearray(_small(packing))
    found = 0
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        place = Place(tmp_path / str(at))
        try:
            place.unpack(bytes(data), packing)
        except ArtifactError:
            found += 1
        else:
            assert place.files() in (
                {"a": b"aaa", "b/c": b"c" * 600},
                # Which of them is a directory is said by a bit that nothing else knows of.
                {"b/c": b"c" * 600},
                {"a": b"aaa"},
            )
        data[at] ^= 1 << at % 8
    assert found > len(data) / 2


def test_a_damaged_header_in_the_middle_is_no_end(place):
    data = bytearray(_small(TAR))
    data[1024 + 20] ^= 1
    _refused(place, bytes(data), InvalidArtifact, "a tar header is wrong")


def test_a_tar_ends_with_two_blocks_of_zeros(place):
    _refused(place, tar_member("a", b"x"), InvalidArtifact, "too early")
    _refused(Place(place.base / "1"), tar_member("a") + bytes(512), InvalidArtifact, "too early")
    Place(place.base / "2").unpack(tar_member("a") + bytes(1024))
    Place(place.base / "3").unpack(tar_member("a") + bytes(10240 + 7))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "more", [b"garbage", pack(MODEL, TAR), pack(MODEL, GZIP), bytes(2000) + b"x"]
)
def test_other_bytes_behind_the_end_are_refused(place, packing, more):
    why = "other bytes follow|no zip ends where"
    _refused(place, _small(packing) + more, InvalidArtifact, why, packing)


def test_zeros_may_follow_a_gzip_and_gzips_may_be_joined(place):
    whole = pack(MODEL, TAR)
    parts = [gzip.compress(whole[:700]), gzip.compress(b""), gzip.compress(whole[700:])]
    place.unpack(b"".join(parts) + bytes(5000), GZIP)
    assert place.files() == MODEL
    again = Place(place.base / "again")
    again.unpack((bytes(600_000)).join(parts), GZIP)
    assert again.files() == MODEL


@pytest.mark.parametrize("at", [-8, -1])
def test_length_and_checksum_of_a_gzip_are_checked(place, at):
    data = bytearray(pack(MODEL, GZIP))
    data[at] ^= 1
    _refused(place, bytes(data), InvalidArtifact, "gzip data or checksum is wrong", GZIP)


def test_a_header_without_a_member_is_damage(place):
    _refused(place, tar(pax({"path": "a"})), InvalidArtifact, "header is wrong")


# What headers say of the next member.


def test_pax_headers_say_name_size_and_target_of_the_next_member_only(place):
    long = "d/" * 20 + "x" * 200
    data = tar(
        pax({"path": long, "size": "5", "mtime": "1.5", "SCHILY.xattr.user.x": b"\xff\n=\0"}),
        tar_header("short", size=0) + padded(b"12345"),
        tar_member("next", b"n"),
        pax({"path": "l", "linkpath": long}),
        tar_member("short", kind=b"2", target="elsewhere"),
    )
    place.unpack(data)
    assert place.files() == {long: b"12345", "next": b"n", "l": b"12345"}


def test_gnu_headers_say_name_and_target_of_the_next_member_only(place):
    long = "d/" * 20 + "ü" * 90
    data = tar(
        tar_member("././@LongLink", long.encode() + b"\0", kind=b"L"),
        tar_member("short", b"1"),
        tar_member("././@LongLink", long.encode() + b"\0", kind=b"K"),
        tar_member("././@LongLink", b"l" * 120 + b"\0", kind=b"L"),
        tar_member("short", kind=b"1", target="elsewhere"),
    )
    place.unpack(data)
    assert place.files() == {long: b"1", "l" * 120: b"1"}


def test_a_long_posix_name_is_joined_and_gnus_times_are_not(place):
    data = tar(
        tar_header("x", prefix=b"p" * 150),
        tar_header("y", magic=b"ustar  \0", prefix=b"13742360417"),
    )
    place.unpack(data)
    assert place.files() == {"p" * 150 + "/x": b"", "y": b""}


def test_a_name_with_a_slash_at_its_end_is_a_directory_as_in_the_oldest_tars(place):
    place.unpack(tar(tar_member("d/", kind=b"\0"), tar_member("e/", kind=b"0"), tar_member("d/a")))
    assert place.files() == {"d/a": b""}
    # Not one whose name only begins like that: the rest is in the header before.
    name = "d" * 99 + "/" + "x"
    data = tar(tar_member("L", name.encode(), kind=b"L"), tar_member(name, b"x", kind=b"\0"))
    place.unpack(data)
    assert place.files()[name] == b"x"


@pytest.mark.parametrize(
    "data",
    [
        pax({"path": "a"}) + pax({"path": "b"}),
        tar_member("L", b"a", kind=b"L") + pax({"path": "b"}),
        tar_member("L", b"a", kind=b"L") + tar_member("L", b"b", kind=b"L"),
    ],
)
def test_two_headers_that_name_one_member_are_refused(place, data):
    _refused(place, data + tar(tar_member("c")), InvalidArtifact, "two headers of one kind")


def test_a_global_header_may_comment_and_not_rename(place):
    place.unpack(tar(pax({"comment": "0123abc"}, kind=b"g"), tar_member("a", b"x")))
    assert place.files() == {"a": b"x"}
    data = tar(pax({"path": "../b"}, kind=b"g"), tar_member("c"))
    _refused(place, data, InvalidArtifact, "a global header sets path")


@pytest.mark.parametrize(
    "records",
    [
        b"8 path=a\n",
        b"99 path=a\n",
        b"0 path=a\n",
        b"-9 path=a\n",
        b"path=a\n",
        b"8 pathaa\n",
        b"10 path=ab",
        b"00000010path=abc\n",
        b"000000020xpath=abcd\n",
        pax_record("path", "a") + bytes(3),
        b"\xb2 a=\n",
    ],
)
def test_a_pax_header_that_is_wrong_is_damage(place, records):
    data = tar(tar_member("x", records, kind=b"x"), tar_member("a"))
    _refused(place, data, InvalidArtifact, "a pax header is wrong")


@pytest.mark.parametrize("size", ["-1", "x", "", "1" * 20, "\u0663"])
def test_a_size_that_is_none_is_damage(place, size):
    _refused(place, tar(pax({"size": size}), tar_member("a")), InvalidArtifact, "has no size")


def test_a_name_in_a_pax_header_is_judged_like_any_other(place):
    data = tar(pax({"path": "../outside/x"}), tar_member("a"))
    _refused(place, data, UnsafeArtifact, "leads out")


# zip.


@pytest.mark.parametrize("flag", [1 << 0, 1 << 6 | 1, 1 << 13])
def test_encrypted_files_are_refused(place, flag):
    _refused(place, zipped(ZipMember("a", b"x", flags=flag)), InvalidArtifact, "encrypted", ZIP)


@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 95])
def test_other_methods_are_refused(place, method):
    data = zipped(ZipMember("a", b"x", method=method))
    _refused(place, data, InvalidArtifact, f"'a' is packed with method {method}", ZIP)


@pytest.mark.parametrize(
    "member",
    [
        ZipMember("a", b"x", local_name="b"),
        ZipMember("a", b"x", local_name="../b"),
        ZipMember("a", b"x", local_size=2),
        ZipMember("a", b"x", local_method=8),
        ZipMember("b", b"x" * 40, offset=1),
    ],
)
def test_a_file_that_is_not_what_the_listing_says_is_refused(place, member):
    data = zipped(ZipMember("first", bytes(30_000)), member) if member.offset else zipped(member)
    _refused(place, data, InvalidArtifact, "is not what the listing says", ZIP)


@pytest.mark.parametrize(
    "member",
    [
        ZipMember("a", b"xyz", size=2, crc=zlib.crc32(b"xy")),
        ZipMember("a", b"xyz", size=4),
        ZipMember("a", b"x" * 999, size=998, crc=zlib.crc32(b"x" * 998), method=8),
        ZipMember("a", b"x" * 999, size=1000, method=8),
        ZipMember("a", b"x" * 999, method=8, packed=deflated(b"x" * 999) + b"more"),
    ],
)
def test_sizes_that_lie_are_found(place, member):
    _refused(place, zipped(member), InvalidArtifact, "'a' is not as long as it says", ZIP)


def test_deflated_content_that_is_cut_is_found(place):
    packed = deflated(bytes(range(256)) * 40)[:-3]
    data = zipped(ZipMember("a", bytes(range(256)) * 40, method=8, packed=packed))
    _refused(place, data, InvalidArtifact, "too early", ZIP)


@pytest.mark.parametrize("method", [0, 8])
def test_a_wrong_checksum_is_found(place, method):
    data = zipped(ZipMember("a", b"x" * 99, method=method, crc=1))
    _refused(place, data, InvalidArtifact, "the checksum of 'a' is wrong", ZIP)


def test_content_that_reaches_beyond_the_end_is_refused(place):
    _refused(
        place, zipped(ZipMember("a", b"x", packed_size=10, size=10)), InvalidArtifact, "beyond", ZIP
    )


def test_a_directory_with_content_is_refused(place):
    for member in (ZipMember("a/", b"x"), ZipMember("a", b"x", mode=0o040755)):
        _refused(place, zipped(member), InvalidArtifact, "directory with content", ZIP)


def test_directories_of_a_zip_are_made(place):
    place.unpack(
        zipped(ZipMember("a/"), ZipMember("b", mode=0o040755), ZipMember("a/c", b"x")), ZIP
    )
    assert place.files() == {"a/c": b"x"}
    assert (place.new / "b").is_dir()


def test_a_link_of_a_zip_longer_than_a_path_is_refused(place):
    data = zipped(ZipMember("a", b"x" * 3000, mode=0o120777))
    _refused(place, data, InvalidArtifact, "longer than any path", ZIP)


def test_a_comment_may_hold_anything(place):
    place.unpack(zipped(ZipMember("a", b"x"), comment=b"PK\5\6 and PK\5\6."), ZIP)
    assert place.files() == {"a": b"x"}
    # But not another end: readers differ in which of the two they believe.
    data = zipped(ZipMember("a", b"x"), comment=zip_end(0, 0, 0))
    _refused(place, data, InvalidArtifact, "listing is not where", ZIP)


def test_files_are_listed_in_any_order(place):
    one, other = ZipMember("a", b"x" * 99), ZipMember("b", b"y" * 99)
    listing = other.central(len(one.local())) + one.central(0)
    body = one.local() + other.local()
    place.unpack(body + listing + zip_end(2, len(listing), len(body)), ZIP)
    assert place.files() == {"a": b"x" * 99, "b": b"y" * 99}


def test_bytes_before_the_first_file_are_skipped_where_the_listing_knows_of_them(place):
    place.unpack(zipped(ZipMember("a", b"x"), before=b"PK\3\4 something else"), ZIP)
    assert place.files() == {"a": b"x"}
    moved = b"PK\3\4" + zipped(ZipMember("b", b"x"))
    _refused(place, moved, InvalidArtifact, "listing is not where", ZIP)


def test_one_part_of_a_split_zip_is_refused(place):
    data = zipped(ZipMember("a"))[:-22] + zip_end(1, 47, 31, disk=1)
    _refused(place, data, InvalidArtifact, "split zip", ZIP)


@pytest.mark.parametrize(("count", "why"), [(0, "longer"), (2, "shorter")])
def test_a_listing_of_another_length_than_it_says_is_damage(place, count, why):
    data = zipped(ZipMember("a"))[:-22] + zip_end(count, 47, 31)
    _refused(place, data, InvalidArtifact, f"its listing is {why} than it says", ZIP)


def _zip64(**wrong):
    field = struct.pack("<2H3Q", 1, 24, 3, wrong.get("packed", 3), wrong.get("offset", 0))
    one = ZipMember("a", b"xyz", extra=struct.pack("<2H", 0x9999, 0) + field)
    local = one.local()
    wide = bytearray(one.central(0))
    wide[20:28] = b"\xff" * 8
    wide[42:46] = b"\xff" * 4
    start = len(local) + len(wide)
    length = wrong.get("length", 44)
    values = (length, 45, 45, 0, 0, 1, 1, len(wide), len(local))
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", *values)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, wrong.get("start", start), 1)
    last = zip_end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return local + bytes(wide) + end + locator + last


def test_sizes_beyond_32_bits_are_read_where_zip64_has_them(place):
    place.unpack(_zip64(), ZIP)
    assert place.files() == {"a": b"xyz"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 45},
        {"start": 0},
        {"start": (1 << 64) - 1},
        {"offset": (1 << 64) - 1},
        {"packed": 4},
    ],
)
def test_a_wrong_zip64_field_is_damage(place, wrong):
    _refused(place, _zip64(**wrong), InvalidArtifact, "damaged", ZIP)


# The directory that an artifact was packed with.

LORA = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}


@pytest.mark.parametrize("files", [LORA, MODEL, {"1/model.py": b"x"}])
@pytest.mark.parametrize("top", ["sql-lora", "v1", "1.0", ".0"])
def test_one_enclosing_directory_is_stripped(place, files, top):
    records = place.unpack(
        pack({f"{top}/{path}": data for path, data in files.items()}, GZIP), GZIP
    )
    stripped = strip_enclosing(place.new, records)
    assert place.files() == files
    assert [one.path for one in stripped] == sorted(files)
    assert not (place.new / top).exists()


@pytest.mark.parametrize(
    "files",
    [
        ["1/config.pbtxt"],
        ["2/1/model.py"],
        ["config.pbtxt", "1/model.py"],
        ["a/adapter_config.json", "README.md"],
        ["a/1/model.py", "b/1/model.py"],
        ["a/b/adapter_config.json"],
        ["a/1"],
        ["a/other.txt"],
        ["a"],
    ],
)
def test_what_is_no_enclosing_directory_stays(place, files):
    records = place.unpack(pack(dict.fromkeys(files, b"x"), TAR))
    assert strip_enclosing(place.new, records) == records
    assert place.files() == dict.fromkeys(files, b"x")


def test_an_enclosing_directory_may_hold_one_of_its_own_name_and_a_marker(place):
    files = ["m/m/x", "m/.0", "m/1/model.py", f"m/{MARKER}", "m/.1/y"]
    records = place.unpack(pack(dict.fromkeys(files, b"x"), TAR))
    stripped = strip_enclosing(place.new, records)
    assert place.files() == dict.fromkeys(["m/x", ".0", "1/model.py", ".1/y"], b"x")
    assert {one.path for one in stripped} == set(place.files())


def test_an_empty_directory_has_nothing_to_strip(place):
    assert strip_enclosing(place.new, ()) == ()


@pytest.mark.parametrize("target", ["./" * 1025, "x" * 2049, "d/../" * 60 + "../" * 10 + "f"])
@pytest.mark.parametrize("packing", [TAR, ZIP])
def test_a_link_names_nothing_longer_than_a_path(place, target, packing):
    made = {
        TAR: tar(tar_member("f"), pax({"linkpath": target}), tar_header("l", kind=b"2")),
        ZIP: zipped(ZipMember("f"), ZipMember("l", target.encode(), mode=0o120777)),
    }[packing]
    _refused(place, made, InvalidArtifact, "longer than any path")


def test_long_targets_of_links_are_not_kept(place):
    file = place.base / "archive"
    long = pax({"linkpath": "./" * 450_000 + "f"})
    with file.open("wb") as out:
        out.write(tar_member("f"))
        for number in range(60):
            out.write(long + tar_header(f"l{number}", kind=b"2"))
        out.write(TAR_END)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArtifact, match="longer than any path"):
            unpack(file, TAR, place.workspace, where="x", max_files=99, max_bytes=None)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


def test_following_links_stops(place):
    heard = []

    def report(_):
        heard.append(1)
        if len(heard) == 30:
            place.stop.set()

    links = [tar_header(f"l{number}", kind=b"2", target="f") for number in range(20)]
    file = place.base / "archive"
    file.write_bytes(tar(tar_member("f"), *links))
    with pytest.raises(Stopped):
        unpack(
            file,
            TAR,
            replace(place.workspace, report=report),
            where="x",
            max_files=99,
            max_bytes=None,
        )
    assert len(heard) == 30


@pytest.mark.parametrize(
    ("kind", "data"), [(b"g", b"6 a=b\n"), (b"x", b"6 a=b\n"), (b"K", b"target")]
)
def test_an_archive_has_only_so_many_bytes_of_headers(place, kind, data):
    one = tar_member("h", data * 170_000, kind=kind)
    count = MAX_ALL_EXTENSIONS_BYTES // (len(data) * 170_000) + 1
    members = [one + tar_member(f"d{number}") for number in range(count)]
    data = gzip.compress(tar(*members), 1)
    _refused(place, data, UnsafeArtifact, "bytes of pax headers", GZIP)


@pytest.mark.parametrize("packing", PACKINGS)
def test_unpacking_is_heard_of_while_nothing_new_arrives(place, packing):
    heard: list[int] = []
    file = place.base / "archive"
    file.write_bytes(pack({"a": bytes(3 << 20)}, packing))
    workspace = replace(place.workspace, report=heard.append)
    unpack(file, packing, workspace, where="x", max_files=9, max_bytes=None)
    assert len(heard) >= 12
    assert set(heard) == {0}
