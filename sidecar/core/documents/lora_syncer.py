"""GAIE's lora-syncer ``vLLMLoRAConfig``: what shall exist, what shall not, and nothing else."""

from __future__ import annotations

from adapters.base import Kind
from sidecar.core.desired import Format
from sidecar.core.documents.fields import Fields, Report, shown
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.parsed import ParsedDocument, ParsedEntry

TOP = "vLLMLoRAConfig"
_EXIST = "ensureExist"
_NOT_EXIST = "ensureNotExist"


def parse_lora_syncer(key: str, root: Node) -> ParsedDocument:
    """Return what a lora-syncer document says; extra fields are allowed everywhere.

    Raises:
        DocumentError: where one of its lists has the wrong shape.
    """
    report = Report(key)
    config = report.root_mapping(TOP, report.root_mapping("", root)[TOP])
    base_model = _default_base_model(report, config)
    entries, undecided, incomplete = _parse_exist(report, config, base_model)
    absent, incomplete_absent = _parse_not_exist(report, config)
    both = absent & (set(entries) | undecided)
    for name in sorted(both & set(entries)):
        what = f"{shown(name)} stands in {_EXIST} and in {_NOT_EXIST}: it is left as it is"
        report.add(f"{TOP}.{_NOT_EXIST}", config[_NOT_EXIST], what, "remove it from one", name)
    return ParsedDocument(
        key=key,
        format=Format.LORA_SYNCER,
        entries={name: entry for name, entry in entries.items() if name not in both},
        absent=frozenset(absent - both),
        undecided=frozenset(undecided | both),
        incomplete=incomplete or incomplete_absent,
        problems=tuple(report.problems),
    )


def _default_base_model(report: Report, config: dict[str, Node]) -> str | None:
    node = config.get("defaultBaseModel")
    if node is None or node.value in (None, ""):
        return None
    if not isinstance(node.value, str):
        raise report.fail(f"{TOP}.defaultBaseModel", node, "defaultBaseModel must be text")
    return node.value


def _models(report: Report, config: dict[str, Node], name: str) -> list[Node]:
    if name not in config:
        return []
    path = f"{TOP}.{name}"
    inner = report.root_mapping(path, config[name])
    if "models" not in inner:
        hint = f"write models: [] where there are none, or leave out {name}"
        raise report.fail(path, config[name], "the list models is missing", hint)
    return report.root_list(f"{path}.models", inner["models"])


def _parse_exist(
    report: Report, config: dict[str, Node], base_model: str | None
) -> tuple[dict[str, ParsedEntry], set[str], bool]:
    entries: dict[str, ParsedEntry] = {}
    undecided: set[str] = set()
    incomplete = False
    for index, node in enumerate(_models(report, config, _EXIST)):
        fields = Fields.open(report, f"{TOP}.{_EXIST}.models[{index}]", node, "id")
        entry = _parse_entry(fields, base_model)
        if fields.name is None:
            incomplete = True
        elif entry is None:
            undecided.add(fields.name)
        elif fields.name in entries:
            fields.warn("id", f"{shown(fields.name)} stands twice: the first one is taken")
        else:
            entries[fields.name] = entry
    return entries, undecided, incomplete


def _parse_entry(fields: Fields, base_model: str | None) -> ParsedEntry | None:
    if not fields.items:
        return None
    source = fields.text("source", required=True)
    own_base_model = fields.text("base-model", blank=True)
    if fields.bad or fields.name is None or source is None:
        return None
    return ParsedEntry(
        name=fields.name,
        source=source,
        where=fields.where(),
        kind=Kind.LORA,
        base_model=own_base_model or base_model,
        passthrough=True,
    )


def _parse_not_exist(report: Report, config: dict[str, Node]) -> tuple[set[str], bool]:
    names: set[str] = set()
    incomplete = False
    for index, node in enumerate(_models(report, config, _NOT_EXIST)):
        # Its source is required by the schema and used by nobody: only the id counts here.
        fields = Fields.open(report, f"{TOP}.{_NOT_EXIST}.models[{index}]", node, "id")
        if fields.name is None:
            incomplete = True
        else:
            names.add(fields.name)
    return names, incomplete
