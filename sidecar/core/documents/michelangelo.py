"""Michelangelo's ``model-list.json``, both generations.

Entries that share a name are one model with several owners: each becomes a ``Placement``.
"""

from __future__ import annotations

from dataclasses import replace

from sidecar.core.desired import Format, Problem
from sidecar.core.documents.fields import Fields, Report, shown
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.parsed import ParsedDocument, ParsedEntry, Placement
from sidecar.core.redact import redact_source

CANARY = "canary"
STAGED = "staged"
SERVING = "serving"


def parse_michelangelo(key: str, root: Node) -> ParsedDocument:
    """Return what a model list says; fields that we do not know are left to later generations.

    Raises:
        DocumentError: where it is no list.
    """
    report = Report(key)
    entries: dict[str, ParsedEntry] = {}
    undecided: set[str] = set()
    incomplete = False
    for index, node in enumerate(report.root_list("", root)):
        fields = Fields.open(report, f"[{index}]", node, "name")
        place = _parse_placement(fields)
        if fields.name is None:
            incomplete = True
        elif place is None:
            undecided.add(fields.name)
        else:
            entries[fields.name] = _with_placement(entries.get(fields.name), fields.name, place)
    problems = [*report.problems, *_path_conflicts(entries)]
    return ParsedDocument(
        key=key,
        format=Format.MICHELANGELO,
        entries=entries,
        undecided=frozenset(undecided),
        incomplete=incomplete,
        problems=tuple(problems),
    )


def _parse_placement(fields: Fields) -> Placement | None:
    if not fields.items:
        return None
    # Written as s3_path before storage_path.
    old = "storage_path" not in fields.items and "s3_path" in fields.items
    source = fields.source("s3_path" if old else "storage_path")
    phase = fields.text("phase", blank=True) or ""
    canary_pod = fields.text("canary_pod", blank=True) or ""
    owner = fields.text("deployment_name", blank=True) or ""
    if fields.bad or fields.name is None or source is None:
        return None
    if phase not in ("", CANARY, STAGED, SERVING):
        what = f"the phase {shown(phase)} is unknown: every pod loads it, and none requires it"
        fields.warn("phase", what, f"write {CANARY}, {STAGED} or {SERVING}")
    if phase == CANARY and not canary_pod:
        hint = "name the pod in canary_pod"
        fields.warn("canary_pod", "a canary without a pod: no pod loads it", hint)
    return Placement(
        source=source, where=fields.where(), phase=phase, canary_pod=canary_pod, owner=owner
    )


def _with_placement(entry: ParsedEntry | None, name: str, place: Placement) -> ParsedEntry:
    if entry is None:
        return ParsedEntry(name=name, source=place.source, where=place.where, placements=(place,))
    return replace(entry, placements=(*entry.placements, place))


def _path_conflicts(entries: dict[str, ParsedEntry]) -> list[Problem]:
    return [
        Problem(
            where=place.where,
            what=f"{shown(entry.name)} has another storage_path than {entry.where} gives it: "
            f"{shown(redact_source(entry.source))} comes first",
            hint="give other files another name",
        )
        for entry in entries.values()
        for place in entry.placements
        if place.source != entry.source
    ]
