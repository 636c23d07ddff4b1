"""From the text of a source to something that can be fetched, by scheme."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from adapters.base import Kind
from sidecar.artifacts.listing import FREE_SIZE, Fetcher, Limits
from sidecar.artifacts.local import LocalSource
from sidecar.artifacts.locations import check_source_allowed, local_path, scheme_of
from sidecar.artifacts.manifest import REVISION_CHARACTERS
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.redact import redact_source
from sidecar.errors import SourceNotAllowed, UnsupportedSource

REMOTE_SCHEMES = frozenset({"s3", "gs", "az", "hf", "oci", "https", "http"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What the operator says of sources."""

    allowed: tuple[str, ...] = ()
    """``--allow-source``; empty: all are."""
    allow_pickle: bool = False
    limits: Limits = FREE_SIZE
    credentials_dir: Path = Path("/etc/model-sidecar/credentials")
    """Where secrets are mounted: a directory for each name that ``credentials:`` may say."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The agent's own, for what sources take from there: ``AWS_*``, ``HF_TOKEN``, proxies."""


ALL_SOURCES = SourceOptions()


def open_source(entry: Entry, options: SourceOptions) -> Fetcher | Revision:
    """Return what fetches the entry's source, or the revision itself where nothing is fetched.

    The latter is an unverified passthrough: a path that the agent cannot see, or a bare hub name.
    Raises ``ArtifactError``; asks no network.
    """
    check_source_allowed(entry.source, options.allowed)
    path = local_path(entry.source)
    if path is not None:
        return _open_local(entry, path, options)
    scheme = scheme_of(entry.source)
    if scheme is None and entry.passthrough and "\0" not in entry.source:
        return _passthrough(entry, entry.source)
    if scheme is None or scheme == "file" or "\0" in unquote(entry.source):
        raise _unsupported(entry.source)
    return _open_remote(entry, scheme, options)


def _open_local(entry: Entry, path: str, options: SourceOptions) -> Fetcher | Revision:
    if entry.passthrough and not os.path.exists(path):
        return _passthrough(entry, path)
    if os.path.isfile(path):
        from sidecar.artifacts.archive import packing_of
        from sidecar.artifacts.local_archive import LocalArchive

        if (packing := packing_of(path)) is not None:
            return LocalArchive(path, packing, options.limits)
    return LocalSource(path)


def _open_remote(entry: Entry, scheme: str, options: SourceOptions) -> Fetcher:
    """Import what the scheme needs, and nothing before: object stores alone cost 7 MB."""
    if scheme not in REMOTE_SCHEMES:
        raise _unsupported(entry.source)
    if scheme == "http" and not _is_plain_http_meant(entry, options.allowed):
        raise SourceNotAllowed(
            f"{redact_source(entry.source)}: http:// can be changed on its way; use https://, pin "
            "the content with digest:, or name http:// and the host in an --allow-source"
        )
    from sidecar.artifacts.remote.fetcher import RemoteFetcher
    from sidecar.artifacts.remote.port import RemoteSource
    from sidecar.artifacts.remote.secrets import read_credentials

    credentials = read_credentials(
        entry.credentials, root=options.credentials_dir, environment=options.environment
    )
    source: RemoteSource
    match scheme:
        case "s3" | "gs" | "az":
            from sidecar.artifacts.remote.objects import open_objects

            source = open_objects(entry.source, credentials)
        case "hf":
            from sidecar.artifacts.remote.hub import open_hub

            source = open_hub(entry.source, credentials)
        case "oci":
            from sidecar.artifacts.remote.oci import open_oci

            source = open_oci(entry.source, credentials)
        case _:
            from sidecar.artifacts.remote.https import open_https

            source = open_https(entry.source, credentials)
    return RemoteFetcher(source, options.limits)


def _is_plain_http_meant(entry: Entry, allowed: Sequence[str]) -> bool:
    return entry.digest is not None or any(scheme_of(one) == "http" for one in allowed)


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
        f"{redact_source(source)}: {what} not supported; write s3://, gs://, az://, hf://, oci://, "
        "https:// or an absolute path that the agent sees"
    )
