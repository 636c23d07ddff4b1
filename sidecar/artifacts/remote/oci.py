"""``oci://``: artifacts and modelcar images in a registry.

Protocol: https://github.com/opencontainers/distribution-spec (v1.1). A manifest is known by the
digest of its bytes and names its layers by theirs, so that what was listed cannot change while it
is read. What the layers are: ``oci_manifest``.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

from sidecar.artifacts.remote.http_client import Answer, Client
from sidecar.artifacts.remote.http_urls import parse_target
from sidecar.artifacts.remote.oci_auth import Authorizer
from sidecar.artifacts.remote.oci_manifest import (
    ACCEPTED,
    choose_manifest,
    parse_manifest,
    read_contents,
)
from sidecar.artifacts.remote.oci_reference import Reference, parse_reference
from sidecar.artifacts.remote.port import Blob, Contents
from sidecar.artifacts.remote.reading import cut
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import (
    AccessDenied,
    ArtifactError,
    DigestMismatch,
    FetchFailed,
    InvalidArtifact,
    NotFound,
)

MAX_MANIFEST_BYTES = 4 << 20
"""What registries take at least, and few take more (distribution-spec, "Pushing Manifests")."""
MAX_NESTING = 3
MAX_ERROR_BYTES = 64 << 10
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CODE = re.compile(r"[A-Z_]{3,40}")
_NUMBER = re.compile(r"[0-9]{1,19}")
"""Python refuses to read a number of thousands of digits."""
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)")


def open_oci(url: str, credentials: Credentials) -> OciSource:
    """Return what reads ``oci://registry[:port]/repository[:tag][@digest]``; no I/O.

    Raises ``UnsupportedSource``.
    """
    reference = parse_reference(url, has_ca="ca.crt" in credentials.values)
    return OciSource(reference, credentials)


class _Looks:
    """What manifests were found to hold, by their digests: none of it can ever change.

    Of each user alone: else whoever knows a digest would be told of it without the registry being
    asked. With it a look at a tag is a HEAD, which Docker Hub does not count as a pull (a GET it
    does: docs.docker.com/docker-hub/usage/pulls).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._known: OrderedDict[tuple[str, str, str], Contents] = OrderedDict()

    def get(self, url: str, user: str, digest: str) -> Contents | None:
        key = (url, user, digest)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def add(self, url: str, user: str, digest: str, contents: Contents) -> None:
        with self._lock:
            self._known[url, user, digest] = contents
            while len(self._known) > self._limit:
                self._known.popitem(last=False)


_looks = _Looks(limit=256)


class OciSource:
    """One repository at one reference; see ``port.RemoteSource``."""

    def __init__(self, reference: Reference, credentials: Credentials) -> None:
        self._reference = reference
        self._client = Client(
            reference.where,
            settings=credentials.values,
            ca_certificate=credentials.values.get("ca.crt"),
        )
        self._authorizer = Authorizer(reference, credentials, self._client)

    @property
    def where(self) -> str:
        """See ``port.RemoteSource``."""
        return self._reference.where

    def list(self) -> Contents:
        """Read the manifest, unless it is one that was read before."""
        url, user = self._reference.url, self._authorizer.user
        digest = self._reference.digest or self._look_up(self._reference.tag)
        contents = _looks.get(url, user, digest)
        if contents is None:
            digest, contents = self._read_contents(digest or self._reference.tag)
            _looks.add(url, user, digest, contents)
        return contents

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes | memoryview]:
        """Read a range of a blob; see ``port.RemoteSource``."""
        size = blob.size or 0
        end = size if end is None else end
        if start >= end and size:
            return
        is_part = (start, end) != (0, size)
        # Closed ranges only: some registries refuse bytes=n- (google/go-containerregistry's own).
        headers = {"Range": f"bytes={start}-{end - 1}"} if is_part else {}
        with self._open("GET", f"blobs/{blob.key}", headers) as answer:
            if answer.status == 206 and is_part:
                self._check_range(answer, start)
                yield from answer.chunks()
            elif answer.status == 200:
                # A registry need not know ranges, and one that copies another may do so later on:
                # what lies before is read past, as containerd does.
                yield from cut(answer.chunks(), start, end) if is_part else answer.chunks()
            else:
                raise self._error(answer, "a layer", "push it anew")

    def close(self) -> None:
        """See ``port.RemoteSource``."""
        self._client.close()

    def _look_up(self, tag: str) -> str:
        """Return the digest that a tag stands for; empty where the registry does not tell."""
        with self._open("HEAD", f"manifests/{tag}", {"Accept": ", ".join(ACCEPTED)}) as answer:
            if answer.status in {401, 403, 404, 429}:
                raise self._error(answer, "the manifest", "check repository and tag")
            digest = answer.headers.get("docker-content-digest", "")
            is_told = answer.status == 200 and re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
            return digest if is_told else ""

    def _read_contents(self, wanted: str) -> tuple[str, Contents]:
        """Return the digest of what is wanted, and what it holds."""
        first = ""
        architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
        for _ in range(MAX_NESTING):
            digest, manifest = self._read_manifest(wanted)
            first = first or digest
            chosen = choose_manifest(manifest, architecture, self.where)
            if chosen is None:
                return first, read_contents(manifest, digest, self.where)
            wanted = chosen
        raise InvalidArtifact(f"{self.where}: an index of indexes of indexes is not read")

    def _read_manifest(self, wanted: str) -> tuple[str, Mapping[str, Any]]:
        headers = {"Accept": ", ".join(ACCEPTED)}
        with self._open("GET", f"manifests/{wanted}", headers) as answer:
            if answer.status != 200:
                raise self._error(answer, "the manifest", "check repository and tag")
            length = answer.headers.get("content-length", "")
            if _NUMBER.fullmatch(length) and int(length) > MAX_MANIFEST_BYTES:
                raise InvalidArtifact(
                    f"{self.where}: the manifest has more than {MAX_MANIFEST_BYTES} bytes"
                )
            text = answer.read(MAX_MANIFEST_BYTES)
            told = answer.headers.get("docker-content-digest", "")
        digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        if ":" in wanted and digest != wanted:
            raise DigestMismatch(
                f"{self.where}: the registry has {digest} under the digest {wanted}; "
                "its storage or something on the way changes manifests"
            )
        if told.startswith("sha256:") and digest != told:
            raise FetchFailed(
                f"{self.where}: the manifest does not have the digest that it came with"
            )
        return digest, parse_manifest(text, self.where)

    @contextmanager
    def _open(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Ask the registry, and once more when it wants to know who we are."""
        url = f"{self._reference.url}/{path}"
        used = self._authorizer.header
        with self._client.open(method, url, headers=_with(headers, used)) as answer:
            # Whoever a redirect leads to is no registry to introduce ourselves to.
            if answer.status != 401 or not self._is_ours(answer):
                yield answer
                return
            challenge = answer.headers.get("www-authenticate", "")
        self._authorizer.answer(challenge, used)
        with self._client.open(
            method, url, headers=_with(headers, self._authorizer.header)
        ) as answer:
            yield answer

    def _is_ours(self, answer: Answer) -> bool:
        """Tell whether the registry itself answers, and not somebody that it redirects to."""
        own = parse_target(self._reference.url, where=self.where)
        return parse_target(answer.url, where=self.where).origin == own.origin

    def _check_range(self, answer: Answer, start: int) -> None:
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != start:
            raise FetchFailed(f"{self.where}: the registry sends another range than was asked for")

    def _error(self, answer: Answer, what: str, if_missing: str) -> ArtifactError:
        status, code = answer.status, _code_of(answer)
        said = f"{status} from {self.where}" + (f" ({code})" if code else "")
        if status == 401 and self._is_ours(answer):
            return self._authorizer.denied()
        if status in {401, 403}:
            return AccessDenied(f"{said}: {what} may not be read; check what the user may read")
        if status == 404:
            return NotFound(f"{said}: {what} is not in the registry; {if_missing}")
        if status == 429:
            wait = answer.headers.get("retry-after", "")
            later = f" (it asks to wait {wait} s)" if _NUMBER.fullmatch(wait) else ""
            return FetchFailed(
                f"{said}: too many requests{later}; log in, or use a registry of your own"
            )
        return FetchFailed(f"{said}: {what} cannot be read now; it is tried again")


def _with(headers: Mapping[str, str], authorization: str) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers


def _code_of(answer: Answer) -> str:
    """Return the code of a registry's error (distribution-spec, "Error Codes"); else nothing."""
    with suppress(FetchFailed, ValueError, RecursionError, LookupError, TypeError):
        code = json.loads(answer.read(MAX_ERROR_BYTES))["errors"][0]["code"]
        return code if _CODE.fullmatch(code) else ""
    return ""
