"""What the text of a source names, and whether documents may name it."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from sidecar.core.redact import redact_source
from sidecar.errors import SourceNotAllowed

_REFERENCE = re.compile("([^@:]+)([@:].*)?", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_REFS = ("@refs", ":refs")
_PULL_REQUEST = "refs/pr/"


def scheme_of(source: str) -> str | None:
    """Return the scheme of a URL in lower case; None for a path or a bare name."""
    found = _SCHEME.match(source)
    return found[1].lower() if found else None


def is_remote(source: str) -> bool:
    """Tell whether a source is on the network."""
    return scheme_of(source) not in (None, "file")


def local_path(source: str) -> str | None:
    """Return the absolute path that a source names; None when it names something else."""
    if source.startswith("/"):
        path = source
    elif scheme_of(source) == "file":
        authority, slash, rest = source[len("file://") :].partition("/")
        path = slash + unquote(rest) if authority in {"", "localhost"} else ""
    else:
        return None
    # No path of any system call holds a NUL.
    return path if path and "\0" not in path else None


def check_source_allowed(source: str, prefixes: Sequence[str]) -> None:
    """Raise ``SourceNotAllowed`` unless ``source`` lies below one of ``prefixes``.

    Whole components are compared (``/data/a`` does not admit ``/data/ab``). Local paths are
    compared after links and ``..`` are resolved, so that neither leads out; a URL with ``..`` in
    it is never admitted. What selects a revision is a component (``hf://org/repo`` admits
    ``hf://org/repo@v2``); a pull request, which anybody can open, has to be named. No prefixes:
    everything is allowed.
    """
    if not prefixes:
        return
    parts = _components(source)
    for prefix in prefixes:
        wanted = _components(prefix)
        if parts is None or wanted is None or parts[: len(wanted)] != wanted:
            continue
        if not any(_is_pull_request(part) for part in parts[len(wanted) :]):
            return
    raise SourceNotAllowed(
        f"{redact_source(source)}: not below any --allow-source "
        f"({', '.join(redact_source(one) for one in prefixes)})"
    )


def _components(source: str) -> tuple[str, ...] | None:
    """Return scheme, host and path components; None for what must not be admitted."""
    path = local_path(source)
    if path is not None:
        return ("file", *_split(os.path.realpath(path)))
    if "\0" in unquote(source):
        return None
    scheme = scheme_of(source)
    if scheme is None:
        return ("", *_split(posixpath.normpath(source)))
    try:
        url = urlsplit(source)
        host, port = (url.hostname or "").lower(), url.port
    except ValueError:
        return None
    if scheme not in ("https", "http"):
        if "@" in url.netloc:
            # Only web addresses have users: else, this is no way to name another place.
            return None
        # To a registry, Team/x is on a host and team/x is the hub's.
        host, port = url.netloc, None
    parts = tuple(unquote(part) for part in _split(url.path))
    if scheme in ("hf", "oci"):
        parts = _split_reference(parts, 0 if scheme == "hf" else len(parts) - 1)
    if any(_leads_elsewhere(part) for part in parts):
        return None
    return (scheme, f"{host}:{port}" if port else host, *parts)


def _split(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def _split_reference(parts: tuple[str, ...], repository: int) -> tuple[str, ...]:
    if not 0 <= repository < len(parts):
        return parts
    found = _REFERENCE.fullmatch(parts[repository])
    split = tuple(filter(None, found.groups())) if found else (parts[repository],)
    rest = parts[repository + 1 :]
    if split[-1] in _REFS and len(rest) > 1:
        # The hub takes the slashes of hf://org/repo@refs/pr/7 as they are.
        split, rest = (*split[:-1], "/".join((split[-1], *rest[:2]))), rest[2:]
    return (*parts[:repository], *split, *rest)


def _leads_elsewhere(part: str) -> bool:
    # Only a branch may have slashes, which are then escaped.
    has_slash = "/" in part and part[0] not in "@:"
    return has_slash or "\\" in part or bool({".", ".."} & set(part.split("/")))


def _is_pull_request(part: str) -> bool:
    return part[:1] in {"@", ":"} and part[1:].startswith(_PULL_REQUEST)
