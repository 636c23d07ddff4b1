"""``oci://``: what is asked of a registry, and what its answers mean."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator

import pytest

from sidecar.artifacts.remote.oci import MAX_MANIFEST_BYTES
from sidecar.artifacts.remote.port import Blob
from sidecar.errors import (
    AccessDenied,
    DigestMismatch,
    FetchFailed,
    InvalidArtifact,
    NotFound,
)
from tests.support.faulty import Cut, Endless, FaultyServer, Flip, Headers, Status
from tests.support.oci import (
    WEIGHTS,
    Opened,
    Pushed,
    artifact,
    ask_basic,
    environment,
    file,
    index,
    secret,
    serve,
    whole,
)

OTHER = artifact(file("config.pbtxt", b"other"))


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture
def lora() -> Pushed:
    """Never seen before: what was read of a manifest is remembered, and ports are used again."""
    return artifact(
        file("adapter_config.json", b'{"r": 8}'),
        file("adapter_model.safetensors", WEIGHTS),
        annotations={"made": secrets.token_hex(8)},
    )


@pytest.fixture
def opened(server: FaultyServer) -> Iterator[Opened]:
    with Opened(server) as opened:
        yield opened


def test_a_tag_that_moved_has_another_signature_and_one_that_did_not_costs_a_head(
    server, opened, lora
):
    first = opened.listed(lora)
    server.clear()
    assert opened.listed(lora) == first
    assert [one.method for one in server.seen] == ["HEAD"]
    assert opened.listed(OTHER).signature == OTHER.digest


def test_a_pinned_digest_stays_when_the_tag_moves(server, opened, lora):
    serve(server, "team/sql", lora, "v1")
    serve(server, "team/sql", OTHER, "v1")
    source = opened(f"team/sql:v1@{lora.digest}")
    assert source.list().signature == lora.digest


def test_a_registry_that_tells_no_digest_is_read_anew(server, opened, lora):
    serve(server, "team/sql", lora, "v1")
    server.add(Headers({"Docker-Content-Digest": None}), times=None)
    source = opened()
    assert source.list().signature == source.list().signature == lora.digest
    assert [one.method for one in server.seen] == ["HEAD", "GET"] * 2


def test_an_index_in_an_index_is_followed_but_not_for_ever(opened, lora):
    nested = index(("", index(("", lora))))
    found = opened.listed(nested)
    assert (found.signature, len(found.blobs)) == (lora.digest, 2)
    with pytest.raises(InvalidArtifact, match="indexes"):
        opened.listed(index(("", nested)))


def test_a_manifest_without_end_is_not_read_into_memory(server, opened, lora):
    long = Pushed(text=b" " * (MAX_MANIFEST_BYTES + 1), media_type="x")
    with pytest.raises(InvalidArtifact, match="4194304 bytes"):
        opened.listed(long)
    server.put(f"/v2/team/sql/manifests/{lora.digest}", lora.text)
    server.add(Endless(), method="GET", times=None)
    with pytest.raises(FetchFailed, match="4194304 bytes"):
        opened(f"team/sql@{lora.digest}").list()


def test_a_manifest_changed_on_its_way_is_refused(server, opened, lora):
    serve(server, "team/sql", lora, "v1")
    server.add(Flip(3), method="GET", times=None)
    with pytest.raises(DigestMismatch, match=lora.digest):
        opened(f"team/sql@{lora.digest}").list()
    server.add(Headers({"Docker-Content-Digest": None}), method="HEAD")
    with pytest.raises((FetchFailed, DigestMismatch)):
        opened().list()


# Reading


def test_ranges_of_a_layer_are_read_and_put_together(server, opened, lora):
    found = opened.listed(lora)
    source, blob = opened(), found.blobs[1]
    size = blob.size or 0
    cuts = [0, 1, 1000, size - 1, size]
    parts = [b"".join(source.read(blob, a, b)) for a, b in itertools.pairwise(cuts)]
    assert b"".join(parts) == whole(source, blob) == b"".join(source.read(blob, 0, size))
    assert list(source.read(blob, size, None)) == []
    assert {one.range for one in server.seen if one.range} == set(itertools.pairwise(cuts))


def test_a_registry_without_ranges_is_read_past_what_is_not_wanted(server, opened, lora):
    found = opened.listed(lora)
    blob, data = found.blobs[1], WEIGHTS
    server.put(f"/v2/team/sql/blobs/{blob.key}", data, has_ranges=False)
    source = opened()
    assert b"".join(source.read(blob, 5000, 5010)) == data[5000:5010]
    assert b"".join(source.read(blob, 62_000, None)) == data[62_000:]


@pytest.mark.parametrize("told", ["bytes 0-9/63000", "bytes x", None])
def test_another_range_than_was_asked_for_is_not_taken(server, opened, told, lora):
    found = opened.listed(lora)
    server.add(Headers({"Content-Range": told}))
    with pytest.raises(FetchFailed, match="another range"):
        list(opened().read(found.blobs[1], 5000, 5010))


def test_a_cut_connection_is_a_failure_that_is_worth_another_try(server, opened, lora):
    found = opened.listed(lora)
    server.add(Cut(after=1000))
    with pytest.raises(FetchFailed):
        whole(opened(), found.blobs[1])


# Statuses


@pytest.mark.parametrize(
    ("status", "code", "kind", "why"),
    [
        (401, "UNAUTHORIZED", AccessDenied, "in a way that is not known"),
        (403, "DENIED", AccessDenied, r"403 from oci://.* \(DENIED\)"),
        (404, "MANIFEST_UNKNOWN", NotFound, "check repository and tag"),
        (404, "NAME_UNKNOWN", NotFound, "check repository and tag"),
        (429, "TOOMANYREQUESTS", FetchFailed, "wait 60 s"),
        (500, "", FetchFailed, "tried again"),
        (503, "", FetchFailed, "tried again"),
        (418, "a lower case code with <html>", FetchFailed, "tried again"),
    ],
)
def test_each_refusal_has_its_class_and_says_what_to_do(
    server, opened, status, code, kind, why, lora
):
    text = json.dumps({"errors": [{"code": code, "message": "secret-message"}]}).encode()
    server.add(Status(status, text, (("Retry-After", "60"),)), method="GET", times=None)
    source = opened(f"team/sql@{lora.digest}")
    with pytest.raises(kind, match=why) as caught:
        source.list()
    blob = Blob(path="x", key=lora.digest, size=5)
    with pytest.raises(kind, match=why.replace("check repository and tag", "push it anew")):
        list(source.read(blob, 0, None))
    assert "secret-message" not in str(caught.value)
    assert "html" not in str(caught.value)


def test_a_refused_head_of_a_registry_that_knows_none_is_no_refusal(server, opened, lora):
    serve(server, "team/sql", lora, "v1")
    server.add(Status(405), method="HEAD")
    assert opened().list().signature == lora.digest
    other = (("Docker-Content-Digest", OTHER.digest),)
    server.add(Status(503, headers=other), method="HEAD")
    assert opened().list().signature == lora.digest


DIGITS = "9" * 5000


def test_numbers_without_end_are_no_numbers(server, opened, lora):
    blob = opened.listed(lora).blobs[1]
    for told in (f"bytes {DIGITS}-{DIGITS}/*", f"bytes 5000-5009/{DIGITS}"):
        server.add(Headers({"Content-Range": told}))
        with pytest.raises(FetchFailed, match="another range"):
            list(opened().read(blob, 5000, 5010))
        server.clear()
    server.add(Status(429, headers=(("Retry-After", DIGITS),)), times=None)
    with pytest.raises(FetchFailed, match="429") as caught:
        opened(f"team/sql@{OTHER.digest}").list()
    assert len(str(caught.value)) < 400


def test_a_pinned_manifest_is_remembered_for_its_user_only(server, opened, tmp_path, lora):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, "robot:hunter2")
    pinned = f"team/sql@{lora.digest}"
    ours = secret(tmp_path, username="robot", password="hunter2")
    assert opened(pinned, ours).list() == opened(pinned, ours).list()
    for other in (environment(), secret(tmp_path, username="robot", password="revoked")):
        with pytest.raises(AccessDenied):
            opened(pinned, other).list()
