"""Addresses that are never spoken to, whoever asks for it.

A document names a host, and the agent's pod stands where machines trust each other. So these are
never connected to, however they are written, and whatever name leads there:

- link-local: 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291). There clouds keep the servers that
  hand out the credentials of a node or a pod (AWS, Azure, GCP, OpenStack: 169.254.169.254; ECS:
  169.254.170.2; EKS Pod Identity: 169.254.170.23).
- such servers elsewhere, by their vendors' documentation: fd00:ec2::/32 (AWS), fd20:ce::254 (GCP),
  100.100.100.200 and fd00:100::100:200 (Alibaba), 168.63.129.16 (Azure), 192.0.0.192 and
  fd00:c1::a9fe:a9fe (Oracle), fd00:42::42 (Scaleway), fd00:a9fe:a9fe::1 (Linode).
- what is no single host: 0.0.0.0/8 and ``::`` (Linux connects them to itself), multicast,
  240.0.0.0/4 with broadcast (RFC 6890).

IPv6 addresses that carry an IPv4 address are judged by both: mapped (RFC 4291), compatible, NAT64
(RFC 6052; the local prefix of RFC 8215 in its /48 and its /96 form), 6to4 (RFC 3056), Teredo
(RFC 4380) and ISATAP (RFC 5214). A NAT64 prefix of an operator's own choice cannot be known.

Private addresses and loopback are allowed: registries and stores of a cluster live there. Only a
redirect must not lead from elsewhere to loopback; that is ``http_client``'s to refuse.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from threading import Thread

from sidecar.errors import FetchFailed, SourceNotAllowed

MAX_ADDRESSES = 8
"""Of one name; all of them are checked, and so many are tried."""

Address = IPv4Address | IPv6Address
LookUp = Callable[[str, int], tuple[str, ...]]
"""From a name and a port to addresses."""

_METADATA = "a cloud's metadata server"
_LINK_LOCAL = "link-local, where clouds keep their metadata servers"
_FORBIDDEN: tuple[tuple[IPv4Network | IPv6Network, str], ...] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("169.254.0.0/16", _LINK_LOCAL),
        ("fe80::/10", _LINK_LOCAL),
        ("100.100.100.200", _METADATA),
        ("168.63.129.16", _METADATA),
        ("192.0.0.192", _METADATA),
        ("fd00:ec2::/32", _METADATA),
        ("fd20:ce::254", _METADATA),
        ("fd00:100::100:200", _METADATA),
        ("fd00:c1::a9fe:a9fe", _METADATA),
        ("fd00:42::42", _METADATA),
        ("fd00:a9fe:a9fe::1", _METADATA),
        ("0.0.0.0/8", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_FORBIDDEN_NAMES = frozenset(
    {
        "metadata.google.internal",
        "metadata.goog",
        "metadata.tencentyun.com",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
"""Their addresses are forbidden anyway; a proxy, which looks names up itself, must hear no name."""

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")


def check_host(host: str, *, where: str) -> None:
    """Raise ``SourceNotAllowed`` for a host that is, or can only mean, a forbidden address.

    ``host`` is a name or a literal, without a port; IPv6 with or without brackets. Names are not
    resolved here: ``resolve`` does that. ``where`` is the source in words.
    """
    address = parse_literal(host, where=where)
    if address is not None:
        check_address(address, host, where=where)
    elif host.rstrip(".").lower() in _FORBIDDEN_NAMES:
        raise _not_allowed(where, host, _METADATA)


def ask_system(host: str, port: int) -> tuple[str, ...]:
    """Look a name up as the system does. Raises ``OSError`` and ``UnicodeError``."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


def resolve(
    host: str, port: int, *, where: str, seconds: float, look_up: LookUp = ask_system
) -> tuple[str, ...]:
    """Return the addresses of a host, all of them checked; connect to these and to nothing else.

    ``look_up`` is asked once, and not for literals. Raises ``SourceNotAllowed`` when any of the
    addresses is forbidden, and ``FetchFailed`` when there is none within ``seconds``.
    """
    check_host(host, where=where)
    literal = parse_literal(host, where=where)
    if literal is not None:
        return (str(literal),)
    found = _look_up(host, port, look_up, where, seconds)
    for one in found:
        check_address(ip_address(one), host, where=where)
    return found[:MAX_ADDRESSES]


def check_address(address: Address, host: str, *, where: str) -> None:
    """Raise ``SourceNotAllowed`` for a forbidden address, which ``host`` led to."""
    for one in (address, *_carried(address)):
        for network, what in _FORBIDDEN:
            if one in network:
                raise _not_allowed(where, host, what)


def is_loopback(host: str) -> bool:
    """Tell whether an address, or a name by itself (RFC 6761), is this machine's own."""
    plain = host.strip("[]").rstrip(".").lower()
    if plain == "localhost" or plain.endswith(".localhost"):
        return True
    try:
        address = ip_address(plain)
    except ValueError:
        return False
    return any(one.is_loopback for one in (address, *_carried(address)))


def parse_literal(host: str, *, where: str) -> Address | None:
    """Return the address that a host is written as; None for a name.

    Raises ``SourceNotAllowed`` for what is neither, or is one thing to one reader and another to
    the next: numbers that only some take for an address (``2852039166``, ``0xa9.0xfe.1``, ``127.1``
    or with zeros in front; the URL standard, "ends in a number"), zone ids, other than ASCII.
    """
    if host.startswith("[") or ":" in host:
        with suppress(ValueError):
            address = IPv6Address(host[1:-1] if host[:1] + host[-1:] == "[]" else host)
            if address.scope_id is None:
                return address
    elif not _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        if len(host) <= 253 and _NAME.fullmatch(host.removesuffix(".")):
            return None
    else:
        with suppress(ValueError):
            return IPv4Address(host)
    raise SourceNotAllowed(
        f"{where}: the host {_shown(host)} is neither a name nor an address; write an address as "
        "four decimal numbers or as IPv6 in brackets without a zone, and a name in ASCII"
    )


def _look_up(host: str, port: int, look_up: LookUp, where: str, seconds: float) -> tuple[str, ...]:
    """Look a name up in a thread: the call knows no deadline, so that it may be left behind."""
    found: list[str] = []
    problem: list[str] = []

    def ask() -> None:
        try:
            found.extend(look_up(host, port))
        except (OSError, UnicodeError) as error:
            problem.append(getattr(error, "strerror", None) or "no valid name")

    thread = Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return tuple(found)
    why = f" ({problem[0]})" if problem else f" within {seconds:g} s"
    raise FetchFailed(f"{where}: the name {_shown(host)} has no address{why}")


def _carried(address: Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that an IPv6 address carries."""
    if isinstance(address, IPv4Address):
        return []
    value = int(address)
    low = IPv4Address(value & 0xFFFFFFFF)
    found = []
    if address.ipv4_mapped is not None or address in _NAT64 or address in _TRANSLATED:
        found.append(low)
    if address in _COMPATIBLE and value > 1:
        found.append(low)
    if address in _NAT64_LOCAL:
        # RFC 6052, 2.2: a prefix shorter than 96 skips bits 64 to 71. Of the two readings, the one
        # that is not meant begins with zeros.
        short = IPv4Address((value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF)
        found += [one for one in (low, short) if int(one) >> 24]
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if value >> 32 & 0xFCFFFFFF == 0x5EFE:
        # ISATAP: ::[02]00:5efe:a.b.c.d behind any prefix.
        found.append(low)
    return found


def _not_allowed(where: str, host: str, what: str) -> SourceNotAllowed:
    return SourceNotAllowed(
        f"{where}: {_shown(host)} leads to an address that is never spoken to ({what})"
    )


def _shown(host: str) -> str:
    return ascii(host[:100])[1:-1]
