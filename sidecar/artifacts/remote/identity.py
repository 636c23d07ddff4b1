"""What requests to an object store are signed with, and how long it holds.

Tokens are asked for here and not inside the store's client: an error of ours says what to do, and
the client is left no chance to take another identity from the process's environment.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from sidecar.artifacts.remote.certificates import ca_text
from sidecar.artifacts.remote.http_client import Client
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied, FetchFailed

NODE_SECONDS = 1.0
"""Each wait for a metadata server, as in the clouds' own SDKs: it is a hop away, or not there."""
TOKEN_SECONDS = 240.0
"""How long a token of the node is used. The servers hand out one that holds for 5 minutes more."""
MARGIN_SECONDS = 300.0
"""So long before its end a token is not used any more: the reads it begins take a while."""
MAX_ANSWER_BYTES = 1 << 20

_SENT = {"access_key_id": "key id", "token": "token"}
"""What of a grant is sent in a header as it is."""
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One identity."""

    secret: Mapping[str, str | None] = field(repr=False)
    """As obstore's credential providers return it, without an expiry. Empty: requests are not
    signed."""
    words: str
    """Which it is and where it is from; of an unsigned one, why there is no other."""
    seconds: float | None = None
    """How long it may be used; None: as long as what it was made from."""


Identity = Callable[[], Grant]
"""Finds out who we are; asks a server where it has to. Raises ``ArtifactError``."""


def nobody(why: str) -> Grant:
    """Return the grant of requests that are not signed, for want of anything to sign them with."""
    return Grant(secret={}, words=f"no credentials found; {why}")


def nobody_by_choice(credentials: Credentials, setting: str) -> Grant:
    """Return the grant of requests that are not signed because a setting says so."""
    return Grant(
        secret={}, words=f"asked without credentials, as {setting} in {credentials.where} says"
    )


def check_grant(grant: Grant, *, where: str) -> None:
    """Raise ``AccessDenied`` for an identity that no header can hold: obstore panics over it."""
    for name, what in _SENT.items():
        if not _PRINTABLE.fullmatch(grant.secret.get(name) or ""):
            raise AccessDenied(
                f"{where}: the {what} has a line break or another character that no header can "
                f"hold; correct {grant.words}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer of a server that hands out tokens."""

    status: int
    text: str = field(repr=False)

    def json(self, *names: str) -> list[str]:
        """Return these fields of a JSON object as text; empty where one is not there."""
        try:
            fields = json.loads(self.text)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            return ["" for _ in names]
        return [_text(fields.get(name)) for name in names]


def post_form(
    url: str,
    form: Mapping[str, str],
    credentials: Credentials,
    *,
    where: str,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send a form to a server on the network. Raises ``FetchFailed`` when it does not answer."""
    head = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
    return post(url, urlencode(form).encode(), credentials, where=where, headers=head)


def post(
    url: str, body: bytes, credentials: Credentials, *, where: str, headers: Mapping[str, str]
) -> Reply:
    """Send bytes to a server on the network. Raises ``FetchFailed`` when it does not answer."""
    client = Client(
        where, settings=credentials.values, ca_certificate=ca_text(credentials, where=where)
    )
    try:
        with client.open("POST", url, headers=headers, body=body) as answer:
            text = answer.read(MAX_ANSWER_BYTES).decode(errors="replace")
            return Reply(status=answer.status, text=text)
    finally:
        client.close()


def ask_node(method: str, url: str, headers: Mapping[str, str]) -> Reply | None:
    """Ask a metadata server; None where there is none.

    The one place where link-local addresses are spoken to: the URL is ours or the operator's, never
    one of a document or a secret. No proxy is asked, and no redirect is followed.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=NODE_SECONDS)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    try:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        return Reply(status=answer.status, text=_read_all(answer).decode(errors="replace"))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def read_token(path: str, name: str, *, where: str) -> str:
    """Return a token that the kubelet keeps fresh in a file. Raises ``AccessDenied``."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_ANSWER_BYTES).strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text:
        raise AccessDenied(f"{where}: {name} names {path}, which the agent cannot read")
    return text


def refused(reply: Reply, what: str, code: str, hint: str, *, where: str) -> Exception:
    """Return the error for a server that hands out no token.

    ``code`` is the server's word for it; shown only when it is one plain word.
    """
    shown = f" ({code})" if code.replace("_", "").isalnum() and len(code) <= 60 else ""
    if reply.status == 429 or reply.status >= 500:
        return FetchFailed(f"{reply.status} from {what}{shown}, which {where} needs first")
    return AccessDenied(f"{where}: {what} refuses the agent{shown}; {hint}")


def usable_seconds(expires_in: str) -> float:
    """Return how long a token is used that says for how many seconds it holds."""
    try:
        seconds = float(expires_in)
    except ValueError:
        return TOKEN_SECONDS
    if not math.isfinite(seconds):
        return TOKEN_SECONDS
    return max(seconds - MARGIN_SECONDS, min(seconds / 2, 60.0), 0.0)


def _read_all(answer: http.client.HTTPResponse) -> bytes:
    until, pieces = time.monotonic() + 5 * NODE_SECONDS, bytearray()
    while len(pieces) < MAX_ANSWER_BYTES and time.monotonic() < until:
        piece = answer.read1(1 << 14)
        if not piece:
            break
        pieces += piece
    return bytes(pieces)


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""
