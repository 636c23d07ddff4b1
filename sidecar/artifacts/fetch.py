"""From the text of a source to something that can be fetched, by scheme."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from adapters.base import Kind
from sidecar.artifacts.listing import Fetcher
from sidecar.artifacts.local import LocalSource
from sidecar.artifacts.manifest import REVISION_CHARACTERS
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.redact import redact_source
from sidecar.errors import SourceNotAllowed, UnsupportedSource

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_source(entry: Entry, allowed: Sequence[str]) -> Fetcher | Revision:
    """Return what fetches the entry's source, or the revision itself where nothing is fetched.

    The latter is an unverified passthrough: a path that the agent cannot see, or a bare hub name.
    Raises ``SourceNotAllowed`` and ``UnsupportedSource``.
    """
    check_source_allowed(entry.source, allowed)
    path = local_path(entry.source)
    if path is None:
        if entry.passthrough and scheme_of(entry.source) is None and "\0" not in entry.source:
            return _passthrough(entry, entry.source)
        raise _unsupported(entry.source)
    if entry.passthrough and not os.path.exists(path):
        return _passthrough(entry, path)
    return LocalSource(path)


def check_source_allowed(source: str, prefixes: Sequence[str]) -> None:
    """Raise ``SourceNotAllowed`` unless ``source`` lies below one of ``prefixes``.

    Whole components are compared (``/data/a`` does not admit ``/data/ab``). Local paths are
    compared after links and ``..`` are resolved, so that neither leads out; a URL with ``..`` in
    it is never admitted. No prefixes: everything is allowed.
    """
    if not prefixes:
        return
    parts = _components(source)
    for prefix in prefixes:
        wanted = _components(prefix)
        if parts is not None and wanted is not None and parts[: len(wanted)] == wanted:
            return
    raise SourceNotAllowed(
        f"{redact_source(source)}: not below any --allow-source "
        f"({', '.join(redact_source(one) for one in prefixes)})"
    )


def scheme_of(source: str) -> str | None:
    """Return the scheme of a URL in lower case; None for a path or a bare name."""
    found = _SCHEME.match(source)
    return found[1].lower() if found else None


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
    parts = _split(unquote(url.path))
    if ".." in parts or "." in parts or "\\" in unquote(url.path):
        return None
    return (scheme, f"{host}:{port}" if port else host, *parts)


def _split(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def _passthrough(entry: Entry, path: str) -> Revision:
    digest = hashlib.sha256(f"passthrough {path}".encode("utf-8", "surrogatepass")).hexdigest()
    return Revision(
        name=entry.name,
        kind=entry.kind or Kind.LORA,
        revision=digest[:REVISION_CHARACTERS],
        path=path,
        source=redact_source(entry.source),
        verified=False,
    )


def _unsupported(source: str) -> UnsupportedSource:
    scheme = scheme_of(source)
    what = f"the scheme {scheme}:// is" if scheme else "a relative path or a bare name is"
    if scheme == "file":
        what = "a file:// URL that names a host is"
    if "\0" in unquote(source):
        what = "a NUL byte in a path is"
    return UnsupportedSource(
        f"{redact_source(source)}: {what} not supported; an absolute path or file:///path of a "
        "directory that the agent sees is"
    )
