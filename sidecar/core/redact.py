"""Sources as people may see them: nothing that grants access is left in."""

from __future__ import annotations

import re

MASK = "***"

_URL = re.compile(r"\A([A-Za-z][A-Za-z0-9+.\-]*:)?//")
_SAFE_QUERY_KEYS = frozenset({"generation", "ref", "revision", "snapshot", "version", "versionid"})
"""What selects a revision; every other query value may be a signature or a token."""


def redact_source(source: str) -> str:
    """Return ``source`` without user, password, query values and fragment of a URL."""
    head = _URL.match(source)
    if head is None:
        return source
    body, hash_sign, _ = source[head.end() :].partition("#")
    path, question_mark, query = body.partition("?")
    if "@" in query or "@" in source.partition("#")[2]:
        # An unescaped "?" or "#" inside a password: what follows it is still a secret.
        path = _without_broken_user(path)
    shown = head.group() + _without_user(path, scheme=(head.group(1) or "").lower())
    if question_mark:
        shown += "?" + "&".join(_safe_query(part) for part in query.split("&"))
    return shown + ("#" + MASK if hash_sign else "")


def _without_user(path: str, *, scheme: str) -> str:
    authority, slash, rest = path.partition("/")
    user, at_sign, host = authority.rpartition("@")
    if at_sign:
        # hf://gpt2@main and oci://sql@sha256:... name a revision, and no user.
        is_revision = scheme == "hf:" or (scheme == "oci:" and host.startswith("sha256:"))
        if is_revision and ":" not in user:
            return path
        # Another "@" behind the first slash: either may be part of a password.
        if "@" in rest and ":" in user:
            return f"{MASK}@{path.rpartition('@')[2]}"
        return f"{MASK}@{host}{slash}{rest}"
    if "@" in rest and _has_password(authority):
        return f"{MASK}@{path.rpartition('@')[2]}"
    return path


def _without_broken_user(path: str) -> str:
    return MASK if _has_password(path.partition("/")[0]) else path


def _has_password(authority: str) -> bool:
    _, colon, port = authority.rpartition(":")
    return bool(colon) and not port.isdigit()


def _safe_query(part: str) -> str:
    key, equals, _ = part.partition("=")
    if not equals:
        return MASK
    return part if key.lower() in _SAFE_QUERY_KEYS else f"{key}={MASK}"
