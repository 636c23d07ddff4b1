"""``hf://``: model repositories of the Hugging Face hub, and of servers with its API.

What is there is asked of huggingface_hub (``hub_api``), at the commit that the revision stands for
at that moment. Bytes are then read from that commit: a branch that moves meanwhile changes nothing.
They come over plain HTTP, redirects to the hub's caches included, which it offers for every file;
its deduplicating protocol (hf_xet) is not used.

Everything below the path is fetched, except

- what begins with ``.git`` (``.gitattributes``): it is for git;
- the pickles of a LoRA that has ``adapter_model.safetensors``: no engine needs them any more.

A base model with its weights in several formats is fetched whole; name one directory of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sidecar.artifacts.archive import packing_of
from sidecar.artifacts.listing import ADAPTER_CONFIG, PICKLES
from sidecar.artifacts.lora import WEIGHTS
from sidecar.artifacts.remote.http_client import Answer, Client
from sidecar.artifacts.remote.http_urls import parse_target
from sidecar.artifacts.remote.https_answers import parse_length, parse_span
from sidecar.artifacts.remote.hub_answers import Hub
from sidecar.artifacts.remote.hub_reference import parse_reference
from sidecar.artifacts.remote.port import Blob, Contents, Packing
from sidecar.artifacts.remote.reading import cut
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import (
    FetchFailed,
    InvalidArtifact,
    NotFound,
    SourceMoved,
    SourceNotAllowed,
    UnsupportedSource,
)

if TYPE_CHECKING:
    from sidecar.artifacts.remote.hub_api import HubApi, HubFile

ENDPOINT = "https://huggingface.co"
_GIT = re.compile(r"(?:.*/)?\.git[^/]*(?:/.*)?", re.DOTALL)


def open_hub(url: str, credentials: Credentials) -> HubSource:
    """Return what reads ``hf://[models/]namespace/name[@revision][/path]``; no I/O.

    Of the credentials: ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``. Raises
    ``UnsupportedSource``, ``InvalidArtifact``, and ``SourceNotAllowed`` when hubs are switched off.
    """
    reference = parse_reference(url)
    if credentials.is_on("HF_HUB_OFFLINE") or credentials.is_on("TRANSFORMERS_OFFLINE"):
        raise SourceNotAllowed(
            f"{reference.where}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set in "
            f"{credentials.where}, so no hub is asked; take it away, or name another source"
        )
    endpoint = credentials.values.get("HF_ENDPOINT", ENDPOINT).strip().rstrip("/")
    target = parse_target(endpoint, where=f"{reference.where} at HF_ENDPOINT")
    if target.user or "?" in endpoint or "#" in endpoint:
        raise InvalidArtifact(
            f"{reference.where}: HF_ENDPOINT must be a URL without user, query and fragment; "
            "a token belongs into HF_TOKEN"
        )
    token = credentials.values.get("HF_TOKEN", "").strip()
    return HubSource(
        Hub(endpoint=endpoint, token=token, reference=reference, credentials=credentials)
    )


class HubSource:
    """A directory or a file of one repository; see ``port.RemoteSource``."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._client = Client(
            hub.reference.where,
            settings=hub.credentials.values,
            ca_certificate=hub.credentials.values.get("ca.crt"),
        )

    @property
    def where(self) -> str:
        """See ``port.RemoteSource``."""
        return self._hub.reference.where

    def list(self) -> Contents:
        """Ask for the commit and its files: two requests, and one more for each 1,000 files."""
        try:
            from sidecar.artifacts.remote.hub_api import HubApi
        except (ImportError, ValueError) as error:
            # It reads its settings when it is imported, and numbers among them must be numbers.
            raise UnsupportedSource(
                f"{self.where}: huggingface_hub does not start ({type(error).__name__}); install "
                "it, and correct the HF_ variables of the agent's environment"
            ) from error

        api = HubApi(self._hub, self._client)
        commit = self._hub.reference.commit or api.find_commit()
        chosen = tuple(_choose(self._find(api, commit)))
        return Contents(blobs=chosen, signature=_signature(chosen))

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes | memoryview]:
        """Read a range of a file at its commit; see ``port.RemoteSource``."""
        size = blob.size or 0
        end = size if end is None else end
        if start >= end and size:
            return
        is_part = (start, end) != (0, size)
        headers = {"authorization": f"Bearer {self._hub.token}"} if self._hub.token else {}
        if is_part:
            headers["range"] = f"bytes={start}-{end - 1}"
        with self._client.open("GET", blob.key, headers=headers) as answer:
            skipped = self._check(answer, blob, start)
            chunks = cut(answer.chunks(), skipped, skipped + end - start)
            if blob.has_ranges or is_part:
                yield from chunks
            else:
                yield from self._verified(chunks, blob)

    def close(self) -> None:
        """See ``port.RemoteSource``."""
        self._client.close()

    def _find(self, api: HubApi, commit: str) -> tuple[Blob, ...]:
        reference = self._hub.reference
        top = f"{reference.path}/" if reference.path else ""
        try:
            files = api.list_files(commit)
        except NotFound:
            # The hub lists directories only.
            file = None if reference.is_directory else api.find_file(commit)
            if file is None:
                raise
            name = file.path.rpartition("/")[2]
            packing = packing_of(name)
            return (_blob(file, "" if packing else name, commit, packing),)
        if not all(one.path.startswith(top) for one in files):
            raise self._hub.no_hub()
        return tuple(_blob(one, one.path.removeprefix(top), commit, None) for one in files)

    def _check(self, answer: Answer, blob: Blob, start: int) -> int:
        """Return how many bytes of the answer lie before ``start``."""
        span = parse_span(answer.headers) if answer.status == 206 else None
        if answer.status == 200:
            total, skipped = parse_length(answer.headers), start
        elif span is not None and span.start <= start:
            total, skipped = span.total, start - span.start
        elif answer.status == 206:
            raise FetchFailed(f"{self.where}: {answer.peer} sends another range than was asked for")
        else:
            raise self._hub.refusal(answer)
        if total not in {None, blob.size}:
            raise SourceMoved(
                f"{self.where}: {blob.path} has {total} bytes, and the hub had listed {blob.size}"
            )
        return skipped

    def _verified(self, chunks: Iterable[memoryview], blob: Blob) -> Iterator[memoryview]:
        """Yield a whole file; its last bytes only when all of it is what git knows by its name.

        Git's name of a file is the SHA-1 of a header and its bytes (gitformat, "Object storage").
        """
        digest = hashlib.sha1(b"blob %d\0" % (blob.size or 0), usedforsecurity=False)
        left = blob.size or 0
        for chunk in chunks:
            digest.update(chunk)
            left -= len(chunk)
            if left == 0 and digest.hexdigest() != blob.tag:
                raise FetchFailed(
                    f"{self.where}: {blob.path} came with other bytes than the hub listed"
                )
            yield chunk


def _blob(file: HubFile, path: str, commit: str, packing: Packing | None) -> Blob:
    return Blob(
        path=path,
        key=file.url,
        size=file.size,
        tag=file.sha256 or file.git_sha1 or commit,
        sha256=file.sha256,
        packing=packing,
        # What is in git itself is small, and can be verified only as a whole.
        has_ranges=not file.git_sha1,
    )


def _choose(blobs: Iterable[Blob]) -> Iterator[Blob]:
    wanted = [one for one in blobs if not _GIT.fullmatch(one.path)]
    is_safe_lora = {ADAPTER_CONFIG, WEIGHTS} <= {one.path for one in wanted}
    for one in wanted:
        if not (is_safe_lora and one.path.lower().endswith(PICKLES)):
            yield one


def _signature(blobs: Iterable[Blob]) -> str:
    """Digest what the bytes are, and not the commit: one that changes other files moves nothing."""
    listed = sorted((one.path, one.size, one.tag) for one in blobs)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
