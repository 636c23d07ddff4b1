import os
import socket
import subprocess
from threading import Event
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Kind
from sidecar.artifacts.fetch import SourceOptions, open_source
from sidecar.artifacts.files import Stopped
from sidecar.artifacts.layout import directory_name
from sidecar.artifacts.listing import find_kind, refuse_pickles
from sidecar.artifacts.local import MAX_DEPTH, LocalSource
from sidecar.artifacts.locations import check_source_allowed
from sidecar.artifacts.manifest import FileRecord, content_digest, parse_manifest
from sidecar.artifacts.workspace import Workspace
from sidecar.core.inventory import Revision
from sidecar.errors import (
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceNotAllowed,
    UnsafeArtifact,
    UnsupportedSource,
)
from tests.support.loras import entry_for, write_tiny_lora, write_tiny_model


def _bring(source, target, report=lambda _: None, stop=None):
    target.mkdir()
    source.list()
    workspace = Workspace(
        directory=target,
        scratch=target.parent,
        report=report,
        grow=lambda size: None,
        stop=stop or Event(),
    )
    return source.bring(workspace)


# What a source is.


@pytest.mark.parametrize(
    "source",
    [
        "ftp://u:pw@host/x.tar?sig=abc",
        "hdfs://namenode/x",
        "file://nas/x",
        "org/repo",
    ],
)
def test_other_sources_are_unsupported_and_say_what_works(source):
    with pytest.raises(UnsupportedSource, match="absolute path") as raised:
        open_source(entry_for(source), SourceOptions())
    assert "pw" not in str(raised.value)
    assert "abc" not in str(raised.value)


def test_a_file_url_is_the_path_it_names(tmp_path):
    write_tiny_lora(tmp_path / "a b%")
    source = open_source(entry_for(f"file://{quote(str(tmp_path / 'a b%'))}"), SourceOptions())
    assert isinstance(source, LocalSource)
    assert len(source.list().files) == 2


def test_a_single_file_is_refused_in_plain_words(tmp_path):
    (tmp_path / "adapter.tar").write_bytes(b"x")
    with pytest.raises(InvalidArtifact, match="single file"):
        LocalSource(str(tmp_path / "adapter.tar")).list()


def test_a_path_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        LocalSource(str(tmp_path / "none")).list()


@pytest.mark.parametrize("source", ["org/repo", "/nowhere/at/all", "file:///nowhere/at/all"])
def test_a_passthrough_that_cannot_be_seen_is_passed_on_unverified(source):
    revision = open_source(entry_for(source, passthrough=True), SourceOptions())
    assert isinstance(revision, Revision)
    assert (revision.verified, revision.kind) == (False, Kind.LORA)
    assert revision.path == source.removeprefix("file://")
    again = open_source(entry_for(source, passthrough=True), SourceOptions())
    assert isinstance(again, Revision)
    assert again.revision == revision.revision


def test_a_passthrough_that_can_be_seen_is_copied_like_others(tmp_path):
    assert isinstance(
        open_source(entry_for(tmp_path, passthrough=True), SourceOptions()), LocalSource
    )


# What it may hold.


def test_kinds_are_told_by_what_lies_in_the_directory(tmp_path):
    assert find_kind(write_tiny_lora(tmp_path / "lora")) is Kind.LORA
    assert find_kind(write_tiny_model(tmp_path / "model")) is Kind.MODEL
    assert find_kind(write_tiny_model(tmp_path / "bare", config=None)) is Kind.MODEL
    with pytest.raises(InvalidArtifact, match=r"adapter_config\.json.*config\.pbtxt"):
        find_kind(tmp_path)


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "adapter_model.pt", "x/other.PTH", "a.pkl", "b.ckpt"]
)
def test_pickled_weights_of_a_lora_are_refused(name):
    with pytest.raises(UnsafeArtifact, match="safetensors"):
        refuse_pickles("/x", Kind.LORA, ["adapter_config.json", name])


def test_models_may_have_pickles_and_trainers_may_leave_theirs():
    refuse_pickles("/x", Kind.MODEL, ["1/model.pt"])
    refuse_pickles("/x", Kind.LORA, ["training_args.bin", "optimizer.pt", "rng_state_0.pth"])


def test_a_link_out_of_the_tree_is_refused(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    (source / "README").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeArtifact, match="README leads out"):
        LocalSource(str(source)).list()


def test_a_link_to_a_sibling_whose_name_begins_alike_leads_out(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    (tmp_path / "source2").mkdir()
    (source / "more").symlink_to("../source2")
    with pytest.raises(UnsafeArtifact):
        LocalSource(str(source)).list()


def test_links_inside_become_copies(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    (source / "2").symlink_to("1")
    (source / "same.py").symlink_to("1/model.py")
    _bring(LocalSource(str(source)), tmp_path / "copy")
    for path in ("2/model.py", "same.py", "1/model.py"):
        assert (tmp_path / "copy" / path).read_text() == "ANSWER = 1\n"
        assert not (tmp_path / "copy" / path).is_symlink()


def test_a_link_in_a_circle_is_refused(tmp_path):
    source = write_tiny_model(tmp_path / "source")
    (source / "1" / "up").symlink_to("..")
    with pytest.raises(UnsafeArtifact, match=r"up leads (in a circle|out)"):
        LocalSource(str(source)).list()


def test_a_tree_without_end_is_refused(tmp_path):
    deep = tmp_path
    for _ in range(MAX_DEPTH + 2):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(InvalidArtifact, match="nest"):
        LocalSource(str(tmp_path)).list()


def test_pipes_and_sockets_are_refused_and_never_opened(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    os.mkfifo(source / "pipe")
    with pytest.raises(UnsafeArtifact, match="named pipe"):
        LocalSource(str(source)).list()
    (source / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(source / "s"))
        with pytest.raises(UnsafeArtifact, match="a socket"):
            LocalSource(str(source)).list()


@pytest.mark.parametrize("name", ["a\nb", "a\\b", os.fsdecode(b"a\xff")])
def test_file_names_that_no_checksum_list_can_hold_are_refused(tmp_path, name):
    source = write_tiny_lora(tmp_path / "source")
    (source / name).write_text("x")
    with pytest.raises(InvalidArtifact, match="rename it"):
        LocalSource(str(source)).list()


# Copying.


def test_a_source_that_changes_while_it_is_copied_is_a_failed_fetch(tmp_path):
    source = write_tiny_lora(tmp_path / "source")

    def change(_):
        (source / "adapter_model.safetensors").write_bytes(b"other")

    with pytest.raises(FetchFailed, match="changed while"):
        _bring(LocalSource(str(source)), tmp_path / "copy", report=change)


def test_a_file_that_is_added_while_copying_is_a_change_too(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    with pytest.raises(FetchFailed, match="changed while"):
        _bring(
            LocalSource(str(source)),
            tmp_path / "copy",
            report=lambda _: (source / "new").write_text("x"),
        )


def test_copying_stops_between_chunks(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    stop = Event()
    with pytest.raises(Stopped):
        _bring(LocalSource(str(source)), tmp_path / "copy", lambda _: stop.set(), stop)


def test_the_signature_moves_with_any_change_and_stays_otherwise(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    seen = [LocalSource(str(source)).list().signature]
    assert LocalSource(str(source)).list().signature == seen[0]
    os.utime(source / "adapter_config.json", ns=(1, 1))
    seen.append(LocalSource(str(source)).list().signature)
    (source / "adapter_config.json").rename(source / "other.json")
    seen.append(LocalSource(str(source)).list().signature)
    (source / "empty").mkdir()
    seen.append(LocalSource(str(source)).list().signature)
    assert len(set(seen)) == len(seen)


def test_a_time_set_into_the_future_is_not_a_change_in_the_future(tmp_path):
    source = write_tiny_lora(tmp_path / "source")
    before = LocalSource(str(source)).list().newest_change
    os.utime(source / "adapter_config.json", (9e9, 9e9))
    assert before <= LocalSource(str(source)).list().newest_change < 9e9


def test_the_content_digest_is_what_the_documented_command_says(tmp_path):
    source = write_tiny_model(tmp_path / "source", config="name: 'x'\n")
    (source / "1" / "ünï code.bin").write_bytes(b"\x00\x01")
    (source / "1-a").write_text("sorts before 1/ by bytes")
    (source / ".model-sidecar.json").write_text("not part of it")
    assert content_digest.__doc__ is not None
    command = content_digest.__doc__.split("::")[1].split("Empty")[0].replace("\\\n", "\n")
    command = " ".join(command.replace("\\\\\n", " ").split())
    said = subprocess.run(
        command, shell=True, cwd=source, capture_output=True, text=True, timeout=30, check=True
    )
    records = _bring(LocalSource(str(source)), tmp_path / "copy")
    assert content_digest(records) == f"sha256:{said.stdout.split()[0]}"


# Names, markers and the allow list.


@given(st.text(max_size=300), st.text(max_size=300))
def test_every_name_becomes_one_safe_and_distinct_directory(one, other):
    first, second = directory_name(one), directory_name(other)
    assert first not in {"", ".", ".."}
    assert "/" not in first
    assert not first.startswith(".")
    assert "\0" not in first
    assert len(os.fsencode(first)) <= 255
    assert (first == second) == (one == other)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=150))
def test_an_ordinary_name_is_its_own_directory(name):
    assert directory_name("x" + name) == "x" + name


@given(st.text(max_size=100))
def test_any_text_for_a_marker_is_read_or_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_manifest(text)


@given(st.permutations([FileRecord(path=p, size=1, sha256="0" * 64) for p in ("a", "b/c", "b-")]))
def test_the_digest_does_not_depend_on_the_order_of_files(files):
    assert content_digest(files) == content_digest(sorted(files, key=lambda one: one.path))


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("/data/a", "/data/a"),
        ("/data/a/b/../c", "/data/a"),
        ("file:///data/a/b", "/data/a"),
        ("/data/a/b", "file:///data/a"),
        ("s3://bucket/team/", "S3://bucket/team/"),
        ("https://host/x", "https://host"),
        ("https://u:p@host/x", "https://host"),
        ("hf://org/repo@main", "hf://org"),
        ("hf://org/repo@main", "hf://org/repo"),
        ("hf://org/repo:main", "hf://org/repo"),
        ("hf://org/repo@main/sub", "hf://org/repo@main"),
        ("hf://org/repo@team%2Fsql/sub", "hf://org/repo@team%2Fsql"),
        ("hf://org/repo@refs%2Fpr%2F7", "hf://org/repo@refs%2Fpr%2F7"),
        ("oci://registry:5000/team/lora:v1", "oci://registry:5000/team/lora"),
        ("oci://registry/team/lora@sha256:0a", "oci://registry/team/lora"),
        ("org/repo", "org"),
    ],
)
def test_sources_below_a_prefix_are_allowed(source, prefix):
    check_source_allowed(source, ["/elsewhere", prefix])


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("/data/ab", "/data/a"),
        ("/data/a/../b", "/data/a"),
        ("file:///data/a/%2e%2e/b", "/data/a"),
        ("s3://bucket/team2/x", "s3://bucket/team"),
        ("s3://bucket/team/../x", "s3://bucket/team"),
        ("s3://bucket/team/%2e%2e/x", "s3://bucket/team"),
        ("s3://other/team", "s3://bucket/team"),
        ("https://host@evil/x", "https://host"),
        ("https://host.evil/x", "https://host"),
        ("https://host:8443/x", "https://host"),
        ("http://host/x", "https://host"),
        ("https://[host/x", "https://host"),
        ("hf://org/repo2", "hf://org/repo"),
        ("hf://org/repo@sub/x", "hf://org/repo/sub"),
        ("hf://org/repo@v1", "hf://org/repo@v2"),
        ("oci://registry/team/lora-evil:v1", "oci://registry/team/lora"),
        ("oci://registry:5000/team/lora", "oci://registry/team/lora"),
        ("s3://evil@bucket/team/x", "s3://bucket/team"),
        ("hf://org/repo@v2%2Fevil", "hf://org/repo@v2"),
        ("hf://org/repo@refs%2Fpr%2F7", "hf://org/repo"),
        ("hf://org/repo@refs/pr/7", "hf://org"),
        ("oci://Myorg/model", "oci://myorg"),
        ("s3://bucket/team%2F..%2Fx", "s3://bucket/team"),
        ("s3://bucket/team%2Fx", "s3://bucket/team"),
        ("org/../other/repo", "org"),
        ("/data/a\0/b", "/data/a"),
    ],
)
def test_other_sources_are_not(source, prefix):
    with pytest.raises(SourceNotAllowed, match="allow-source"):
        check_source_allowed(source, [prefix])


def test_links_are_resolved_before_comparing(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "allowed" / "way").symlink_to(tmp_path / "outside")
    (tmp_path / "alias").symlink_to(tmp_path / "allowed")
    check_source_allowed(str(tmp_path / "alias"), [str(tmp_path / "allowed")])
    check_source_allowed(str(tmp_path / "allowed"), [str(tmp_path / "alias")])
    with pytest.raises(SourceNotAllowed):
        check_source_allowed(str(tmp_path / "allowed" / "way"), [str(tmp_path / "allowed")])


@pytest.mark.parametrize("passthrough", [False, True])
@pytest.mark.parametrize("source", ["/a\0b", "file:///a%00b", "a\0b"])
def test_a_nul_in_a_source_is_refused_and_no_crash(source, passthrough):
    with pytest.raises(UnsupportedSource, match="NUL"):
        open_source(entry_for(source, passthrough=passthrough), SourceOptions())
    with pytest.raises(SourceNotAllowed):
        open_source(
            entry_for(source, passthrough=passthrough),
            SourceOptions(allowed=("/", "a", "file:///")),
        )


def test_without_prefixes_everything_is_allowed():
    check_source_allowed("s3://anything/../at all", [])


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "%2e%2e", ""]), max_size=6))
def test_no_path_below_a_url_prefix_leads_out_of_it(parts):
    source = "s3://bucket/team/" + "/".join(parts)
    try:
        check_source_allowed(source, ["s3://bucket/team"])
    except SourceNotAllowed:
        assert {"..", ".", "%2e%2e"} & set(parts)
    else:
        assert not {"..", "%2e%2e"} & set(parts)
