"""HTTP for sources: deadlines, limits, address rules, redirects, proxies."""

from __future__ import annotations

import base64
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Lock

import httpcore

from sidecar import __version__
from sidecar.artifacts.remote.addresses import ask_system, check_host, is_loopback
from sidecar.artifacts.remote.connections import Backend, Stream, loopback_refused
from sidecar.artifacts.remote.http_errors import FOREIGN, translate
from sidecar.artifacts.remote.http_urls import Target, follow, parse_target
from sidecar.artifacts.remote.port import CONNECT_SECONDS, READ_SECONDS
from sidecar.artifacts.remote.proxies import Proxy, find_proxy
from sidecar.artifacts.remote.trust import open_trust
from sidecar.errors import AccessDenied, FetchFailed, SourceNotAllowed

MAX_REDIRECTS = 5
MAX_CONNECTIONS = 64
KEEPALIVE_SECONDS = 3.0
"""Some servers close idle connections after 5 s; a request must not meet that moment."""
WHOLE_SECONDS = 60.0
"""For a body that is read in one piece."""
MAX_DRAINED_BYTES = 1 << 14
"""Of a body that nobody wants: reading so many is cheaper than another TLS handshake."""
DRAIN_SECONDS = 1.0
"""For reading them: more than a handshake takes, and all redirects together add a few seconds."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CARRIED = frozenset(
    {
        "accept",
        "accept-encoding",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "range",
        "user-agent",
    }
)
"""Headers that grant nothing: all that a redirect takes along to another origin."""
USER_AGENT = f"model-sidecar/{__version__}"
_TIMEOUTS = {
    "pool": READ_SECONDS,
    "connect": CONNECT_SECONDS,
    "read": READ_SECONDS,
    "write": READ_SECONDS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of any status, whose body can be read while it is open."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name; several of one name are joined with a comma."""
    url: str = field(repr=False)
    """The one that answered, after redirects. May hold a signature: never show it."""
    where: str
    peer: str
    """Host and port that answered."""
    body: Generator[bytes, None, None] = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body. Raises ``FetchFailed``, also when it ends before its announced length."""
        return self.body

    def read(self, limit: int) -> bytes:
        """Return the whole body.

        Raises ``FetchFailed``, also beyond ``limit`` bytes or ``WHOLE_SECONDS``.
        """
        until = time.monotonic() + WHOLE_SECONDS
        pieces: list[bytes] = []
        size = 0
        for piece in self.body:
            size += len(piece)
            if size > limit:
                raise FetchFailed(f"{self.where}: {self.peer} answered more than {limit} bytes")
            if time.monotonic() > until:
                raise FetchFailed(
                    f"{self.where}: the answer of {self.peer} took longer than {WHOLE_SECONDS:g} s"
                )
            pieces.append(piece)
        return b"".join(pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    target: Target
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    to_loopback: bool = True
    """It may go to the agent's own machine."""


class Client:
    """Connections for one source. Threads may share it."""

    def __init__(
        self, where: str, *, settings: Mapping[str, str], ca_certificate: str | None = None
    ) -> None:
        """No I/O. ``where`` is the source in words, for errors.

        ``settings`` are environment variables: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY in
        either case, SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE. ``ca_certificate`` is the
        text of a PEM file (``ca.crt`` of a mounted secret), trusted besides those of the system.
        """
        self._where = where
        self._settings = settings
        self._ca_certificate = ca_certificate
        self._pools: dict[tuple[Proxy | None, bool], httpcore.ConnectionPool] = {}
        self._lock = Lock()

    @contextmanager
    def open(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Iterator[Answer]:
        """Send a request, follow at most 5 redirects, and yield the answer, whatever its status.

        ``user:password@`` of the URL is sent as Basic authorization. A redirect to another origin
        takes along only headers that grant nothing. Leaving the block with a body that was not
        read to its end gives up the connection.

        Raises ``FetchFailed`` when no answer comes, ``SourceNotAllowed`` for an address or a
        redirect that is not followed, ``UnsupportedSource`` for what is no http(s) URL,
        ``AccessDenied`` for headers that cannot be sent.
        """
        request = self._first(method, parse_target(url, where=self._where), headers or {}, body)
        for _ in range(MAX_REDIRECTS + 1):
            proxy = self._proxy(request)
            response = self._send(request, proxy)
            answer = self._answer(request, response)
            try:
                location = answer.headers.get("location", "")
                if answer.status not in REDIRECTS or not location:
                    yield answer
                    _drain(answer, request.method, response)
                    return
                _drain(answer, request.method, response)
            finally:
                answer.body.close()
                with suppress(*FOREIGN):
                    response.close()
            request = self._redirected(request, answer.status, location, response, proxy)
        raise FetchFailed(
            f"{self._where}: more than {MAX_REDIRECTS} redirects; name the URL they lead to"
        )

    def close(self) -> None:
        """Give up all connections."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()

    def _first(
        self, method: str, target: Target, headers: Mapping[str, str], body: bytes
    ) -> _Request:
        merged = {"user-agent": USER_AGENT, "accept": "*/*", "accept-encoding": "identity"}
        if target.user:
            word = base64.b64encode(target.user.encode()).decode()
            merged["authorization"] = f"Basic {word}"
        merged |= {name.lower(): value.strip(" ") for name, value in headers.items()}
        for name, value in merged.items():
            # The library would repeat in its error what it cannot send.
            if not (name + value).isascii() or not (name + value).isprintable():
                raise AccessDenied(
                    f"{self._where}: the header {ascii(name)[1:-1]} has characters that no header "
                    "may have; correct the credentials it is made of"
                )
        return _Request(method=method, target=target, headers=merged, body=body)

    def _proxy(self, request: _Request) -> Proxy | None:
        target = request.target
        check_host(target.host, where=self._where)
        if not request.to_loopback and is_loopback(target.host):
            raise loopback_refused(self._where, target.peer)
        return find_proxy(
            target.scheme, target.host, target.port, self._settings, where=self._where
        )

    def _send(self, request: _Request, proxy: Proxy | None) -> httpcore.Response:
        target = request.target
        headers = [("host", target.authority), *request.headers.items()]
        if request.body or request.method == "POST":
            headers.append(("content-length", str(len(request.body))))
        # Through a proxy the target's address cannot be checked, and the proxy's is trusted.
        pool = self._pool(proxy, to_loopback=request.to_loopback or proxy is not None)
        peer = f"{target.peer} through the proxy {proxy.url}" if proxy else target.peer
        with self._translated(peer):
            url = httpcore.URL(
                scheme=target.scheme,
                host=target.netloc_host,
                port=target.port,
                target=target.path,
            )
            return pool.handle_request(
                httpcore.Request(
                    request.method,
                    url,
                    headers=headers,
                    content=request.body,
                    extensions={"timeout": _TIMEOUTS},
                )
            )

    def _answer(self, request: _Request, response: httpcore.Response) -> Answer:
        headers: dict[str, str] = {}
        for raw_name, raw_value in response.headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        peer = request.target.peer
        return Answer(
            status=response.status,
            headers=headers,
            url=request.target.url,
            where=self._where,
            peer=peer,
            body=self._body(response, peer),
        )

    def _body(self, response: httpcore.Response, peer: str) -> Generator[bytes, None, None]:
        _stream_of(response).begin_body()
        pieces = response.iter_stream()
        while True:
            with self._translated(peer):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _redirected(
        self,
        request: _Request,
        status: int,
        location: str,
        response: httpcore.Response,
        proxy: Proxy | None,
    ) -> _Request:
        here = request.target
        target = follow(here, location, where=self._where)
        if here.scheme == "https" and target.scheme == "http":
            raise SourceNotAllowed(
                f"{self._where}: {here.peer} redirects from https to http, which anybody on the "
                "way can change; name an https URL that stays one"
            )
        headers = request.headers
        if target.origin != here.origin:
            if request.body:
                # A form with a password or a token in it, most often.
                raise SourceNotAllowed(
                    f"{self._where}: {here.peer} redirects what it was sent to another server, "
                    f"{target.peer}, which must not see it; name that one if it is right"
                )
            headers = {name: value for name, value in headers.items() if name in CARRIED}
        address = response.extensions["network_stream"].get_extra_info("server_addr")[0]
        was_loopback = is_loopback(here.host if proxy else address)
        request = replace(request, target=target, headers=headers, to_loopback=was_loopback)
        if status in {307, 308} or request.method in {"GET", "HEAD"}:
            return request
        return replace(request, method="GET", body=b"")

    def _pool(self, proxy: Proxy | None, *, to_loopback: bool) -> httpcore.ConnectionPool:
        # Two pools, because a connection that one request may use is refused to another.
        key = (proxy, to_loopback)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._open_pool(proxy, to_loopback=to_loopback)
        return pool

    def _open_pool(self, proxy: Proxy | None, *, to_loopback: bool) -> httpcore.ConnectionPool:
        where = self._where
        trust = open_trust(self._settings, self._ca_certificate, where=where)
        through = None
        if proxy is not None:
            is_tls = proxy.url.startswith("https:")
            through = httpcore.Proxy(
                proxy.url, auth=proxy.auth, ssl_context=trust if is_tls else None
            )
        return httpcore.ConnectionPool(
            ssl_context=trust,
            proxy=through,
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=Backend(where, ask_system, to_loopback=to_loopback),
        )

    @contextmanager
    def _translated(self, peer: str) -> Iterator[None]:
        try:
            yield
        except FOREIGN as error:
            # What the library says of a request that it cannot write repeats a header of it.
            cause = None if isinstance(error, httpcore.ProtocolError) else error
            raise translate(error, where=self._where, peer=peer) from cause


def _stream_of(response: httpcore.Response) -> Stream:
    stream = response.extensions["network_stream"]
    assert isinstance(stream, Stream)
    return stream


def _drain(answer: Answer, method: str, response: httpcore.Response) -> None:
    """Read what is left of a small body, so that the connection can be used again."""
    length = answer.headers.get("content-length", "")
    is_small = length.isdecimal() and len(length) < 10 and int(length) <= MAX_DRAINED_BYTES
    if is_small or method == "HEAD":
        _stream_of(response).end_body_within(DRAIN_SECONDS)
        with suppress(FetchFailed):
            for _ in answer.body:
                pass
