"""Layers of an image, applied one over the other."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.artifacts.files import Stopped
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.remote.oci_layers import apply_layers
from sidecar.artifacts.remote.port import Packing
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import InvalidArtifact, UnsafeArtifact
from tests.support.archives import TAR_END, pax, tar, tar_member
from tests.support.oci import tar_of

WHERE = "oci://registry/sql"


def workspace_in(root: Path) -> Workspace:
    made = Workspace(
        directory=root / "new",
        scratch=root / "scratch",
        report=lambda _: None,
        grow=lambda _: None,
        stop=Event(),
    )
    made.directory.mkdir(parents=True)
    made.scratch.mkdir()
    return made


def applied(
    root: Path, *layers: bytes, max_files: int = 100, max_bytes: int | None = None
) -> dict[str, bytes]:
    """Apply layers, and return what is on disk then; records and disk say the same."""
    workspace = workspace_in(root)
    files = []
    for number, data in enumerate(layers):
        file = workspace.scratch / f"blob-{number}"
        file.write_bytes(data)
        files.append((file, Packing.TAR))
    records = apply_layers(
        files, "models", workspace, where=WHERE, max_files=max_files, max_bytes=max_bytes
    )
    found = {
        str(one.relative_to(workspace.directory)): one.read_bytes()
        for one in workspace.directory.rglob("*")
        if not one.is_dir()
    }
    assert {one.path: one for one in records} == {
        path: FileRecord(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in found.items()
    }
    assert list(workspace.scratch.iterdir()) == []
    assert all(any(one.iterdir()) for one in workspace.directory.rglob("*") if one.is_dir())
    return found


def test_only_what_is_below_models_is_taken_however_builders_write_it(tmp_path):
    layers = [
        tar_of({"bin/": None, "bin/sh": b"#!", "models.txt": b"", "modelsx/a": b""}),
        tar_of({"./models/": None, "./models/config.pbtxt": b"c"}, is_zipped=True),
        tar_of({"/models/1/model.py": b"m"}),
        tar_of({"models/1/w.bin": b"w", "etc/passwd": b"root"}),
    ]
    assert applied(tmp_path, *layers) == {
        "config.pbtxt": b"c",
        "1/model.py": b"m",
        "1/w.bin": b"w",
    }


def test_what_is_elsewhere_in_an_image_is_not_judged(tmp_path):
    base = tar_of(
        {"../out": b"x", "a\\b": b"x"},
        links={"lib": "/usr/lib", "usr/up": "../../.."},
        hard_links={"usr/hard": "nowhere"},
        devices=["dev/null", "dev/modelsx"],
    )
    assert applied(tmp_path, base, tar_of({"models/a": b"a"})) == {"a": b"a"}


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ({"models/a": b"new"}, {"a": b"new", "d/b": b"b", "d/e/c": b"c"}),
        ({"models/.wh.a": b""}, {"d/b": b"b", "d/e/c": b"c"}),
        ({"models/.wh.d": b""}, {"a": b"a"}),
        ({"models/d/.wh.e": b""}, {"a": b"a", "d/b": b"b"}),
        ({"models/d/.wh..wh..opq": b"", "models/d/n": b"n"}, {"a": b"a", "d/n": b"n"}),
        ({"models/d/n": b"n", "models/d/.wh..wh..opq": b""}, {"a": b"a", "d/n": b"n"}),
        ({"models/n": b"n", ".wh.models": b""}, {"n": b"n"}),
        ({".wh..wh..opq": b"", "models/n": b"n"}, {"n": b"n"}),
        ({"models/.wh..wh..opq": b"", "models/n": b"n"}, {"n": b"n"}),
        ({"models/d": b"now a file"}, {"a": b"a", "d": b"now a file"}),
        (
            {"models/a/f": b"now a directory"},
            {"a/f": b"now a directory", "d/b": b"b", "d/e/c": b"c"},
        ),
        ({"models/.wh.d/x": b"x"}, {"a": b"a", "d/b": b"b", "d/e/c": b"c", ".wh.d/x": b"x"}),
        ({".wh.": b""}, {"a": b"a", "d/b": b"b", "d/e/c": b"c"}),
        ({".wh.mod": b"", "bin/.wh.models": b""}, {"a": b"a", "d/b": b"b", "d/e/c": b"c"}),
        ({"models/.wh..wh.plnk": b"", "models/.wh.": b""}, {"a": b"a", "d/b": b"b", "d/e/c": b"c"}),
    ],
)
def test_a_layer_replaces_and_deletes_what_is_below_it(tmp_path, upper, expected):
    lower = tar_of({"models/a": b"a", "models/d/b": b"b", "models/d/e/c": b"c"})
    assert applied(tmp_path, lower, tar_of(upper)) == expected


NAMES = st.sampled_from(["a", "b", "a/b", "a/c", "a/b/c", "b/d"])
LAYERS = st.lists(
    st.tuples(st.sets(NAMES, max_size=3), st.sets(NAMES | st.just(""), max_size=2)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50)
@given(LAYERS)
def test_any_layers_make_what_the_specification_says(tmp_path_factory, layers):
    expected: dict[str, bytes] = {}
    packed = []
    for number, (files, hidden) in enumerate(layers):
        # A name cannot be a file and a directory in one layer.
        files = {one for one in files if not any(other.startswith(f"{one}/") for other in files)}
        members: dict[str, bytes | None] = {}
        for path in files:
            members[f"models/{path}"] = f"{number} {path}".encode()
        for path in hidden:
            parent, _, name = path.rpartition("/")
            white = f"{parent}/.wh.{name}".lstrip("/") if path else ".wh..wh..opq"
            members[f"models/{white}"] = b""
            expected = {
                one: data
                for one, data in expected.items()
                if path and one != path and not one.startswith(f"{path}/")
            }
        for path in files:
            expected = {
                one: data
                for one, data in expected.items()
                if not one.startswith(f"{path}/") and not path.startswith(f"{one}/")
            }
            expected[path] = f"{number} {path}".encode()
        packed.append(tar_of(members))
    root = tmp_path_factory.mktemp("layers")
    if expected:
        assert applied(root, *packed) == expected
    else:
        with pytest.raises(InvalidArtifact, match="no files in /models"):
            applied(root, *packed)


def test_links_inside_models_become_copies(tmp_path):
    layer = tar_of(
        {"models/w/a.bin": b"a"},
        links={"models/model.file": "w/a.bin"},
        hard_links={"models/hard": "models/w/a.bin"},
    )
    assert applied(tmp_path, layer) == {"w/a.bin": b"a", "model.file": b"a", "hard": b"a"}


@pytest.mark.parametrize(
    "layer",
    [
        tar_of({"models/../../out": b"x"}),
        tar_of({"models/a": b"a"}, links={"models/b": "/etc/passwd"}),
        tar_of({"models/a": b"a"}, links={"models/b": "../etc/passwd"}),
        tar_of({"etc/passwd": b"root", "models/a": b"a"}, hard_links={"models/b": "etc/passwd"}),
        tar_of({"models/a": b"a"}, devices=["models/null"]),
    ],
)
def test_what_leads_out_of_models_is_refused(tmp_path, layer):
    with pytest.raises(UnsafeArtifact):
        applied(tmp_path, layer)
    assert not (tmp_path / "out").exists()


def test_an_image_without_models_says_what_it_has(tmp_path):
    with pytest.raises(InvalidArtifact, match=r"at its top: 'bin', 'etc'\)"):
        applied(tmp_path, tar_of({"bin/sh": b"", "etc/passwd": b""}))


@pytest.mark.parametrize(
    "limits", [{"max_files": 1}, {"max_files": 5, "max_bytes": 3}], ids=["files", "bytes"]
)
def test_limits_count_what_all_layers_make_together(tmp_path, limits):
    layers = [tar_of({f"models/{number}": b"xx"}) for number in range(2)]
    with pytest.raises(InvalidArtifact, match=r"more than 1 files|4 bytes"):
        applied(tmp_path, *layers, **limits)


def test_a_layer_with_members_without_number_is_refused(tmp_path):
    with pytest.raises(InvalidArtifact, match="more than 10 files"):
        applied(tmp_path, tar_of({str(number): b"" for number in range(11)}), max_files=1)


def test_it_ends_soon_when_it_is_stopped(tmp_path):
    workspace = workspace_in(tmp_path)
    file = workspace.scratch / "blob"
    file.write_bytes(tar_of({"models/a": b"a"}))
    workspace.stop.set()
    with pytest.raises(Stopped):
        apply_layers(
            [(file, Packing.TAR)], "models", workspace, where=WHERE, max_files=9, max_bytes=None
        )


def test_names_at_the_top_are_shown_escaped_cut_and_only_a_few(tmp_path):
    evil = ["a\n2026-01-01 INFO all is well\x1b[31m/x", "b" * 200 + "/x"]
    layers = [
        tar_of({**dict.fromkeys(evil, b""), **{f"{n}{k}/x": b"" for k in range(30)}}) for n in "xy"
    ]
    with pytest.raises(InvalidArtifact, match="no files in /models") as caught:
        applied(tmp_path, *layers)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert "x1" in str(caught.value)


@pytest.mark.parametrize("top", ["{}", "models/.wh.{}", "models/{}/.wh..wh..opq"])
def test_long_names_of_a_layer_are_not_kept(tmp_path, top):
    workspace = workspace_in(tmp_path)
    file = workspace.scratch / "blob"
    with file.open("wb") as out:
        for number in range(60):
            name = top.format(f"{number:06}" + "x" * 900_000)
            out.write(tar_member("././@LongLink", name.encode() + b"\0", kind=b"L"))
            out.write(tar_member("q"))
        out.write(TAR_END)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArtifact, match="no files in /models"):
            apply_layers(
                [(file, Packing.TAR)],
                "models",
                workspace,
                where=WHERE,
                max_files=99,
                max_bytes=None,
            )
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_layer_that_deletes_without_number_is_refused(tmp_path):
    layer = tar_of({f"models/.wh.{number}": b"" for number in range(6)})
    with pytest.raises(InvalidArtifact, match="deletes more than 5 files"):
        applied(tmp_path, layer, max_files=5)


def test_a_long_way_to_the_top_of_the_image_is_no_long_work(tmp_path):
    name = "./" * 520_000 + "models/a"
    started = time.process_time()
    assert applied(tmp_path, tar(pax({"path": name}), tar_member("x", b"a"))) == {"a": b"a"}
    assert time.process_time() - started < 2


@pytest.mark.parametrize("devices", [[], ["models/null"]], ids=["complete", "refused"])
def test_neither_threads_nor_files_are_left(tmp_path, devices):
    layer = tar_of({"models/a": b"a", "models/b": b"b"}, devices=devices)
    # The first one also opens what Python opens once.
    for number in range(2):
        threads, files = threading.active_count(), os.listdir("/proc/self/fd")
        try:
            applied(tmp_path / str(number), layer)
        except UnsafeArtifact:
            assert devices
        assert threading.active_count() == threads
    assert os.listdir("/proc/self/fd") == files


@pytest.mark.parametrize("where", ["models/a", "usr/lib"])
def test_unpacking_layers_is_heard_of_while_nothing_new_arrives(tmp_path, where):
    heard: list[int] = []
    workspace = replace(workspace_in(tmp_path), report=heard.append)
    file = workspace.scratch / "blob"
    file.write_bytes(tar_of({"models/b": b"b", where: bytes(3 << 20)}))
    apply_layers(
        [(file, Packing.TAR)], "models", workspace, where=WHERE, max_files=9, max_bytes=None
    )
    assert len(heard) >= 12
    assert set(heard) == {0}
