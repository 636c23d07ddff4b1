"""``hf://`` against a hub on loopback, with the hub's real client asking and as the reference."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import HfApi

from sidecar.artifacts.listing import FREE_SIZE
from sidecar.artifacts.remote.fetcher import RemoteFetcher
from sidecar.artifacts.remote.hub import HubSource, open_hub
from sidecar.artifacts.remote.port import Blob, Packing
from sidecar.artifacts.remote.secrets import Credentials, read_credentials
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import (
    AccessDenied,
    ArtifactError,
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceMoved,
    SourceNotAllowed,
    UnsupportedSource,
)
from tests.support.hub_server import HubServer, Reply

LORA = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"# SQL",
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": bytes(range(256)) * 4000,
    "tokenizer/\u00fcber 100.json": b"[]",
    "empty.txt": b"",
}


OPENED: list[HubSource] = []


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server
    while OPENED:
        OPENED.pop().close()


def credentials_for(hub: HubServer, token: str = "", **values: str) -> Credentials:
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, **values}
    return read_credentials(None, root=Path("/nonexistent"), environment=environment)


def source_of(hub: HubServer, url: str, token: str = "", **values: str) -> HubSource:
    return keep(open_hub(url, credentials_for(hub, token, **values)))


def keep(source: HubSource) -> HubSource:
    """Have a source closed at the end of the test."""
    OPENED.append(source)
    return source


def read(source: HubSource, blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(source.read(blob, start, end))


def read_all(source: HubSource) -> dict[str, bytes]:
    return {blob.path: read(source, blob) for blob in source.list().blobs}


def error_of(hub: HubServer, url: str, token: str = "", **values: str) -> ArtifactError:
    """What a look, and the reading of all that it finds, ends with."""
    with pytest.raises(ArtifactError) as caught:
        read_all(source_of(hub, url, token, **values))
    return caught.value


def run_python(program: str, *arguments: str, **environment: str) -> str:
    """Run a program in a process of its own, whose environment is this and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is there.


def test_all_files_come_with_sizes_and_the_digests_of_lfs(hub):
    hub.add("acme/lora").commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    contents = source.list()
    wanted = {path: data for path, data in LORA.items() if path != ".gitattributes"}
    assert {blob.path: blob.size for blob in contents.blobs} == {
        path: len(data) for path, data in wanted.items()
    }
    assert [blob.path for blob in contents.blobs if blob.sha256] == ["adapter_model.safetensors"]
    assert read_all(source) == wanted
    assert len(hub.paths("/api/models/")) == 4


def test_it_is_what_the_hubs_own_client_brings(hub, tmp_path):
    hub.add("acme/lora", readers=frozenset({"hf_reader"})).commit(LORA, revision="team/sql")
    run_python(
        """
import sys
from huggingface_hub import snapshot_download
snapshot_download("acme/lora", revision="team/sql", token="hf_reader", local_dir=sys.argv[1])
""",
        str(tmp_path / "theirs"),
        HF_ENDPOINT=hub.endpoint,
        HF_HUB_DISABLE_XET="1",
        HOME=str(tmp_path / "home"),
    )
    theirs = {
        path.relative_to(tmp_path / "theirs").as_posix(): path.read_bytes()
        for path in (tmp_path / "theirs").rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    ours = read_all(source_of(hub, "hf://acme/lora@team%2Fsql", "hf_reader"))
    assert theirs == ours | {".gitattributes": LORA[".gitattributes"]}


def test_more_files_than_a_page_holds_are_all_listed(hub):
    files = {f"shards/{number:04}/w.bin": b"%d" % number for number in range(1100)}
    hub.add("acme/model").commit({"config.pbtxt": b"", **files})
    found = source_of(hub, "hf://acme/model").list().blobs
    assert {blob.path for blob in found} == {"config.pbtxt", *files}
    assert len(hub.paths("cursor=")) == 2


def test_a_directory_is_listed_on_component_boundaries(hub):
    hub.add("acme/loras").commit(
        {"v2/a.json": b"2", "v20/a.json": b"20", "v2/deep/b": b"", "c": b""}
    )
    for url in ("hf://acme/loras/v2", "hf://acme/loras@main/v2/"):
        assert read_all(source_of(hub, url)) == {"a.json": b"2", "deep/b": b""}


def test_a_path_may_name_one_file_unless_it_ends_with_a_slash(hub):
    hub.add("acme/files").commit({"deep/model.json": b"1", "deep/model.tar.gz": b"packed"})
    source = source_of(hub, "hf://acme/files/deep/model.json")
    assert read_all(source) == {"model.json": b"1"}
    [blob] = source_of(hub, "hf://acme/files/deep/model.tar.gz").list().blobs
    assert (blob.path, blob.packing, blob.size) == ("", Packing.TAR_GZIP, 6)
    assert isinstance(error_of(hub, "hf://acme/files/deep/model.json/"), NotFound)


def test_pickles_of_a_lora_are_left_out_where_safetensors_are_there(hub):
    pickled = {
        "adapter_model.bin": b"p",
        "checkpoint-5/optimizer.pt": b"p",
        "training_args.bin": b"p",
    }
    kept = {"adapter_config.json": b"{}", ".gitignore": b"", "tokenizer.json": b"{}"}
    safe = {"adapter_model.safetensors": b"s"}
    repository = hub.add("acme/lora")
    repository.commit({**kept, **pickled, **safe})
    assert set(read_all(source_of(hub, "hf://acme/lora"))) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }
    repository.commit({**kept, **pickled})
    assert set(pickled) < set(read_all(source_of(hub, "hf://acme/lora")))
    repository.commit({**safe, **pickled})
    assert set(pickled) < set(read_all(source_of(hub, "hf://acme/lora")))
    repository.commit({"config.pbtxt": b"", "1/model.pt": b"p", "1/model.safetensors": b"s"})
    assert "1/model.pt" in read_all(source_of(hub, "hf://acme/lora"))


# What moves, and what does not.


def test_a_branch_that_moves_after_the_look_leaves_the_bytes_as_they_were(hub):
    repository = hub.add("acme/lora")
    repository.commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    contents = source.list()
    repository.commit({path: data[::-1] + b"!" for path, data in LORA.items()})
    for blob in contents.blobs:
        assert read(source, blob) == LORA[blob.path]


def test_a_branch_that_moves_during_the_look_is_listed_at_one_commit(hub):
    repository = hub.add("acme/lora")
    repository.commit(LORA)

    def move(reply: Reply) -> Reply:
        repository.commit({"adapter_config.json": b"other"})
        return reply

    hub.once("/revision/main", move)
    assert read_all(source_of(hub, "hf://acme/lora"))["adapter_config.json"] == b'{"r": 8}'


def test_the_signature_moves_with_the_files_below_the_path_and_with_nothing_else(hub):
    repository = hub.add("acme/loras")

    def signature(url: str = "hf://acme/loras/sql") -> str:
        return source_of(hub, url).list().signature

    repository.commit({"sql/a": b"1", "sql/b": b"2", "qa/a": b"1"})
    first, whole = signature(), signature("hf://acme/loras")
    repository.commit({"sql/a": b"1", "sql/b": b"2", "sql/.gitkeep": b"", "qa/a": b"other"})
    assert signature() == first
    assert signature("hf://acme/loras") != whole
    repository.commit({"sql/a": b"1", "sql/b": b"3", "qa/a": b"other"})
    second = signature()
    repository.commit({"sql/a": b"1", "sql/c": b"3", "qa/a": b"other"})
    assert len({first, second, signature()}) == 3


def test_a_full_commit_is_taken_as_it_is(hub):
    repository = hub.add("acme/lora")
    commit = repository.commit(LORA)
    repository.commit({"adapter_config.json": b"other"})
    assert read_all(source_of(hub, f"hf://acme/lora@{commit}"))["README.md"] == b"# SQL"
    assert hub.paths("/revision/") == []


# Bytes.


def test_a_part_of_a_file_is_read_from_the_cache_without_the_token(hub):
    hub.add("acme/lora", readers=frozenset({"hf_reader"})).commit(LORA)
    source = source_of(hub, "hf://acme/lora", "hf_reader")
    [weights] = [blob for blob in source.list().blobs if blob.sha256]
    assert weights.has_ranges
    assert read(source, weights, 100, 70_000) == LORA[weights.path][100:70_000]
    assert read(source, weights, 1_000_000) == LORA[weights.path][1_000_000:]
    assert read(source, weights, 5, 5) == b""
    to_cache = [one for one in hub.asked if one.is_to_cache]
    assert [one.headers["range"] for one in to_cache] == [
        "bytes=100-69999",
        "bytes=1000000-1023999",
    ]
    assert {one.token for one in to_cache} == {None}
    assert {one.token for one in hub.asked if not one.is_to_cache} == {"hf_reader"}


def test_a_server_without_ranges_is_read_past(hub):
    hub.add("acme/lora").commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    [weights] = [blob for blob in source.list().blobs if blob.sha256]
    data = LORA[weights.path]
    hub.once("/repos/", lambda _: Reply(200, {}, data))
    assert read(source, weights, 1000, 2000) == data[1000:2000]


def test_a_file_of_git_is_verified_before_its_last_bytes_are_given_out(hub):
    hub.add("acme/lora").commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    [config] = [blob for blob in source.list().blobs if blob.path == "adapter_config.json"]
    assert not config.has_ranges
    hub.once("resolve-cache", lambda reply: replace(reply, body=b'{"r": 9}'))
    got: list[bytes] = []
    with pytest.raises(FetchFailed, match="other bytes than the hub listed"):
        got.extend(bytes(piece) for piece in source.read(config, 0, None))
    assert len(b"".join(got)) < len(b'{"r": 8}')
    assert read(source, config) == b'{"r": 8}'


@pytest.mark.parametrize("range_end", [None, 50])
def test_a_file_of_another_size_than_listed_has_moved(hub, range_end):
    hub.add("acme/lora").commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    [weights] = [blob for blob in source.list().blobs if blob.sha256]
    with pytest.raises(SourceMoved, match="1024000 bytes, and the hub had listed 1024001"):
        read(source, replace(weights, size=1_024_001), 0, range_end)


def test_another_range_than_asked_for_is_no_answer(hub):
    hub.add("acme/lora").commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    [weights] = [blob for blob in source.list().blobs if blob.sha256]
    other = {"Content-Range": "bytes 200-299/1024000"}
    hub.once("/repos/", lambda reply: Reply(206, {**reply.headers, **other}, b"x" * 100))
    with pytest.raises(FetchFailed, match="another range"):
        read(source, weights, 100, 200)


def test_a_fetch_brings_it_to_disk_and_reads_again_what_came_damaged(hub, tmp_path):
    hub.add("acme/lora", readers=frozenset({"hf_reader"})).commit(LORA)
    fetcher = RemoteFetcher(source_of(hub, "hf://acme/lora", "hf_reader"), FREE_SIZE)
    fetcher.list()
    hub.once("adapter_config", lambda reply: Reply(200, {}, b'{"r": 9}'))
    hub.once("/repos/", lambda _: Reply(503, {}))
    directory, scratch = tmp_path / "new", tmp_path / "scratch"
    directory.mkdir()
    scratch.mkdir()
    records = fetcher.bring(
        Workspace(
            directory=directory,
            scratch=scratch,
            report=lambda _: None,
            grow=lambda _: None,
            stop=Event(),
        )
    )
    wanted = {path: data for path, data in LORA.items() if path != ".gitattributes"}
    assert {path: (directory / path).read_bytes() for path in wanted} == wanted
    assert {one.path: one.sha256 for one in records} == {
        path: sha256(data).hexdigest() for path, data in wanted.items()
    }
    assert len(hub.paths("/resolve/.*adapter_config")) == 2
    assert len([one for one in hub.asked if one.is_to_cache]) == 2


# Who asks.


def test_a_private_repository_is_read_with_the_token_that_may(hub):
    hub.add("acme/lora", readers=frozenset({"hf_reader"})).commit(LORA)
    assert read_all(source_of(hub, "hf://acme/lora", "hf_reader"))
    assert isinstance(error_of(hub, "hf://acme/lora", "hf_other"), NotFound)


@pytest.mark.parametrize(
    ("url", "token", "kind", "words"),
    [
        (
            "hf://acme/private",
            "",
            AccessDenied,
            "401 from hf://acme/private: there is no such repository, or it is private or gated "
            "and the agent's environment has no HF_TOKEN; check the name, or give a token",
        ),
        ("hf://acme/nothing", "", AccessDenied, "there is no such repository, or it is private"),
        (
            "hf://acme/nothing",
            "hf_reader",
            NotFound,
            "404 from hf://acme/nothing: there is no such repository, or the token of the agent's "
            "environment may not see it",
        ),
        ("hf://acme/private", "hf_other", NotFound, "may not see it; check the name"),
        (
            "hf://acme/public",
            "hf_wrong",
            AccessDenied,
            "401 from hf://acme/public: the token of the agent's environment is not accepted",
        ),
        ("hf://acme/gated", "", AccessDenied, "no HF_TOKEN; accept its conditions at http"),
        (
            "hf://acme/gated",
            "hf_reader",
            AccessDenied,
            "403 from hf://acme/gated: the repository is gated, and the account of the token of "
            "the agent's environment was not let in; ask for access at http",
        ),
        ("hf://acme/disabled", "", AccessDenied, "has disabled this repository"),
        (
            "hf://acme/public@team%2Fsql",
            "",
            NotFound,
            "404 from hf://acme/public@team%2Fsql: the repository has no revision 'team/sql'",
        ),
        ("hf://acme/public@0123456", "", NotFound, "a full commit of 40 digits"),
        (f"hf://acme/public@{'0' * 40}", "", NotFound, "the repository has no revision '0000"),
        ("hf://acme/public/v3", "", NotFound, "revision 'main' has no 'v3'; check the path"),
        ("hf://acme/public/v3/", "", NotFound, "revision 'main' has no 'v3'; check the path"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(hub, url, token, kind, words):
    hub.add("acme/public").commit(LORA)
    hub.add("acme/private", readers=frozenset({"hf_reader"})).commit(LORA)
    hub.add("acme/gated", granted=frozenset({"hf_granted"})).commit(LORA)
    hub.add("acme/disabled", is_disabled=True).commit(LORA)
    error = error_of(hub, url, token)
    assert type(error) is kind
    assert words in str(error)
    assert "hf_" not in str(error)


def test_the_mounted_secret_wins_and_is_read_again_when_it_rotates(hub, tmp_path):
    hub.add("acme/lora", readers=frozenset({"hf_reader"})).commit(LORA)
    secret = tmp_path / "team-a"
    secret.mkdir()

    def look() -> str:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_other"}
        mounted = read_credentials("team-a", root=tmp_path, environment=environment)
        try:
            keep(open_hub("hf://acme/lora", mounted)).list()
        except ArtifactError as error:
            return str(error)
        return "listed"

    (secret / "password").write_text("x")
    assert "mounted secret `team-a` has no HF_TOKEN" in look()
    (secret / "HF_TOKEN").write_text("hf_wrong\n")
    assert "the token of mounted secret `team-a` is not accepted" in look()
    (secret / "HF_TOKEN").write_text("hf_reader\n")
    assert look() == "listed"
    assert "hf_other" not in {one.token for one in hub.asked}


@pytest.mark.parametrize("is_offline", ["0", "1"])
def test_the_process_has_no_say_and_its_home_is_left_alone(hub, tmp_path, is_offline):
    """Neither its token, its proxy nor the token file of whoever runs it; nothing is reported."""
    hub.add("acme/lora").commit(LORA)
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text("hf_reader")
    before = sorted(home.rglob("*"))
    nowhere = "http://127.0.0.1:1"
    found = run_python(
        """
import sys
from sidecar.artifacts.remote.hub import open_hub
from sidecar.artifacts.remote.secrets import Credentials
given = Credentials(
    values={"HF_ENDPOINT": sys.argv[1]}, where="x", is_mounted=False, directory=None
)
source = open_hub("hf://acme/lora", given)
print(sum(len(piece) for blob in source.list().blobs for piece in source.read(blob, 0, None)))
""",
        hub.endpoint,
        HOME=str(home),
        HF_TOKEN="hf_other",
        HF_ENDPOINT=hub.endpoint,
        HTTP_PROXY=nowhere,
        HTTPS_PROXY=nowhere,
        ALL_PROXY=nowhere,
        HF_HUB_OFFLINE=is_offline,
    )
    assert int(found) == sum(map(len, LORA.values())) - len(LORA[".gitattributes"])
    assert {one.token for one in hub.asked} == {None}
    assert hub.paths("agent-harnesses") == []
    assert sorted(home.rglob("*")) == before


def test_the_process_endpoint_is_not_asked(hub):
    hub.add("acme/lora").commit(LORA)
    with HubServer() as other:
        run_python(
            """
import sys
from sidecar.artifacts.remote.hub import open_hub
from sidecar.artifacts.remote.secrets import Credentials
given = Credentials(
    values={"HF_ENDPOINT": sys.argv[1]}, where="x", is_mounted=False, directory=None
)
source = open_hub("hf://acme/lora", given)
assert sum(len(piece) for blob in source.list().blobs for piece in source.read(blob, 0, None))
""",
            hub.endpoint,
            HF_ENDPOINT=other.endpoint,
            HF_TOKEN="hf_other",
        )
        assert other.asked == []
    assert hub.asked


def test_a_library_that_does_not_start_is_reported_and_not_raised():
    said = run_python(
        """
from sidecar.artifacts.remote.hub import open_hub
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import UnsupportedSource
given = Credentials(values={}, where="x", is_mounted=False, directory=None)
try:
    open_hub("hf://acme/lora", given).list()
except UnsupportedSource as error:
    print(error)
""",
        HF_HUB_ETAG_TIMEOUT="ten",
    )
    assert "huggingface_hub does not start (ValueError)" in said
    assert "correct the HF_ variables of the agent's environment" in said


def test_nothing_but_a_look_can_ask_through_the_library(hub):
    """So that no token is left behind in a thread that others use after us."""
    hub.add("acme/lora").commit(LORA)
    source_of(hub, "hf://acme/lora").list()
    hub.asked.clear()
    with pytest.raises(LookupError):
        HfApi(endpoint=hub.endpoint, token=False).model_info("acme/lora")
    assert hub.asked == []


def test_looks_at_one_time_never_mix_their_tokens(hub):
    hub.add("acme/first", readers=frozenset({"hf_reader"})).commit(LORA)
    hub.add("acme/second", readers=frozenset({"hf_other"})).commit(LORA)
    sources = [
        source_of(hub, "hf://acme/first", "hf_reader"),
        source_of(hub, "hf://acme/second", "hf_other"),
    ] * 10
    with ThreadPoolExecutor(8) as threads:
        assert all(contents.blobs for contents in threads.map(HubSource.list, sources))
    assert {("first" in one.path, one.token) for one in hub.asked} == {
        (True, "hf_reader"),
        (False, "hf_other"),
    }


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_said_before_anything_is_asked(hub, name):
    with pytest.raises(SourceNotAllowed, match="is set in the agent's environment"):
        source_of(hub, "hf://acme/lora", **{name: "1"})


@pytest.mark.parametrize(
    "endpoint", ["huggingface.co", "ftp://hub", "https://user:pw@hub", "https://hub?token=pw"]
)
def test_an_endpoint_that_is_none_is_refused_without_showing_it(hub, endpoint):
    with pytest.raises((InvalidArtifact, UnsupportedSource), match="HF_ENDPOINT") as caught:
        source_of(hub, "hf://acme/lora", HF_ENDPOINT=endpoint)
    assert "pw" not in str(caught.value)


# Bad days.


@pytest.mark.parametrize(("status", "kind"), [(500, FetchFailed), (503, FetchFailed)])
def test_trouble_of_the_hub_is_reported_at_once(hub, status, kind):
    hub.add("acme/lora").commit(LORA)
    source = source_of(hub, "hf://acme/lora")
    for path in ("/revision/", "/tree/"):
        hub.asked.clear()
        hub.once(path, lambda _: Reply(status, {"X-Error-Message": "hf_reader"}, b"<h1>sorry</h1>"))
        with pytest.raises(kind, match=f"{status} from hf://acme/lora: .* has trouble"):
            source.list()
        assert len(hub.paths(path)) == 1


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "3600"}, {"RateLimit": '"api";r=0;t=3600', "Retry-After": "1"}]
)
def test_a_rate_limit_is_told_and_not_slept_through(hub, headers):
    hub.add("acme/lora").commit(LORA)
    hub.once("/tree/", lambda _: Reply(429, headers))
    began_at = time.monotonic()
    error = error_of(hub, "hf://acme/lora")
    assert time.monotonic() - began_at < 20
    assert isinstance(error, FetchFailed)
    assert "for the next 3600 s; with an HF_TOKEN it allows more" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>login</html>",
        b"[]",
        b"{}",
        b'{"id": "a/b", "sha": "../../evil"}',
        b'{"id": "a/b", "sha": 5}',
        b"[" * 100_000,
        b"\xff",
        b"",
    ],
)
def test_a_server_that_is_no_hub_is_named(hub, body):
    hub.add("acme/lora").commit(LORA)
    hub.once("/revision/", lambda _: Reply(200, {"Content-Type": "text/html"}, body))
    error = error_of(hub, "hf://acme/lora")
    assert isinstance(error, FetchFailed)
    assert "HF_ENDPOINT must name a server with the API of huggingface.co" in str(error)


ENTRY = {"type": "file", "path": "a", "oid": "0" * 40, "size": 1}


@pytest.mark.parametrize(
    "listing",
    [
        {"error": "x"},
        [5],
        [{"type": "file"}],
        [ENTRY | {"size": "1"}],
        [ENTRY | {"size": -1}],
        [ENTRY | {"size": 1.5}],
        [ENTRY | {"path": 5}],
        [ENTRY | {"lfs": {"oid": "short", "size": 1, "pointerSize": 1}}],
        [ENTRY | {"lfs": {"oid": 5, "size": 1, "pointerSize": 1}}],
    ],
)
def test_a_listing_that_is_none_is_not_believed(hub, listing):
    hub.add("acme/lora").commit(LORA)
    hub.once("/tree/", lambda _: Reply(200, {}, json.dumps(listing).encode()))
    error = error_of(hub, "hf://acme/lora")
    assert isinstance(error, FetchFailed)
    assert "does not answer as a hub does" in str(error)


def test_a_listing_of_another_directory_is_not_believed(hub):
    hub.add("acme/lora").commit({"v2/a": b"1"})
    hub.once("/tree/", lambda _: Reply(200, {}, json.dumps([ENTRY]).encode()))
    assert isinstance(error_of(hub, "hf://acme/lora/v2"), FetchFailed)


def test_the_token_is_not_sent_to_where_a_listing_goes_on(hub):
    hub.add("acme/lora").commit(LORA)
    link = f'<{hub.cache}/api/models/acme/lora/tree/x>; rel="next"'
    hub.once("/tree/", lambda reply: replace(reply, headers={**reply.headers, "Link": link}))
    error = error_of(hub, "hf://acme/lora", "hf_reader")
    assert "the listing goes on at another server" in str(error)
    assert not any(one.is_to_cache for one in hub.asked)


def test_a_listing_without_an_end_is_given_up(hub):
    hub.add("acme/lora").commit(LORA)

    def go_on(reply: Reply) -> Reply:
        hub.once("/tree/", go_on)
        link = f'<{hub.endpoint}/api/models/acme/lora/tree/main?recursive=true>; rel="next"'
        return Reply(200, {"Link": link}, b"[]")

    hub.once("/tree/", go_on)
    assert "more than 400 requests" in str(error_of(hub, "hf://acme/lora"))
    assert len(hub.asked) == 400


def test_a_cache_that_refuses_is_told_apart_from_the_hub(hub):
    hub.add("acme/lora").commit(LORA)
    hub.once("/repos/", lambda _: Reply(403, {}, b"<Error/>"))
    error = error_of(hub, "hf://acme/lora", "hf_reader")
    assert isinstance(error, FetchFailed)
    assert f"{hub.cache.removeprefix('http://')}, where" in str(error)
    assert "Signature" not in str(error)


def test_https_is_trusted_by_the_certificate_of_the_mounted_secret(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=hub", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    secret = tmp_path / "team-a"
    secret.mkdir()
    (secret / "token").write_text("hf_reader")
    with HubServer(tls=tls) as hub:
        hub.add("acme/lora", readers=frozenset({"hf_reader"})).commit(LORA)
        (secret / "HF_ENDPOINT").write_text(hub.endpoint)
        untrusted = read_credentials("team-a", root=tmp_path, environment={})
        with pytest.raises(FetchFailed, match="is not trusted"):
            open_hub("hf://acme/lora", untrusted).list()
        (secret / "ca.crt").write_bytes(certificate.read_bytes())
        trusted = read_credentials("team-a", root=tmp_path, environment={})
        source = open_hub("hf://acme/lora", trusted)
        assert read_all(source)["adapter_model.safetensors"] == LORA["adapter_model.safetensors"]
        source.close()
