"""Who asks Google Cloud Storage, as Application Default Credentials have it.

A service account's key, a user's refresh token, or a federated identity (a projected token that
Google's STS takes) from a JSON file; else the metadata server, which is GKE's workload identity.
The last is the process's own identity, which a mounted secret does not fall back to.
https://google.aip.dev/auth/4110
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from sidecar.artifacts.remote.identity import (
    Grant,
    ask_node,
    nobody,
    nobody_by_choice,
    post,
    post_form,
    read_token,
    refused,
    usable_seconds,
)
from sidecar.artifacts.remote.rs256 import read_key
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
CLOUD_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URL = "https://oauth2.googleapis.com/token"
METADATA_HOST = "metadata.google.internal"
METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
JWT_SECONDS = 3600
SIGNED_SECONDS = 3000.0
"""How long one of our own is used; the rest is for clocks that differ."""


def find_google(credentials: Credentials, *, where: str, is_emulator: bool) -> Grant:
    """Return the identity for GCS; an unsigned grant when there is none.

    An emulator takes anybody: no metadata server is asked for it. Raises ``ArtifactError``.
    """
    values = credentials.values
    if credentials.is_on("GOOGLE_SKIP_SIGNATURE"):
        return nobody_by_choice(credentials, "GOOGLE_SKIP_SIGNATURE")
    if path := values.get("GOOGLE_APPLICATION_CREDENTIALS", ""):
        return _from_file(path, credentials, where)
    if credentials.is_mounted:
        return nobody(f"{credentials.where} has no Google key (a JSON file)")
    node = None if is_emulator else _node(credentials)
    return node or nobody(
        f"{credentials.where} has no GOOGLE_APPLICATION_CREDENTIALS, and no metadata server gives "
        "a token"
    )


def _from_file(path: str, credentials: Credentials, where: str) -> Grant:
    shown = f"{path} ({credentials.where})"
    try:
        with open(path, encoding="utf-8") as file:
            key = json.load(file)
    except OSError as error:
        raise AccessDenied(f"{where}: {shown} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, dict):
        raise AccessDenied(f"{where}: {shown} is no JSON object, as Google's keys are")
    match key.get("type"):
        case "service_account":
            return _service_account(key, shown, where)
        case "authorized_user":
            return _authorized_user(key, shown, credentials, where)
        case "external_account":
            return _external_account(key, shown, credentials, where)
        case _:
            raise AccessDenied(
                f"{where}: {shown} is of a type that is not supported; service_account, "
                "authorized_user and external_account (from a file) are"
            )


def _service_account(key: Mapping[str, Any], shown: str, where: str) -> Grant:
    """A self-signed token, which Google takes without an exchange: https://google.aip.dev/auth/4111"""
    email = _field(key, "client_email", shown, where)
    try:
        signer = read_key(_field(key, "private_key", shown, where))
    except ValueError as error:
        raise AccessDenied(f"{where}: {shown}: {error}") from None
    now = int(time.time())  # noqa: TID251 - the token names the hours of its life to Google
    head = {"alg": "RS256", "typ": "JWT", "kid": str(key.get("private_key_id", ""))}
    claims = {"iss": email, "sub": email, "scope": SCOPE, "iat": now, "exp": now + JWT_SECONDS}
    message = f"{_encoded(head)}.{_encoded(claims)}"
    signature = base64.urlsafe_b64encode(signer.sign(message.encode())).rstrip(b"=").decode()
    return _grant(f"{message}.{signature}", f"the service account of {shown}", SIGNED_SECONDS)


def _authorized_user(
    key: Mapping[str, Any], shown: str, credentials: Credentials, where: str
) -> Grant:
    form = {name: _field(key, name, shown, where) for name in ("client_id", "client_secret")}
    form |= {
        "refresh_token": _field(key, "refresh_token", shown, where),
        "grant_type": "refresh_token",
    }
    url = str(key.get("token_uri") or TOKEN_URL)
    reply = post_form(url, form, credentials, where=where)
    token, seconds, code = reply.json("access_token", "expires_in", "error")
    if reply.status != 200 or not token:
        raise refused(reply, "Google's token server", code, f"renew {shown}", where=where)
    return _grant(token, f"the user of {shown}", usable_seconds(seconds))


def _external_account(
    key: Mapping[str, Any], shown: str, credentials: Credentials, where: str
) -> Grant:
    """https://google.aip.dev/auth/4117"""
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": _field(key, "audience", shown, where),
        "subject_token_type": _field(key, "subject_token_type", shown, where),
        "subject_token": _subject_token(key, shown, credentials, where),
        "scope": CLOUD_SCOPE,
    }
    reply = post_form(_field(key, "token_url", shown, where), form, credentials, where=where)
    token, seconds, code = reply.json("access_token", "expires_in", "error")
    hint = f"check the audience of {shown} and the token's issuer"
    if reply.status != 200 or not token:
        raise refused(reply, "Google's STS", code, hint, where=where)
    words = f"the federated identity of {shown}"
    if url := str(key.get("service_account_impersonation_url") or ""):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps({"scope": [SCOPE], "lifetime": f"{JWT_SECONDS}s"}).encode()
        reply = post(url, body, credentials, where=where, headers=headers)
        (token,) = reply.json("accessToken")
        if reply.status != 200 or not token:
            hint = "the identity needs roles/iam.workloadIdentityUser on the service account"
            raise refused(reply, "the service account", str(reply.status), hint, where=where)
        seconds = str(JWT_SECONDS)
    return _grant(token, words, usable_seconds(seconds))


def _subject_token(key: Mapping[str, Any], shown: str, credentials: Credentials, where: str) -> str:
    source = key.get("credential_source")
    path = source.get("file") if isinstance(source, dict) else None
    if not isinstance(source, dict) or not isinstance(path, str):
        raise AccessDenied(
            f"{where}: {shown}: a credential_source with a file is supported, and no other"
        )
    path = credentials.file(path, "credential_source.file")
    text = read_token(path, "credential_source.file", where=where)
    form = source.get("format")
    if not isinstance(form, dict) or form.get("type") != "json":
        return text
    try:
        return str(json.loads(text)[form["subject_token_field_name"]])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AccessDenied(f"{where}: {path} holds no token in the field {shown} names") from None


def _node(credentials: Credentials) -> Grant | None:
    """https://cloud.google.com/compute/docs/metadata/querying-metadata"""
    host = credentials.values.get("GCE_METADATA_HOST", METADATA_HOST)
    reply = ask_node("GET", f"http://{host}{METADATA_PATH}", {"Metadata-Flavor": "Google"})
    if reply is None or reply.status != 200:
        return None
    token, seconds = reply.json("access_token", "expires_in")
    return _grant(token, "the node's service account", usable_seconds(seconds)) if token else None


def _grant(token: str, words: str, seconds: float) -> Grant:
    return Grant(secret={"token": token}, words=words, seconds=seconds)


def _field(key: Mapping[str, Any], name: str, shown: str, where: str) -> str:
    value = key.get(name)
    if not isinstance(value, str) or not value:
        raise AccessDenied(f"{where}: {shown} has no {name}")
    return value


def _encoded(fields: Mapping[str, object]) -> str:
    text = json.dumps(fields, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()
