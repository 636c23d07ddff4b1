"""Fetches in a process that can be killed: `python -m tests.support.killed_fetch < order`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from threading import Event

from sidecar.artifacts.remote.port import Blob, Packing
from sidecar.artifacts.remote.transfer import fetch_blobs
from sidecar.artifacts.workspace import Workspace
from tests.support.wire_source import WireSource


def main() -> None:
    order = json.load(sys.stdin)
    blobs = [
        Blob(**one | {"packing": Packing(one["packing"]) if one["packing"] else None})
        for one in order["blobs"]
    ]
    root = Path(order["root"])
    workspace = Workspace(
        directory=root / "new",
        scratch=root / "scratch",
        report=lambda size: None,
        grow=lambda size: None,
        stop=Event(),
    )
    fetch_blobs(WireSource(order["port"]), blobs, workspace)


if __name__ == "__main__":
    main()
