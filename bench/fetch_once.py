"""One fetch by the agent's own code in a process of its own, which says what it took.

`python -m bench.fetch_once < order.json`: the source's URL, the variables of the environment that
it reads, an empty directory, and whether to hash.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from threading import Event

from sidecar.artifacts.remote.objects import open_objects
from sidecar.artifacts.remote.secrets import read_credentials
from sidecar.artifacts.remote.transfer import fetch_blobs
from sidecar.artifacts.workspace import Workspace, nobody


class NoDigest:
    """Takes bytes and makes nothing of them."""

    def update(self, data: memoryview, /) -> None:
        """Ignore the bytes."""

    def hexdigest(self) -> str:
        """Return what no bytes have."""
        return "0" * 64


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Fetch, and print seconds and CPU seconds from the first look to the last synced file."""
    order = json.load(sys.stdin)
    target = Path(order["target"])
    workspace = Workspace(
        directory=target / "new",
        scratch=target / "scratch",
        report=nobody,
        grow=nobody,
        stop=Event(),
    )
    for one in (workspace.directory, workspace.scratch):
        one.mkdir(parents=True)
    credentials = read_credentials(None, root=target, environment=order["environment"])
    source = open_objects(order["url"], credentials)
    began, cpu = time.monotonic(), _cpu_seconds()
    blobs = source.list().blobs
    fetch_blobs(source, blobs, workspace, new_digest=hashlib.sha256 if order["hash"] else NoDigest)
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": _cpu_seconds() - cpu}))
    source.close()


if __name__ == "__main__":
    main()
