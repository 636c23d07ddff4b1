"""What ``models`` prints, for people and for machines; no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sidecar.commands.output import printable, problems_json
from sidecar.commands.table import table_lines
from sidecar.core.documents import ParsedDocument, ParsedEntry
from sidecar.core.redact import redact_source

if TYPE_CHECKING:
    from sidecar.cluster.results import Listing, Written

HEADINGS = ("NAME", "KIND", "SOURCE", "KEY", "NOTES")
DONE = {"add": "added", "remove": "removed", "create": "created", "delete": "deleted"}
ALREADY = {
    "add": "is there already",
    "remove": "is not there",
    "create": "exists already",
    "delete": "does not exist",
}

Row = tuple[str, str, str, str]


def say_written(operation: str, name: str, place: str, written: Written) -> Iterator[str]:
    """Say what an operation led to, one line a thing."""
    where = f"{place}, {written.key}" if written.key else place
    if name:
        done = f"{DONE[operation]} {name}" if written.changed else f"{name} {ALREADY[operation]}"
        yield f"{where}: {done}"
    else:
        yield f"{place} {DONE[operation] if written.changed else ALREADY[operation]}"
    if written.others:
        owners = ", ".join(owner or "none" for owner in written.others)
        yield f"{name} is still there for other deployments (--deployment): {owners}"
    for problem in written.problems:
        yield f"agents cannot use it: {problem.line}"
    if written.comments_lost:
        yield "comments in the document were lost: write the list one entry below the other"


def list_lines(place: str, listing: Listing) -> Iterator[str]:
    """Return one row an entry, then the problems."""
    rows = [
        (name, kind, source, key, notes)
        for key, document in listing.documents.items()
        for name, kind, source, notes in _rows(document)
    ]
    cells = [tuple(printable(cell) for cell in row) for row in rows]
    yield from table_lines(cells, HEADINGS) if cells else (f"{place} asks for nothing",)
    for problem in listing.problems:
        yield problem.line


def list_json(place: str, listing: Listing) -> dict[str, object]:
    """Return all of it; sources without what grants access."""
    return {
        "configmap": place,
        "resource_version": listing.resource_version,
        "digest": listing.digest,
        "valid": listing.valid,
        "documents": [
            {
                "key": key,
                "format": str(document.format),
                "models": [
                    {"name": name, "kind": kind, "source": source, "notes": notes}
                    for name, kind, source, notes in _rows(document)
                ],
            }
            for key, document in listing.documents.items()
        ],
        "problems": problems_json(listing.problems),
    }


def _rows(document: ParsedDocument) -> Iterator[Row]:
    for entry in document.entries.values():
        kind = str(entry.kind) if entry.kind is not None else "-"
        if not entry.placements:
            yield entry.name, kind, redact_source(entry.source), _notes(entry)
        for place in entry.placements:
            owner = f"deployment {place.owner}" if place.owner else ""
            phase = place.phase + (f" on {place.canary_pod}" if place.canary_pod else "")
            notes = ", ".join(part for part in (owner, phase) if part)
            yield entry.name, kind, redact_source(place.source), notes
    for name in sorted(document.absent):
        yield name, "-", "-", "shall not be there"
    for name in sorted(document.undecided):
        yield name, "-", "-", "cannot be used as it is"


def _notes(entry: ParsedEntry) -> str:
    share = f"{entry.rollout.percent:g} % of the pods" if entry.rollout is not None else ""
    pinned = "pinned" if entry.pinned else ""
    return ", ".join(part for part in (str(entry.readiness), share, pinned) if part)
