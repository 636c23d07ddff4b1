"""Which proxy a request goes through, by the environment variables that every HTTP client knows.

There is no standard; this is what curl, Go and Python's requests have in common: HTTPS_PROXY and
HTTP_PROXY by the scheme of the target, ALL_PROXY for both, the name in small letters first; in
NO_PROXY ``*``, names (which hold for the names below them too, with or without a dot in front),
addresses and networks (``10.0.0.0/8``, as Go and curl since 7.86 read them), each with or without
a port. Loopback is never asked for through a proxy, as in Go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

from sidecar.artifacts.remote.addresses import is_loopback
from sidecar.errors import UnsupportedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where requests are sent instead of to their target."""

    url: str
    """Scheme, host and port; nothing secret."""
    auth: tuple[bytes, bytes] | None = field(repr=False)
    """User and password."""


def find_proxy(
    scheme: str, host: str, port: int, settings: Mapping[str, str], *, where: str
) -> Proxy | None:
    """Return the proxy for a target, None for a direct connection.

    ``host`` is without brackets. Raises ``UnsupportedSource`` for a proxy that is not spoken to.
    """
    text = _setting(settings, f"{scheme}_proxy") or _setting(settings, "all_proxy")
    if not text or is_loopback(host) or _is_exempt(host, port, _setting(settings, "no_proxy")):
        return None
    return _parse(text, where)


def _setting(settings: Mapping[str, str], name: str) -> str:
    return (settings.get(name) or settings.get(name.upper()) or "").strip()


def _parse(text: str, where: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UnsupportedSource(
            f"{where}: the proxy that the environment names is none that is known; "
            "write http://host:port or https://host:port"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username).encode(), unquote(parts.password or "").encode())
    default = 443 if parts.scheme == "https" else 80
    return Proxy(url=f"{parts.scheme}://{host}:{port or default}", auth=auth)


def _is_exempt(host: str, port: int, listed: str) -> bool:
    name = host.rstrip(".").lower()
    return any(_holds(one, name, port) for one in listed.lower().replace(",", " ").split())


def _holds(pattern: str, name: str, port: int) -> bool:
    if pattern == "*":
        return True
    try:
        return ip_address(name) in ip_network(pattern.strip("[]"), strict=False)
    except ValueError:
        # A name, or an address with a port.
        pass
    head, colon, tail = pattern.rpartition(":")
    if colon and tail.isdigit():
        return tail == str(port) and _holds(head, name, port)
    wanted = pattern.removeprefix("*").strip(".")
    return bool(wanted) and (name == wanted or name.endswith(f".{wanted}"))
