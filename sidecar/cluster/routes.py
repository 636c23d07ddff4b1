"""Routes against documents: do they lead to what pods hold, and does anything lead to it? No I/O.

Read as their own projects do: InferenceModelRewrite (llm-d-router, v1alpha2), the InferenceModel
that it replaced (Gateway API Inference Extension up to v0.5), and AIGatewayRoute (Envoy AI Gateway
v1.1), which matches the model of a request by the header ``x-ai-eg-model``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from adapters.base import Kind
from sidecar.cluster.expressions import MatchingTimeout, matching_ends, read_expression
from sidecar.core.desired import Format, Problem
from sidecar.core.documents import ParsedDocument, ParsedEntry
from sidecar.core.documents.fields import shown
from sidecar.core.documents.nodes import Node

MODEL_HEADER = "x-ai-eg-model"
REWRITE, LEGACY, GATEWAY = "InferenceModelRewrite", "InferenceModel", "AIGatewayRoute"
GROUPS = {
    REWRITE: ("llm-d.ai", "inference.networking.x-k8s.io"),
    LEGACY: ("inference.networking.x-k8s.io",),
    GATEWAY: ("aigateway.envoyproxy.io",),
}

MATCH_SECONDS = 5.0
"""For all expressions and names together."""
NOT_CHECKED = "it may match anything, so it is not checked whether something leads to each LoRA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One Kubernetes object of a file."""

    file: str
    node: Node

    @property
    def kind(self) -> str:
        """One of ``GROUPS``; empty where it is no route."""
        kind, version = _text(self.node, "kind"), _text(self.node, "apiVersion")
        group = (version or "").partition("/")[0]
        return kind if kind is not None and group in GROUPS.get(kind, ()) else ""

    def where(self, path: str, node: Node) -> str:
        """Return a place in it: file, object, path and line."""
        metadata = _get(self.node, "metadata")
        parts = (_text(metadata, "namespace"), _text(metadata, "name"))
        name = "/".join(part for part in parts if part) or "without a name"
        return f"{self.file}: {self.kind} {name}: {path} (line {node.line})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A name that an engine is asked for."""

    name: str
    where: str
    asked_as: frozenset[str] | None
    """Names of requests that are sent there; None: of every request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """What one rule of a gateway takes; everything where both are None."""

    where: str = ""
    exact: str | None = None
    expression: re.Pattern[str] | None = None

    def takes(self, name: str) -> bool:
        """Tell whether requests for this model are taken. Envoy compares the whole value."""
        if self.expression is not None:
            return self.expression.fullmatch(name) is not None
        return self.exact in (None, name)


@dataclass(slots=True)
class _Routes:
    """What all objects together say."""

    targets: list[_Target] = field(default_factory=list)
    matches: list[_Match] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    has_gateway: bool = False
    unsure: bool = False
    """A match cannot be read, and may take anything."""
    matching: str = ""
    """Where the expression stands that was matched last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFindings:
    """What is wrong with routes, and what could not be told of them."""

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check_routes(
    documents: Sequence[ParsedDocument],
    objects: Iterable[Object],
    *,
    match_seconds: float = MATCH_SECONDS,
) -> RouteFindings:
    """Return every target that no document has, and every LoRA that no AIGatewayRoute leads to.

    The base model of an entry counts as a target that is there: the engine has it by itself.
    LoRAs are looked for only where there is an AIGatewayRoute at all; those behind a rewrite are
    found by the names that are rewritten. A native entry that does not say its kind counts as one.
    What is not matched within ``match_seconds`` is a warning. To be called in the main thread.
    """
    routes = _Routes()
    for one in objects:
        match one.kind:
            case "InferenceModelRewrite":
                _read_rewrite(routes, one)
            case "InferenceModel":
                _read_legacy(routes, one)
            case "AIGatewayRoute":
                _read_gateway(routes, one)
    routes.problems += _unknown_targets(routes, documents)
    if routes.has_gateway and not routes.unsure:
        _match_loras(routes, documents, match_seconds)
    return RouteFindings(problems=tuple(routes.problems), warnings=tuple(routes.warnings))


def _match_loras(
    routes: _Routes, documents: Sequence[ParsedDocument], match_seconds: float
) -> None:
    try:
        with matching_ends(match_seconds):
            for problem in _unmatched(routes, documents):
                routes.problems.append(problem)
    except MatchingTimeout:
        what = f"matching took longer than {match_seconds:g} s, and ended at this expression"
        hint = "Envoy matches it in linear time; the LoRAs after it are not checked"
        routes.warnings.append(Problem(where=routes.matching, what=what, hint=hint))


def _unknown_targets(routes: _Routes, documents: Sequence[ParsedDocument]) -> Iterator[Problem]:
    entries = [entry for document in documents for entry in document.entries.values()]
    held = {name for document in documents for name in document.names - document.absent}
    held |= {entry.base_model for entry in entries if entry.base_model is not None}
    absent = {name for document in documents for name in document.absent}
    for target in routes.targets:
        if target.name in held:
            continue
        name = shown(target.name)
        if target.name in absent:
            what, hint = f"the documents say that {name} shall not be loaded", "send it elsewhere"
        else:
            near = difflib.get_close_matches(target.name, sorted(held), n=1)
            what = f"{name} is in no document"
            hint = (
                f"did you mean {shown(near[0])}?"
                if near
                else "add it to a document; where it is the base model, as an entry's base_model"
            )
        yield Problem(where=target.where, what=what, hint=hint)


def _unmatched(routes: _Routes, documents: Sequence[ParsedDocument]) -> Iterator[Problem]:
    for document in documents:
        for entry in document.entries.values():
            if _is_lora(entry, document.format) and not _is_reached(routes, entry.name):
                name = shown(entry.name)
                what = f"no rule of an {GATEWAY} leads to {name}: its clients get 404"
                hint = f"match header {MODEL_HEADER} with {name}, exactly or by an expression"
                if entry.kind is None:
                    hint += "; or write kind: model where it is none"
                yield Problem(where=entry.where, what=what, hint=hint)


def _is_lora(entry: ParsedEntry, form: Format) -> bool:
    return entry.kind is Kind.LORA or (entry.kind is None and form is Format.NATIVE)


def _is_reached(routes: _Routes, name: str) -> bool:
    def taken(asked: str) -> bool:
        for match in routes.matches:
            routes.matching = match.where
            if match.takes(asked):
                return True
        return False

    if taken(name):
        return True
    # The gateway sees the name before the picker rewrites it.
    return any(
        bool(routes.matches) if target.asked_as is None else any(map(taken, target.asked_as))
        for target in routes.targets
        if target.name == name
    )


def _read_rewrite(routes: _Routes, one: Object) -> None:
    for at, rule in enumerate(_items(_get(one.node, "spec"), "rules")):
        path = f"spec.rules[{at}]"
        matches = _items(rule, "matches")
        asked = [_text(_get(match, "model"), "value") for match in matches]
        names = frozenset(name for name in asked if name is not None) if matches else None
        for number, target in enumerate(_items(rule, "targets")):
            inner = f"{path}.targets[{number}]"
            _add_target(routes, one, inner, target, "modelRewrite", names)


def _read_legacy(routes: _Routes, one: Object) -> None:
    spec = _get(one.node, "spec")
    asked = _text(spec, "modelName")
    names = frozenset({asked}) if asked is not None else frozenset()
    targets = _items(spec, "targetModels")
    for number, target in enumerate(targets):
        _add_target(routes, one, f"spec.targetModels[{number}]", target, "name", names)
    if not targets:
        # Without targets a model is its own.
        _add_target(routes, one, "spec", spec or one.node, "modelName", names)


def _add_target(
    routes: _Routes, one: Object, path: str, node: Node, name: str, asked: frozenset[str] | None
) -> None:
    value = _get(node, name)
    where = one.where(f"{path}.{name}", value or node)
    if value is None or not isinstance(value.value, str) or not value.value:
        routes.problems.append(Problem(where=where, what=f"{name} must be text"))
        return
    routes.targets.append(_Target(name=value.value, where=where, asked_as=asked))


def _read_gateway(routes: _Routes, one: Object) -> None:
    routes.has_gateway = True
    for at, rule in enumerate(_items(_get(one.node, "spec"), "rules")):
        matches = _items(rule, "matches")
        if not matches:
            routes.matches.append(_Match())
        for number, match in enumerate(matches):
            _read_match(routes, one, f"spec.rules[{at}].matches[{number}]", match)


def _read_match(routes: _Routes, one: Object, path: str, match: Node) -> None:
    for at, header in enumerate(_items(match, "headers")):
        if (_text(header, "name") or "").lower() != MODEL_HEADER:
            continue
        where = one.where(f"{path}.headers[{at}].value", _get(header, "value") or header)
        value = _text(header, "value")
        if value is None:
            routes.problems.append(Problem(where=where, what="value must be text"))
            routes.unsure = True
        elif _text(header, "type") == "RegularExpression":
            _read_expression(routes, where, value)
        else:
            routes.matches.append(_Match(where=where, exact=value))
        # Of several headers of one name only the first counts (Gateway API).
        return
    routes.matches.append(_Match())


def _read_expression(routes: _Routes, where: str, value: str) -> None:
    found = read_expression(value)
    if found.problem:
        hint = "write one in RE2's syntax, as Envoy reads it"
        routes.problems.append(Problem(where=where, what=found.problem, hint=hint))
    if found.doubt:
        routes.warnings.append(Problem(where=where, what=found.doubt, hint=NOT_CHECKED))
    if found.pattern is None:
        routes.unsure = True
    else:
        routes.matches.append(_Match(where=where, expression=found.pattern))


def _get(node: Node | None, name: str) -> Node | None:
    return node.value.get(name) if node is not None and isinstance(node.value, dict) else None


def _items(node: Node | None, name: str) -> list[Node]:
    found = _get(node, name)
    return found.value if found is not None and isinstance(found.value, list) else []


def _text(node: Node | None, name: str) -> str | None:
    found = _get(node, name)
    return found.value if found is not None and isinstance(found.value, str) else None
