"""Where the agent keeps what it must remember over its own restart: one JSON file a pod."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.artifacts.files import make_directories, store_errors, write_file
from sidecar.artifacts.layout import directory_name
from sidecar.artifacts.threads import Workers

PRIVATE_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """What was read back."""

    mapping: dict[str, Any] | None
    """None: nothing is remembered."""
    problem: str = ""
    """Why what was there cannot be used; empty where nothing was there."""


class MemoryFile:
    """``<root>/.agent/<pod uid>.json``, readable by the agent alone."""

    def __init__(self, root: Path, pod_uid: str) -> None:
        self._root = root
        self._path = root / ".agent" / f"{directory_name(pod_uid)}.json"
        self._workers = Workers("memory", 1)
        self._writing = asyncio.Lock()
        self._newest: Mapping[str, Any] = {}
        self._asked = 0
        self._saved = 0

    async def load(self) -> Recalled:
        """Read what was saved last; a damaged or unreadable file is reported, never raised."""
        return await self._workers.run(lambda _: self._read())

    async def save(self, mapping: Mapping[str, Any]) -> None:
        """Replace what is remembered; durable when this returns.

        Calls that overlap are written once, the newest of them. Raises ``ArtifactError``.
        """
        self._newest = mapping
        self._asked += 1
        mine = self._asked
        async with self._writing:
            if self._saved < mine:
                saving, newest = self._asked, self._newest
                await self._workers.run(lambda _: self._write(newest))
                self._saved = saving

    def close(self) -> None:
        """Accept no more work."""
        self._workers.close()

    def _read(self) -> Recalled:
        try:
            value = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return Recalled(mapping=None)
        except (OSError, ValueError, RecursionError) as error:
            return Recalled(mapping=None, problem=f"{self._path} cannot be used: {error}")
        if not isinstance(value, dict):
            return Recalled(mapping=None, problem=f"{self._path} holds no JSON object")
        return Recalled(mapping=value)

    def _write(self, mapping: Mapping[str, Any]) -> None:
        data = json.dumps(mapping, separators=(",", ":")).encode()
        with store_errors(self._root):
            make_directories(self._path.parent)
            write_file(self._path, data, PRIVATE_MODE)


def place_of(path: str) -> tuple[str, ...]:
    """Return what is the same of a revision's path wherever a pod mounts the store."""
    return tuple(path.split("/")[-3:])


def needed_places(data: bytes) -> frozenset[tuple[str, ...]]:
    """Return the places that a saved memory names as held or retired; of a damaged one, none.

    Whoever wrote a damaged one begins anew as well.
    """
    try:
        # Of any version: an older or newer agent may share the store.
        memory = json.loads(data)
        paths = [held[0] for held in memory["held"].values()] + list(memory["retired"])
        return frozenset(map(place_of, paths))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return frozenset()
