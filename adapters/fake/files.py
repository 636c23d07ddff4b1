"""What an engine reads from disk when it loads. Blocking."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 20
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


class UnreadableError(Exception):
    """The files are no LoRA or no model; the message is what the engine says."""


def read_lora(path: Path, max_rank: int) -> str:
    """Return the digest of a LoRA; raise ``FileNotFoundError`` without one, ``UnreadableError``."""
    config = path / "adapter_config.json"
    try:
        settings = json.loads(config.read_bytes())
    except ValueError as exc:
        raise UnreadableError(f"{config.name} is invalid: {exc}") from exc
    rank = settings.get("r") if isinstance(settings, dict) else None
    if not isinstance(rank, int):
        raise UnreadableError(f"{config.name} has no rank")
    if rank > max_rank:
        raise UnreadableError(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
    if not any((path / name).is_file() for name in WEIGHTS):
        raise UnreadableError(f"{path} doesn't contain tensors")
    return digest(path)


def read_model(path: Path) -> str:
    """Return the digest of a model directory; raise ``UnreadableError``."""
    versions = [one for one in path.iterdir() if one.name.isdecimal()] if path.is_dir() else []
    if not any(child.is_file() for version in versions for child in version.rglob("*")):
        raise UnreadableError("at least one version must be available under the version policy")
    return digest(path)


def digest(path: Path) -> str:
    """Return the sha256 of names and bytes of every file in a tree."""
    total = hashlib.sha256()
    for file in sorted(one for one in tree(path) if one.is_file()):
        total.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                total.update(chunk)
        total.update(b"\0")
    return total.hexdigest()


def newest_nanoseconds(path: Path) -> int:
    """Return the greatest modification or change time in a tree."""
    return max(max(s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, tree(path)))


def tree(path: Path) -> Iterator[Path]:
    """Walk a tree, itself included, through a link at its root only."""
    yield path
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            yield Path(directory, name)
