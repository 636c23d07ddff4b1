"""KServe's ``models.json``, as the TrainedModel controller writes it: in no order of its own."""

from __future__ import annotations

from sidecar.core.desired import Format
from sidecar.core.documents.fields import Fields, Report, shown
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.parsed import ParsedDocument, ParsedEntry


def parse_kserve(key: str, root: Node) -> ParsedDocument:
    """Return what a KServe model list says; framework and memory are for its controller.

    Raises:
        DocumentError: where it is no list.
    """
    report = Report(key)
    entries: dict[str, ParsedEntry] = {}
    undecided: set[str] = set()
    incomplete = False
    for index, node in enumerate(report.root_list("", root)):
        fields = Fields.open(report, f"[{index}]", node, "modelName")
        entry = _parse_entry(fields)
        if fields.name is None:
            incomplete = True
        elif entry is None:
            undecided.add(fields.name)
        else:
            if fields.name in entries:
                what = f"{shown(fields.name)} stands more than once: the last one is taken"
                fields.warn("modelName", what)
            entries[fields.name] = entry
    return ParsedDocument(
        key=key,
        format=Format.KSERVE,
        entries=entries,
        undecided=frozenset(undecided),
        incomplete=incomplete,
        problems=tuple(report.problems),
    )


def _parse_entry(fields: Fields) -> ParsedEntry | None:
    if not fields.items:
        return None
    node = fields.mapping("modelSpec")
    if node is None or not isinstance(node.value, dict):
        if "modelSpec" not in fields.items:
            fields.problem("modelSpec", "the field modelSpec is missing")
        return None
    spec = Fields(fields.report, f"{fields.path}.modelSpec", node, node.value, fields.name)
    source = spec.source("storageUri")
    if fields.bad or fields.name is None or source is None:
        return None
    return ParsedEntry(name=fields.name, source=source, where=fields.where())
