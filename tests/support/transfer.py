"""What tests of the transfer share: a served blob, a workspace, a fetch."""

from __future__ import annotations

import hashlib
import random
from functools import cache
from threading import Event

from sidecar.artifacts.remote.port import Blob
from sidecar.artifacts.remote.transfer import PART_BYTES, fetch_blobs
from sidecar.artifacts.workspace import Workspace
from tests.support.wire_source import WireSource

MIB = 1 << 20


@cache
def data_of(size, seed=0):
    return random.Random(seed).randbytes(size)


SMALL = data_of(300_000)
LARGE = data_of(3 * PART_BYTES + 12_345)


class Place:
    """A workspace, and what was told of it."""

    def __init__(self, root, grow=None):
        self.told: list[int] = []
        self.grown: list[int] = []
        self.workspace = Workspace(
            directory=root / "new",
            scratch=root / "scratch",
            report=self.told.append,
            grow=grow or self.grown.append,
            stop=Event(),
        )
        for one in (self.workspace.directory, self.workspace.scratch):
            one.mkdir(exist_ok=True)

    def read(self, path):
        return (self.workspace.directory / path).read_bytes()


def put(server, name, data, **blob):
    """Serve the data, and return the blob that a listing would say it is."""
    etag = server.put(f"/{name}", data, has_ranges=blob.get("has_ranges", True))
    return Blob(**{"path": name, "key": f"/{name}", "size": len(data), "tag": etag} | blob)


def fetch(server, blobs, place, **options):
    return fetch_blobs(WireSource(server.port), blobs, place.workspace, **options)


def sha256(data):
    return hashlib.sha256(data).hexdigest()
