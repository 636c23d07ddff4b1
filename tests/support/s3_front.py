"""A real S3 server with one bucket, and before it a proxy that counts and disturbs.

The agents are given the proxy as their endpoint; tests put objects into the server itself::

    with S3Front(s3) as front:
        source = front.put_tree("sql", directory)      # s3://<bucket>/sql/
        agent = start_agent("fake", env=front.environment())
        ...
        assert front.read_bytes() == size              # of objects, not of listings
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

from lab.s3 import S3
from lab.sigv4 import Keys
from sidecar.artifacts.manifest import MARKER
from tests.support.faulty import FaultyServer, Request
from tests.support.loras import write_tiny_lora

_numbers = itertools.count(1)


class S3Front:
    """The proxy and the bucket; a context manager."""

    def __init__(self, s3: S3) -> None:
        """``s3`` speaks http, and has no bucket that another front made in it."""
        self.s3 = s3
        self.bucket = f"models-{next(_numbers)}"
        s3.make_bucket(self.bucket)
        parts = urlsplit(s3.url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.proxy = FaultyServer(upstream=(parts.hostname, parts.port))

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.proxy.__exit__(kind, error, trace)

    def environment(self, keys: Keys | None = None) -> dict[str, str]:
        """The variables that an agent finds the proxy by."""
        return {**self.s3.environment(keys), "AWS_ENDPOINT_URL": self.proxy.url}

    def source(self, prefix: str) -> str:
        """The source that a prefix is."""
        return f"s3://{self.bucket}/{prefix}/"

    def put(self, key: str, body: bytes | Path) -> None:
        """Put one object."""
        self.s3.put(self.bucket, key, body)

    def put_tree(self, prefix: str, directory: Path) -> str:
        """Put a directory below a prefix; return the source."""
        files = {
            f"{prefix}/{one.relative_to(directory)}": one
            for one in directory.rglob("*")
            if one.is_file()
        }
        self.s3.put_all(self.bucket, files)
        return self.source(prefix)

    def delete_tree(self, prefix: str, directory: Path) -> None:
        """Delete what ``put_tree`` put."""
        for one in directory.rglob("*"):
            if one.is_file():
                self.s3.delete(self.bucket, f"{prefix}/{one.relative_to(directory)}")

    def path(self, prefix: str) -> str:
        """A pattern for the requests of objects below a prefix, as ``FaultyServer.add`` takes it:
        listings are none of them."""
        return f"^/{self.bucket}/{quote(prefix)}/"

    def reads(self, prefix: str = "") -> list[Request]:
        """Requests for the bytes of objects, below a prefix where one is given."""
        start = f"/{self.bucket}/{quote(prefix)}/" if prefix else f"/{self.bucket}/"
        return [
            one
            for one in list(self.proxy.seen)
            if one.method == "GET" and one.target.startswith(start) and not is_listing(one)
        ]

    def listings(self, prefix: str) -> list[Request]:
        """Requests that list a prefix."""
        asked = f"prefix={quote(prefix + '/', safe='')}"
        return [
            one
            for one in list(self.proxy.seen)
            if is_listing(one) and asked in one.target.split("?")[1].split("&")
        ]

    def read_bytes(self, prefix: str = "") -> int:
        """Bytes of objects that were sent so far."""
        return sum(one.sent for one in self.reads(prefix))


def is_listing(request: Request) -> bool:
    """Tell whether a request lists a bucket."""
    return "list-type=2" in request.target.partition("?")[2].split("&")


def write_lora_of(directory: Path, *, size: int = 0, files: int = 0, seed: int = 0) -> Path:
    """Write a LoRA with a file of ``size`` bytes (``more``), and many of a kilobyte, beside it."""
    write_tiny_lora(directory, seed=seed)
    chance = random.Random(seed)
    if size:
        (directory / "more").write_bytes(chance.randbytes(size))
    for number in range(files):
        place = directory / f"part-{number % 10}"
        place.mkdir(exist_ok=True)
        (place / f"{number:05}").write_bytes(chance.randbytes(1000))
    return directory


def tree_of(directory: Path | str) -> dict[str, bytes]:
    """Every file of a directory by its relative path, but for the store's marker."""
    top = Path(directory)
    return {
        str(one.relative_to(top)): one.read_bytes()
        for one in top.rglob("*")
        if one.is_file() and one.name != MARKER
    }


def size_of(directory: Path | str) -> int:
    """Bytes of all files of a directory, but for the store's marker."""
    return sum(
        one.stat().st_size
        for one in Path(directory).rglob("*")
        if one.is_file() and one.name != MARKER
    )


def native(sources: Mapping[str, str], **fields: object) -> list[dict[str, object]]:
    """Entries of a native document: name to source."""
    return [{"name": name, "source": source, **fields} for name, source in sources.items()]
