"""How a registry is answered that asks who we are.

Protocol: https://distribution.github.io/distribution/spec/auth/token/ for bearer tokens, RFC 7235
for challenges. Credentials go to the registry (Basic) or to the token server that it names
(Bearer), a token to the registry only; the client takes both off on the way to another host.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from urllib.request import parse_http_list

from sidecar.artifacts.remote.addresses import is_loopback
from sidecar.artifacts.remote.http_client import Client
from sidecar.artifacts.remote.oci_login import Found, find_login
from sidecar.artifacts.remote.oci_reference import Reference
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied, FetchFailed, SourceNotAllowed

MAX_TOKEN_BYTES = 1 << 20


class Authorizer:
    """The ``Authorization`` header for one repository. Threads may share it."""

    def __init__(self, reference: Reference, credentials: Credentials, client: Client) -> None:
        """No I/O; credentials are looked for when the registry asks for them."""
        self._reference = reference
        self._credentials = credentials
        self._client = client
        self._lock = Lock()
        self._header = ""

    @property
    def header(self) -> str:
        """What to send; empty as long as nobody asked."""
        return self._header

    @property
    def user(self) -> str:
        """A hash of the user and password that there are to send; empty where there are none."""
        login = None
        # A broken config matters once the registry asks.
        with suppress(AccessDenied):
            login = find_login(self._reference, self._credentials).login
        return hashlib.sha256(login.basic.encode()).hexdigest() if login is not None else ""

    def answer(self, challenge: str, used: str) -> None:
        """Get another header than the one that was ``used`` and refused with a challenge.

        Raises ``AccessDenied`` when there is none, and ``FetchFailed``.
        """
        with self._lock:
            # A token that another thread has got meanwhile will do.
            if self._header == used:
                self._header = self._ask(parse_challenges(challenge))

    def denied(self) -> AccessDenied:
        """Return the error for a registry that refuses us whatever is sent."""
        found = find_login(self._reference, self._credentials)
        if found.login is None:
            return self._missing(found)
        return AccessDenied(
            f"401 from {self._reference.where}: the registry does not accept the user and password "
            f"of {self._credentials.where} for this repository; check them and what they may read"
        )

    def _ask(self, challenges: dict[str, dict[str, str]]) -> str:
        found = find_login(self._reference, self._credentials)
        if (bearer := challenges.get("bearer")) is not None:
            return f"Bearer {self._token(bearer, found)}"
        if "basic" not in challenges:
            raise AccessDenied(
                f"401 from {self._reference.where}: the registry asks for credentials in a way "
                "that is not known (neither Basic nor Bearer)"
            )
        if found.login is None:
            raise self._missing(found)
        return found.login.basic

    def _token(self, challenge: dict[str, str], found: Found) -> str:
        where = self._reference.where
        url = self._token_url(challenge)
        headers = {"Accept": "application/json"}
        if found.login is not None:
            headers["Authorization"] = found.login.basic
        with self._client.open("GET", url, headers=headers) as answer:
            if answer.status == 429 or answer.status >= 500:
                raise FetchFailed(
                    f"{answer.status} from the token server of {where}: it is tried again"
                )
            if answer.status != 200:
                if found.login is None:
                    raise self._missing(found)
                raise AccessDenied(
                    f"{answer.status} from the token server of {where}: the user and password of "
                    f"{self._credentials.where} are not accepted; check them"
                )
            text = answer.read(MAX_TOKEN_BYTES)
        said: Any = None
        with suppress(ValueError, RecursionError):
            said = json.loads(text)
        token = (said.get("token") or said.get("access_token")) if isinstance(said, dict) else None
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise FetchFailed(f"{where}: the token server's answer has no token")
        return token

    def _token_url(self, challenge: dict[str, str]) -> str:
        where, reference = self._reference.where, self._reference
        try:
            realm = urlsplit(challenge.get("realm", ""))
            host = realm.hostname or ""
        except ValueError:
            host = ""
        if not host:
            raise FetchFailed(f"{where}: the registry names no token server (realm)")
        is_here = reference.is_plain and realm.scheme == "http" and is_loopback(host)
        if realm.scheme != "https" and not is_here:
            raise SourceNotAllowed(
                f"{where}: the registry names a token server without TLS, which would see the "
                "password; have its realm begin with https://"
            )
        if is_loopback(host) and not reference.is_loopback:
            raise SourceNotAllowed(f"{where}: the registry names a token server on this machine")
        query = parse_qsl(realm.query, keep_blank_values=True)
        if service := challenge.get("service"):
            query.append(("service", service))
        scope = challenge.get("scope") or f"repository:{self._reference.repository}:pull"
        query += [("scope", one) for one in scope.split()]
        return urlunsplit((realm.scheme, realm.netloc, realm.path or "/", urlencode(query), ""))

    def _missing(self, found: Found) -> AccessDenied:
        return AccessDenied(
            f"401 from {self._reference.where}: the registry asks for credentials, and "
            f"{found.missing}; it answers so too when there is no such repository"
        )


def parse_challenges(text: str) -> dict[str, dict[str, str]]:
    """Return the parameters of each scheme in ``WWW-Authenticate``, all names in lower case."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for item in parse_http_list(text):
        name, equals, value = item.partition("=")
        scheme, space, first = name.strip().partition(" ")
        if space or not equals:
            current = found.setdefault(scheme.lower(), {})
            name = first
        if equals:
            current[name.strip().lower()] = value.strip().strip('"')
    return found
