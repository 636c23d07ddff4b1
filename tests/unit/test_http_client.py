"""The HTTP client of sources, against real servers on loopback."""

from __future__ import annotations

import base64
import inspect
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress

import httpcore
import pytest

from sidecar import __version__
from sidecar.artifacts.remote.addresses import ask_system
from sidecar.artifacts.remote.connections import Backend
from sidecar.artifacts.remote.http_client import Client
from sidecar.artifacts.remote.http_errors import ERRORS, translate
from sidecar.artifacts.remote.proxies import find_proxy
from sidecar.errors import AccessDenied, FetchFailed, SourceNotAllowed, UnsupportedSource
from tests.support.faulty import (
    Close,
    Cut,
    Endless,
    FaultyServer,
    Length,
    Slow,
    Stall,
    Status,
)
from tests.support.https_server import (
    Certificates,
    HttpProxy,
    Redirect,
    https_server,
    make_certificates,
)

DATA = bytes(range(256)) * 4096
WHERE = "https://models.example/x"
SECRET = "very-secret"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(certificates):
    with https_server(certificates) as running:
        running.put("/data", DATA)
        yield running


@pytest.fixture
def client(certificates):
    with closing(Client(WHERE, settings={}, ca_certificate=certificates.ca)) as opened:
        yield opened


@pytest.fixture
def plain():
    with FaultyServer() as running:
        running.put("/data", DATA)
        yield running


def get(client: Client, url: str, **headers: str) -> bytes:
    with client.open(
        "GET", url, headers={k.replace("_", "-"): v for k, v in headers.items()}
    ) as one:
        assert one.status in {200, 206}
        return one.read(len(DATA))


def classes_of(module: object) -> list[type[Exception]]:
    found = [one for _, one in inspect.getmembers(module, inspect.isclass)]
    return [one for one in found if issubclass(one, Exception)]


@pytest.mark.parametrize("foreign", classes_of(httpcore), ids=lambda one: one.__name__)
def test_every_exception_of_the_library_is_translated(foreign):
    assert issubclass(foreign, tuple(one for one, _ in ERRORS)), "it would reach the agent as it is"
    told = str(translate(foreign(SECRET), where=WHERE, peer="a:1"))
    assert told.startswith(f"{WHERE}: ")
    assert "a:1" in told
    if not issubclass(foreign, httpcore.ConnectError | httpcore.ProxyError):
        assert SECRET not in told


def test_an_answer_has_status_headers_and_body(server, client):
    with client.open("GET", f"{server.url}/data") as answer:
        assert answer.status == 200
        assert answer.headers["content-length"] == str(len(DATA))
        assert answer.url == f"{server.url}/data"
        assert b"".join(answer.chunks()) == DATA
    with client.open("GET", f"{server.url}/none") as answer:
        assert answer.status == 404
        assert answer.read(10) == b""


def test_headers_of_one_name_are_joined(server, client):
    twice = (("WWW-Authenticate", "Bearer a"), ("www-authenticate", "Basic b"))
    server.add(Status(401, headers=twice))
    with client.open("GET", f"{server.url}/data") as answer:
        assert answer.headers["www-authenticate"] == "Bearer a, Basic b"


def test_the_file_is_asked_for_as_it_is_and_we_say_who_we_are(server, client):
    get(client, f"{server.url}/data", range="bytes=5-9")
    headers = server.seen[0].headers
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == f"model-sidecar/{__version__}"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert server.seen[0].range == (5, 10)


def test_a_connection_serves_many_requests(server, client):
    server.add(Redirect("/data"), path="/there", times=None)
    for _ in range(3):
        get(client, f"{server.url}/data")
        get(client, f"{server.url}/there")
        with client.open("HEAD", f"{server.url}/data") as answer:
            assert answer.status == 200
        with client.open("GET", f"{server.url}/none") as answer:
            assert answer.status == 404
    assert server.handshakes == 1


def test_a_body_that_is_not_wanted_gives_up_the_connection(server, client):
    with client.open("GET", f"{server.url}/data") as answer:
        next(answer.chunks())
    server.wait(lambda: server.open_connections == 0)
    with pytest.raises(KeyError), client.open("GET", f"{server.url}/data"):
        raise KeyError("of the caller's own")
    server.wait(lambda: server.open_connections == 0)
    assert get(client, f"{server.url}/data") == DATA


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_body_comes_in_large_pieces(certificates, client, scheme):
    # A small piece costs as much time as a large one, most of it in the parser.
    server = https_server(certificates) if scheme == "https" else FaultyServer()
    with server:
        server.put("/data", DATA * 8)
        with client.open("GET", f"{server.url}/data") as answer:
            sizes = [len(one) for one in answer.chunks()]
    assert sum(sizes) == len(DATA) * 8
    assert 1 << 16 < max(sizes) <= 1 << 18


def test_threads_share_a_client(server, client):
    found: list[bytes] = []

    def work():
        found.append(get(client, f"{server.url}/data"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert found == [DATA] * 8


def test_closing_ends_every_connection(server, client):
    get(client, f"{server.url}/data")
    assert server.open_connections == 1
    client.close()
    server.wait(lambda: server.open_connections == 0)


def test_the_body_can_be_posted(plain, client):
    with client.open("POST", f"{plain.url}/data", body=b"a=b") as answer:
        assert answer.status == 405
    assert plain.seen[0].headers["content-length"] == "3"


class TestTls:
    def test_an_unknown_ca_is_refused(self, server):
        with closing(Client(WHERE, settings={})) as client, pytest.raises(FetchFailed) as caught:
            get(client, f"{server.url}/data")
        told = str(caught.value)
        assert "the certificate of 127.0.0.1 is not trusted" in told
        assert "ca.crt" in told
        assert "SSL_CERT_FILE" in told
        assert not server.seen

    def test_another_ca_is_refused(self, server, tmp_path):
        other = make_certificates(tmp_path)
        with (
            closing(Client(WHERE, settings={}, ca_certificate=other.ca)) as client,
            pytest.raises(FetchFailed, match="not trusted"),
        ):
            get(client, f"{server.url}/data")

    @pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def test_a_named_file_is_trusted(self, server, certificates, name):
        settings = {name: str(certificates.ca_file)}
        with closing(Client(WHERE, settings=settings)) as client:
            assert get(client, f"{server.url}/data") == DATA

    def test_a_named_directory_is_trusted(self, server, certificates, tmp_path):
        command = ("openssl", "x509", "-hash", "-noout", "-in", str(certificates.ca_file))
        name = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        (tmp_path / f"{name.stdout.strip()}.0").write_text(certificates.ca)
        with closing(Client(WHERE, settings={"REQUESTS_CA_BUNDLE": str(tmp_path)})) as client:
            assert get(client, f"{server.url}/data") == DATA

    @pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
    def test_a_named_file_that_is_not_there_or_no_certificate_is_told(self, server, tmp_path, name):
        path = tmp_path / "ca.pem"
        with closing(Client(WHERE, settings={name: str(path)})) as client:
            with pytest.raises(FetchFailed, match=f"{name} names {path}, which .* cannot read"):
                get(client, f"{server.url}/data")
            path.write_text("no certificate")
            with pytest.raises(FetchFailed, match=f"{name} holds no certificates in PEM"):
                get(client, f"{server.url}/data")

    def test_a_mounted_ca_that_is_none_is_told(self, server):
        with (
            closing(Client(WHERE, settings={}, ca_certificate="nonsense")) as client,
            pytest.raises(FetchFailed, match=r"ca\.crt among the credentials holds no cert"),
        ):
            get(client, f"{server.url}/data")

    def test_a_rotated_file_counts_from_the_next_client_on(self, server, certificates, tmp_path):
        path = tmp_path / "ca.pem"
        (tmp_path / "other").mkdir()
        path.write_text(make_certificates(tmp_path / "other").ca)
        settings = {"SSL_CERT_FILE": str(path)}
        with closing(Client(WHERE, settings=settings)) as client, pytest.raises(FetchFailed):
            get(client, f"{server.url}/data")
        path.write_text(certificates.ca)
        with closing(Client(WHERE, settings=settings)) as client:
            assert get(client, f"{server.url}/data") == DATA

    def test_a_certificate_for_another_name_is_refused(self, tmp_path):
        other = make_certificates(tmp_path, names="DNS:other.example")
        with (
            https_server(other) as server,
            closing(Client(WHERE, settings={}, ca_certificate=other.ca)) as client,
            pytest.raises(FetchFailed, match=r"not trusted \(.*mismatch"),
        ):
            get(client, f"{server.url}/data")

    def test_a_server_without_tls_is_told(self, client):
        with (
            raw_server(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as place,
            pytest.raises(FetchFailed, match=r"no TLS with 127\.0\.0\.1 \(.*is this the right"),
        ):
            get(client, f"https://{place}")

    def test_an_end_without_a_farewell_is_no_end(self, certificates, client):
        # Without a length, the end of the connection is the end of the body: anybody could cut it.
        with (
            raw_server(certificates, b"HTTP/1.1 200 OK\r\n\r\npart", farewell=False) as place,
            pytest.raises(FetchFailed, match="was cut"),
        ):
            get(client, f"https://{place}")
        with raw_server(certificates, b"HTTP/1.1 200 OK\r\n\r\nwhole", farewell=True) as place:
            assert get(client, f"https://{place}") == b"whole"

    def test_localhost_is_asked_by_its_name(self, server, client):
        assert get(client, f"https://localhost:{server.port}/data") == DATA
        assert server.seen[0].headers["host"] == f"localhost:{server.port}"


@contextmanager
def raw_server(certificates: Certificates | None, answer: bytes, *, farewell: bool = True):
    """Answer one request with these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        if certificates is not None:
            connection = certificates.server_context().wrap_socket(connection, server_side=True)
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(answer)
            if isinstance(connection, ssl.SSLSocket) and farewell:
                connection.settimeout(0)
                connection.unwrap()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        thread.join(10)
        listener.close()


class TestFaults:
    @pytest.mark.parametrize("fault", [Cut(0), Cut(70_000), Close(70_000), Length(5)], ids=str)
    def test_a_body_that_breaks_off_is_an_error(self, server, client, fault):
        server.add(fault)
        with pytest.raises(FetchFailed, match=r"127\.0\.0\.1:\d+"):
            get(client, f"{server.url}/data")
        assert get(client, f"{server.url}/data") == DATA

    def test_a_broken_chunked_body_is_an_error(self, server, client):
        server.put("/chunked", DATA, is_chunked=True)
        assert get(client, f"{server.url}/chunked") == DATA
        server.add(Close(70_000))
        with pytest.raises(FetchFailed, match="broke off"):
            get(client, f"{server.url}/chunked")

    def test_a_server_that_is_not_there_is_told(self, client):
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with pytest.raises(FetchFailed, match=rf"no connection to 127\.0\.0\.1:{port} \(.*refused"):
            get(client, f"https://127.0.0.1:{port}/")

    def test_what_is_no_http_is_an_error(self, certificates, client):
        with (
            raw_server(certificates, b"SSH-2.0-x\r\n\r\n", farewell=True) as place,
            pytest.raises(FetchFailed, match="no HTTP"),
        ):
            get(client, f"https://{place}")

    def test_endless_headers_are_an_error(self, certificates, client):
        endless = b"HTTP/1.1 200 OK\r\n" + b"X-Much: %b\r\n" % (b"y" * 1000) * 1000
        with (
            raw_server(certificates, endless, farewell=False) as place,
            pytest.raises(FetchFailed),
        ):
            get(client, f"https://{place}")

    def test_an_endless_body_is_not_read_beyond_the_limit(self, server, client):
        server.add(Endless())
        with (
            client.open("GET", f"{server.url}/data") as answer,
            pytest.raises(FetchFailed, match="more than 1000000 bytes"),
        ):
            answer.read(1_000_000)
        assert server.sent_bytes < 20_000_000


class TestDeadlines:
    """The client's own are too long for a test: its connections are given shorter ones."""

    def test_silence_within_a_body_ends_it(self, plain):
        plain.add(Stall(after=0))
        with pytest.raises(httpcore.ReadTimeout):
            ask(f"{plain.url}/data", read=0.1)

    def test_silence_instead_of_an_answer_ends_it(self, plain):
        plain.add(Stall(after=None))
        with pytest.raises(httpcore.ReadTimeout):
            ask(f"{plain.url}/data", read=0.1)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_head_that_drips_ends_at_its_deadline(self, certificates, scheme):
        with dripping_server(certificates if scheme == "https" else None) as port:
            before = time.monotonic()
            with pytest.raises(httpcore.ReadTimeout):
                ask(f"{scheme}://127.0.0.1:{port}/", read=0.3, ca=certificates.ca_file)
            assert 0.3 <= time.monotonic() - before < 10

    def test_answers_that_are_none_yet_end_at_the_deadline(self):
        with (
            raw_server(None, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000_000) as place,
            pytest.raises(httpcore.ReadTimeout),
        ):
            ask(f"http://{place}", read=0.1)

    def test_a_slow_body_takes_its_time_and_the_next_answer_has_its_own(self, plain):
        plain.put("/data", DATA[:100_000])
        plain.add(Slow(200_000))
        timeouts = {"connect": 5.0, "read": 0.3, "write": 5.0}
        with httpcore.ConnectionPool(network_backend=backend()) as pool:
            for _ in range(2):
                with pool.stream(
                    "GET", f"{plain.url}/data", extensions={"timeout": timeouts}
                ) as answer:
                    answer.extensions["network_stream"].begin_body()
                    assert answer.read() == DATA[:100_000]
        assert plain.peak_connections == 1

    @pytest.mark.parametrize("is_redirect", [True, False])
    def test_a_body_that_nobody_wants_is_waited_for_a_short_time(self, plain, client, is_redirect):
        location = (("Location", "/data"),) if is_redirect else ()
        plain.add(Status(302, text=b"x" * 400, headers=location), Slow(10), path="/there")
        before = time.monotonic()
        with client.open("GET", f"{plain.url}/there") as answer:
            if is_redirect:
                assert answer.read(len(DATA)) == DATA
        assert time.monotonic() - before < 10
        # The connection with the rest of it is not used again.
        assert get(client, f"{plain.url}/data") == DATA

    def test_a_handshake_without_an_answer_ends(self, certificates):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
            with pytest.raises(httpcore.ConnectTimeout):
                ask(url, read=30, connect=0.1, ca=certificates.ca_file)

    def test_no_connection_within_its_deadline(self):
        with full_server() as port, pytest.raises(httpcore.ConnectTimeout):
            ask(f"http://127.0.0.1:{port}/", read=30, connect=0.1)


def backend(*, to_loopback: bool = True) -> Backend:
    return Backend(WHERE, ask_system, to_loopback=to_loopback)


def ask(url: str, *, read: float, connect: float = 5.0, ca: object = None) -> None:
    context = ssl.create_default_context(cafile=str(ca)) if ca else None
    timeouts = {"connect": connect, "read": read, "write": read}
    with (
        httpcore.ConnectionPool(ssl_context=context, network_backend=backend()) as pool,
        pool.stream("GET", url, extensions={"timeout": timeouts}) as answer,
    ):
        answer.extensions["network_stream"].begin_body()
        answer.read()


@contextmanager
def dripping_server(certificates: Certificates | None):
    """Send one byte of an answer's head after the other, for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        if certificates is not None:
            connection = certificates.server_context().wrap_socket(connection, server_side=True)
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not done.wait(0.02):
                connection.sendall(b"y")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        done.set()
        thread.join(10)
        listener.close()


@contextmanager
def full_server(host: str = "127.0.0.1", port: int = 0):
    """Listen, but take no connection: the queue of those that wait is full."""
    with socket.create_server((host, port), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            waiting.append(one)
        try:
            yield address[1]
        finally:
            for one in waiting:
                one.close()


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_followed(self, server, client, status):
        server.add(Redirect("/data", status=status))
        with client.open("GET", f"{server.url}/there?x=1") as answer:
            assert answer.read(len(DATA)) == DATA
            assert answer.url == f"{server.url}/data"
        with client.open("HEAD", f"{server.url}/data") as answer:
            assert answer.status == 200
        assert [one.method for one in server.seen] == ["GET", "GET", "HEAD"]

    @pytest.mark.parametrize(
        ("location", "expected"),
        [
            ("/a%20b c", "/a%20b%20c"),
            ("b?x=1#fragment", "/m/b?x=1"),
            ("?x=1", "/m/there?x=1"),
            ("../\u00c3\u00a9", "/%C3%A9"),
            ("//127.0.0.1:{port}/b", "/b"),
        ],
    )
    def test_a_redirect_is_read_as_browsers_do(self, plain, client, location, expected):
        plain.add(Redirect(location.format(port=plain.port)))
        with client.open("GET", f"{plain.url}/m/there") as answer:
            assert answer.status == 404
        assert plain.seen[-1].target == expected

    def test_five_are_followed_and_not_a_sixth(self, server, client):
        server.add(Redirect("/data"), path="/there", times=5)
        server.add(Redirect("/there"), path="/data", times=None)
        server.clear()
        server.add(Redirect("/there"), path="/there", times=5)
        server.put("/there", DATA)
        assert get(client, f"{server.url}/there") == DATA
        server.add(Redirect("/there"), path="/there", times=None)
        with pytest.raises(FetchFailed, match="more than 5 redirects"):
            get(client, f"{server.url}/there")
        assert len(server.seen) == 12

    def test_credentials_stay_with_their_origin(self, server, certificates, client):
        with https_server(certificates) as other:
            other.put("/data", DATA)
            server.add(Redirect("/again"), path="/there")
            server.add(Redirect(f"{other.url}/data"), path="/again")
            headers = {
                "Authorization": f"Bearer {SECRET}",
                "Cookie": SECRET,
                "X-Api-Key": SECRET,
                "Range": "bytes=0-",
            }
            with client.open("GET", f"{server.url}/there", headers=headers) as answer:
                assert answer.read(len(DATA)) == DATA
            for one in server.seen:
                assert one.headers["authorization"] == f"Bearer {SECRET}"
                assert one.headers["x-api-key"] == SECRET
            assert SECRET not in str(other.seen[0].headers)
            assert other.seen[0].range == (0, None)

    def test_credentials_do_not_come_back_either(self, server, certificates, client):
        with https_server(certificates) as other:
            server.add(Redirect(f"{other.url}/there"), path="/there")
            other.add(Redirect(f"{server.url}/data"))
            get(client, f"{server.url}/there", authorization=SECRET)
        assert "authorization" not in server.seen[-1].headers

    def test_another_port_or_host_is_another_origin(self, server, client):
        server.add(Redirect(f"https://localhost:{server.port}/data"), path="/there")
        get(client, f"{server.url}/there", authorization=SECRET)
        assert "authorization" not in server.seen[-1].headers

    def test_no_user_of_a_redirect_is_used(self, server, client):
        server.add(Redirect(f"https://u:p@127.0.0.1:{server.port}/data"), path="/there")
        get(client, f"{server.url}/there")
        assert "authorization" not in server.seen[-1].headers

    def test_https_never_becomes_http(self, server, plain, client):
        server.add(Redirect(f"{plain.url}/data"))
        with pytest.raises(SourceNotAllowed, match="from https to http"):
            get(client, f"{server.url}/data")
        assert not plain.seen

    def test_http_may_become_https(self, server, plain, client):
        plain.add(Redirect(f"{server.url}/data"))
        assert get(client, f"{plain.url}/data", authorization=SECRET) == DATA
        assert "authorization" not in server.seen[0].headers

    @pytest.mark.parametrize(
        "to",
        [
            "http://169.254.169.254/latest/meta-data/",
            "http://[fe80::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://metadata.google.internal/",
            "http://0.0.0.0/",
            "//169.254.169.254/",
            "http://169.254.169.254./",
        ],
    )
    def test_a_redirect_to_a_forbidden_address_is_refused(self, plain, client, to):
        plain.add(Redirect(to))
        with pytest.raises(SourceNotAllowed):
            get(client, f"{plain.url}/data")

    @pytest.mark.parametrize("to", ["ftp://x/", "file:///etc/passwd", "data:,x", "https://[::1/"])
    def test_a_redirect_to_something_else_is_refused(self, plain, client, to):
        plain.add(Redirect(to))
        with pytest.raises(SourceNotAllowed, match="redirects to something"):
            get(client, f"{plain.url}/data")

    def test_a_redirect_without_a_place_is_an_answer(self, plain, client):
        plain.add(Status(302))
        with client.open("GET", f"{plain.url}/data") as answer:
            assert answer.status == 302

    def test_a_post_becomes_a_get_where_it_should(self, plain, client):
        plain.add(Redirect("/data", status=303))
        with client.open("POST", f"{plain.url}/there", body=b"x") as answer:
            assert answer.read(len(DATA)) == DATA
        plain.add(Redirect("/data", status=307))
        with client.open("POST", f"{plain.url}/there", body=b"x") as answer:
            assert answer.status == 405
        assert [one.method for one in plain.seen] == ["POST", "GET", "POST", "POST"]

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_body_stays_with_its_origin(self, plain, client, status):
        with FaultyServer() as other:
            plain.add(Redirect(f"{other.url}/token?sig={SECRET}", status=status))
            with (
                pytest.raises(SourceNotAllowed, match="to another server") as caught,
                client.open("POST", f"{plain.url}/there", body=SECRET.encode()),
            ):
                pass
            assert SECRET not in str(caught.value)
            assert not other.seen

    def test_a_signed_redirect_is_never_shown(self, plain, client):
        plain.add(Redirect(f"/data?X-Amz-Signature={SECRET}"), path="/there")
        plain.add(Cut(5), path="/data")
        with pytest.raises(FetchFailed) as caught:
            get(client, f"{plain.url}/there")
        assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
        with client.open("GET", f"{plain.url}/data?sig={SECRET}") as answer:
            assert SECRET not in repr(answer)

    def test_elsewhere_does_not_lead_to_loopback(self, plain, client, certificates):
        # Through a proxy, any name is somewhere else.
        with HttpProxy(("127.0.0.1", plain.port)) as proxy:
            for to in (plain.url, f"http://localhost:{plain.port}", "http://[::1]"):
                plain.add(Redirect(f"{to}/data"))
                with (
                    through(certificates, HTTP_PROXY=f"http://{proxy.host}") as far,
                    pytest.raises(SourceNotAllowed, match="the agent's own machine"),
                ):
                    get(far, "http://far.example/there")
        assert {one.target for one in plain.seen} == {"/there"}
        plain.add(Redirect(f"http://localhost:{plain.port}/data"), path="/there")
        assert get(client, f"{plain.url}/there") == DATA

    def test_elsewhere_leads_elsewhere_through_a_proxy_on_loopback(self, plain, certificates):
        plain.add(Redirect("http://further.example/data"), path="/there")
        with (
            HttpProxy(("127.0.0.1", plain.port)) as proxy,
            through(certificates, HTTP_PROXY=f"http://{proxy.host}") as client,
        ):
            assert get(client, "http://far.example/there") == DATA

    def test_elsewhere_does_not_lead_to_loopback_by_a_name_either(self, plain):
        address = own_address()
        if address is None:
            pytest.skip("this machine has no address but loopback")
        with (
            FaultyServer(host=address) as far,
            closing(Client(WHERE, settings={})) as client,
        ):
            # A connection that is there already is not used either.
            get(client, f"http://localhost:{plain.port}/data")
            far.add(Redirect(f"http://localhost:{plain.port}/data"))
            with pytest.raises(SourceNotAllowed, match="the agent's own machine"):
                get(client, f"{far.url}/there")
            assert len(plain.seen) == 1


def own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            # Sends nothing.
            one.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(one.getsockname()[0])
        return None if address.startswith("127.") else address


class TestAddresses:
    @pytest.mark.parametrize(
        "host",
        ["169.254.169.254", "[fe80::1]", "2852039166", "[::ffff:a9fe:a9fe]", "100.100.100.200"],
    )
    def test_forbidden_addresses_are_not_spoken_to(self, client, host):
        with pytest.raises(SourceNotAllowed):
            get(client, f"http://{host}/latest/meta-data/")

    def test_what_is_checked_is_connected_to(self, plain):
        answers = [("127.0.0.1",), ("169.254.169.254",)]

        def rebinding(host: str, port: int) -> tuple[str, ...]:
            return answers.pop(0)

        opened = Backend(WHERE, rebinding, to_loopback=True)
        stream = opened.connect_tcp("changing.example", plain.port, timeout=5)
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", plain.port)
        assert len(answers) == 1, "a second look-up could have had another answer"
        give_up(stream, plain)
        with pytest.raises(SourceNotAllowed, match=r"changing\.example leads to"):
            opened.connect_tcp("changing.example", plain.port, timeout=5)

    def test_one_forbidden_address_among_others_is_enough(self, plain):
        both = ("127.0.0.1", "fe80::1")
        opened = Backend(WHERE, lambda *_: both, to_loopback=True)
        with pytest.raises(SourceNotAllowed, match="link-local"):
            opened.connect_tcp("both.example", plain.port, timeout=5)
        assert plain.peak_connections == 0

    def test_every_address_is_tried(self, plain):
        unused = ("127.0.0.2", "127.0.0.3", "127.0.0.1")
        opened = Backend(WHERE, lambda *_: unused, to_loopback=True)
        stream = opened.connect_tcp("several.example", plain.port, timeout=5)
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", plain.port)
        give_up(stream, plain)

    def test_an_address_that_is_silent_leaves_time_for_the_next(self, plain):
        with full_server("127.0.0.2", plain.port):
            both = ("127.0.0.2", "127.0.0.1")
            opened = Backend(WHERE, lambda *_: both, to_loopback=True)
            before = time.monotonic()
            stream = opened.connect_tcp("several.example", plain.port, timeout=1)
            assert time.monotonic() - before < 0.9
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", plain.port)
            give_up(stream, plain)

    def test_a_name_that_leads_to_loopback_is_refused_where_that_is(self, plain):
        with pytest.raises(SourceNotAllowed, match="own machine"):
            backend(to_loopback=False).connect_tcp("localhost", plain.port, timeout=5)
        assert plain.peak_connections == 0

    def test_ipv6_works(self, certificates, client):
        with ipv6_server() as port:
            assert get(client, f"http://[::1]:{port}/") == b"[::1]:%d" % port

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://host/x",
            "https:///x",
            "https://host:port/x",
            "https://host:0/x",
            "/path",
            "https://host\n/x",
            "https://[::1/x",
        ],
    )
    def test_what_is_no_url_is_refused(self, client, url):
        with pytest.raises(UnsupportedSource, match="no URL of the form https://"):
            get(client, url)


def give_up(stream: httpcore.NetworkStream, server: FaultyServer) -> None:
    stream.close()
    server.wait(lambda: server.peak_connections and not server.open_connections)


@contextmanager
def ipv6_server():
    """Answer one request with its Host header."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this machine")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            head = connection.recv(1 << 16).lower()
            host = head.partition(b"\r\nhost: ")[2].partition(b"\r\n")[0]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(host) + host)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(10)
        listener.close()


class TestCredentials:
    def test_a_user_of_the_url_is_sent(self, server, client):
        get(client, f"https://us%40er:pa%2Fss@127.0.0.1:{server.port}/data")
        word = base64.b64encode(b"us@er:pa/ss").decode()
        assert server.seen[0].headers["authorization"] == f"Basic {word}"
        assert server.seen[0].target == "/data"

    @pytest.mark.parametrize("value", [f"Bearer {SECRET}\nX: y", f"{SECRET}\0", f"{SECRET}\u00e9"])
    def test_a_header_that_cannot_be_sent_is_not_repeated(self, server, client, value):
        with pytest.raises(AccessDenied, match="the header authorization has characters") as caught:
            get(client, f"{server.url}/data", authorization=value)
        assert SECRET not in repr(caught.value)
        assert not server.seen

    def test_spaces_around_a_value_do_no_harm(self, server, client):
        get(client, f"{server.url}/data", authorization=f" {SECRET} ")
        assert server.seen[0].headers["authorization"] == SECRET

    def test_other_characters_of_a_path_are_escaped(self, server, client):
        with client.open("GET", f"{server.url}/a b/\u00e9?q=%20 x#fragment") as answer:
            assert answer.status == 404
        assert server.seen[0].target == "/a%20b/%C3%A9?q=%20%20x"


class TestProxies:
    def test_https_goes_through_a_tunnel(self, server, certificates):
        with HttpProxy(("127.0.0.1", server.port)) as proxy:
            with (
                through(certificates, HTTPS_PROXY=f"http://{proxy.host}") as client,
                pytest.raises(FetchFailed, match=r"certificate of far\.example is not"),
            ):
                get(client, "https://far.example/data")
            assert proxy.seen == ["CONNECT far.example:443 HTTP/1.1"]

    def test_the_target_is_verified_through_a_tunnel(self, tmp_path):
        far = make_certificates(tmp_path, names="DNS:far.example")
        with https_server(far) as server, HttpProxy(("127.0.0.1", server.port)) as proxy:
            server.put("/data", DATA)
            with through(far, https_proxy=proxy.host) as client:
                for _ in range(2):
                    assert get(client, "https://far.example/data") == DATA
            assert len(proxy.seen) == 1
            assert server.seen[0].headers["host"] == "far.example"

    def test_a_proxy_may_itself_speak_tls(self, tmp_path, certificates):
        far = make_certificates(tmp_path, names="DNS:far.example")
        context = certificates.server_context()
        with (
            https_server(far) as server,
            HttpProxy(("127.0.0.1", server.port), tls=context) as proxy,
        ):
            server.put("/data", DATA)
            both = Certificates(ca_file=tmp_path / "both", server_file=far.server_file)
            both.ca_file.write_text(far.ca + certificates.ca)
            with through(both, ALL_PROXY=f"https://{proxy.host}") as client:
                assert get(client, "https://far.example/data") == DATA

    def test_plain_http_is_forwarded(self, plain, certificates):
        with HttpProxy(("127.0.0.1", plain.port)) as proxy:
            with through(certificates, HTTP_PROXY=f"http://{proxy.host}") as client:
                assert get(client, "http://far.example:81/data?x=1") == DATA
            assert proxy.seen == ["GET http://far.example:81/data?x=1 HTTP/1.1"]

    def test_a_proxy_gets_its_own_credentials_and_no_others(self, tmp_path):
        far = make_certificates(tmp_path, names="DNS:far.example")
        auth = "Basic " + base64.b64encode(b"us:p@ss").decode()
        with https_server(far) as server:
            server.put("/data", DATA)
            with HttpProxy(("127.0.0.1", server.port), auth=auth) as proxy:
                with through(far, HTTPS_PROXY=f"http://us:p%40ss@{proxy.host}") as client:
                    assert get(client, "https://far.example/data") == DATA
                assert "proxy-authorization" not in server.seen[0].headers
                with (
                    through(far, HTTPS_PROXY=f"http://us:{SECRET}@{proxy.host}") as client,
                    pytest.raises(FetchFailed, match=r"the proxy refused it \(407\)") as caught,
                ):
                    get(client, "https://far.example/data")
                assert f"far.example:443 through the proxy http://{proxy.host}" in str(caught.value)
                assert SECRET not in str(caught.value)

    def test_a_forbidden_address_is_not_asked_for_through_a_proxy(self, plain, certificates):
        with HttpProxy(("127.0.0.1", plain.port)) as proxy:
            settings = {"HTTP_PROXY": f"http://{proxy.host}"}
            with through(certificates, **settings) as client:
                for host in ("169.254.169.254", "metadata.google.internal", "2852039166"):
                    with pytest.raises(SourceNotAllowed):
                        get(client, f"http://{host}/latest/meta-data/")
            assert not proxy.seen

    @pytest.mark.parametrize(
        ("host", "no_proxy"),
        [
            ("a.example", "*"),
            ("a.example", "a.example"),
            ("A.Example", "b.example, a.example"),
            ("a.example", "example"),
            ("a.example", ".example"),
            ("a.example", "*.example"),
            ("a.example.", "a.example"),
            ("a.example", "a.example:443"),
            ("10.1.2.3", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", "10.1.2.3:443"),
            ("2001:db8::1", "2001:db8::/32"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("127.0.0.1", ""),
            ("localhost", ""),
            ("::1", ""),
        ],
    )
    def test_what_no_proxy_names_is_asked_directly(self, host, no_proxy):
        settings = {"https_proxy": "proxy:3128", "no_proxy": no_proxy}
        assert find_proxy("https", host, 443, settings, where=WHERE) is None

    @pytest.mark.parametrize(
        ("host", "no_proxy"),
        [
            ("a.example", ""),
            ("a.example", "b.example"),
            ("aexample", ".example"),
            ("xa.example", "a.example"),
            ("a.example", "a.example:8443"),
            ("a.example", "a.example:\u00b2"),
            ("a.example", f"a.example:{'4' * 5000}"),
            ("11.1.2.3", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3:80"),
            ("a.example", ","),
            ("a.example", "."),
        ],
    )
    def test_all_else_is_asked_through_the_proxy(self, host, no_proxy):
        settings = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": no_proxy}
        found = find_proxy("https", host, 443, settings, where=WHERE)
        assert found is not None
        assert found.url == "http://proxy:3128"

    def test_the_name_in_small_letters_wins_and_each_scheme_has_its_own(self):
        settings = {"https_proxy": "a:1", "HTTPS_PROXY": "b:2", "ALL_PROXY": "https://[::2]"}
        first = find_proxy("https", "x.example", 443, settings, where=WHERE)
        other = find_proxy("http", "x.example", 80, settings, where=WHERE)
        assert first is not None
        assert other is not None
        assert (first.url, other.url) == ("http://a:1", "https://[::2]:443")

    @pytest.mark.parametrize("value", ["socks5://us:very-secret@p:1080", "http://", "http://p:x"])
    def test_a_proxy_that_is_not_spoken_to_is_told_without_its_password(self, value):
        with pytest.raises(UnsupportedSource, match="the proxy that the env") as caught:
            find_proxy("https", "x.example", 443, {"HTTPS_PROXY": value}, where=WHERE)
        assert SECRET not in str(caught.value)


def through(certificates: Certificates, **settings: str):
    return closing(Client(WHERE, settings=settings, ca_certificate=certificates.ca))
