"""Recorded ConfigMaps, and snapshots of texts."""

from __future__ import annotations

from pathlib import Path

import yaml

from sidecar.core.snapshot import Presence, Snapshot

_DATA = Path(__file__).parent.parent / "data" / "documents"


def recorded(name: str) -> dict[str, str]:
    """Return ``data`` of a recorded ConfigMap."""
    manifest = yaml.safe_load((_DATA / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(manifest["data"])


def snapshot(files: dict[str, str]) -> Snapshot:
    """Return a read that saw ``files``."""
    return Snapshot(presence=Presence.PRESENT, source="dir /config", files=files)


ABSENT = Snapshot(presence=Presence.ABSENT, source="dir /config", reason="no such directory")
UNREADABLE = Snapshot(presence=Presence.UNREADABLE, source="dir /config", reason="I/O error")


def native(*entries: str) -> str:
    """Return a native document; each entry is what stands between the braces."""
    if not entries:
        return "models: []\n"
    return "models:\n" + "".join(f"- {{{entry}}}\n" for entry in entries)
