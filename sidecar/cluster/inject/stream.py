"""Manifests as text: documents that do not change are passed on byte for byte, in their order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import pairwise

import yaml

from sidecar.cluster.inject.model import InjectError, Json, NoEngineError, Options
from sidecar.cluster.inject.workloads import (
    KINDS,
    described,
    has_pods,
    inject_object,
    is_ours,
    remove_object,
)
from sidecar.cluster.inject.yaml_text import RefusedYaml, dump, parse
from sidecar.core.desired import Problem

_OR = 'or leave it out by the label model-sidecar.io/inject: "false" on its pods'
_SEPARATOR = re.compile(r"^---(?=\s|\Z).*\n?", re.MULTILINE)
_HEAD = re.compile(r"(?:[ \t]*(?:#.*)?\n)*")
_COMMENT = re.compile(r"(?m)(?:^|\s)#")


@dataclass(slots=True, kw_only=True)
class Answer:
    """What became of all files."""

    text: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    changed: int = 0
    """Objects that are different now."""
    engines: int = 0
    """Objects with an engine in their pods."""
    unseen: list[Problem] = field(default_factory=list)
    """Objects with an engine's image that are not seen to start it."""
    lost_comments: bool = False


def inject_stream(files: Iterable[tuple[str, str]], options: Options) -> Answer:
    """Inject the agent into every engine's pods of manifests, given as (name, text)."""
    held = list(files)
    run = _Run(options)
    answer = run.over(held)
    if not run.unwanted:
        return answer
    # Which rights are wanted is known at the end, and those that are not may stand before it.
    return _Run(options, run.unwanted).over(held)


def remove_stream(files: Iterable[tuple[str, str]]) -> Answer:
    """Take the agent out of all pods of manifests, given as (name, text)."""
    return _Run(None).over(files)


class _Run:
    def __init__(
        self, options: Options | None, dropped: Set[tuple[str, str, str]] = frozenset()
    ) -> None:
        self._options = options
        self._dropped = dropped
        self._answer = Answer()
        self._rights: dict[tuple[str, str, str], Json] = {}
        self._seen: set[tuple[str, str, str]] = set()
        self._ours: dict[tuple[str, str, str], Json] = {}

    @property
    def unwanted(self) -> frozenset[tuple[str, str, str]]:
        """Return the rights of earlier injections that nothing asks for now, or not so."""
        if self._answer.problems:
            return frozenset()
        return frozenset(key for key, one in self._ours.items() if one != self._rights.get(key))

    def over(self, files: Iterable[tuple[str, str]]) -> Answer:
        texts: list[str] = []
        for name, text in files:
            if texts and not _SEPARATOR.match(text):
                texts.append("---\n")
            texts += [self._document(name, separator, part) for separator, part in _split(text)]
            if texts and texts[-1] and not texts[-1].endswith("\n"):
                texts[-1] += "\n"
        for key, one in self._rights.items():
            if key not in self._seen:
                texts.append("---\n" + dump(one))
                self._answer.changed += 1
        self._answer.text = "".join(texts)
        return self._answer

    def _document(self, file: str, separator: str, part: str) -> str:
        try:
            parsed = parse(part)
            kind = parsed.text_at("kind") if parsed is not None else ""
            if parsed is None or not (kind in KINDS or kind.endswith("List")):
                return separator + part
            value = parsed.value()
        except (yaml.YAMLError, RecursionError) as error:
            self._answer.problems.append(_broken(file, error))
            return separator + part
        if not isinstance(value, dict):
            return separator + part
        if self._is_dropped(value):
            self._answer.changed += 1
            return ""
        changed = self._value(file, value)
        if changed is None or changed == value:
            return separator + part
        self._answer.changed += 1
        head = _HEAD.match(part)
        kept = head[0] if head else ""
        if _COMMENT.search(part[len(kept) :]):
            self._answer.lost_comments = True
        if part.lstrip().startswith("{"):
            return f"{separator}{kept}{json.dumps(changed, indent=2, ensure_ascii=False)}\n"
        return f"{separator}{kept}{dump(changed)}"

    def _value(self, file: str, value: Json) -> Json | None:
        items = value.get("items")
        if str(value.get("kind")).endswith("List") and isinstance(items, list):
            after = [
                (self._value(file, one) or one) if isinstance(one, dict) else one
                for one in items
                if not (isinstance(one, dict) and self._is_dropped(one))
            ]
            return {**value, "items": after}
        metadata = value.get("metadata")
        if isinstance(metadata, dict):
            self._seen.add(_key(value))
            if is_ours(value):
                self._ours[_key(value)] = value
        return self._object(file, value) if has_pods(value) else None

    def _is_dropped(self, value: Json) -> bool:
        return is_ours(value) and (self._options is None or _key(value) in self._dropped)

    def _object(self, file: str, value: Json) -> Json | None:
        where = f"{file}: {described(value)}"
        try:
            if self._options is None:
                return remove_object(value)
            workload = inject_object(value, self._options)
        except NoEngineError as error:
            if error.image:
                self._answer.unseen += [
                    Problem(where=f"{where}: {one.where}", what=one.what, hint=f"{one.hint}; {_OR}")
                    for one in error.problems
                ]
                return None
            self._answer.notes += [
                f"{where}: {one.what}: it is left as it is" for one in error.problems
            ]
            return None
        except InjectError as error:
            self._answer.engines += 1
            self._answer.problems += [
                Problem(where=f"{where}: {one.where}", what=one.what, hint=one.hint)
                for one in error.problems
            ]
            return None
        self._answer.engines += 1
        self._answer.notes += [f"{where}: {note}" for note in workload.notes]
        self._rights |= {_key(one): one for one in workload.rights}
        return workload.value


def _broken(file: str, error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None)
    line = f" (line {mark.line + 1} of the document)" if mark else ""
    what = getattr(error, "problem", None) or "unreadable"
    if isinstance(error, RecursionError):
        what = "it is nested too deeply"
    elif not isinstance(error, RefusedYaml):
        what = f"it is no YAML: {what}"
    return Problem(where=f"{file}{line}", what=what)


def _key(value: Json) -> tuple[str, str, str]:
    metadata = value["metadata"]
    return str(value.get("kind")), str(metadata.get("namespace") or ""), str(metadata.get("name"))


def _split(text: str) -> Iterator[tuple[str, str]]:
    """Yield each document with the separator before it, which is empty before the first."""
    found = list(_SEPARATOR.finditer(text))
    first = found[0].start() if found else len(text)
    if text[:first].strip():
        yield "", text[:first]
        lead = ""
    else:
        lead = text[:first]
    ends = [*(one.start() for one in found), len(text)]
    for match, (_, end) in zip(found, pairwise(ends), strict=True):
        yield lead + match[0], text[match.end() : end]
        lead = ""
