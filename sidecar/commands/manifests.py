"""From files to documents: a file is one document, or Kubernetes manifests with ConfigMaps."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sidecar.core.desired import Problem
from sidecar.core.documents.nodes import Node
from sidecar.core.documents.text import parse_text
from sidecar.errors import DocumentError

_SEPARATOR = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
_CONTENT = re.compile(r"^\s*[^#\s]", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text that may be a document."""

    file: str
    key: str
    """By which its format is recognised."""
    text: str
    """As it is, or moved down by empty lines, so that its lines are those of the file."""
    configmap: str = ""
    """``namespace/name``; empty where the file itself is the document."""

    @property
    def label(self) -> str:
        """Where it stands, for people."""
        return (
            f"{self.file}: configmap {self.configmap}: {self.key}" if self.configmap else self.file
        )

    @property
    def merged_with(self) -> str:
        """Equal for texts that one agent reads together."""
        return f"{self.file}: configmap {self.configmap}" if self.configmap else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one file holds."""

    texts: tuple[Text, ...] = ()
    problems: tuple[Problem, ...] = ()
    is_manifest: bool = False


def read_file_text(file: str, key: str, text: str) -> Found:
    """Find the documents of one file; ``key`` is what a ConfigMap would call it."""
    objects, problems = read_objects(file, key, text)
    if not objects:
        return Found(texts=(Text(file=file, key=key, text=text),))
    lines = text.split("\n")
    texts: list[Text] = []
    for one in objects:
        if _word(one, "kind") == "ConfigMap":
            for found in _texts_of(file, one, lines):
                if isinstance(found, Text):
                    texts.append(found)
                else:
                    problems.append(found)
    return Found(texts=tuple(texts), problems=tuple(problems), is_manifest=True)


def read_objects(file: str, key: str, text: str) -> tuple[list[Node], list[Problem]]:
    """Return the Kubernetes objects of one file, and what of it cannot be read."""
    parts: list[Node] = []
    problems: list[Problem] = []
    for part in _split(key, text):
        try:
            parts.append(parse_text(key, part))
        except DocumentError as error:
            where = moved(error.where, key, file)
            problems.append(Problem(where=where, what=str(error), hint=error.hint))
    return [inner for part in parts for inner in _objects(part)], problems


def moved(where: str, key: str, label: str) -> str:
    """Return a place that begins with a key as one that begins with ``label``."""
    return label + where.removeprefix(key)


def _split(key: str, text: str) -> Iterator[str]:
    """Yield the YAML documents of a stream, each at its lines of the file."""
    if key.endswith(".json"):
        yield text
        return
    starts = [0, *(match.end() for match in _SEPARATOR.finditer(text)), len(text)]
    for start, next_start in pairwise(starts):
        part = text[start:next_start].removesuffix("---")
        if _CONTENT.search(part):
            yield "\n" * text.count("\n", 0, start) + part


def _objects(part: Node) -> Iterator[Node]:
    """Yield the Kubernetes objects of one YAML document, those in a List as well."""
    if not _word(part, "kind") or not _word(part, "apiVersion"):
        return
    items = part.value.get("items") if isinstance(part.value, dict) else None
    if _word(part, "kind").endswith("List") and items is not None and isinstance(items.value, list):
        yield from items.value
        return
    yield part


def _texts_of(file: str, configmap: Node, lines: Sequence[str]) -> Iterator[Text | Problem]:
    metadata = _section(configmap, "metadata")
    name, namespace = (_text(metadata.get(field)) or "" for field in ("name", "namespace"))
    shown = f"{namespace}/{name}" if namespace else name or "without a name"
    for section in ("data", "binaryData"):
        for key, node in _section(configmap, section).items():
            where = f"{file}: configmap {shown}: {key} (line {node.line})"
            text = _text(node)
            if text is None:
                what = "the value of a key must be text"
                yield Problem(where=where, what=what, hint="write |- after the key")
                continue
            if section == "binaryData":
                try:
                    text = base64.b64decode(text, validate=True).decode()
                except (binascii.Error, UnicodeDecodeError):
                    yield Problem(where=where, what="it is no UTF-8 text in base64")
                    continue
            moved = _at_its_lines(text, node.line, lines)
            yield Text(file=file, key=key, text=moved, configmap=shown)


def _at_its_lines(text: str, line: int, lines: Sequence[str]) -> str:
    """Return ``text`` below as many empty lines as stand above it in the file.

    Only where the file shows it line by line (a block), which the lines themselves prove.
    """
    block = text.rstrip("\n").split("\n")
    shown = lines[line : line + len(block)]
    same = [one.strip() for one in shown] == [one.strip() for one in block]
    return "\n" * line + text if same else text


def _section(node: Node, name: str) -> dict[str, Node]:
    found = node.value.get(name) if isinstance(node.value, dict) else None
    return found.value if found is not None and isinstance(found.value, dict) else {}


def _text(node: Node | None) -> str | None:
    return node.value if node is not None and isinstance(node.value, str) else None


def _word(node: Node, name: str) -> str:
    return _text(node.value.get(name)) or "" if isinstance(node.value, dict) else ""
