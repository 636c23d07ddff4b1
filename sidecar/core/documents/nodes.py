"""Values with places, put together from the events of a notation, within limits.

Nothing here recurses over a text, so that a hostile one costs a linear amount of work and no
stack: libyaml's own composer crashes the process on deep nesting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from sidecar.errors import DocumentError

MAX_DEPTH = 64
MAX_VALUES = 200_000
"""Values of a document with every alias written out."""

_SURROGATE = re.compile("[\ud800-\udfff]")

Scalar = str | int | float | bool | None


@dataclass(slots=True)
class Node:
    """One value and the line on which it starts; aliases share the node that they name."""

    value: Scalar | list[Node] | dict[str, Node]
    line: int
    size: int = 1
    """Values in it, aliases written out, itself included."""
    duplicates: tuple[str, ...] = ()
    """Keys of a mapping that stand in it more than once; the first one is kept."""

    def plain(self) -> object:
        """Return the value as plain lists, dicts and scalars of its own."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def find_duplicate(self) -> tuple[str, int] | None:
        """Return the first key, here or below, that stands twice, and its mapping's line."""
        if self.duplicates:
            return self.duplicates[0], self.line
        inner: list[Node] = []
        if isinstance(self.value, dict):
            inner = list(self.value.values())
        elif isinstance(self.value, list):
            inner = self.value
        for node in inner:
            if node.size > 1 or node.duplicates:
                found = node.find_duplicate()
                if found is not None:
                    return found
        return None


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is still open."""

    items: list[Node] | dict[str, Node]
    line: int
    anchor: str | None = None
    name: str | None = None
    """The key whose value comes next."""
    size: int = 1
    duplicates: list[str] = field(default_factory=list)
    merged: list[Node] = field(default_factory=list)


class Builder:
    """Takes the values of a text in order and puts them together."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._frames: list[_Frame] = []
        self._anchors: dict[str, Node] = {}
        self.root: Node | None = None

    def fail(self, what: str, line: int, hint: str = "") -> NoReturn:
        raise DocumentError(what, where=f"{self.key} (line {line})", hint=hint)

    def wants_name(self) -> bool:
        if not self._frames:
            return False
        frame = self._frames[-1]
        return isinstance(frame.items, dict) and frame.name is None

    def put_name(self, name: str) -> None:
        self._frames[-1].name = name

    def begin(self, items: list[Node] | dict[str, Node], line: int, anchor: str | None) -> None:
        if self.wants_name():
            self.fail("a list or mapping cannot be the key of a mapping", line)
        if len(self._frames) >= MAX_DEPTH:
            self.fail(f"it is nested more than {MAX_DEPTH} deep", line)
        self._frames.append(_Frame(items, line, anchor))

    def end(self) -> None:
        frame = self._frames.pop()
        if isinstance(frame.items, dict):
            for other in frame.merged:
                self._merge(frame.items, other)
        node = Node(frame.items, frame.line, frame.size, tuple(frame.duplicates))
        self.put(node, frame.anchor)

    def put(self, node: Node, anchor: str | None = None) -> None:
        if anchor is not None:
            self.define(anchor, node)
        if not self._frames:
            self.root = node
            return
        frame = self._frames[-1]
        frame.size += node.size
        if frame.size > MAX_VALUES:
            self.fail(f"it holds more than {MAX_VALUES} values, aliases written out", node.line)
        if isinstance(frame.items, list):
            frame.items.append(node)
            return
        name, frame.name = frame.name or "", None
        if name is MERGE:
            frame.merged.append(node)
        elif name in frame.items:
            frame.duplicates.append(name)
        else:
            frame.items[name] = node

    def define(self, anchor: str, node: Node) -> None:
        self._anchors[anchor] = node

    def check_text(self, text: str, line: int) -> None:
        if not text.isascii() and _SURROGATE.search(text):
            self.fail("it holds half of a surrogate pair, which is no character", line)

    def alias(self, anchor: str, line: int) -> None:
        node = self._anchors.get(anchor)
        if node is None:
            self.fail(f"the alias *{anchor[:80]} names nothing that is complete", line)
        if self.wants_name():
            if not isinstance(node.value, str):
                self.fail("a key must be plain text", line)
            self.put_name(node.value)
        else:
            self.put(node)

    def _merge(self, items: dict[str, Node], other: Node) -> None:
        sources = other.value if isinstance(other.value, list) else [other]
        for source in sources:
            if not isinstance(source.value, dict):
                self.fail("only mappings can be merged with <<", source.line)
            for name, node in source.value.items():
                items.setdefault(name, node)


class _MergeKey(str):
    """A plain ``<<``; a quoted one is a key like any other."""

    __slots__ = ()


MERGE = _MergeKey("<<")
