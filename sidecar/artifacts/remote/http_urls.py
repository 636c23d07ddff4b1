"""URLs as the HTTP client takes them: one parser, so that what is checked is what is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urljoin, urlsplit

from sidecar.errors import SourceNotAllowed, UnsupportedSource

_PORTS = {"http": 80, "https": 443}
_SAFE = "%/:@!$&'()*+,;=~?[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one request is sent to."""

    scheme: str
    host: str
    """In lower case, IPv6 without brackets."""
    port: int
    path: str = field(repr=False)
    """With the query, as it goes over the wire. May hold a signature."""
    user: str = field(default="", repr=False)
    """``user:password`` of the URL, decoded."""

    @property
    def netloc_host(self) -> str:
        """The host as URLs have it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def peer(self) -> str:
        """Host and port, for people."""
        return f"{self.netloc_host}:{self.port}"

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return self.netloc_host if self.port == _PORTS[self.scheme] else self.peer

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials are good for (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """The whole, without ``user``."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_target(url: str, *, where: str) -> Target:
    """Parse an absolute URL. Raises ``UnsupportedSource`` for what is no http or https URL."""
    try:
        if not url.isprintable():
            raise ValueError("urlsplit would leave these characters out")
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise UnsupportedSource(
            f"{where}: this is no URL of the form https://host[:port]/path; escape what is no "
            "letter or digit in a user name or a password (%2F for a slash)"
        )
    user = ""
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    path = parts.path or "/"
    return Target(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        path=quote(path + (f"?{parts.query}" if parts.query else ""), safe=_SAFE),
        user=user,
    )


def follow(here: Target, location: str, *, where: str) -> Target:
    """Return where a redirect leads; no user name of it is ever used.

    ``location`` is the header's value, its bytes as characters (Latin-1).

    Raises ``SourceNotAllowed`` for what is no http or https URL.
    """
    try:
        # Bytes beyond ASCII come as they were sent, most often UTF-8.
        ascii_only = quote(location.strip().encode("latin-1"), safe=_SAFE + "#")
        found = parse_target(urljoin(here.url, ascii_only).partition("#")[0], where=where)
    except (ValueError, UnsupportedSource):
        raise SourceNotAllowed(
            f"{where}: {here.peer} redirects to something that is no http or https URL"
        ) from None
    return Target(scheme=found.scheme, host=found.host, port=found.port, path=found.path)
