"""The S3 source against a stub with the mistakes that real servers make only rarely."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.objects import ObjectSource, open_objects, parse_place
from sidecar.artifacts.remote.objects_access import Access
from sidecar.artifacts.remote.objects_s3 import S3
from sidecar.artifacts.remote.port import Blob, Packing
from sidecar.artifacts.remote.secrets import read_credentials
from sidecar.errors import (
    AccessDenied,
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceMoved,
    SourceNotAllowed,
    UnsupportedSource,
)
from tests.support.faulty import Close, Cut, FaultyServer, Status
from tests.support.https_server import HttpProxy, make_certificates
from tests.support.s3_stub import S3Stub, etag_of, refusal, xml
from tests.support.stub_http import Asked, Told

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalr+X/Utn=FEMI"}
CONTENT = bytes(range(256)) * 20
OTHER = {"AWS_ACCESS_KEY_ID": "AKIAOTHER", "AWS_SECRET_ACCESS_KEY": "another/secret+key"}


def open_s3(url: str, endpoint: str, **environment: str):
    given = {"AWS_ENDPOINT_URL": endpoint, **KEYS, **environment}
    credentials = read_credentials(None, root=Path("/nowhere"), environment=given)
    return open_objects(url, credentials)


def mounted(root: Path, name: str, endpoint: str, **files: str):
    (root / name).mkdir()
    for key, value in files.items():
        (root / name / key).write_text(value)
    environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    return read_credentials(name, root=root, environment=environment)


def read_all(source, blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(source.read(blob, start, end))


def paths(contents) -> list[str]:
    return [one.path for one in contents.blobs]


@pytest.mark.parametrize(
    ("url", "bucket", "key", "is_prefix"),
    [
        ("s3://models/sql/v4/", "models", "sql/v4", True),
        ("s3://models/sql/v4", "models", "sql/v4", False),
        ("s3://models", "models", "", True),
        ("s3://models/", "models", "", True),
        ("S3://models/A b+c&d=é.tar", "models", "A b+c&d=é.tar", False),
        ("gs://my.bucket_1/x/", "my.bucket_1", "x", True),
        ("az://container/x/y.zip", "container", "x/y.zip", False),
        ("az://$root/x", "$root", "x", False),
    ],
)
def test_a_url_names_a_bucket_and_a_key(url, bucket, key, is_prefix):
    place = parse_place(url)
    assert (place.bucket, place.key, place.is_prefix, place.host) == (bucket, key, is_prefix, "")
    assert place.where == url


def test_an_azure_url_may_name_its_account():
    place = parse_place("az://myaccount.blob.core.windows.net/container/x/")
    assert (place.host, place.bucket, place.key) == (
        "myaccount.blob.core.windows.net",
        "container",
        "x",
    )


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///key",
        "s3://Bucket/x",
        "s3://user:password@bucket/x",
        "s3://bucket:9000/x",
        "s3://bucket//x",
        "s3://bucket/a/../b/",
        "s3://bucket/a/./b/",
        "s3://bucket/a//",
        "s3://bucket/a?versionId=1",
        "s3://bucket/a#b",
        "s3://bucket/a%2Fb",
        "s3://bucket/a\nb",
        "s3://bucket/a\ud800b",
        "az://evil.example.com/container/x",
        "az://account.blob.core.windows.net/x",
        "az://account.blob.core.windows.net",
        "az://under_score/x",
        "ftp://bucket/x",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_what_to_write(url):
    with pytest.raises(UnsupportedSource) as caught:
        parse_place(url)
    assert "password" not in str(caught.value)


def test_all_objects_below_a_prefix_are_listed_page_by_page():
    stub = S3Stub(page=7, objects={f"v2/{number:04}/f": b"x" for number in range(100)})
    with stub.serve() as server:
        contents = open_s3("s3://models/v2/", server.url).list()
    assert paths(contents) == [f"{number:04}/f" for number in range(100)]
    assert {one.key for one in contents.blobs} == set(stub.objects)


def test_a_prefix_ends_where_its_last_name_ends():
    stub = S3Stub(objects={"v2/a": b"1", "v20/a": b"2", "v2.1/a": b"3", "v2": b"4"})
    with stub.serve() as server:
        for url in ("s3://models/v2/", "s3://models/v2"):
            contents = open_s3(url, server.url).list()
            assert [(one.path, one.key) for one in contents.blobs] == [("a", "v2/a")]


def test_a_whole_bucket_can_be_one_artifact():
    with S3Stub(objects={"a": b"1", "d/b": b"2"}).serve() as server:
        assert paths(open_s3("s3://models", server.url).list()) == ["a", "d/b"]


def test_one_object_is_taken_where_nothing_is_below_its_name():
    with S3Stub(objects={"x/adapter.safetensors": b"12345", "x/adapter": b""}).serve() as server:
        contents = open_s3("s3://models/x/adapter.safetensors", server.url).list()
    (blob,) = contents.blobs
    assert (blob.path, blob.key, blob.size, blob.packing) == (
        "adapter.safetensors",
        "x/adapter.safetensors",
        5,
        None,
    )


@pytest.mark.parametrize(
    ("name", "packing"),
    [("m.tar", Packing.TAR), ("m.tar.gz", Packing.TAR_GZIP), ("m.TGZ", Packing.TAR_GZIP)],
)
def test_an_archive_is_one_packed_object(name, packing):
    with S3Stub(objects={f"x/{name}": b"12345", f"x/{name}/y": b"1"}).serve() as server:
        (blob,) = open_s3(f"s3://models/x/{name}", server.url).list().blobs
    assert (blob.path, blob.size, blob.packing) == ("", 5, packing)
    assert blob.tag == etag_of(b"12345")


def test_a_prefix_may_be_called_like_an_archive():
    with S3Stub(objects={"x/m.tar/config.pbtxt": b"1"}).serve() as server:
        for url in ("s3://models/x/m.tar", "s3://models/x/m.tar/"):
            (blob,) = open_s3(url, server.url).list().blobs
            assert (blob.path, blob.packing) == ("config.pbtxt", None)


@pytest.mark.parametrize("name", ["y", "y/", "y.zip"])
def test_nothing_there_says_what_was_looked_for(name):
    with S3Stub(objects={"x": b"1"}).serve() as server, pytest.raises(NotFound) as caught:
        open_s3(f"s3://models/{name}", server.url).list()
    assert f"s3://models/{name}: there is no object below" in str(caught.value)
    assert ("nor of that very name" in str(caught.value)) == (not name.endswith("/"))


def test_markers_of_directories_are_no_files():
    objects = {"m/": b"", "m/1/": b"", "m/1/model.pt": b"x", "m/empty/": b"", "m/none.txt": b""}
    with S3Stub(objects=objects).serve() as server:
        contents = open_s3("s3://models/m/", server.url).list()
    assert sorted(paths(contents)) == ["1/model.pt", "none.txt"]


def test_an_empty_file_beside_a_marker_of_its_name_is_one_file():
    with S3Stub(objects={"m/a": b"", "m/a/": b"", "m/b": b"x", "m/b/": b""}).serve() as server:
        contents = open_s3("s3://models/m/", server.url).list()
    assert sorted((one.path, one.size) for one in contents.blobs) == [("a", 0), ("b", 1)]


def test_empty_objects_are_asked_for_side_by_side():
    together = threading.Barrier(8)

    def wait_for_others(asked: Asked) -> Told | None:
        if asked.method == "HEAD":
            try:
                together.wait(10)
            except threading.BrokenBarrierError:
                return refusal(403, "AccessDenied")
        return None

    objects = {f"m/{number}/__init__.py": b"" for number in range(16)}
    objects |= {f"m/{number}/": b"" for number in range(16, 24)}
    with S3Stub(objects=objects, before=wait_for_others).serve() as server:
        found = paths(open_s3("s3://models/m/", server.url).list())
    assert sorted(found) == sorted(f"{number}/__init__.py" for number in range(16))


def test_empty_objects_that_may_not_be_asked_for_are_told():
    def refuse_heads(asked: Asked) -> Told | None:
        return refusal(403, "AccessDenied") if asked.method == "HEAD" else None

    objects = {f"m/{number}": b"" for number in range(40)}
    with S3Stub(objects=objects, before=refuse_heads).serve() as server:
        with pytest.raises(AccessDenied, match="403 from s3://models/m/"):
            open_s3("s3://models/m/", server.url).list()
        assert sum(one.method == "HEAD" for one in server.asked) <= 16


@pytest.mark.parametrize("name", ["m/../x", "m//x", "m/./x", "m/a\x01"])
def test_a_name_that_no_path_can_be_is_told(name):
    entry = (
        "<Contents><Key>{}</Key><Size>1</Size><LastModified>2026-05-09T12:00:00Z</LastModified>"
        "<ETag>e</ETag></Contents>"
    ).format(name.replace("\x01", "&#1;"))
    stub = S3Stub(before=lambda _: xml(f"<ListBucketResult>{entry}</ListBucketResult>"))
    with stub.serve() as server, pytest.raises((InvalidArtifact, FetchFailed)):
        open_s3("s3://models/m/", server.url).list()


def test_names_with_other_signs_are_read_as_they_are():
    names = ["a b", "a+b", "a%20b", "a&b=c", "ü/é", "a#b", "a?b", "~!@$^()[]{};,'"]
    with S3Stub(
        objects={f"m/{one}": one.encode() for one in names}, keys=_pairs(KEYS)
    ).serve() as server:
        source = open_s3("s3://models/m/", server.url)
        found = {one.path: read_all(source, one) for one in source.list().blobs}
    assert found == {one: one.encode() for one in names}


def test_too_many_objects_are_no_artifact():
    stub = S3Stub(page=20_000, objects={f"m/{number:06}": b"x" for number in range(100_001)})
    with stub.serve() as server, pytest.raises(InvalidArtifact, match="more than 100000 objects"):
        open_s3("s3://models/m/", server.url).list()


@pytest.mark.parametrize("answer", ["<html/>", "<Error><Code>InternalError</Code></Error>"])
def test_a_page_that_is_no_listing_is_not_taken_for_the_end_of_one(answer):
    stub = S3Stub(page=2, objects={f"m/{number}": b"x" for number in range(6)})
    stub.before = lambda asked: xml(answer) if "continuation-token" in asked.query else None
    with stub.serve() as server, pytest.raises(FetchFailed, match="listing ends too early"):
        open_s3("s3://models/m/", server.url).list()


def test_a_listing_that_goes_on_nowhere_is_not_taken_for_a_whole_one():
    stub = S3Stub(objects={f"m/{number}": b"x" for number in range(6)})
    with stub.serve() as server:
        whole = open_s3("s3://models/m/", server.url).list()
        assert len(whole.blobs) == 6
        entry = xml(
            "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>m/0</Key><Size>1</Size>"
            "<LastModified>2026-05-09T12:00:00Z</LastModified></Contents></ListBucketResult>"
        )
        stub.before = lambda asked: None if "start-after" in asked.query else entry
        with pytest.raises(FetchFailed, match="listing ends too early"):
            open_s3("s3://models/m/", server.url).list()


def test_a_listing_without_an_end_is_given_up():
    page = "<NextContinuationToken>{}</NextContinuationToken>"
    numbers = count()
    stub = S3Stub()
    stub.before = lambda _: xml(
        f"<ListBucketResult>{page.format(next(numbers))}</ListBucketResult>"
    )
    with stub.serve() as server:
        environment = {"AWS_ENDPOINT_URL": server.url, **KEYS}
        credentials = read_credentials(None, root=Path("/nowhere"), environment=environment)
        place = parse_place("s3://models/m/")
        source = ObjectSource(place, Access(S3, place, credentials), list_seconds=0.3)
        with pytest.raises(FetchFailed, match=r"no end within 0\.3 s"):
            source.list()
        # The one request that was under way may still be counted.
        asked = len(server.asked)
        with pytest.raises(FetchFailed):
            open_s3("s3://models/m/", "http://127.0.0.1:1").list()
        assert len(server.asked) <= asked + 1


def test_a_listing_that_repeats_itself_is_given_up():
    again = xml(
        "<ListBucketResult><NextContinuationToken>x</NextContinuationToken>"
        + "".join(
            f"<Contents><Key>m/{number}</Key><Size>1</Size>"
            "<LastModified>2026-05-09T12:00:00Z</LastModified></Contents>"
            for number in range(20_000)
        )
        + "</ListBucketResult>"
    )
    with _always(again) as server, pytest.raises(InvalidArtifact, match="more than 100000"):
        open_s3("s3://models/m/", server.url).list()


@pytest.mark.parametrize("answer", [b"", b"please log in", b"<ListBucketResult><Contents>"])
def test_a_broken_listing_is_told(answer):
    with S3Stub(before=lambda _: Told(body=answer)).serve() as server:
        with pytest.raises(FetchFailed, match="no whole listing") as caught:
            open_s3("s3://models/m/", server.url).list()
        assert server.host in str(caught.value)


def test_a_listing_survives_a_busy_moment():
    stub = S3Stub(objects={"m/a": b"x"})
    busy = iter([refusal(503, "SlowDown")])
    stub.before = lambda _: next(busy, None)
    with stub.serve() as server:
        assert paths(open_s3("s3://models/m/", server.url).list()) == ["a"]


def test_the_signature_changes_with_the_content_and_not_with_the_moment():
    stub = S3Stub(objects={"m/a": b"x", "m/b": b"y"})
    with stub.serve() as server:

        def signature(url: str = "s3://models/m/") -> str:
            return str(open_s3(url, server.url).list().signature)

        first = signature()
        assert first == signature() == signature("s3://models/m")
        stub.objects["m/a"] = b"z"
        second = signature()
        stub.objects["m/c"] = b""
        third = signature()
        stub.objects = {"m/b": b"z", "m/a": b"y", "m/c": b""}
        assert len({first, second, third, signature()}) == 4


def test_objects_without_an_etag_are_known_by_size_and_time():
    stub = S3Stub(objects={"m/a": b"abc"}, has_etags=False)
    with stub.serve() as server:
        source = open_s3("s3://models/m/", server.url)
        contents = source.list()
        assert read_all(source, contents.blobs[0]) == b"abc"
        stub.objects["m/a"] = b"abcd"
        assert source.list().signature != contents.signature
        with pytest.raises(SourceMoved):
            read_all(source, contents.blobs[0])


@given(data=st.data())
def test_any_range_is_read_exactly(shared, data):
    source, blob = shared
    start = data.draw(st.integers(0, len(CONTENT)))
    end = data.draw(st.none() | st.integers(0, len(CONTENT) + 10))
    assert read_all(source, blob, start, end) == CONTENT[start:end]


@pytest.fixture(scope="module")
def shared():
    """One server for all examples of a property."""
    with S3Stub(objects={"m/a": CONTENT}).serve() as server:
        source = open_s3("s3://models/m/", server.url)
        yield source, source.list().blobs[0]


def test_a_large_object_comes_in_chunks_and_an_empty_one_without_a_request():
    with S3Stub(objects={"m/a": bytes(5 << 20), "m/b": b""}).serve() as server:
        source = open_s3("s3://models/m/", server.url)
        large, empty = sorted(source.list().blobs, key=lambda one: one.path)
        chunks = [len(one) for one in source.read(large, 0, None)]
        server.asked.clear()
        assert read_all(source, empty) == b""
    assert sum(chunks) == 5 << 20
    assert max(chunks) <= 1 << 20
    assert server.asked == []


@pytest.mark.parametrize("knows_if_match", [True, False])
@pytest.mark.parametrize("content", [b"other", b"123456", b"1"])
def test_an_object_that_changed_since_it_was_listed_is_not_read(knows_if_match, content):
    stub = S3Stub(objects={"m/a": b"12345"}, knows_if_match=knows_if_match)
    with stub.serve() as server:
        source = open_s3("s3://models/m/", server.url)
        (blob,) = source.list().blobs
        stub.objects["m/a"] = content
        with pytest.raises(SourceMoved):
            read_all(source, blob, 0, 4)


@pytest.mark.parametrize("etag", ["e&#10;x", "e x", "é", 'a"b'])
def test_an_etag_that_no_header_can_hold_is_not_sent_back(etag):
    page = xml(
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>m/a</Key><Size>5</Size>"
        f"<LastModified>2026-05-09T12:00:00Z</LastModified><ETag>{etag}</ETag></Contents>"
        "</ListBucketResult>"
    )
    stub = S3Stub(objects={"m/a": b"12345"})
    stub.before = lambda asked: (
        page if "list-type" in asked.query and "start-after" not in asked.query else None
    )
    with stub.serve() as server:
        source = open_s3("s3://models/m/", server.url)
        (blob,) = source.list().blobs
        with pytest.raises(SourceMoved):
            read_all(source, blob)
        assert "if-match" not in server.asked[-1].headers


def test_an_object_that_is_gone_is_not_found():
    stub = S3Stub(objects={"m/a": b"12345"})
    with stub.serve() as server:
        source = open_s3("s3://models/m/", server.url)
        (blob,) = source.list().blobs
        stub.objects.clear()
        with pytest.raises(NotFound, match="404 from s3://models/m/"):
            read_all(source, blob)


def test_a_cut_connection_fails_after_the_bytes_that_came():
    stub = S3Stub(objects={"m/a": bytes(4 << 20)})
    with stub.serve() as real:
        for fault in (Cut(after=3 << 20), Close(after=3 << 20)):
            with FaultyServer(upstream=("127.0.0.1", real.port)) as wire:
                source = open_s3("s3://models/m/", wire.url)
                (blob,) = source.list().blobs
                wire.add(fault, path="m/a")
                got: list[int] = []
                with pytest.raises(FetchFailed, match="was cut") as caught:
                    got.extend(map(len, source.read(blob, 0, None)))
                assert 2 << 20 <= sum(got) <= 3 << 20
                assert type(caught.value) is FetchFailed
                # One attempt: whoever reads on knows how far it came.
                assert [one.range for one in wire.seen if one.method == "GET"][-1] == (0, 4 << 20)


def test_a_server_that_is_out_of_order_fails_at_once():
    stub = S3Stub(objects={"m/a": b"12345"})
    with stub.serve() as real, FaultyServer(upstream=("127.0.0.1", real.port)) as wire:
        source = open_s3("s3://models/m/", wire.url)
        (blob,) = source.list().blobs
        for status in (500, 503, 429):
            wire.clear()
            wire.add(Status(status), path="m/a")
            with pytest.raises(FetchFailed, match=f"{status} from s3://models/m/"):
                read_all(source, blob)
            assert len(wire.seen) == 1


def test_a_part_is_asked_for_with_the_etag_that_was_listed():
    with S3Stub(objects={"m/a": b"12345"}).serve() as server:
        source = open_s3("s3://models/m/", server.url)
        (blob,) = source.list().blobs
        assert read_all(source, blob, 1, 3) == b"23"
    asked = server.asked[-1].headers
    assert (asked["range"], asked["if-match"]) == ("bytes=1-2", f'"{etag_of(b"12345")}"')


def test_many_threads_read_at_once():
    content = bytes(range(256)) * 4096
    with S3Stub(objects={"m/a": content}, keys=_pairs(KEYS)).serve() as server:
        source = open_s3("s3://models/m/", server.url)
        (blob,) = source.list().blobs
        step = len(content) // 16
        with ThreadPoolExecutor(16) as pool:
            parts = pool.map(
                lambda one: read_all(source, blob, one * step, (one + 1) * step), range(16)
            )
        assert b"".join(parts) == content


def test_giving_up_a_read_gives_up_its_connection():
    stub = S3Stub(objects={"m/a": bytes(64 << 20)})
    with stub.serve() as real, FaultyServer(upstream=("127.0.0.1", real.port)) as wire:
        source = open_s3("s3://models/m/", wire.url)
        (blob,) = source.list().blobs
        chunks = source.read(blob, 0, None)
        next(chunks)
        # One connection listed, another one reads.
        wire.wait(lambda: wire.open_connections == 2)
        chunks.close()
        wire.wait(lambda: wire.open_connections == 1)
        assert wire.sent_bytes < 32 << 20
        source.close()
        wire.wait(lambda: wire.open_connections == 0)


def test_the_right_key_is_accepted_and_a_wrong_one_is_not():
    with S3Stub(objects={"m/a": b"x"}, keys=_pairs(KEYS)).serve() as server:
        assert paths(open_s3("s3://models/m/", server.url).list()) == ["a"]
        with pytest.raises(AccessDenied) as caught:
            open_s3("s3://models/m/", server.url, AWS_SECRET_ACCESS_KEY="wrong").list()
        assert str(caught.value) == (
            "403 from s3://models/m/: the key or token is not accepted (SignatureDoesNotMatch); "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY in the agent's environment"
        )
        with pytest.raises(AccessDenied, match="not known there"):
            open_s3("s3://models/m/", server.url, AWS_ACCESS_KEY_ID="AKIAOTHER").list()
        with pytest.raises(AccessDenied, match="asked without credentials, as AWS_SKIP_SIGNATURE"):
            open_s3("s3://models/m/", server.url, AWS_SKIP_SIGNATURE="true").list()


def test_the_reason_is_told_for_a_single_object_too():
    # The answer to HEAD has no body, and so no reason.
    stub = S3Stub(objects={"m/a.tar": b"x"}, keys=_pairs(KEYS))
    with stub.serve() as server, pytest.raises(AccessDenied, match="SignatureDoesNotMatch"):
        open_s3("s3://models/m/a.tar", server.url, AWS_SECRET_ACCESS_KEY="wrong").list()


def test_a_mounted_secret_is_not_helped_by_the_process_environment(tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with S3Stub(objects={"m/a": b"x"}, keys=_pairs(KEYS)).serve() as server:
        for number, (files, message) in enumerate(
            [
                (OTHER, "not known there"),
                ({**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
                ({}, "no credentials found; mounted secret `team-2` has no AWS_ACCESS_KEY_ID"),
            ]
        ):
            credentials = mounted(tmp_path, f"team-{number}", server.url, **files)
            with pytest.raises(AccessDenied, match=message):
                open_objects("s3://models/m/", credentials).list()


def test_a_mounted_secret_is_not_harmed_by_the_process_environment(tmp_path, monkeypatch):
    for name, value in {
        **OTHER,
        "AWS_SESSION_TOKEN": "of the process",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_S3_EXPRESS": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_REGION": "mars-north-1",
        "AWS_BUCKET": "other",
        "AWS_PROXY_URL": "http://127.0.0.1:1",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "AWS_TIMEOUT": "1 ms",
    }.items():
        monkeypatch.setenv(name, value)
    with S3Stub(objects={"m/a": b"x"}, keys=_pairs(KEYS)).serve() as server:
        credentials = mounted(tmp_path, "team-a", server.url, **KEYS)
        source = open_objects("s3://models/m/", credentials)
        (blob,) = source.list().blobs
        assert read_all(source, blob) == b"x"
        assert "x-amz-security-token" not in server.asked[-1].headers
        assert "/us-east-1/s3/" in server.asked[-1].headers["authorization"]


def test_half_a_key_in_the_process_environment_hinders_nobody(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "alone")
    with S3Stub(objects={"m/a": b"x"}).serve() as server:
        source = open_s3("s3://models/m/", server.url, AWS_SKIP_SIGNATURE="true")
        assert paths(source.list()) == ["a"]


def test_a_session_token_is_sent_and_checked():
    tokens = {"AKIAEXAMPLE": "the token"}
    stub = S3Stub(objects={"m/a": b"x"}, keys=_pairs(KEYS), tokens=tokens)
    with stub.serve() as server:
        source = open_s3("s3://models/m/", server.url, AWS_SESSION_TOKEN="the token")
        assert paths(source.list()) == ["a"]
        for wrong in ({}, {"AWS_SESSION_TOKEN": "another"}):
            with pytest.raises(AccessDenied, match="the token is not accepted"):
                open_s3("s3://models/m/", server.url, **wrong).list()


def test_a_redirect_to_another_host_is_not_followed():
    with S3Stub(objects={"m/a": b"x"}).serve() as target:
        for host in ("localhost", "127.0.0.2", "169.254.169.254", "metadata.google.internal"):
            there = {"Location": f"http://{host}:{target.port}/models?list-type=2"}
            elsewhere = Told(status=307, headers=there)
            target.asked.clear()
            with (
                _always(elsewhere) as server,
                pytest.raises(SourceNotAllowed, match="redirects to another host"),
            ):
                open_s3("s3://models/m/", server.url).list()
            assert target.asked == []


@pytest.mark.parametrize(
    "endpoint",
    ["http://169.254.169.254", "http://[fd00:ec2::254]", "http://metadata.google.internal"],
)
def test_an_endpoint_that_is_a_metadata_server_is_refused(endpoint):
    # Not through a proxy either, which would look the name up itself.
    for environment in ({}, {"HTTP_PROXY": "http://127.0.0.1:1"}):
        with pytest.raises(SourceNotAllowed, match="never spoken to"):
            open_s3("s3://models/m/", endpoint, **environment).list()


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://host",
        "http://",
        "http://user:password@host",
        "http://host/a password",
        "http://host/pass\nword",
        "http://ho\nst",
        "http://host/pässword",
        "http://host/?password",
    ],
)
def test_an_endpoint_that_is_no_server_is_refused(endpoint):
    with pytest.raises(UnsupportedSource, match="AWS_ENDPOINT_URL is no URL") as caught:
        open_s3("s3://models/m/", endpoint).list()
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize("value", ["line\nbreak", "ümlaut", "nul\0", "del\x7f"])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_key_that_no_header_can_hold_is_told_and_not_sent(name, value):
    with S3Stub(objects={"m/a": b"x"}).serve() as server:
        with pytest.raises(AccessDenied, match=f"no header can hold; correct .*{name}") as caught:
            open_s3("s3://models/m/", server.url, **{name: value}).list()
        assert value not in str(caught.value)
        assert server.asked == []


def test_a_secret_key_may_be_any_text():
    keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wörter mit\nzeilen"}
    with S3Stub(objects={"m/a": b"x"}, keys=_pairs(keys)).serve() as server:
        assert paths(open_s3("s3://models/m/", server.url, **keys).list()) == ["a"]


@pytest.mark.parametrize("region", ["us\neast", "us east", "x.evil/#", "é", "a@b", "r" * 64])
@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_that_is_none_is_told_before_anything_is_asked(name, region):
    with S3Stub(objects={"m/a": b"x"}).serve() as server:
        for endpoint in (server.url, ""):
            with pytest.raises(UnsupportedSource, match=r"AWS_REGION in .* is no name") as caught:
                open_s3("s3://models/m/", endpoint, **{name: region}).list()
            assert region not in str(caught.value)
        assert server.asked == []


def test_the_endpoint_for_s3_goes_before_the_general_one():
    with S3Stub(objects={"m/a": b"x"}).serve() as server:
        source = open_s3("s3://models/m/", "http://127.0.0.1:1", AWS_ENDPOINT_URL_S3=server.url)
        assert paths(source.list()) == ["a"]


def test_a_bucket_may_be_in_the_name_of_the_host():
    # Reached through a proxy, so that no resolver has to know the name.
    stub = S3Stub(before=lambda asked: Told(status=404))
    for switch in ("S3_USER_VIRTUAL_BUCKET", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        with stub.serve() as real, HttpProxy(("127.0.0.1", real.port)) as proxy:
            environment = {"HTTP_PROXY": proxy.host, switch: "true"}
            source = open_s3("s3://models/m/", "http://s3.example:9000", **environment)
            with pytest.raises(NotFound):
                source.list()
            assert real.asked[0].headers["host"] == "models.s3.example:9000"
            assert real.asked[0].path == "/"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("http://127.0.0.1:1", "127.0.0.1:1 refuses the connection"),
        ("http://no-such-host.invalid", "has no address"),
    ],
)
def test_a_server_that_is_not_there_is_told(endpoint, message):
    with pytest.raises(FetchFailed, match=message):
        open_s3("s3://models/m/", endpoint).list()


def test_http_where_https_was_meant_is_told():
    with S3Stub().serve() as server, pytest.raises(FetchFailed, match="does not speak TLS"):
        open_s3("s3://models/m/", server.url.replace("http:", "https:")).list()


def test_https_is_trusted_by_its_own_ca_only(tmp_path):
    certificates = make_certificates(tmp_path)
    with (
        S3Stub(objects={"m/a": b"x"}).serve() as real,
        FaultyServer(
            tls=certificates.server_context(), upstream=("127.0.0.1", real.port)
        ) as server,
    ):
        with pytest.raises(FetchFailed, match=r"certificate of .* is not trusted"):
            open_s3("s3://models/m/", server.url).list()
        bundle = str(certificates.ca_file)
        assert paths(open_s3("s3://models/m/", server.url, AWS_CA_BUNDLE=bundle).list()) == ["a"]
        files = {"ca.crt": certificates.ca, **KEYS}
        credentials = mounted(tmp_path, "team-a", server.url, **files)
        assert paths(open_objects("s3://models/m/", credentials).list()) == ["a"]


def test_a_ca_that_is_none_is_told(tmp_path):
    (tmp_path / "ca").write_text("no certificate")
    for path, message in ((tmp_path / "ca", "holds no certificate"), (tmp_path / "b", "cannot be")):
        with pytest.raises(FetchFailed, match=f"AWS_CA_BUNDLE.*{message}"):
            open_s3("s3://models/m/", "https://127.0.0.1:1", AWS_CA_BUNDLE=str(path)).list()


def test_a_proxy_is_asked_unless_the_host_is_exempt():
    stub = S3Stub(objects={"m/a": b"x"}, keys=_pairs(KEYS))
    with stub.serve() as real, HttpProxy(("127.0.0.1", real.port)) as proxy:
        environment = {"http_proxy": proxy.host}
        source = open_s3("s3://models/m/", "http://s3.example:9000", **environment)
        assert paths(source.list()) == ["a"]
        assert real.asked[-1].headers["host"] == "s3.example:9000"
        environment["no_proxy"] = ".example"
        source = open_s3("s3://models/m/", "http://s3.example:9000", **environment)
        with pytest.raises(FetchFailed, match="has no address"):
            source.list()


def test_a_proxy_is_not_asked_for_http_by_a_server_that_speaks_https(tmp_path):
    certificates = make_certificates(tmp_path, names="DNS:s3.example")
    metadata = {"Location": "http://169.254.169.254/latest/meta-data/"}
    stub = S3Stub(before=lambda _: Told(status=307, headers=metadata))
    with (
        stub.serve() as real,
        FaultyServer(
            tls=certificates.server_context(), upstream=("127.0.0.1", real.port)
        ) as server,
        HttpProxy(("127.0.0.1", server.port)) as proxy,
    ):
        environment = {
            "HTTPS_PROXY": proxy.host,
            "HTTP_PROXY": proxy.host,
            "AWS_CA_BUNDLE": str(certificates.ca_file),
        }
        with pytest.raises(FetchFailed):
            open_s3("s3://models/m/", "https://s3.example", **environment).list()
        assert len(real.asked) > 0
        assert {one.split()[1] for one in proxy.seen} == {"s3.example:443"}


def test_a_proxy_that_wants_a_password_is_given_it_and_told_without():
    with S3Stub(objects={"m/a": b"x"}).serve() as real:
        # user:secret, as RFC 7617 encodes it.
        auth = "Basic dXNlcjpzZWNyZXQ="
        with HttpProxy(("127.0.0.1", real.port), auth=auth) as proxy:
            for user, message in (("user:secret@", ""), ("user:wrong@", "407 from s3://models/m/")):
                environment = {"http_proxy": f"http://{user}{proxy.host}"}
                source = open_s3("s3://models/m/", "http://s3.example:9000", **environment)
                if not message:
                    assert paths(source.list()) == ["a"]
                    continue
                with pytest.raises(FetchFailed, match=message) as caught:
                    source.list()
                assert "wrong" not in str(caught.value)


def test_a_silent_metadata_server_costs_about_a_second():
    with socket.create_server(("127.0.0.1", 0)) as silent, S3Stub().serve() as server:
        environment = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
        }
        begun = time.monotonic()
        with pytest.raises(NotFound):
            open_s3("s3://models/m/", server.url, **environment).list()
        assert 0.9 < time.monotonic() - begun < 4.0


def test_opening_asks_nobody():
    before = threading.active_count()
    source = open_s3("s3://models/m/", "http://127.0.0.1:1")
    assert source.where == "s3://models/m/"
    source.close()
    assert threading.active_count() == before


def _pairs(keys: dict[str, str]) -> dict[str, str]:
    return {keys["AWS_ACCESS_KEY_ID"]: keys["AWS_SECRET_ACCESS_KEY"]}


def _always(told: Told):
    return S3Stub(before=lambda _: told).serve()


def open_other(url: str, **environment: str):
    given = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:1", **environment}
    credentials = read_credentials(None, root=Path("/nowhere"), environment=given)
    return open_objects(url, credentials)


def test_a_google_setting_of_the_process_that_breaks_the_client_is_named(monkeypatch):
    # obstore reads this one whatever it is told.
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/nowhere/key.json")
    source = open_other("gs://models/m/", STORAGE_EMULATOR_HOST="http://127.0.0.1:1")
    with pytest.raises(FetchFailed, match="no client can be made; check GOOGLE_SERVICE_ACCOUNT"):
        source.list()


@pytest.mark.parametrize(
    "environment",
    [
        {"AZURE_STORAGE_ACCOUNT_KEY": "b3Vycw=="},
        {"AZURE_STORAGE_SAS_TOKEN": "sig=ours"},
        {"AZURE_STORAGE_SAS_TOKEN": "sig=ours", "AZURE_STORAGE_ACCOUNT_NAME": "ours"},
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=ours;AccountKey=b3Vycw=="},
    ],
)
def test_what_is_for_one_account_is_not_sent_to_another(environment):
    source = open_other("az://theirs.blob.core.windows.net/models/m/", **environment)
    with pytest.raises(AccessDenied, match="is not for the account theirs") as caught:
        source.list()
    assert "sig=" not in str(caught.value)


@pytest.mark.parametrize("account", ["ac ct", "acé\nct", "evil/#", "a@b", "a" * 64])
@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1/devstoreaccount1"])
def test_an_account_that_is_none_is_told(account, endpoint):
    environment = {"AZURE_STORAGE_ACCOUNT_NAME": account, "AZURE_STORAGE_ACCOUNT_KEY": "b3Vycw=="}
    with pytest.raises(UnsupportedSource, match="AZURE_STORAGE_ACCOUNT_NAME in") as caught:
        open_other("az://models/m/", **environment, AZURE_STORAGE_ENDPOINT=endpoint).list()
    assert account not in str(caught.value)


@pytest.mark.parametrize("suffix", ["x@169.254.169.254", "x?", "x\ny", "x:99999"])
def test_an_endpoint_suffix_that_leads_elsewhere_is_refused(suffix):
    text = f"AccountName=ours;AccountKey=b3Vycw==;EndpointSuffix={suffix}"
    with pytest.raises(UnsupportedSource, match="AZURE_STORAGE_CONNECTION_STRING is no URL"):
        open_other("az://models/m/", AZURE_STORAGE_CONNECTION_STRING=text).list()


def test_an_account_has_to_be_named():
    with pytest.raises(AccessDenied, match="does not say which account"):
        open_other("az://models/m/", AZURE_STORAGE_ACCOUNT_KEY="b3Vycw==").list()


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ({"AZURE_STORAGE_ACCOUNT_NAME": "ours"}, "ours.blob.core.windows.net"),
        (
            {
                "AZURE_STORAGE_CONNECTION_STRING": (
                    "AccountName=ours;AccountKey=b3Vycw==;EndpointSuffix=core.chinacloudapi.cn"
                )
            },
            "ours.blob.core.chinacloudapi.cn",
        ),
    ],
)
def test_an_account_has_a_server_of_its_own(environment, host):
    with HttpProxy(("127.0.0.1", 1)) as proxy:
        environment = {**environment, "HTTPS_PROXY": proxy.host}
        with pytest.raises(FetchFailed):
            open_other("az://models/m/", **environment).list()
        assert proxy.seen[0].split()[:2] == ["CONNECT", f"{host}:443"]


@pytest.mark.parametrize(
    ("url", "environment", "host"),
    [
        ("s3://models/m/", {"AWS_REGION": "eu-west-1"}, "models.s3.eu-west-1.amazonaws.com"),
        ("s3://models/m/", {"AWS_REGION": "cn-north-1"}, "models.s3.cn-north-1.amazonaws.com.cn"),
        ("s3://my.models/m/", {"AWS_DEFAULT_REGION": "eu-west-1"}, "s3.eu-west-1.amazonaws.com"),
        ("s3://models/m/", {}, "s3.us-east-1.amazonaws.com"),
        ("gs://models/m/", {}, "storage.googleapis.com"),
        (
            "az://theirs.blob.core.windows.net/models/m/",
            {"AZURE_STORAGE_ACCOUNT_NAME": "ours"},
            "theirs.blob.core.windows.net",
        ),
    ],
)
def test_a_cloud_is_found_without_a_setting_of_its_place(url, environment, host):
    skip = {"AWS_SKIP_SIGNATURE": "1", "GOOGLE_SKIP_SIGNATURE": "1", "AZURE_SKIP_SIGNATURE": "1"}
    with HttpProxy(("127.0.0.1", 1)) as proxy:
        with pytest.raises(FetchFailed):
            open_other(url, **environment, **skip, HTTPS_PROXY=proxy.host).list()
        assert proxy.seen[0].split()[:2] == ["CONNECT", f"{host}:443"]
