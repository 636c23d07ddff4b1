"""The native format: ``models:`` and what each target is, strictly."""

from __future__ import annotations

import json
import re

from adapters.base import Kind
from sidecar.core.desired import Format, Readiness, Rollout
from sidecar.core.documents.fields import (
    SCHEMES,
    Fields,
    Report,
    check_name,
    check_source,
    nearest,
    shown,
)
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.parsed import ParsedDocument, ParsedEntry

FIELDS = (
    "name",
    "kind",
    "source",
    "digest",
    "base_model",
    "readiness",
    "rollout",
    "warmup",
    "pinned",
    "credentials",
    "refresh_seconds",
    "parameters",
)
_ROLLOUT_FIELDS = ("percent", "otherwise")
_DIGEST = re.compile(r"\Asha256:[0-9a-fA-F]{64}\Z")


def parse_native(key: str, root: Node) -> ParsedDocument:
    """Return what a native document says.

    Raises:
        DocumentError: where it has no list ``models``.
    """
    report = Report(key)
    top = report.root_mapping("", root)
    for name, node in top.items():
        if name != "models":
            hint = nearest(name, ("models",))
            report.add(shown(name)[1:-1], node, f"the field {shown(name)} is unknown", hint)
    if "models" not in top:
        hint = "write models: and the list of entries; models: [] where there are none"
        raise report.fail("", root, "the list models is missing", hint)
    entries: dict[str, ParsedEntry] = {}
    undecided: set[str] = set()
    incomplete = False
    for index, node in enumerate(report.root_list("models", top["models"])):
        fields = Fields.open(report, f"models[{index}]", node, "name")
        entry = _parse_entry(fields)
        if fields.name is None:
            incomplete = True
        elif entry is None:
            undecided.add(fields.name)
        elif fields.name in entries:
            # The document contradicts itself: whichever was meant, nothing changes until mended.
            undecided.add(fields.name)
            first = entries[fields.name].where
            fields.problem("name", f"{first} has the same name", "remove one of the two")
        else:
            entries[fields.name] = entry
    for name in undecided:
        entries.pop(name, None)
    return ParsedDocument(
        key=key,
        format=Format.NATIVE,
        entries=entries,
        undecided=frozenset(undecided),
        incomplete=incomplete,
        problems=tuple(report.problems),
    )


def _parse_entry(fields: Fields) -> ParsedEntry | None:
    if not fields.items:
        return None
    fields.refuse_unknown(FIELDS)
    source = fields.source("source")
    kind = fields.choice("kind", Kind)
    readiness = fields.choice("readiness", Readiness)
    parameters = _parameters(fields)
    digest = _digest(fields)
    rollout = _rollout(fields)
    base_model = fields.text("base_model")
    warmup = fields.flag("warmup")
    pinned = fields.flag("pinned")
    credentials = _credentials(fields)
    refresh_seconds = fields.number("refresh_seconds", 1)
    if fields.bad or fields.name is None or source is None:
        return None
    return ParsedEntry(
        name=fields.name,
        source=source,
        where=fields.where(),
        kind=Kind(kind) if kind else None,
        digest=digest,
        base_model=base_model,
        readiness=Readiness(readiness) if readiness else Readiness.INITIAL,
        rollout=rollout,
        warmup=warmup,
        pinned=bool(pinned),
        credentials=credentials,
        refresh_seconds=refresh_seconds,
        parameters=parameters,
    )


def _parameters(fields: Fields) -> dict[str, object]:
    node = fields.mapping("parameters")
    plain = node.plain() if node is not None else None
    if not isinstance(plain, dict):
        return {}
    try:
        json.dumps(plain, allow_nan=False)
    except ValueError:
        what = "parameters holds a number that JSON cannot write (infinite, or too long)"
        fields.problem("parameters", what, "write a finite number")
        return {}
    return plain


def _digest(fields: Fields) -> str | None:
    digest = fields.text("digest")
    if digest is not None and not _DIGEST.match(digest):
        hint = "write sha256: and the 64 hexadecimal digits of the artifact's content"
        fields.problem("digest", "digest is no sha256 digest", hint)
        return None
    return digest.lower() if digest is not None else None


def _credentials(fields: Fields) -> str | None:
    credentials = fields.text("credentials")
    wrong = check_name(credentials) if credentials is not None else None
    if wrong is not None:
        what = f"credentials must be the plain name of a mounted secret directory: {wrong}"
        fields.problem("credentials", what, "write the directory's name, without its path")
        return None
    return credentials


def _rollout(fields: Fields) -> Rollout | None:
    node = fields.mapping("rollout")
    if node is None or not isinstance(node.value, dict):
        return None
    inner = Fields(fields.report, f"{fields.path}.rollout", node, node.value, fields.name)
    inner.refuse_unknown(_ROLLOUT_FIELDS)
    percent = inner.number("percent", 0, 100)
    if "percent" not in inner.items:
        inner.problem("percent", "rollout has no percent", "write percent: and 0 to 100")
    otherwise = inner.text("otherwise")
    wrong = check_source(otherwise, SCHEMES) if otherwise is not None else None
    if wrong is not None:
        inner.problem("otherwise", *wrong)
    fields.bad = fields.bad or inner.bad
    return Rollout(percent=percent, otherwise=otherwise) if percent is not None else None
