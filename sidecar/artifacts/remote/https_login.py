"""What a request to a URL says of who asks, and what to tell people when that does not do."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from sidecar.artifacts.remote.addresses import is_loopback
from sidecar.artifacts.remote.http_urls import Target
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied

_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "range",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say how we speak, and not who we are."""

_SIGNED: Mapping[str, frozenset[str]] = {
    "sig": frozenset(
        {"se", "si", "sig", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr"}
        | {"st", "sv"}
    ),
    "signature": frozenset(
        {
            "awsaccesskeyid",
            "expires",
            "googleaccessid",
            "key-pair-id",
            "ossaccesskeyid",
            "policy",
            "signature",
            "x-amz-security-token",
        }
    ),
}
"""Query parameters of a signed URL, by the one that makes it signed: Azure's SAS; version 2 of S3's
signatures and their like, CloudFront."""
_SIGNED_PREFIXES = ("x-amz-", "x-goog-")
_SECRET = frozenset({"access_token", "api_key", "apikey", "auth_token", "token"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Headers that name us, and a sentence for when they are refused."""

    headers: Mapping[str, str] = field(repr=False)
    refused: str


def read_login(target: Target, credentials: Credentials, *, where: str) -> Login:
    """Return what to send to a target: the first that is there of

    - user and password of the URL;
    - KServe's headers, a JSON object: ``<host>-headers``, or ``headers`` of a mounted secret whose
      ``https-host`` is the host (kserve: pkg/agent/storage/https.go, pkg/credentials/https);
    - of a mounted secret ``token`` (Bearer), or ``username`` and ``password`` (Basic).

    A mounted secret with ``https-host`` says nothing to any other host. Raises ``AccessDenied`` for
    headers that cannot be sent, and for a token or a password of a mounted secret that anybody on
    the way could read.
    """
    values, holder = credentials.values, credentials.where
    told = values.get("https-host", "").lower() if credentials.is_mounted else ""
    if target.user:
        return _login({}, "the user and password of the URL are not accepted")
    if told and told != target.host:
        return _login({}, f"{holder} is for another host (its https-host), so it was not used")
    name = next((one for one in values if one.lower() == f"{target.host}-headers"), "")
    if not name and told:
        name = "headers"
    if values.get(name):
        headers = _parse_headers(values[name], name, holder, where)
        return _login(headers, f"the headers of {holder} are not accepted; check its key {name}")
    if credentials.is_mounted and (values.get("token") or values.get("username")):
        _refuse_plain(target, holder, where)
    if credentials.is_mounted and values.get("token"):
        return _login(
            {"authorization": f"Bearer {values['token']}"},
            f"the token of {holder} is not accepted; check its key token",
        )
    if credentials.is_mounted and values.get("username"):
        pair = f"{values['username']}:{values.get('password', '')}"
        return _login(
            {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"},
            f"the user of {holder} is not accepted; check its keys username and password",
        )
    if signing_names(target):
        return _login({}, "the signed URL is not accepted; it may have expired: sign a new one")
    if credentials.is_mounted:
        return _login(
            {}, f"{holder} has no key token, nor username and password, so none were sent"
        )
    return _login(
        {},
        "no credentials were sent; mount a secret with a key token, or username and password, "
        "and name it in `credentials`",
    )


def _refuse_plain(target: Target, holder: str, where: str) -> None:
    if target.scheme == "http" and not is_loopback(target.host):
        raise AccessDenied(
            f"{where}: {holder} has a token or a password, which anybody on the way could read "
            "over plain http; write https://, or take `credentials` away if none are needed"
        )


def signing_names(target: Target) -> frozenset[str]:
    """Return the query parameters, in lower case, that sign a URL: other ones at every signing."""
    names = {name.lower() for name, _ in _query(target)}
    found = {name for name in names if name.startswith(_SIGNED_PREFIXES)}
    for mark, companions in _SIGNED.items():
        if mark in names:
            found |= names & companions
    return frozenset(found)


def identity_of(target: Target) -> str:
    """Return the URL without what signs it and without secrets: which file it is."""
    left_out = signing_names(target) | _SECRET
    kept = [(name, value) for name, value in _query(target) if name.lower() not in left_out]
    return f"{target.scheme}://{target.peer}{urlsplit(target.path).path}?{urlencode(kept)}"


def _query(target: Target) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(target.path).query, keep_blank_values=True)


def _login(headers: Mapping[str, str], refused: str) -> Login:
    return Login(headers=headers, refused=refused)


def _parse_headers(text: str, name: str, holder: str, where: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise AccessDenied(
            f'{where}: the key {name} of {holder} is no JSON object like {{"Authorization": "..."}}'
        )
    for one in found:
        if not _FIELD_NAME.fullmatch(one) or one.lower() in _OURS:
            raise AccessDenied(
                f"{where}: the key {name} of {holder} has a header that cannot be set; leave it out"
            )
    return {header.lower(): value for header, value in found.items()}
