"""Whatever an archive says: it stays below its directory, within its limits, and is no crash."""

import gzip
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.artifacts.files import Stopped
from sidecar.artifacts.remote.port import Packing
from sidecar.errors import ArtifactError
from tests.support.archives import Place, ZipMember, pack, padded, pax, tar_header, zipped

MAX_FILES, MAX_BYTES = 12, 3000
PLAIN = [f"{directory}{name}" for directory in ("", "d/", "d/e/", "1/") for name in "abcd"]
PARTS = ["a", "d", "1", "..", ".", "", "outside", "secret", "a\\b", "\0", "x" * 260, "ü", "._x"]
EVIL = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=5).map("/".join),
    st.sampled_from(["{base}/outside/secret", "{base}/outside/new", "/tmp", "a", "d", "d/e"]),
    st.text(max_size=10),
)
NAMES = st.one_of(*[st.sampled_from(PLAIN)] * 9, EVIL)
TARGETS = st.one_of(st.sampled_from([*PLAIN, "d", "../d", "1", "../1/a", "."]), EVIL)
DATA = st.one_of(st.binary(max_size=600), st.integers(0, 1500).map(bytes))
SELDOM = st.integers(0, 19).map(lambda one: one == 19)


@st.composite
def tar_members(draw):
    evil = draw(SELDOM)
    kinds = b"34678xgXLKSDMV\0" if evil else b"000001255"
    kind, data = bytes([draw(st.sampled_from(kinds))]), draw(DATA)
    if kind in b"123456":
        data = b""
    sizes = st.sampled_from([0, 1, 512, 1 << 40, -1, 1 << 80])
    size = draw(sizes) if draw(SELDOM) else len(data)
    before = b""
    if draw(SELDOM):
        keys = st.sampled_from(["path", "linkpath", "size", "mtime", "GNU.sparse.major"])
        before = pax(draw(st.dictionaries(keys, st.one_of(NAMES, st.just("3")), max_size=2)))
    return before, kind, draw(NAMES), draw(TARGETS), size, data


@st.composite
def zip_members(draw):
    evil = draw(SELDOM)
    odd = [0o020666, 0o010644, 0o140666]
    mode = draw(st.sampled_from(odd if evil else [0, 0o100644, 0o100755, 0o120777]))
    wrong = st.integers(0, 1 << 32 - 1)
    link = draw(TARGETS).encode("utf-8", "surrogatepass")
    return ZipMember(
        draw(NAMES),
        link if mode == 0o120777 else draw(DATA),
        method=9 if draw(SELDOM) else draw(st.sampled_from([0, 8])),
        flags=draw(st.sampled_from([1, 8])) if draw(SELDOM) else 0,
        mode=mode,
        size=draw(wrong) if draw(SELDOM) else None,
        packed_size=draw(wrong) if draw(SELDOM) else None,
        local_name=draw(NAMES) if draw(SELDOM) else None,
        offset=draw(st.integers(0, 200)) if draw(SELDOM) else None,
    )


def _unpack(data, packing):
    """Unpack what is nothing but a danger, and return whether it was accepted."""
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        made = data if isinstance(data, bytes) else data(str(place.base))
        try:
            records = place.unpack(made, packing, max_files=MAX_FILES, max_bytes=MAX_BYTES)
        except (ArtifactError, Stopped) as error:
            accepted, said = None, str(error)
        else:
            accepted, said = {one.path: one.size for one in records}, ""
        assert said.isprintable()
        files = place.files()
        entries = list(place.new.rglob("*"))
        assert len(entries) <= MAX_FILES
        assert sum(map(len, files.values())) <= MAX_BYTES
        assert accepted is None or accepted == {path: len(data) for path, data in files.items()}
        return accepted is not None


def _text(name, base):
    return name.replace("{base}", base).encode("utf-8", "replace").decode()


@settings(max_examples=250)
@given(st.lists(tar_members(), max_size=6), SELDOM, st.booleans())
def test_any_tar_is_unpacked_below_its_directory_or_refused(members, is_cut, is_compressed):
    def make(base):
        made = b""
        for before, kind, name, target, size, data in members:
            head = tar_header(_text(name, base), kind=kind, size=size, target=_text(target, base))
            made += before + head + padded(data)
        made += b"" if is_cut else bytes(1024)
        return gzip.compress(made, 1) if is_compressed else made

    _unpack(make, Packing.TAR)


@settings(max_examples=250)
@given(st.lists(zip_members(), max_size=6))
def test_any_zip_is_unpacked_below_its_directory_or_refused(members):
    def make(base):
        for one in members:
            one.name = _text(one.name, base)
            if isinstance(one.local_name, str):
                one.local_name = _text(one.local_name, base)
        return zipped(*members)

    _unpack(make, Packing.ZIP)


@settings(max_examples=100)
@given(st.sampled_from(Packing), st.sampled_from([b"", b"PK\3\4", b"\x1f\x8b\x08\0"]), st.binary())
def test_any_bytes_are_refused_or_harmless(packing, start, data):
    _unpack(start + data, packing)


HONEST = {"config.pbtxt": b"x" * 700, "1/model.py": random.Random(0).randbytes(900), "empty": b""}


@settings(max_examples=150)
@given(st.sampled_from(Packing), st.data())
def test_any_change_to_an_honest_archive_is_refused_or_harmless(packing, data):
    made = bytearray(pack(HONEST, packing))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(made) - 1))
        made[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del made[data.draw(st.integers(len(made) - 40, len(made))) :]
    _unpack(bytes(made), packing)


@pytest.mark.parametrize("packing", list(Packing))
def test_the_honest_archive_is_accepted(packing):
    assert _unpack(pack(HONEST, packing), packing)
