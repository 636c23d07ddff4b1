"""Notes on what of a fetch is durable on disk, for the fetch that goes on after an interruption.

One line a note, each with a checksum of its own, appended and synced after the bytes that it speaks
of; of several notes on one blob the last one holds. A line that is torn or damaged ends the
reading: what stood before it was synced before, and still holds. A journal without a whole first
line says nothing, so all is fetched anew.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.artifacts.files import write_file

FORMAT = 1
_HEADER = {"format": FORMAT}

Ranges = tuple[tuple[int, int], ...]
"""Disjoint, ascending, each from its first byte to before its last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What of one blob is durable."""

    ranges: Ranges = ()
    sha256: str = ""
    """Of the whole file, in hex, once it is complete; empty before."""


def merge(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the same bytes in as few ranges as there can be."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def missing(ranges: Ranges, size: int) -> Ranges:
    """Return what merged ranges leave out of the bytes from 0 to before ``size``."""
    edges = [0, *(edge for one in ranges for edge in one), size]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple((start, end) for start, end in pairs if start < end)


def read_notes(path: Path) -> dict[str, Note]:
    """Return the notes by blob; none where there is no journal or its beginning is damaged.

    Raises ``OSError``.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    notes: dict[str, Note] = {}
    if _parse(lines[0]) != _HEADER:
        return notes
    for value in map(_parse, lines[1:]):
        if value is None:
            break
        try:
            notes[str(value["blob"])] = Note(
                ranges=merge((int(start), int(end)) for start, end in value["ranges"]),
                sha256=str(value["sha256"]),
            )
        except (KeyError, TypeError, ValueError):
            break
    return notes


class Journal:
    """A journal that is being written. Not for several threads at once; raises ``OSError``."""

    def __init__(self, path: Path, notes: Mapping[str, Note]) -> None:
        """Begin with these notes instead of those that are there."""
        lines = [_line(_HEADER), *(_line(_value(blob, note)) for blob, note in notes.items())]
        write_file(path, b"".join(lines))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._lines: list[bytes] = []

    def add(self, blob: str, note: Note) -> None:
        """Note something that is durable already; itself durable after the next ``flush``."""
        self._lines.append(_line(_value(blob, note)))

    def flush(self) -> None:
        """Make all notes durable."""
        if not self._lines:
            return
        data = memoryview(b"".join(self._lines))
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._lines.clear()
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Forget what was not flushed."""
        os.close(self._descriptor)


def _value(blob: str, note: Note) -> dict[str, Any]:
    return {"blob": blob, "ranges": note.ranges, "sha256": note.sha256}


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        value: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return value
