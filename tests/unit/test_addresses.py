"""Which addresses are never spoken to, however they are written."""

from __future__ import annotations

import socket
import threading
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.addresses import (
    check_address,
    check_host,
    is_loopback,
    parse_literal,
    resolve,
)
from sidecar.errors import FetchFailed, SourceNotAllowed

WHERE = "https://models.example/x"

FORBIDDEN = [
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.1", "fe80::1", "febf::1"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fd00:c1::a9fe:a9fe"),
    *("fd00:a9fe:a9fe::1", "fd00:100::100:200", "100.100.100.200", "168.63.129.16"),
    *("192.0.0.192", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.1.1.1", "ff02::1"),
    *("240.0.0.1", "255.255.255.255"),
]
ALLOWED = [
    *("10.0.0.1", "192.168.1.1", "172.16.0.1", "127.0.0.1", "::1", "8.8.8.8", "fd00::1"),
    *("2001:db8::1", "64:ff9b::808:808", "64:ff9b:1::808:808", "64:ff9b:1:808:8:800::"),
    *("100.100.100.201", "168.63.129.17", "169.253.255.255", "169.255.0.0", "fec0::1"),
    *("::ffff:10.0.0.1", "2002:808:808::1", "model-store", "a.example", "a.example.", "_x.svc"),
    *("localhost", "[::1]", "1.example", "0x.example", "xn--mgbh0fb.example", "3com.com"),
]
AMBIGUOUS = [
    *("2852039166", "0xa9fea9fe", "0xA9.0xfe.0xa9.0xfe", "0251.0376.0251.0376", "169.254.43518"),
    *("127.1", "0", "0x", "127.0.0.01", "169.254.169.254.", "1.2.3.4.5", "256.1.1.1", "a.1"),
    *("a.0x1", "fe80::1%eth0", "[fe80::1%25eth0]", "[::1", "::1]x", "::ffff:1.2.3", "1:2"),
    *("\uff11\uff16\uff19.254.169.254", "\u2460.example", "b\u00fccher.example", "", ".", "a..b"),
    *("a b", "a\\b", "a/b", "a@b", "a#b", "-a.example", "x" * 64, "x." * 130 + "y", "a\n", "\0"),
]


@pytest.mark.parametrize("host", FORBIDDEN)
def test_forbidden_addresses_are_refused_in_every_form(host):
    forms = [host, f"[{host}]"] if ":" in host else [host]
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        forms += [address.exploded, address.exploded.upper()]
    else:
        forms += carriers(address)
    for form in forms:
        with pytest.raises(SourceNotAllowed, match="never spoken to"):
            check_host(form, where=WHERE)


def carriers(address: IPv4Address) -> list[str]:
    """IPv6 addresses that lead to an IPv4 address, each by the RFC that says so."""
    octets = address.packed
    value = int(address)
    low = f"{octets[0]:x}{octets[1]:02x}:{octets[2]:x}{octets[3]:02x}"
    inverted = value ^ 0xFFFFFFFF
    carried = [
        f"::ffff:{address}",
        f"::ffff:0:{low}",
        f"64:ff9b::{address}",
        f"64:ff9b:1::{low}",
        str(IPv6Address((0x0064FF9B0001 << 80) | ((value >> 16) << 64) | ((value & 0xFFFF) << 40))),
        f"2002:{low}::1",
        f"2001:0:808:808:8000:0:{inverted >> 16:x}:{inverted & 0xFFFF:x}",
        f"2001:db8::5efe:{low}",
        f"2001:db8::200:5efe:{low}",
    ]
    # Below 1.0.0.0 these forms mean something else.
    return [*carried, f"::{address}"] if octets[0] else [carried[0], carried[5]]


@pytest.mark.parametrize("host", ALLOWED)
def test_what_is_no_forbidden_address_passes(host):
    check_host(host, where=WHERE)


@pytest.mark.parametrize("host", AMBIGUOUS)
def test_a_host_that_readers_take_for_different_things_is_refused(host):
    with pytest.raises(SourceNotAllowed, match="neither a name nor an address") as caught:
        check_host(host, where=WHERE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "host",
    ["metadata.google.internal", "Metadata.Google.Internal.", "metadata.goog", "instance-data"],
)
def test_names_of_metadata_servers_are_not_even_told_to_a_proxy(host):
    with pytest.raises(SourceNotAllowed, match="metadata"):
        check_host(host, where=WHERE)


@given(st.integers(0, 2**32 - 1))
def test_all_that_the_system_takes_for_an_ipv4_address_is_judged_as_one(value):
    address = IPv4Address(value)
    spelled = [
        str(value),
        hex(value),
        oct(value).replace("0o", "0"),
        f"{value >> 24}.{value & 0xFFFFFF}",
    ]
    for form in spelled:
        # The system's own reader, which getaddrinfo uses too.
        assert socket.inet_aton(form) == address.packed
        with pytest.raises(SourceNotAllowed):
            check_host(form, where=WHERE)
    assert parse_literal(str(address), where=WHERE) == address


@given(st.integers(0, 2**32 - 1))
def test_an_ipv6_address_is_no_better_than_the_ipv4_address_it_carries(value):
    address = IPv4Address(value)
    for form in carriers(address):
        if is_refused(address):
            assert is_refused(ip_address(form)), form
        assert is_loopback(form) or not address.is_loopback


def is_refused(address: IPv4Address | IPv6Address) -> bool:
    try:
        check_address(address, "x", where=WHERE)
    except SourceNotAllowed:
        return True
    return False


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("64:ff9b::7f00:1", True),
        ("localhost", True),
        ("LocalHost.", True),
        ("a.localhost", True),
        ("128.0.0.1", False),
        ("::2", False),
        ("notlocalhost", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback_is_told_from_the_rest(host, expected):
    assert is_loopback(host) is expected


def test_a_name_is_resolved_to_all_its_addresses():
    found = resolve("localhost", 443, where=WHERE, seconds=10)
    assert set(found) <= {"127.0.0.1", "::1"}
    assert found


def test_a_literal_needs_no_look_up():
    found = resolve("[2001:db8::1]", 443, where=WHERE, seconds=10, look_up=no_look_up)
    assert found == ("2001:db8::1",)


def no_look_up(host: str, port: int) -> tuple[str, ...]:
    raise AssertionError("nobody is to be asked")


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:a9fe:a9fe]", "2852039166"])
def test_what_must_not_be_spoken_to_needs_no_look_up_either(host):
    with pytest.raises(SourceNotAllowed):
        resolve(host, 80, where=WHERE, seconds=10, look_up=no_look_up)


@pytest.mark.parametrize("address", [*FORBIDDEN, "fe80::1%lo"])
def test_a_name_that_leads_to_a_forbidden_address_is_refused(address):
    both = ("8.8.8.8", address)
    with pytest.raises(SourceNotAllowed, match=r"innocent\.example leads to"):
        resolve("innocent.example", 80, where=WHERE, seconds=10, look_up=lambda *_: both)


def test_a_look_up_that_fails_is_told_and_may_do_better_later():
    def fail(host: str, port: int) -> tuple[str, ...]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchFailed, match=r"far\.example has no address \(Name or service not"):
        resolve("far.example", 443, where=WHERE, seconds=10, look_up=fail)


def test_a_look_up_ends_at_its_deadline():
    answered = threading.Event()

    def hang(host: str, port: int) -> tuple[str, ...]:
        answered.wait(30)
        return ("8.8.8.8",)

    before = time.monotonic()
    with pytest.raises(FetchFailed, match=r"far\.example has no address within 0\.05 s"):
        resolve("far.example", 443, where=WHERE, seconds=0.05, look_up=hang)
    assert time.monotonic() - before < 10
    answered.set()
