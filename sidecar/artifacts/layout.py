"""Names and paths of the store, and one complete revision in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sidecar.artifacts.manifest import MARKER, Manifest
from sidecar.core.inventory import Revision

_MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Held:
    """One complete revision with its manifest."""

    manifest: Manifest
    revision: Revision


def directory_name(name: str) -> str:
    """Return a file name for any text: itself where it can be one, else quoted, else hashed."""
    quoted = quote(name, safe="+=@:,~ ", errors="surrogatepass")
    if quoted.startswith("."):
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) <= _MAX_NAME_BYTES and quoted:
        return quoted
    # "%~" appears in no quoted name, so the two never meet.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{quoted[: _MAX_NAME_BYTES - 40]}%~{digest[:32]}"


def lock_key(revision: Revision) -> str:
    """Return the key of the lock that holders of a revision share."""
    return f"revision {revision.kind} {directory_name(revision.name)} {revision.revision}"


def held_at(manifest: Manifest, path: Path) -> Held:
    """Return a revision as it lies at ``path``. Raises ``OSError`` without a marker."""
    return Held(
        manifest,
        Revision(
            name=manifest.name,
            kind=manifest.kind,
            revision=manifest.revision,
            path=str(path),
            bytes=manifest.bytes,
            source=manifest.source,
            digest=manifest.digest,
            used_at=(path / MARKER).stat().st_mtime,
            parts=manifest.parts,
        ),
    )


def children(directory: Path) -> list[Path]:
    """Return what is in a directory, nothing if there is none. Raises ``OSError``."""
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
