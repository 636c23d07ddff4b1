"""``https://`` as a source, against a real server on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterable
from contextlib import closing
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.artifacts.remote.http_urls import parse_target
from sidecar.artifacts.remote.https import open_https
from sidecar.artifacts.remote.https_answers import (
    file_name,
    find_packing,
    parse_length,
    parse_span,
    version_of,
)
from sidecar.artifacts.remote.https_login import identity_of
from sidecar.artifacts.remote.port import Blob, Packing, RemoteSource
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import (
    AccessDenied,
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceMoved,
    SourceNotAllowed,
    UnsafeArtifact,
    UnsupportedSource,
)
from tests.support.faulty import Cut, FaultyServer, Headers, Run, Slow, Status
from tests.support.https_server import (
    Certificates,
    Redirect,
    Require,
    https_server,
    make_certificates,
)

DATA = hashlib.sha256(b"").digest() * 40_000
SECRET = "very-secret"
NOW = 1_750_000_000
YESTERDAY = formatdate(NOW - 86_400, usegmt=True)
TODAY = formatdate(NOW, usegmt=True)
DATED = {"Last-Modified": YESTERDAY, "Date": TODAY}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(certificates):
    with https_server(certificates) as running:
        running.put("/m/model.onnx", DATA)
        running.put("/m/lora.tar.gz", DATA)
        yield running


@pytest.fixture
def source(server, certificates):
    """Open a path of the server: ``source("/m/model.onnx", mounted={"token": "x"})``."""
    opened = []

    def open_one(path: str, *, mounted: dict[str, str] | None = None, **environment: str):
        url = path if "://" in path else server.url + path
        one = open_https(url, credentials(certificates, mounted, environment))
        opened.append(one)
        return one

    yield open_one
    for one in opened:
        one.close()


def credentials(
    certificates: Certificates, mounted: dict[str, str] | None, environment: dict[str, str]
) -> Credentials:
    trust = {"SSL_CERT_FILE": str(certificates.ca_file)}
    return Credentials(
        values={**trust, **(environment if mounted is None else mounted)},
        where="the agent's environment" if mounted is None else "mounted secret `team-a`",
        is_mounted=mounted is not None,
        directory=None,
    )


def look(source: RemoteSource) -> Blob:
    (blob,) = source.list().blobs
    return blob


def read(source: RemoteSource, blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(bytes(one) for one in source.read(blob, start, end))


def collect(pieces: Iterable[bytes | memoryview], into: bytearray) -> None:
    for piece in pieces:
        into += piece


class TestLook:
    def test_one_head_tells_all(self, server, source):
        contents = source("/m/model.onnx").list()
        assert contents.blobs == (
            Blob(
                path="model.onnx",
                key=f"{server.url}/m/model.onnx",
                size=len(DATA),
                tag=f'"{hashlib.sha256(DATA).hexdigest()[:32]}"',
                has_ranges=True,
            ),
        )
        assert contents.signature
        assert [one.method for one in server.seen] == ["HEAD"]

    @pytest.mark.parametrize("status", [403, 405, 501])
    def test_where_head_is_refused_the_first_byte_is_asked_for(self, server, source, status):
        # A URL that is signed for GET is not signed for HEAD.
        expected = source("/m/model.onnx").list()
        server.add(Status(status), method="HEAD", times=None)
        assert source("/m/model.onnx").list() == expected
        assert server.seen[-1].range == (0, 1)
        server.wait(lambda: server.seen[-1].sent == 1)

    def test_where_head_tells_no_size_the_first_byte_is_asked_for(self, server, source):
        server.put("/m/chunked", DATA, is_chunked=True)
        found = look(source("/m/chunked"))
        assert (found.size, found.has_ranges) == (len(DATA), True)

    def test_a_server_without_ranges_is_one(self, server, source):
        server.put("/m/model.onnx", DATA, has_ranges=False)
        assert not look(source("/m/model.onnx")).has_ranges
        server.add(Status(405), method="HEAD")
        found = look(source("/m/model.onnx"))
        assert (found.size, found.has_ranges) == (len(DATA), False)
        server.wait(lambda: server.open_connections <= 1)

    def test_a_server_that_tells_no_size_at_all(self, server, source):
        server.put("/m/model.onnx", DATA, has_ranges=False, is_chunked=True)
        one = source("/m/model.onnx")
        found = look(one)
        assert found.size is None
        assert read(one, found) == DATA

    def test_an_empty_file(self, server, source):
        server.put("/m/empty.txt", b"")
        one = source("/m/empty.txt")
        found = look(one)
        assert found.size == 0
        assert read(one, found) == b""

    @pytest.mark.parametrize(
        ("status", "expected", "words"),
        [
            (401, AccessDenied, "no credentials were sent"),
            (403, AccessDenied, "no credentials were sent"),
            (404, NotFound, "there is no such file"),
            (407, AccessDenied, "the proxy wants credentials"),
            (410, NotFound, "there is no such file"),
            (429, FetchFailed, r"come back later \(in 7 s\)"),
            (500, FetchFailed, r"has a problem \(in 7 s\)"),
            (503, FetchFailed, r"has a problem \(in 7 s\)"),
            (418, FetchFailed, "does not hand out"),
            (204, FetchFailed, "does not hand out"),
            (304, FetchFailed, "does not hand out"),
        ],
    )
    def test_a_status_is_told_by_its_class(self, server, source, status, expected, words):
        server.add(Status(status, headers=(("Retry-After", "7"),)), times=None)
        with pytest.raises(expected, match=words) as caught:
            source("/m/model.onnx").list()
        assert type(caught.value) is expected
        assert str(caught.value).startswith(f"{status} from {server.url}/m/model.onnx: ")

    def test_a_web_page_is_no_artifact(self, server, source):
        server.add(Headers({"Content-Type": "text/html; charset=utf-8"}), times=None)
        for path in ("/m/model.onnx", "/m/lora.tar.gz"):
            with pytest.raises(InvalidArtifact, match="web page, as for a login"):
                source(path).list()

    def test_a_login_page_behind_a_redirect_is_no_artifact(self, server, source):
        server.put("/login", b"<html>", headers={"Content-Type": "text/html"})
        server.add(Redirect("/login"), path="/m/", times=None)
        with pytest.raises(InvalidArtifact, match="login"):
            source("/m/lora.tar.gz").list()

    @pytest.mark.parametrize("path", ["/m/", "/", ""])
    def test_a_directory_is_told_what_to_do_instead(self, source, path):
        with pytest.raises(UnsupportedSource, match=r"cannot be listed over https; .*\.tar\.gz"):
            source(path)

    def test_a_url_that_nothing_can_be_asked_of(self, certificates):
        for url in ("https://", "https://h:x/y"):
            with pytest.raises(UnsupportedSource):
                open_https(url, credentials(certificates, None, {}))

    def test_a_forbidden_address_is_refused(self, source):
        with pytest.raises(SourceNotAllowed):
            source("http://169.254.169.254/latest/meta-data/iam").list()

    def test_plain_http_works_alike(self, source):
        with FaultyServer() as plain:
            plain.put("/x.bin", DATA)
            one = source(f"{plain.url}/x.bin")
            assert read(one, look(one), 5, 10) == DATA[5:10]


class TestName:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/m/lora.tar.gz", Packing.TAR_GZIP),
            ("/m/lora.TGZ", Packing.TAR_GZIP),
            ("/m/lora.tar", Packing.TAR),
            ("/m/lora.zip?download=1", Packing.ZIP),
            ("/m/lora.gz", None),
            ("/m/tar", None),
        ],
    )
    def test_an_archive_is_known_by_the_name_in_the_url(self, server, source, path, expected):
        server.put(path.partition("?")[0], DATA)
        found = look(source(path))
        assert found.packing is expected
        assert bool(found.path) is (expected is None)

    @pytest.mark.parametrize(
        ("headers", "packing", "name"),
        [
            ({"Content-Disposition": 'attachment; filename="l.tar.gz"'}, Packing.TAR_GZIP, ""),
            ({"Content-Disposition": "attachment; filename*=UTF-8''l%20x.zip"}, Packing.ZIP, ""),
            ({"Content-Disposition": 'attachment; filename="x.onnx"'}, None, "x.onnx"),
            ({"Content-Disposition": 'attachment; filename="../../x.onnx"'}, None, "x.onnx"),
            ({"Content-Disposition": 'attachment; filename="a\\\\..\\\\x.onnx"'}, None, "x.onnx"),
            ({"Content-Disposition": "attachment"}, None, "download"),
            ({"Content-Disposition": "\xff;;=\x80"}, None, "download"),
            ({"Content-Type": "application/x-tar"}, Packing.TAR, ""),
            ({"Content-Type": "application/gzip"}, Packing.TAR_GZIP, ""),
            ({"Content-Type": "Application/X-Gzip; x=y"}, Packing.TAR_GZIP, ""),
            ({"Content-Type": "application/zip"}, Packing.ZIP, ""),
            ({"Content-Type": "application/octet-stream"}, None, "download"),
        ],
    )
    def test_a_url_without_a_suffix_asks_the_server(self, server, source, headers, packing, name):
        server.put("/m/download", DATA, headers=headers)
        found = look(source("/m/download?id=7"))
        assert (found.packing, found.path) == (packing, name)

    def test_the_name_in_the_url_wins(self, server, source):
        told = {"Content-Disposition": 'attachment; filename="x.bin"', "Content-Type": "x/y"}
        server.put("/m/model.onnx", DATA, headers=told)
        assert look(source("/m/model.onnx")).path == "model.onnx"

    def test_the_kind_in_the_url_wins(self, server, source):
        told = {"Content-Disposition": 'attachment; filename="x.tar.gz"'}
        server.put("/m/lora.zip", DATA, headers=told)
        assert look(source("/m/lora.zip")).packing is Packing.ZIP

    def test_a_compressed_file_is_no_archive_by_its_type(self, server, source):
        server.put("/m/vocab.json.gz", DATA, headers={"Content-Type": "application/gzip"})
        assert look(source("/m/vocab.json.gz")).path == "vocab.json.gz"

    def test_escapes_in_the_name_are_read(self, server, source):
        server.put("/m/my%20model.onnx", DATA)
        assert look(source("/m/my%20model.onnx")).path == "my model.onnx"

    @pytest.mark.parametrize("name", ["..%2F..%2Fx.bin", "%2e%2e", "a%0Ab.bin", "%5cx.bin"])
    def test_a_name_that_leads_out_is_refused(self, server, source, name):
        server.put(f"/m/{name}", DATA)
        with pytest.raises((UnsafeArtifact, InvalidArtifact)):
            source(f"/m/{name}").list()

    def test_no_name_at_all_is_told(self, server, source):
        server.put("/m/", DATA)
        with pytest.raises(InvalidArtifact, match="what the file is called"):
            source("/m/?id=7").list()

    @pytest.mark.parametrize(
        ("path", "encoding"),
        [("/m/model.onnx", "gzip"), ("/m/lora.tar", "br"), ("/m/lora.zip", "gzip")],
    )
    def test_a_server_that_compresses_against_our_wish_is_told(
        self, server, source, path, encoding
    ):
        server.put(path, DATA, headers={"Content-Encoding": encoding})
        with pytest.raises(InvalidArtifact, match=rf"compressed \({encoding}\) although"):
            source(path).list()

    def test_what_apache_says_of_a_tar_gz_is_no_compression_on_top(self, server, source):
        told = {"Content-Type": "application/x-tar", "Content-Encoding": "x-gzip"}
        server.put("/m/lora.tgz", DATA, headers=told)
        assert look(source("/m/lora.tgz")).packing is Packing.TAR_GZIP


class TestSignature:
    def test_the_same_file_has_the_same_one_and_another_has_not(self, server, source):
        first = source("/m/model.onnx").list().signature
        assert source("/m/model.onnx").list().signature == first
        server.put("/m/model.onnx", DATA[1:])
        assert source("/m/model.onnx").list().signature not in {first, ""}

    def test_a_new_signature_of_the_url_is_not_another_file(self, server, source):
        def signed(value: str) -> str:
            query = f"X-Amz-Date={value}&X-Amz-Signature={value}&versionId=7"
            found: str = source(f"/m/model.onnx?{query}").list().signature
            return found

        assert signed("1") == signed("2")

    def test_two_files_of_one_path_are_two(self, server, source):
        server.put("/m/get", DATA, etag="", headers=DATED)
        assert source("/m/get?f=1").list().signature != source("/m/get?f=2").list().signature

    @pytest.mark.parametrize(
        ("etag", "changed", "known"),
        [
            ('"a"', None, True),
            ('W/"a"', YESTERDAY, True),
            ("", YESTERDAY, True),
            ('W/"a"', None, False),
            ("", None, False),
            ("unquoted", None, False),
            # It may change again within this second.
            ("", TODAY, False),
            ('W/"a"', TODAY, False),
            ("", "nonsense", False),
        ],
    )
    def test_equality_is_claimed_only_where_it_is_known(self, server, source, etag, changed, known):
        headers = {"Date": TODAY} | ({"Last-Modified": changed} if changed else {})
        server.put("/m/model.onnx", DATA, etag=etag, headers=headers)
        contents = source("/m/model.onnx").list()
        assert bool(contents.signature) is known
        assert bool(contents.blobs[0].tag) is known
        assert contents.blobs[0].has_ranges is known

    def test_without_a_clock_a_time_says_nothing(self, server, source):
        server.put("/m/model.onnx", DATA, etag="", headers={"Last-Modified": YESTERDAY})
        assert source("/m/model.onnx").list().signature == ""

    def test_nothing_secret_is_in_what_is_kept(self, source):
        one = source(f"/m/model.onnx?X-Amz-Signature={SECRET}&token={SECRET}")
        assert SECRET not in f"{one.where} {one.list()} {one!r}"

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("X-Amz-Signature=s&X-Amz-Date=d&x-amz-security-token=t&versionId=7", "versionId=7"),
            ("X-Goog-Signature=s&X-Goog-Date=d&generation=7", "generation=7"),
            ("sv=1&se=2&sp=r&sig=x&snapshot=7", "snapshot=7"),
            ("Expires=1&Signature=s&Key-Pair-Id=k&Policy=p", ""),
            ("AWSAccessKeyId=a&Expires=1&Signature=s", ""),
            ("sp=1&st=2&expires=7", "sp=1&st=2&expires=7"),
            ("token=x&key=a&id=", "key=a&id="),
        ],
    )
    def test_which_file_it_is_does_not_depend_on_who_signs(self, query, expected):
        target = parse_target(f"https://h.example/p?{query}", where="x")
        assert identity_of(target) == f"https://h.example:443/p?{expected}"


@pytest.fixture(scope="module")
def opened(certificates):
    with https_server(certificates) as server:
        server.put("/x.bin", DATA)
        with closing(open_https(f"{server.url}/x.bin", credentials(certificates, None, {}))) as one:
            yield one, look(one)


class TestRead:
    @given(st.integers(0, len(DATA)), st.integers(0, len(DATA)) | st.none())
    def test_any_range(self, opened, start, end):
        one, blob = opened
        expected = DATA[start:end]
        if start < len(DATA):
            assert read(one, blob, start, end) == expected

    def test_ranges_of_one_thread_share_a_connection(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        for start in range(0, len(DATA), 200_000):
            end = min(start + 200_000, len(DATA))
            pieces = one.read(blob, start, end)
            # Whoever counts does not ask for more than there is.
            left = end - start
            while left:
                left -= len(next(pieces))
            pieces.close()
        assert server.handshakes == 1
        assert len(server.seen) > 5

    def test_ranges_side_by_side(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        found: dict[int, bytes] = {}

        def work(start: int) -> None:
            found[start] = read(one, blob, start, start + 100_000)

        threads = [threading.Thread(target=work, args=(n * 100_000,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert b"".join(found[start] for start in sorted(found)) == DATA[:1_200_000]

    def test_reads_hold_only_for_what_was_looked_at(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        read(one, blob, 5, 10)
        assert server.seen[-1].headers["if-match"] == blob.tag
        server.put("/m/model.onnx", DATA[1:])
        for start, end in ((0, None), (5, 10), (5, None)):
            with pytest.raises(SourceMoved, match="changed since it was looked at"):
                read(one, blob, start, end)

    def test_a_server_that_does_not_know_if_match_is_found_out(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Headers({"ETag": '"other"'}), times=None)
        for start, end in ((0, None), (5, 10)):
            with pytest.raises(SourceMoved):
                read(one, blob, start, end)

    @pytest.mark.parametrize("etag", [True, False])
    def test_bytes_that_do_not_say_their_version_are_refused(self, server, source, etag):
        if not etag:
            server.put("/m/model.onnx", DATA, etag="", headers=DATED)
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Headers({"ETag" if etag else "Last-Modified": None}), times=None)
        for start, end in ((0, None), (0, 10), (5, 10), (5, None)):
            with pytest.raises(FetchFailed, match="does not say of which version") as caught:
                read(one, blob, start, end)
            assert type(caught.value) is FetchFailed
        server.put("/m/model.onnx", DATA, has_ranges=False)
        with pytest.raises(FetchFailed, match="does not say of which version"):
            read(one, blob, 5, 10)

    def test_a_server_without_ranges_need_not_say_it(self, server, source):
        server.put("/m/model.onnx", DATA, has_ranges=False)
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Headers({"ETag": None}), times=None)
        assert read(one, blob) == DATA

    def test_a_time_of_change_is_held_to_as_well(self, server, source):
        server.put("/m/model.onnx", DATA, etag="", headers=DATED)
        one = source("/m/model.onnx")
        blob = look(one)
        assert read(one, blob, 5, 10) == DATA[5:10]
        assert server.seen[-1].headers["if-unmodified-since"] == YESTERDAY
        server.add(Headers({"Last-Modified": TODAY}))
        with pytest.raises(SourceMoved):
            read(one, blob, 5, 10)

    def test_a_weak_etag_beside_it_is_compared_too(self, server, source):
        server.put("/m/model.onnx", DATA, etag='W/"a"', headers=DATED)
        one = source("/m/model.onnx")
        blob = look(one)
        assert read(one, blob) == DATA
        server.add(Headers({"ETag": None}))
        assert read(one, blob) == DATA
        server.add(Headers({"ETag": 'W/"b"'}))
        with pytest.raises(SourceMoved):
            read(one, blob)

    def test_another_size_is_another_file(self, server, source):
        server.put("/m/model.onnx", DATA, etag='"same"')
        one = source("/m/model.onnx")
        blob = look(one)
        server.put("/m/model.onnx", DATA + b"x", etag='"same"')
        for start, end in ((0, None), (5, 10)):
            with pytest.raises(SourceMoved):
                read(one, blob, start, end)
        server.put("/m/model.onnx", DATA[:5], etag='"same"')
        with pytest.raises(SourceMoved):
            read(one, blob, 10, 20)

    def test_a_change_under_way_is_no_mixture(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Run(lambda: server.put("/m/model.onnx", DATA[::-1])), skip=1)
        assert read(one, blob, 0, 100) == DATA[:100]
        with pytest.raises(SourceMoved):
            read(one, blob, 100, 200)

    def test_a_server_that_forgets_about_ranges_is_read_over(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.put("/m/model.onnx", DATA, has_ranges=False)
        assert read(one, blob, 700_000, 700_100) == DATA[700_000:700_100]
        assert read(one, blob, 700_000) == DATA[700_000:]
        assert read(one, blob, 0, 10) == DATA[:10]

    @pytest.mark.parametrize(
        "span", ["bytes 0-9/1280000", "bytes 5-", "items 5-9/1280000", None, "bytes 9-5/1280000"]
    )
    def test_other_bytes_than_asked_for_are_refused(self, server, source, span):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Headers({"Content-Range": span}))
        with pytest.raises(FetchFailed, match="asked for the bytes from 5 on, and sends others"):
            read(one, blob, 5, 10)

    def test_never_more_than_asked_for(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Headers({"Content-Range": f"bytes 5-9/{len(DATA)}"}))
        server.put("/m/model.onnx", DATA, etag=blob.tag)
        assert read(one, blob, 5, 7) == DATA[5:7]

    def test_a_cut_is_told_and_reading_goes_on_from_there(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Cut(300_000))
        found = bytearray()
        with pytest.raises(FetchFailed, match=r"was cut|broke off"):
            collect(one.read(blob, 0, None), found)
        assert 0 < len(found) <= 300_000
        assert bytes(found) + read(one, blob, len(found)) == DATA

    def test_what_is_gone_or_forbidden_meanwhile_is_told(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Status(403))
        with pytest.raises(AccessDenied):
            read(one, blob)
        server.add(Status(503))
        with pytest.raises(FetchFailed):
            read(one, blob)
        server.remove("/m/model.onnx")
        with pytest.raises(NotFound):
            read(one, blob)

    def test_a_page_instead_of_the_file_is_told(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Headers({"Content-Type": "text/html", "ETag": None}))
        with pytest.raises(InvalidArtifact, match="web page"):
            read(one, blob)

    def test_a_reader_that_stops_gives_up_the_connection(self, server, source):
        one = source("/m/model.onnx")
        blob = look(one)
        server.add(Slow(2_000_000))
        pieces = one.read(blob, 0, None)
        next(pieces)
        pieces.close()
        server.wait(lambda: server.open_connections == 0)


class TestCredentials:
    def test_the_right_token_is_let_in_and_the_wrong_one_is_told(self, server, source):
        server.add(Require("Authorization", f"Bearer {SECRET}"), times=None)
        one = source("/m/model.onnx", mounted={"token": SECRET})
        assert read(one, look(one)) == DATA
        refused(
            source("/m/model.onnx", mounted={"token": f"{SECRET}x"}),
            "the token of mounted secret `team-a` is not accepted; check its key token",
        )

    def test_the_right_user_is_let_in_and_the_wrong_one_is_told(self, server, source):
        word = base64.b64encode(b"us:p\xc3\xa4ss").decode()
        server.add(Require("Authorization", f"Basic {word}"), times=None)
        one = source("/m/model.onnx", mounted={"username": "us", "password": "p\u00e4ss"})
        assert read(one, look(one), 5, 10) == DATA[5:10]
        refused(
            source("/m/model.onnx", mounted={"username": "us", "password": SECRET}),
            "the user of mounted secret `team-a` is not accepted; check its keys username and",
        )

    def test_a_user_of_the_url_is_let_in_and_never_shown(self, server, source):
        word = base64.b64encode(f"us:{SECRET}".encode()).decode()
        server.add(Require("Authorization", f"Basic {word}"), times=None)
        url = f"https://us:{SECRET}@127.0.0.1:{server.port}/m/model.onnx"
        one = source(url, mounted={"token": "another"})
        assert SECRET not in f"{one.where} {one.list()!r}"
        assert read(one, look(one), 5, 10) == DATA[5:10]
        refused(
            source(url.replace("us:", "me:")), "the user and password of the URL are not accepted"
        )

    @pytest.mark.parametrize("how", ["mounted", "environment", "secret of kserve"])
    def test_headers_as_kserve_has_them(self, server, source, how):
        server.add(Require("X-Api-Key", SECRET), times=None)
        headers = json.dumps({"X-Api-Key": SECRET})
        wrong = json.dumps({"X-Api-Key": "wrong"})

        def given(text: str):
            match how:
                case "mounted":
                    return source("/m/model.onnx", mounted={"127.0.0.1-headers": text})
                case "environment":
                    return source("/m/model.onnx", **{"127.0.0.1-headers": text})
                case _:
                    mounted = {"https-host": "127.0.0.1", "headers": text}
                    return source("/m/model.onnx", mounted=mounted)

        one = given(headers)
        assert read(one, look(one), 5, 10) == DATA[5:10]
        refused(given(wrong), "are not accepted; check its key")

    def test_headers_of_another_host_are_not_sent(self, server, source):
        server.add(Require("X-Api-Key", SECRET), times=None)
        headers = json.dumps({"X-Api-Key": SECRET})
        refused(source("/m/model.onnx", **{"other.example-headers": headers}), "no credentials")
        mounted = {"https-host": "other.example", "headers": headers, "token": SECRET}
        refused(source("/m/model.onnx", mounted=mounted), "is for another host (its https-host)")
        assert SECRET not in str([one.headers for one in server.seen])

    @pytest.mark.parametrize(
        "text",
        [
            *("nonsense very-secret", "[1]", '{"A": 1}', '{"A b": "very-secret"}'),
            *('{"Host": "very-secret"}', '{"Range": "x"}', '{"A\\n": "x"}'),
        ],
    )
    def test_headers_that_cannot_be_sent_are_told_without_them(self, source, text):
        with pytest.raises(
            AccessDenied, match=r"the key 127\.0\.0\.1-headers of mounted"
        ) as caught:
            source("/m/model.onnx", mounted={"127.0.0.1-headers": text})
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "mounted",
        [{"token": SECRET}, {"username": "us", "password": SECRET}],
        ids=["token", "user"],
    )
    def test_a_mounted_secret_is_not_said_in_the_open(self, source, mounted):
        for url in ("http://models.example/x", "http://10.0.0.1:8080/x"):
            with pytest.raises(AccessDenied, match="over plain http") as caught:
                source(url, mounted=mounted)
            assert SECRET not in str(caught.value)
            assert "write https://" in str(caught.value)
        for url in ("http://127.0.0.1/x", "http://localhost:80/x", "https://models.example/x"):
            source(url, mounted=mounted)
        source("http://models.example/x", mounted={"https-host": "other.example", **mounted})

    def test_the_environment_says_no_token_to_anybody(self, server, source):
        server.add(Require("Authorization", f"Bearer {SECRET}"), times=None)
        refused(source("/m/model.onnx", token=SECRET), "no credentials were sent; mount a secret")

    def test_a_secret_without_a_usable_key_is_told(self, server, source):
        server.add(Require("Authorization", "x"), times=None)
        refused(
            source("/m/model.onnx", mounted={"AWS_ACCESS_KEY_ID": "x"}),
            "mounted secret `team-a` has no key token, nor username and password",
        )

    def test_an_expired_signature_is_told(self, server, source):
        server.add(Status(403), times=None)
        refused(source(f"/m/model.onnx?X-Amz-Signature={SECRET}"), "it may have expired")

    def test_a_token_stays_with_its_host(self, server, source, certificates):
        with https_server(certificates) as other:
            other.put("/data", DATA)
            server.add(Redirect(f"{other.url}/data?X-Amz-Signature={SECRET}"), times=None)
            one = source("/m/model.onnx", mounted={"token": SECRET})
            blob = look(one)
            assert read(one, blob, 5, 10) == DATA[5:10]
            assert SECRET not in repr(blob)
            assert all("authorization" in seen.headers for seen in server.seen)
            assert not any("authorization" in seen.headers for seen in other.seen)
            other.add(Status(401), times=None)
            refused(
                source("/m/model.onnx", mounted={"token": SECRET}),
                f"it redirects to 127.0.0.1:{other.port}, where no credentials are sent",
            )

    def test_a_mounted_ca_is_trusted_besides(self, server, certificates):
        given = Credentials(
            values={"ca.crt": certificates.ca},
            where="mounted secret `team-a`",
            is_mounted=True,
            directory=None,
        )
        with closing(open_https(f"{server.url}/m/model.onnx", given)) as one:
            assert look(one).size == len(DATA)

    def test_an_unknown_ca_is_refused_before_anything_is_sent(self, server):
        given = Credentials(
            values={"token": SECRET}, where="mounted secret", is_mounted=True, directory=None
        )
        with (
            closing(open_https(f"{server.url}/m/model.onnx", given)) as one,
            pytest.raises(FetchFailed, match="is not trusted"),
        ):
            one.list()
        assert not server.seen


def refused(source: RemoteSource, words: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        source.list()
    assert words in str(caught.value)
    assert SECRET not in repr(caught.value)


@given(st.text(max_size=40))
@example(f"bytes 0-0/{'9' * 5000}")
@example(f"bytes 0-{'9' * 5000}/*")
@example(f"bytes {'9' * 5000}-{'9' * 5000}/*")
def test_any_content_range_is_read_or_refused(text):
    span = parse_span({"content-range": text})
    assert span is None or span.start <= span.end


@given(st.text(max_size=20))
@example("9" * 5000)
@example("\u00b2")
def test_any_content_length_is_read_or_refused(text):
    length = parse_length({"content-length": text})
    assert length is None or length == int(text)


@given(st.text(st.characters(max_codepoint=255), max_size=40), st.text(max_size=20))
def test_any_validators_are_read_or_refused(etag, changed):
    headers = {"etag": etag, "last-modified": changed, "date": TODAY}
    version = version_of(headers)
    assert version == "" or etag.strip() in version or changed.strip() in version


@given(
    st.lists(
        st.sampled_from(
            [
                *("filename", "filename*", "filename*0*", "filename*1", "=", ";", '"', "'", "''"),
                *("utf-8", "idna", "undefined", "punycode", "%", "%ff", "%00", "x", "(", "\xe9"),
            ]
        )
    )
)
@example(["filename*1", ";", "filename*"])
@example(["filename*", "=", "(", " ", "%00", "''", "''"])
@example(["filename*", "=", "idna", "''", "x"])
def test_any_content_disposition_is_read_or_passed_over(words):
    told = {"content-disposition": "attachment; " + "".join(words)}
    assert isinstance(file_name(told, "download"), str)
    find_packing(told, "download", where="x")
