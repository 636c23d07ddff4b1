"""``https://`` (and ``http://``): one file, or one archive.

The first look is a HEAD request; where that is refused, as presigned URLs for GET do, or tells no
size, a GET of the first byte. Reads are GETs of ranges that hold only while the file is the one
that was looked at (If-Match or If-Unmodified-Since); what is answered must say so too, because not
every server knows these headers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit

from sidecar.artifacts.paths import safe_path
from sidecar.artifacts.remote.http_client import Answer, Client
from sidecar.artifacts.remote.http_urls import Target, parse_target
from sidecar.artifacts.remote.https_answers import (
    conditions,
    file_name,
    find_packing,
    has_moved,
    parse_length,
    parse_span,
    refuse_page,
    says_version,
    status_error,
    version_of,
)
from sidecar.artifacts.remote.https_login import identity_of, read_login
from sidecar.artifacts.remote.port import Blob, Contents, RemoteSource
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.core.redact import redact_source
from sidecar.errors import (
    ArtifactError,
    FetchFailed,
    InvalidArtifact,
    SourceMoved,
    UnsupportedSource,
)

HEAD_REFUSED = frozenset({403, 405, 501})


def open_https(url: str, credentials: Credentials) -> RemoteSource:
    """Return the source behind a URL; ``http://`` too, which whoever calls must want. No I/O.

    Raises ``UnsupportedSource`` for a URL that names no file, ``AccessDenied`` for credentials that
    cannot be sent.
    """
    return HttpsSource(url, credentials)


class HttpsSource:
    """One file or archive behind a URL. Threads may share it."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._where = redact_source(url)
        self._url = url.partition("#")[0]
        self._target = parse_target(self._url, where=self._where)
        self._name = _name_of(self._target, self._where)
        self._login = read_login(self._target, credentials, where=self._where)
        self._client = Client(
            self._where,
            settings=credentials.values,
            ca_certificate=credentials.first("ca.crt") or None,
        )

    @property
    def where(self) -> str:
        """The URL without anything secret."""
        return self._where

    def list(self) -> Contents:
        """Look at size, version and kind of the file."""
        with self._open("HEAD", {}) as answer:
            found = None if answer.status in HEAD_REFUSED else self._blob(answer)
        # Some frameworks answer HEAD with the length of the body that they leave out: 0.
        if found is None or not found.size:
            with self._open("GET", {"range": "bytes=0-0"}) as answer:
                found = self._blob(answer)
        return Contents(blobs=(found,), signature=self._signature(found))

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``; see ``port.RemoteSource``.

        Where the server sends the whole file instead, what comes before ``start`` is passed over.
        """
        if end is not None and end <= start:
            return
        headers = conditions(blob.tag)
        if start or end is not None:
            headers["range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with self._open("GET", headers) as answer:
            self._check_is(blob, answer, start)
            passed_over = start if answer.status == 200 else 0
            yield from _cut_out(answer, passed_over, None if end is None else end - start)

    def close(self) -> None:
        """Give up all connections."""
        self._client.close()

    @contextmanager
    def _open(self, method: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        merged = {**self._login.headers, **headers}
        with self._client.open(method, self._url, headers=merged) as answer:
            yield answer

    def _blob(self, answer: Answer) -> Blob:
        headers, where = answer.headers, self._where
        span = parse_span(headers)
        is_empty = answer.status == 416 and span is not None and span.total == 0
        if answer.status == 206 and span is not None:
            size, has_ranges = span.total, span.start == 0
        elif answer.status == 200 or is_empty:
            size = 0 if is_empty else parse_length(headers)
            has_ranges = "bytes" in headers.get("accept-ranges", "").lower()
        else:
            raise self._status_error(answer)
        refuse_page(headers, where=where)
        packing = find_packing(headers, self._name, where=where)
        version = version_of(headers)
        return Blob(
            path="" if packing else self._path(headers),
            key=where,
            size=size,
            tag=version,
            packing=packing,
            # Without a version, two ranges may be of two files.
            has_ranges=has_ranges and bool(version),
        )

    def _path(self, headers: Mapping[str, str]) -> str:
        name = file_name(headers, self._name)
        if not name:
            raise InvalidArtifact(
                f"{self._where}: neither the URL nor the server says what the file is called; "
                "name a URL that ends with its name"
            )
        return safe_path(name, self._where)

    def _signature(self, blob: Blob) -> str:
        if not blob.tag:
            return ""
        text = f"{identity_of(self._target)}\n{blob.tag}\n{blob.size}\n{blob.packing}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _check_is(self, blob: Blob, answer: Answer, start: int) -> None:
        """Raise unless the answer holds the blob's bytes, from the first or from ``start``."""
        headers, where = answer.headers, self._where
        if answer.status in {412, 416}:
            raise self._moved()
        if answer.status not in {200, 206}:
            raise self._status_error(answer)
        refuse_page(headers, where=where)
        find_packing(headers, self._name, where=where)
        total = parse_length(headers)
        if answer.status == 206:
            span = parse_span(headers)
            if span is None or span.start != start:
                raise FetchFailed(
                    f"{where}: the server was asked for the bytes from {start} on, and sends others"
                )
            total = span.total
        sizes_differ = None not in {total, blob.size} and total != blob.size
        if sizes_differ or has_moved(headers, blob.tag):
            raise self._moved()
        if blob.has_ranges and not says_version(headers, blob.tag):
            # Of another answer there may be other parts, or the rest of this one.
            raise FetchFailed(
                f"{where}: the server does not say of which version the bytes are that it sends, "
                "though it did at the first look; have it send the same ETag or Last-Modified "
                "with every answer"
            )

    def _status_error(self, answer: Answer) -> ArtifactError:
        refused = self._login.refused
        there = parse_target(answer.url, where=self._where)
        if there.origin != self._target.origin:
            refused = f"it redirects to {there.peer}, where no credentials are sent; name that URL"
        return status_error(answer.status, answer.headers, where=self._where, refused=refused)

    def _moved(self) -> SourceMoved:
        return SourceMoved(f"{self._where}: the file changed since it was looked at")


def _name_of(target: Target, where: str) -> str:
    parts = urlsplit(target.path)
    if parts.path.endswith("/") and not parts.query:
        raise UnsupportedSource(
            f"{where}: a directory cannot be listed over {target.scheme}; name one file, or pack "
            "them as .tar.gz or .zip and name that, or put them into an object store"
        )
    return unquote(parts.path.rpartition("/")[2])


def _cut_out(answer: Answer, passed_over: int, length: int | None) -> Iterator[bytes]:
    """Yield ``length`` bytes of a body (None: all) behind those that are passed over."""
    pieces = answer.chunks()
    for piece in pieces:
        if passed_over >= len(piece):
            passed_over -= len(piece)
            continue
        part = piece[passed_over:] if passed_over else piece
        passed_over = 0
        if length is None:
            yield part
            continue
        if len(part) >= length:
            # The end of a body that is read to it makes the connection free for the next range.
            with suppress(FetchFailed):
                next(pieces, None)
            yield part[:length]
            return
        length -= len(part)
        yield part
