"""The completion marker: a JSON manifest inside a revision's directory, written last.

Engines do not mind it: Triton takes only numeric directories of a model for versions, vLLM opens
files by their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from adapters.base import Kind

MARKER = ".model-sidecar.json"
FORMAT = 1
REVISION_CHARACTERS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of a revision."""

    path: str
    """Relative to the revision's directory, with forward slashes."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a revision consists of and where it came from."""

    name: str
    kind: Kind
    digest: str
    """``sha256:<64 hex>``, see ``content_digest``."""
    source: str
    """Credentials taken out."""
    source_signature: str
    """What the source looked like when its bytes were read; empty where that proves nothing."""
    files: tuple[FileRecord, ...]
    parts: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """The identity of the bytes, also the name of the directory."""
        return revision_of(self.digest)

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(one.size for one in self.files)


def content_digest(files: Iterable[FileRecord]) -> str:
    """Return the digest of a tree: sha256 over ``<sha256>  <path>`` lines, sorted by path.

    People get the same (prefix ``sha256:``) in a source directory with::

        find -L . -type f ! -path ./.model-sidecar.json -printf '%P\\0' \\
          | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum

    Empty directories, modes and times are no part of it.
    """
    digest = hashlib.sha256()
    for one in sorted(files, key=lambda one: one.path.encode()):
        digest.update(f"{one.sha256}  {one.path}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def revision_of(digest: str) -> str:
    """Return the revision that a content digest names."""
    return digest.removeprefix("sha256:")[:REVISION_CHARACTERS]


def to_text(manifest: Manifest) -> str:
    """Return the manifest as JSON text."""
    value = {
        "format": FORMAT,
        "name": manifest.name,
        "kind": str(manifest.kind),
        "revision": manifest.revision,
        "digest": manifest.digest,
        "source": manifest.source,
        "source_signature": manifest.source_signature,
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files],
        "parts": list(manifest.parts),
    }
    return json.dumps(value, indent=1) + "\n"


def parse_manifest(text: str | bytes) -> Manifest:
    """Parse a marker. Raises ``ValueError`` when it is damaged or of another format."""
    try:
        value: Any = json.loads(text)
        if value["format"] != FORMAT:
            raise ValueError(f"marker of format {value['format']!r}, not {FORMAT}")
        manifest = Manifest(
            name=str(value["name"]),
            kind=Kind(value["kind"]),
            digest=str(value["digest"]),
            source=str(value["source"]),
            source_signature=str(value["source_signature"]),
            files=tuple(
                FileRecord(path=str(f["path"]), size=int(f["size"]), sha256=str(f["sha256"]))
                for f in value["files"]
            ),
            parts=tuple(map(str, value["parts"])),
        )
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"damaged marker: {error!r}") from error
    if manifest.revision != value.get("revision"):
        raise ValueError("damaged marker: revision and digest differ")
    return manifest
