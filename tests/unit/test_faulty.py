"""The server that other tests learn the wire's bad days from does what it says."""

import http.client
import os
import random
import ssl
import subprocess
import threading
import time

import pytest

from tests.support.faulty import (
    Close,
    Cut,
    Endless,
    FaultyServer,
    Flip,
    Headers,
    Length,
    Run,
    Slow,
    Stall,
    Status,
)

DATA = random.Random(1).randbytes(300_000)


@pytest.fixture
def server():
    with FaultyServer() as one:
        one.put("/data", DATA)
        yield one


@pytest.fixture(params=["own", "upstream"])
def either(request, server):
    """The contents as the server itself has them, and as a real one behind it has them."""
    if request.param == "own":
        yield server
        return
    with FaultyServer(upstream=("127.0.0.1", server.port)) as proxy:
        yield proxy


def ask(server, path="/data", *, method="GET", headers=None, connection=None, body=None):
    """The status, headers and body; a body that ends early raises ``IncompleteRead``."""
    own = connection or http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        own.request(method, path, headers=headers or {}, body=body)
        answer = own.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        if connection is None:
            own.close()


def received(server, *, headers=None):
    """What arrives before the connection ends, and the error that ended it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    got = bytearray()
    try:
        connection.request("GET", "/data", headers=headers or {})
        answer = connection.getresponse()
        while piece := answer.read1(4096):
            got += piece
    except (OSError, http.client.HTTPException) as error:
        return bytes(got), type(error)
    finally:
        connection.close()
    return bytes(got), None


def test_serves_whole_contents_and_ranges_on_one_connection(either):
    connection = http.client.HTTPConnection("127.0.0.1", either.port, timeout=10)
    status, headers, body = ask(either, connection=connection)
    assert (status, body) == (200, DATA)
    assert headers["accept-ranges"] == "bytes"
    for asked, start, end in (("10-19", 10, 20), ("299990-", 299990, 300000), ("-5", 299995, None)):
        status, headers, body = ask(
            either, headers={"Range": f"bytes={asked}"}, connection=connection
        )
        assert (status, body) == (206, DATA[start:end])
        assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/300000"
    assert ask(either, headers={"Range": "bytes=300000-"}, connection=connection)[0] == 416
    connection.close()
    assert [one.range for one in either.seen] == [
        None,
        (10, 20),
        (299990, None),
        None,
        (300000, None),
    ]
    assert either.peak_connections == 1
    assert either.sent_bytes == len(DATA) + 10 + 10 + 5
    assert [one.sent for one in either.seen] == [len(DATA), 10, 10, 5, 0]


def test_a_head_tells_what_a_get_would_and_sends_nothing(either):
    status, headers, body = ask(either, method="HEAD")
    assert (status, headers["content-length"], body) == (200, "300000", b"")
    assert ask(either, "/other")[0] == 404


def test_preconditions_hold_against_the_etag(either, server):
    etag = ask(either)[1]["etag"]
    assert ask(either, headers={"If-Match": etag})[0] == 200
    assert ask(either, headers={"If-None-Match": etag})[0] == 304
    assert ask(either, headers={"If-Range": etag, "Range": "bytes=0-9"})[0] == 206
    server.put("/data", b"other")
    assert ask(either, headers={"If-Match": etag})[0] == 412
    assert ask(either, headers={"If-Range": etag, "Range": "bytes=0-9"})[::2] == (200, b"other")


def test_contents_without_ranges_or_length_are_whole_and_chunked(server):
    server.put("/data", DATA, has_ranges=False, is_chunked=True)
    status, headers, body = ask(server, headers={"Range": "bytes=5-9"})
    assert (status, body) == (200, DATA)
    assert "content-length" not in headers
    with FaultyServer(upstream=("127.0.0.1", server.port)) as proxy:
        assert ask(proxy)[2] == DATA


def test_a_cut_resets_the_connection_after_exactly_so_many_bytes(either):
    either.add(Cut(after=100_001))
    assert received(either) == (DATA[:100_001], ConnectionResetError)
    assert ask(either)[2] == DATA


def test_an_early_close_is_clean(either):
    either.add(Close(after=100_001))
    got, error = received(either)
    assert got == DATA[:100_001]
    assert error is not ConnectionResetError


@pytest.mark.parametrize(("by", "arrives"), [(7, 300_000), (-7, 299_993)])
def test_a_wrong_length_is_announced(either, by, arrives):
    either.add(Length(by))
    assert ask(either, method="HEAD")[1]["content-length"] == str(300_000 + by)
    either.add(Length(by))
    assert len(received(either)[0]) == arrives


@pytest.mark.parametrize("after", [None, 0, 70_000])
def test_a_stall_lasts_until_the_client_goes(either, after):
    either.add(Stall(after=after))
    connection = http.client.HTTPConnection("127.0.0.1", either.port, timeout=0.3)
    connection.request("GET", "/data")
    with pytest.raises(TimeoutError):
        connection.getresponse().read()
    assert either.seen[0].sent == (after or 0)
    connection.close()
    either.wait(lambda: either.open_connections == 0)


def test_slow_is_as_slow_as_it_says(server):
    server.put("/data", DATA[:20_000])
    server.add(Slow(100_000))
    began = time.monotonic()
    assert ask(server)[2] == DATA[:20_000]
    assert 0.19 < time.monotonic() - began < 5


def test_statuses_come_as_often_as_the_rule_says(either):
    either.add(Status(503, headers=(("Retry-After", "1"),)), skip=1, times=2)
    answers = [ask(either) for _ in range(4)]
    assert [one[0] for one in answers] == [200, 503, 503, 200]
    assert answers[1][1]["retry-after"] == "1"
    assert answers[1][2] == b"faulty"


def test_rules_pick_requests_and_several_faults_act_on_one(either):
    either.add(Flip(at=3), Close(after=5), path="^/data$", method="GET", times=None)
    either.add(Status(403), when=lambda request: request.range == (1, 4))
    assert ask(either, method="HEAD")[0] == 200
    expected = DATA[:3] + bytes([DATA[3] ^ 0xFF]) + DATA[4:5]
    assert received(either)[0] == expected
    assert received(either)[0] == expected
    either.clear()
    assert ask(either)[2] == DATA
    assert len(either.seen) == 1


def test_headers_are_replaced_or_dropped_whatever_their_case(either):
    either.add(Headers({"etag": '"other"', "accept-ranges": None}))
    headers = ask(either)[1]
    assert headers["etag"] == '"other"'
    assert "accept-ranges" not in headers


def test_an_endless_answer_goes_on_behind_its_end(either):
    either.add(Endless())
    connection = http.client.HTTPConnection("127.0.0.1", either.port, timeout=10)
    connection.request("GET", "/data")
    got = connection.getresponse().read(500_000)
    connection.close()
    assert got == DATA + bytes(200_000)
    either.wait(lambda: either.open_connections == 0)


def test_something_runs_between_two_requests(either, server):
    either.add(Run(lambda: server.put("/data", b"changed")), skip=1)
    assert [ask(either)[2] for _ in range(2)] == [DATA, b"changed"]


def test_the_most_requests_at_one_time_are_counted(either):
    gate = threading.Event()
    either.add(Run(gate.wait), times=None)
    threads = [threading.Thread(target=ask, args=(either,)) for _ in range(5)]
    for one in threads:
        one.start()
    either.wait(lambda: either.peak_requests == 5)
    gate.set()
    for one in threads:
        one.join()
    assert either.peak_connections == 5
    either.wait(lambda: either.open_connections == 0)


def test_the_real_server_sees_the_head_as_it_was_written(server):
    with FaultyServer(upstream=("127.0.0.1", server.port)) as proxy:
        headers = {"Host": "signed.example:1", "X-Amz-Date": "a,  b", "aUTHORIZATION": "AWS4 x=/"}
        ask(proxy, headers=headers)
    for name, value in headers.items():
        assert server.seen[0].headers[name.lower()] == value


def test_bodies_are_passed_on_also_when_the_client_asks_first(server):
    with FaultyServer(upstream=("127.0.0.1", server.port)) as proxy:
        assert ask(proxy, method="PUT", body=DATA)[0] == 405
        proxy.add(Status(500))
        assert ask(proxy, method="PUT", body=DATA)[0] == 500
        proxy.add(Status(500))
        assert ask(proxy, method="PUT", headers={"Expect": "100-continue"})[0] == 500


def test_it_speaks_tls(tmp_path):
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", "key.pem", "-out", "cert.pem"),
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with FaultyServer(tls=context) as server:
        server.put("/data", DATA)
        server.add(Cut(after=70_000), skip=1)
        for expected in (DATA, None):
            connection = http.client.HTTPSConnection(
                "127.0.0.1", server.port, timeout=10, context=trusting
            )
            connection.request("GET", "/data")
            answer = connection.getresponse()
            if expected is None:
                # Some versions of OpenSSL report a reset as an end.
                with pytest.raises((OSError, http.client.IncompleteRead)):
                    answer.read()
            else:
                assert answer.read() == expected
            answer.close()
            connection.close()


def test_leaving_ends_every_connection_and_thread():
    before = {*threading.enumerate()}
    files = len(os.listdir("/proc/self/fd"))
    with FaultyServer() as server:
        server.put("/data", DATA)
        server.add(Stall(after=5), times=None)
        clients = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(3)]
        for one in clients:
            one.request("GET", "/data")
        server.wait(lambda: server.sent_bytes == 15)
    assert {*threading.enumerate()} <= before
    for one in clients:
        one.close()
    assert len(os.listdir("/proc/self/fd")) <= files
