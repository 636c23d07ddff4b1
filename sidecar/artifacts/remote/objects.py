"""Object stores: ``s3://bucket/key``, ``gs://bucket/key``, ``az://container/key``.

obstore (Rust's object_store) does the requests. Whose it are, and what their errors mean, is said
next door: ``objects_access``, ``identity*`` and ``objects_errors``.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import obstore

from sidecar.artifacts.archive import packing_of
from sidecar.artifacts.listing import MAX_FILES
from sidecar.artifacts.remote.objects_access import Access, Cloud, Place
from sidecar.artifacts.remote.objects_errors import object_errors
from sidecar.artifacts.remote.port import Blob, Contents, Packing
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.core.redact import redact_source
from sidecar.errors import (
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceMoved,
    UnsupportedSource,
)

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

CHUNK_BYTES = 1 << 18
"""Of larger ones a GiB costs a fifth more processor time, and eight readers 20 MB more memory."""
PAGE_OBJECTS = 1000
LIST_SECONDS = 300.0
"""A hundred pages, and the server slow."""

LOOKS_AT_ONCE = 16

_STRONG = re.compile(r"[\x21\x23-\x7e]+")
"""RFC 9110, 8.8.3, in ASCII: any other etag cannot be sent back, and obstore panics over some."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_CONTAINER = re.compile(r"[a-z0-9][a-z0-9-]{2,62}|\$root|\$web")
_EXAMPLES = {"s3": "s3://bucket/path/", "gs": "gs://bucket/path/", "az": "az://container/path/"}


def open_objects(url: str, credentials: Credentials) -> ObjectSource:
    """Return the source that a URL names; asks nobody.

    Raises ``UnsupportedSource`` for a URL that cannot be read.
    """
    place = parse_place(url)
    access = Access(_cloud(url.partition("://")[0].lower()), place, credentials)
    return ObjectSource(place, access, list_seconds=LIST_SECONDS)


def parse_place(url: str) -> Place:
    """Take a URL apart. Keys are written as they are: nothing in them is an escape."""
    scheme, _, rest = url.partition("://")
    scheme, where = scheme.lower(), redact_source(url)
    host = ""
    bucket, _, path = rest.partition("/")
    if scheme == "az" and "." in bucket:
        host = bucket
        bucket, _, path = path.partition("/")
    valid = _CONTAINER if scheme == "az" else _BUCKET
    if scheme not in _EXAMPLES or not valid.fullmatch(bucket) or not _is_known(host):
        examples = " or ".join([_EXAMPLES[scheme]] if scheme in _EXAMPLES else _EXAMPLES.values())
        raise UnsupportedSource(f"{where}: names no bucket that can be; write {examples}")
    key = path.removesuffix("/")
    if re.search(r"[?#\x00-\x1f\x7f\ud800-\udfff]|%[0-9A-Fa-f]{2}", path):
        raise UnsupportedSource(
            f"{where}: `?`, `#`, control characters and % escapes cannot be in the path; write the "
            "key as it is"
        )
    if any(part in {"", ".", ".."} for part in key.split("/")) and key:
        raise UnsupportedSource(f"{where}: the path has an empty, `.` or `..` component")
    return Place(
        where=where,
        bucket=bucket,
        key=key,
        is_prefix=not key or path.endswith("/"),
        host=host,
    )


class ObjectSource:
    """One bucket's objects below a prefix, or one of them. Threads may share it."""

    def __init__(self, place: Place, access: Access, *, list_seconds: float) -> None:
        self._place = place
        self._access = access
        self._list_seconds = list_seconds

    @property
    def where(self) -> str:
        """The source in words, without anything secret."""
        return self._place.where

    def list(self) -> Contents:
        """Look at what it holds; see ``port.RemoteSource``."""
        place = self._place
        packing = None if place.is_prefix else packing_of(place.key)
        if packing is not None and (archive := self._find(place.key)) is not None:
            return _contents([_blob(archive, "", packing)])
        blobs = self._below()
        if not blobs and packing is None and not place.is_prefix:
            single = self._find(place.key)
            blobs = [_blob(single, place.key.rpartition("/")[2])] if single is not None else []
        if not blobs:
            tried = f"below {place.key}/" if place.key else "in it"
            tried += "" if place.is_prefix else " nor of that very name"
            raise NotFound(f"{self.where}: there is no object {tried}; check the source")
        return _contents(blobs)

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a blob; see ``port.RemoteSource``."""
        size = blob.size or 0
        stop = size if end is None else min(end, size)
        if stop <= start:
            return
        store, story = self._access.open(is_look=False)
        options: GetOptions = {"range": (start, stop)}
        if _is_strong(blob.tag):
            options["if_match"] = f'"{blob.tag}"'
        with object_errors(story):
            result = obstore.get(store, blob.key, options=options)
            found, (first, last) = result.meta, result.range
            stream = result.stream(min_chunk_size=CHUNK_BYTES)
        # Also for servers that do not know If-Match.
        if (found["size"], _tag(found)) != (size, blob.tag) or (first, last) != (start, stop):
            raise SourceMoved(f"{self.where}: {blob.key} is another object than was listed")
        while True:
            with object_errors(story):
                chunk = next(stream, None)
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """Give up all connections."""
        self._access.close()

    def _below(self) -> Sequence[Blob]:
        """Return all objects below the prefix, but not the markers of directories."""
        key = self._place.key
        found = self._list_all(key)
        markers = self._markers(found)
        blobs = []
        for path, meta in found.items():
            relative = path[len(key) + 1 :] if key else path
            if relative and path not in markers:
                blobs.append(_blob(meta, relative))
        return blobs

    def _list_all(self, key: str) -> dict[str, ObjectMeta]:
        found: dict[str, ObjectMeta] = {}
        self._run(lambda store: self._collect(store, key, found))
        return found

    def _run(self, look: Callable[[ObjectStore], Coroutine[None, None, None]]) -> None:
        store, story = self._access.open(is_look=True)
        with object_errors(story):
            try:
                # obstore's other way to list cannot be ended: a server that always has one more
                # page, with nothing in it, would keep the thread for ever.
                asyncio.run(self._limit(look(store)))
            except TimeoutError:
                raise FetchFailed(
                    f"{self.where}: the listing has no end within {self._list_seconds:g} s; it is "
                    "retried"
                ) from None

    async def _limit(self, look: Coroutine[None, None, None]) -> None:
        async with asyncio.timeout(self._list_seconds):
            await look

    async def _collect(self, store: ObjectStore, key: str, found: dict[str, ObjectMeta]) -> None:
        seen, last = 0, ""
        async for page in obstore.list(store, key or None, chunk_size=PAGE_OBJECTS):
            seen += len(page)
            if seen > MAX_FILES:
                raise InvalidArtifact(
                    f"{self.where}: more than {MAX_FILES} objects; name the prefix of one artifact"
                )
            for one in page:
                last = one["path"]
                if last not in found or one["size"]:
                    found[last] = one
        if not last or not self._access.listings_may_end_early:
            return
        # What comes after the last object that was listed? Nothing, if that was the end:
        # without this, half a model could be taken for the whole.
        async for page in obstore.list(store, key or None, offset=last, chunk_size=1):
            if any(one["path"] not in found for one in page):
                raise FetchFailed(
                    f"{self.where}: the server's listing ends too early; it is retried"
                )
            return

    def _markers(self, found: Mapping[str, ObjectMeta]) -> set[str]:
        """Return which of the empty objects are names of directories.

        Consoles and file system layers leave them, with a slash at the end that obstore cuts off:
        what has objects below it is one, and what is not there without the slash.
        """
        parents = {parent for path in found for parent in _parents(path)}
        empty = {path for path, meta in found.items() if meta["size"] == 0}
        files: set[str] = set()
        if unsure := empty - parents - {self._place.key}:
            self._run(lambda store: _find_all(store, unsure, files))
        return empty - files

    def _find(self, key: str) -> ObjectMeta | None:
        store, story = self._access.open(is_look=True)
        try:
            with object_errors(story):
                try:
                    return obstore.head(store, key)
                except FileNotFoundError:
                    return None
                except obstore.exceptions.BaseError:
                    # The answer to HEAD has no body, and so no word of what is wrong.
                    return obstore.get(store, key, options={"range": (0, 1)}).meta
        except NotFound:
            return None


async def _find_all(store: ObjectStore, paths: Iterable[str], found: set[str]) -> None:
    """Add to ``found`` which of the objects there are; several are asked for at once."""
    left = iter(paths)

    async def find() -> None:
        for path in left:
            with suppress(FileNotFoundError, obstore.exceptions.NotFoundError):
                await obstore.head_async(store, path)
                found.add(path)

    await asyncio.gather(*(find() for _ in range(LOOKS_AT_ONCE)))


def _blob(meta: ObjectMeta, path: str, packing: Packing | None = None) -> Blob:
    return Blob(path=path, key=meta["path"], size=meta["size"], tag=_tag(meta), packing=packing)


def _contents(blobs: Sequence[Blob]) -> Contents:
    """Sign a listing. When an object was written is no part of it: a copy of it is the same."""
    digest = hashlib.sha256()
    for one in sorted(blobs, key=lambda blob: blob.path):
        digest.update(f"{one.path}\0{one.size}\0{one.tag}\n".encode())
    return Contents(blobs=tuple(blobs), signature=f"objects:{digest.hexdigest()}")


def _tag(meta: ObjectMeta) -> str:
    """Return the etag without its quotes, which listings and answers write differently."""
    tag = (meta["e_tag"] or "").strip()
    weak, tag = tag.startswith("W/"), tag.removeprefix("W/").strip('"')
    if not tag:
        # In whole seconds, as an answer's Last-Modified has it.
        return f"modified {int(meta['last_modified'].timestamp())}"
    return f"W/{tag}" if weak else tag


def _is_strong(tag: str) -> bool:
    return _STRONG.fullmatch(tag) is not None and not tag.startswith("W/")


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _is_known(host: str) -> bool:
    if not host:
        return True
    from sidecar.artifacts.remote.objects_azure import HOSTS

    return HOSTS.fullmatch(host) is not None


def _cloud(scheme: str) -> Cloud:
    match scheme:
        case "s3":
            from sidecar.artifacts.remote.objects_s3 import S3

            return S3
        case "gs":
            from sidecar.artifacts.remote.objects_gcs import GCS

            return GCS
        case _:
            from sidecar.artifacts.remote.objects_azure import AZURE

            return AZURE
