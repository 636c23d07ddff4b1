"""Certificates that the server makes itself: when, for whom, and what is never used."""

import base64
import os
import ssl
import stat

import pytest

from sidecar.cluster.webhook.files import PairFiles
from sidecar.cluster.webhook.pairs import CertificateError, Facts, make_pair, read_facts
from sidecar.cluster.webhook.self_signed import RENEW_SECONDS, read_secret, why_renew

NAMES = ("hook.place.svc", "hook.place.svc.cluster.local")
DAY = 86400.0


def facts(days, names=NAMES):
    return Facts(not_after=days * DAY, names=frozenset(names))


def secret(**texts):
    named = {name.replace("_", "."): text for name, text in texts.items()}
    return {
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in named.items()}
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "none that can be read"),
        (facts(90, NAMES[:1]), "another service"),
        (facts(90, ()), "another service"),
        (facts(29), "ends in 29 days"),
        (facts(-5), "ends in 0 days"),
        (facts(31), ""),
        (facts(90, (*NAMES, "other")), ""),
    ],
)
def test_a_certificate_is_renewed_for_a_reason(found, reason):
    renewed = why_renew(found, NAMES, 0.0)
    assert (reason in renewed) if reason else renewed == ""


async def test_a_pair_is_for_its_names_and_lasts_longer_than_its_renewal():
    pair = await make_pair(NAMES)
    found = await read_facts(pair.certificate)
    assert found.names == set(NAMES)
    made = ssl.cert_time_to_seconds("Jan  1 00:00:00 2026 GMT")
    assert found.not_after > made + RENEW_SECONDS
    assert "PRIVATE" not in repr(pair)
    assert pair.key not in repr(pair)


async def test_no_two_pairs_are_the_same():
    first, second = await make_pair(NAMES), await make_pair(NAMES)
    assert first.key != second.key


async def test_what_is_no_name_and_what_is_no_certificate_are_errors():
    with pytest.raises(CertificateError, match="no DNS name"):
        await make_pair(["a\nbasicConstraints = CA:TRUE"])
    with pytest.raises(CertificateError, match="openssl x509"):
        await read_facts("no certificate")


async def test_without_the_program_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CertificateError, match="openssl program is missing; use --tls-cert-file"):
        await make_pair(NAMES)


async def test_files_hold_a_pair_or_what_they_held(tmp_path):
    files = PairFiles(tmp_path)
    first, second = await make_pair(NAMES), await make_pair(NAMES)
    files.write(first)
    broken = type(first)(certificate=second.certificate, key=first.key)
    with pytest.raises(CertificateError, match="no pair"):
        files.write(broken)
    assert files.certificate.read_text() == first.certificate
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    files.write(second)
    assert files.key.read_text() == second.key
    assert len(os.listdir(tmp_path)) == 2


def test_a_secret_that_is_not_all_there_holds_nothing():
    whole = {"tls_crt": "A", "tls_key": "K", "ca_crt": "AB"}
    found = read_secret(secret(**whole))
    assert found is not None
    assert (found.pair.certificate, found.pair.key, found.bundle) == ("A", "K", "AB")
    for name in whole:
        assert read_secret(secret(**{k: v for k, v in whole.items() if k != name})) is None
    assert read_secret({}) is None
    assert read_secret({"data": None}) is None
    assert read_secret({"data": {name.replace("_", "."): "%" for name in whole}}) is None
    # A bundle by which nobody trusts the pair.
    assert read_secret(secret(**whole | {"ca_crt": "B"})) is None
