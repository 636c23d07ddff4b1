"""A client of an object store, made for the identity of the moment.

obstore reads the process's environment whenever it makes a client: keys, endpoints, switches. All
of what it would take from there is said here, so that a mounted secret is never mixed with it:
identities through a credential provider, which goes before every key of the environment; the
server, the switches and the transport through explicit settings, which replace it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from sidecar import __version__
from sidecar.artifacts.remote.addresses import check_host, resolve
from sidecar.artifacts.remote.certificates import ca_text
from sidecar.artifacts.remote.identity import Grant, check_grant
from sidecar.artifacts.remote.objects_errors import is_foreign
from sidecar.artifacts.remote.objects_meanings import Dialect, Story
from sidecar.artifacts.remote.port import CONNECT_SECONDS, READ_SECONDS
from sidecar.artifacts.remote.proxies import find_proxy
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import FetchFailed, UnsupportedSource

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

NOWHERE = "http://127.0.0.1:0"
"""A proxy that cannot be there: nothing listens on port 0."""
LOOK_SECONDS = 60.0
"""One request of a look, with its whole answer: a page of a listing, what an object is."""
PART_SECONDS = 3600.0
"""One read of a part of an object. ``READ_SECONDS`` of silence end it much sooner."""
LOOK_RETRIES = 2
"""A look is many requests, and one of them may meet a busy server."""
RETRY_SECONDS = 10.0
KEEPALIVE_SECONDS = 3.0
"""Some servers close idle connections after 5 s; a request must not meet that moment."""

_URL = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/\[\]-]+")
"""RFC 3986, without what begins a query. Over anything else obstore panics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the URL of a source says."""

    where: str
    """The URL without anything secret."""
    bucket: str
    key: str
    """Without slashes around it; empty for the whole bucket."""
    is_prefix: bool
    """It ends in a slash: objects below it are meant, and no object of its name."""
    host: str = ""
    """The server, where the URL names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a bucket is."""

    url: str
    region: str = ""
    is_virtual_host: bool = False
    """The bucket is in the host's name, not in the path."""
    is_own: bool = False
    """Named by a setting; else it is the cloud's."""

    @property
    def host(self) -> str:
        """Return the host without a port."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Return the port, also where the URL names none."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """One kind of object store."""

    dialect: Dialect
    find_server: Callable[[Place, Credentials], Server]
    """May ask the network. Raises ``ArtifactError``, as the next."""
    identify: Callable[[Place, Server, Credentials], Grant]
    build: Callable[[Place, Server, Credentials, Grant, ClientConfig, RetryConfig], ObjectStore]
    """Makes a client; asks nobody."""
    listings_may_end_early: bool = False
    """obstore takes for the end of a listing what is no listing (a page of a proxy), and one that
    says it goes on without saying where."""


class Access:
    """The way to one bucket. Threads may share it."""

    def __init__(self, cloud: Cloud, place: Place, credentials: Credentials) -> None:
        self._cloud = cloud
        self._place = place
        self._credentials = credentials
        self._lock = Lock()
        self._server: Server | None = None
        self._grant: Grant | None = None
        self._use_until = 0.0
        self._stores: dict[bool, ObjectStore] = {}

    @property
    def listings_may_end_early(self) -> bool:
        """See ``Cloud``."""
        return self._cloud.listings_may_end_early

    def open(self, *, is_look: bool) -> tuple[ObjectStore, Story]:
        """Return a client for now, and what its errors are told about. Raises ``ArtifactError``.

        One for a look tries again a little; one for reading makes a single attempt.
        """
        with self._lock:
            server = self._server
            if server is None:
                server = self._server = self._find_server()
            grant = self._current_grant(server)
            store = self._stores.get(is_look)
            if store is None:
                store = self._stores[is_look] = self._build(server, grant, is_look=is_look)
            return store, self._story(server, grant)

    def close(self) -> None:
        """Give up all connections."""
        with self._lock:
            self._stores.clear()

    def _find_server(self) -> Server:
        server = self._cloud.find_server(self._place, self._credentials)
        parts = urlsplit(server.url)
        values, where = self._credentials.values, self._place.where
        proxy = find_proxy(parts.scheme, server.host, server.port, values, where=where)
        if server.is_own and proxy is None:
            resolve(server.host, server.port, where=where, seconds=CONNECT_SECONDS)
        return server

    def _current_grant(self, server: Server) -> Grant:
        if self._grant is None or time.monotonic() >= self._use_until:
            grant = self._cloud.identify(self._place, server, self._credentials)
            check_grant(grant, where=self._place.where)
            seconds = float("inf") if grant.seconds is None else grant.seconds
            self._use_until = time.monotonic() + seconds
            if self._grant is None or grant.secret != self._grant.secret:
                self._stores.clear()
            self._grant = grant
        return self._grant

    def _build(self, server: Server, grant: Grant, *, is_look: bool) -> ObjectStore:
        options = self._client_options(server)
        options["timeout"] = timedelta(seconds=LOOK_SECONDS if is_look else PART_SECONDS)
        retry: RetryConfig = {
            "max_retries": LOOK_RETRIES if is_look else 0,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        }
        try:
            return self._cloud.build(self._place, server, self._credentials, grant, options, retry)
        except BaseException as error:
            if not is_foreign(error):
                raise
            raise FetchFailed(
                f"{self._place.where}: no client can be made; check {self._cloud.dialect.settings} "
                "in the agent's environment, the proxy and the certificates"
            ) from None

    def _client_options(self, server: Server) -> ClientConfig:
        where = self._place.where
        options: ClientConfig = {
            "allow_http": server.url.startswith("http://"),
            "allow_invalid_certificates": False,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "pool_idle_timeout": timedelta(seconds=KEEPALIVE_SECONDS),
            "user_agent": f"model-sidecar/{__version__}",
        }
        scheme, values = urlsplit(server.url).scheme, self._credentials.values
        proxy = find_proxy(scheme, server.host, server.port, values, where=where)
        if proxy is None:
            # obstore follows redirects, and cannot be told not to. One to another host, which may
            # be a metadata server, ends at a proxy that is not there.
            options |= {"proxy_url": NOWHERE, "proxy_excludes": server.host}
        else:
            options["proxy_url"] = _with_user(proxy.url, proxy.auth)
        if certificates := ca_text(self._credentials, where=where):
            options["root_certificate"] = certificates
        return options

    def _story(self, server: Server, grant: Grant) -> Story:
        return Story(
            where=self._place.where,
            bucket=self._place.bucket,
            host=urlsplit(server.url).netloc,
            grant=grant,
            dialect=self._cloud.dialect,
        )


def own_server(text: str, setting: str, *, scheme: str, where: str) -> str:
    """Return the URL of a server that a setting names, ``scheme`` being what it may leave out.

    Raises ``UnsupportedSource`` for what is none, and ``SourceNotAllowed`` for a metadata server.
    """
    url = text if "://" in text else f"{scheme}://{text}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    is_plain = parts.username is None and _URL.fullmatch(url) is not None
    if parts.scheme not in {"http", "https"} or not host or not is_plain:
        raise UnsupportedSource(
            f"{where}: {setting} is no URL of a server; write {scheme}://host:port"
        )
    check_host(host, where=where)
    return url.rstrip("/")


def _with_user(url: str, auth: tuple[bytes, bytes] | None) -> str:
    if auth is None:
        return url
    scheme, _, host = url.partition("://")
    user, password = (quote(part, safe="") for part in auth)
    return f"{scheme}://{user}:{password}@{host}"
