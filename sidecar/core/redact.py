"""Sources as people may see them: nothing that grants access is left in."""

from __future__ import annotations

import re

MASK = "***"

CONTROL = "\ufffd"
"""Shown for each character that would not be seen itself, or act on a terminal or a log."""

_URL = re.compile(rf"\A(?:([^/\\:@?#]*:)[/\\]*|[\s{CONTROL}]*[/\\]{{2,}})")
"""Also what is no URL because of a mistake: what is refused is shown too."""
_SAFE_QUERY_KEYS = frozenset({"generation", "ref", "revision", "snapshot", "version", "versionid"})
"""What selects a revision; every other query value may be a signature or a token."""
_QUERY_KEY = re.compile(r"[A-Za-z0-9._~-]+")
_SAFE_VALUE = re.compile(r"(?:[A-Za-z0-9._~:/+-]|%(?:2[Bb]|2[Ff]|3[Aa]))*")
"""Without what some servers take for the beginning of the next parameter (``;``)."""
_PINNED = re.compile(r"(?:[^@/:]*|[^@/]*/[^@]*)@sha256:[0-9A-Fa-f]*")
"""``[registry[:port]/]repository@digest``; the digest is no host."""
_TOKENS = ("hf_", "api_")
"""How the hub's tokens begin."""


def redact_source(source: str) -> str:
    """Return ``source`` without user, password, query values and fragment of a URL.

    Where it cannot be told whether something is part of a password, it is left out.
    """
    text = "".join(one if one.isprintable() else CONTROL for one in source)
    head = _URL.match(text)
    if head is None:
        return text
    body, hash_sign, fragment = text[head.end() :].partition("#")
    path, question_mark, query = body.partition("?")
    # An unescaped "?" or "#" inside a password: what follows it is still a secret.
    is_broken = "@" in query or "@" in fragment
    if is_broken and ":" in path.partition("/")[0]:
        path = MASK
    shown = head.group() + _without_user(path, scheme=(head.group(1) or "").strip().lower())
    if question_mark:
        shown += "?" + (MASK if is_broken else "&".join(map(_safe_query, query.split("&"))))
    return shown + ("#" + MASK if hash_sign else "")


def _without_user(path: str, *, scheme: str) -> str:
    # oci://sql@sha256:... and hf://gpt2@main, which lacks a namespace, name no user.
    if scheme == "oci:" and _PINNED.fullmatch(path):
        return path
    authority, slash, rest = path.partition("/")
    user, at_sign, host = authority.rpartition("@")
    if scheme == "hf:" and not slash and ":" not in user and not user.startswith(_TOKENS):
        return path
    # An "@" behind the first slash: a password may have a slash, and may begin with digits as a
    # port does.
    if "@" in rest and ":" in authority:
        return f"{MASK}@{path.rpartition('@')[2]}"
    return f"{MASK}@{host}{slash}{rest}" if at_sign else path


def _safe_query(part: str) -> str:
    key, equals, value = part.partition("=")
    if not equals or not _QUERY_KEY.fullmatch(key):
        return MASK
    is_safe = key.lower() in _SAFE_QUERY_KEYS and _SAFE_VALUE.fullmatch(value)
    return part if is_safe else f"{key}={MASK}"
