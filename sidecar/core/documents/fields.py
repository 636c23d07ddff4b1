"""Reads the fields of one mapping and writes down what is wrong with each, and where."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from sidecar.core.desired import Problem
from sidecar.core.documents.nodes import Node
from sidecar.errors import DocumentError

MAX_NAME_BYTES = 253
MAX_SHOWN = 80
"""Characters of a value that a message repeats."""
SCHEMES = ("s3", "gs", "az", "https", "http", "hf", "oci", "file")

_WORDS = {str: "text", bool: "true or false", dict: "a mapping", list: "a list"}
_SCHEME = re.compile(r"\A([A-Za-z][A-Za-z0-9+.\-]*)://")


@dataclass(slots=True)
class Report:
    """Collects the problems of one document."""

    key: str
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: str, node: Node) -> str:
        """Return a place as people look for it: ``models.yaml: models[2].digest (line 14)``."""
        return (
            f"{self.key}: {path} (line {node.line})" if path else f"{self.key} (line {node.line})"
        )

    def add(
        self, path: str, node: Node, what: str, hint: str = "", name: str | None = None
    ) -> None:
        """Write down one problem."""
        self.problems.append(Problem(where=self.where(path, node), what=what, hint=hint, name=name))

    def fail(self, path: str, node: Node, what: str, hint: str = "") -> DocumentError:
        """Return the error for a document that has the wrong shape as a whole."""
        return DocumentError(what, where=self.where(path, node), hint=hint)

    def root_mapping(self, path: str, node: Node) -> dict[str, Node]:
        """Return a mapping on which the whole document depends.

        Raises:
            DocumentError: where it is something else, or one of its keys stands twice.
        """
        if not isinstance(node.value, dict):
            raise self.fail(path, node, f"a mapping must stand here, not {describe(node)}")
        if node.duplicates:
            what = f"the key {shown(node.duplicates[0])} stands twice"
            raise self.fail(path, node, what, "remove one of the two")
        return node.value

    def root_list(self, path: str, node: Node) -> list[Node]:
        """Return a list on which the whole document depends.

        Raises:
            DocumentError: where it is something else; nothing at all is no empty list.
        """
        if not isinstance(node.value, list):
            what = f"a list must stand here, not {describe(node)}"
            raise self.fail(path, node, what, "write [] where you mean that there are none")
        return node.value


@dataclass(slots=True)
class Fields:
    """The fields of one entry. ``bad`` turns true with the first that cannot be used."""

    report: Report
    path: str
    node: Node
    items: Mapping[str, Node]
    name: str | None = None
    bad: bool = False

    @classmethod
    def open(cls, report: Report, path: str, node: Node, name_field: str) -> Fields:
        """Read the name first; it stays None where it cannot be read."""
        if not isinstance(node.value, dict):
            report.add(path, node, f"an entry must be a mapping, not {describe(node)}")
            return cls(report, path, node, {}, bad=True)
        fields = cls(report, path, node, node.value)
        duplicate = node.find_duplicate()
        if name_field not in node.duplicates:
            fields.name = fields._read_name(name_field)
        if duplicate is not None:
            fields.bad = True
            what = f"the key {shown(duplicate[0])} stands twice"
            where = f"{report.key}: {path} (line {duplicate[1]})"
            hint = "remove one of the two"
            report.problems.append(Problem(where=where, what=what, hint=hint, name=fields.name))
        return fields

    def where(self) -> str:
        """Return the place of the entry."""
        return self.report.where(self.path, self.node)

    def problem(self, name: str, what: str, hint: str = "") -> None:
        """Write down that the field ``name`` spoils this entry."""
        self.bad = True
        node = self.items.get(name, self.node)
        self.report.add(f"{self.path}.{shown(name)[1:-1]}", node, what, hint, self.name)

    def warn(self, name: str, what: str, hint: str = "") -> None:
        """Write down something that spoils nothing."""
        self.report.add(f"{self.path}.{name}", self.items.get(name, self.node), what, hint)

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Report every field that is not ``known``, with the nearest one that is."""
        known = tuple(known)
        for name in self.items:
            if name not in known:
                self.problem(name, f"the field {shown(name)} is unknown", nearest(name, known))

    def text(self, name: str, *, required: bool = False, blank: bool = False) -> str | None:
        """Return a text; with ``blank``, null and "" count as left out, as Go writes them."""
        node = self.items.get(name)
        if node is None or (blank and node.value in (None, "")):
            if required:
                self.problem(name, f"the field {name} is missing", f"write {name}: and its value")
            return None
        if not isinstance(node.value, str):
            self._wrong_type(name, node, "text", "write it in quotes")
            return None
        if not node.value or node.value != node.value.strip() or not node.value.isprintable():
            self.problem(
                name,
                f"{name} is empty, has blanks around it, or holds a control character",
                "write it without them, or leave the field out",
            )
            return None
        return node.value

    def flag(self, name: str) -> bool | None:
        """Return true or false; None where it is left out."""
        node = self.items.get(name)
        if node is None:
            return None
        if not isinstance(node.value, bool):
            self._wrong_type(name, node, "true or false", "write true or false, without quotes")
            return None
        return node.value

    def number(self, name: str, low: float, high: float = math.inf) -> float | None:
        """Return a finite number from ``low`` to ``high``; None where it is left out."""
        node = self.items.get(name)
        if node is None:
            return None
        value = node.value
        limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(name, node, "a number", f"write a number {limits}, without quotes")
            return None
        # Compared before it is converted: an int may be too large for a float.
        if not low <= value <= min(high, 1e15):
            self.problem(name, f"{name} is out of range", f"write a number {limits}")
            return None
        return float(value)

    def choice(self, name: str, choices: Iterable[str]) -> str | None:
        """Return one of ``choices``; None where it is left out."""
        value = self.text(name)
        choices = tuple(choices)
        if value is None or value in choices:
            return value
        self.problem(name, f"{name} cannot be {shown(value)}", f"write {one_of(choices)}")
        return None

    def mapping(self, name: str) -> Node | None:
        """Return a mapping's node; None where it is left out."""
        node = self.items.get(name)
        if node is None:
            return None
        if not isinstance(node.value, dict):
            self._wrong_type(name, node, "a mapping", "")
            return None
        return node

    def source(self, name: str) -> str | None:
        """Return a required source: an absolute path, or a URL of one of ``SCHEMES``."""
        value = self.text(name, required=True)
        if value is None:
            return None
        wrong = check_source(value, SCHEMES)
        if wrong is not None:
            self.problem(name, *wrong)
            return None
        return value

    def _read_name(self, name: str) -> str | None:
        value = self.text(name, required=True)
        if value is None:
            return None
        wrong = check_name(value)
        if wrong is not None:
            self.problem(name, f"{shown(value)} cannot be a name: {wrong}", "choose another name")
            return None
        return value

    def _wrong_type(self, name: str, node: Node, wanted: str, hint: str) -> None:
        self.problem(name, f"{name} must be {wanted}, not {describe(node)}", hint)


def check_name(name: str) -> str | None:
    """Return why ``name`` cannot be the name of a target or of a directory; None if it can."""
    if name != name.strip() or not name.isprintable():
        return "it has blanks around it or holds a control character"
    if "," in name:
        return "a comma would divide it in two in the picker's metrics"
    if "/" in name or "\\" in name:
        return "a slash would lead to another directory"
    if not name or name.startswith("."):
        return "it is empty or starts with a dot"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    return None


def check_source(source: str, schemes: tuple[str, ...]) -> tuple[str, str] | None:
    """Return what is wrong with a source and what to do; None if nothing is."""
    match = _SCHEME.match(source)
    if "\0" in (source if match is None else unquote(source)):
        return "the source holds a NUL byte", "write it without \\0 and %00"
    if match is None:
        if not source.startswith("/"):
            # Not repeated: what cannot be parsed cannot be redacted either.
            what = "the source is no URL and no absolute path"
            return what, f"write an absolute path, or {one_of(s + '://...' for s in schemes)}"
        return _check_path(source)
    scheme = match.group(1)
    if scheme not in schemes:
        known = one_of(s + "://" for s in schemes)
        return f"the source's scheme {shown(scheme)} is unknown", f"write {known} or a path"
    try:
        parts = urlsplit(source)
    except ValueError:
        return f"the source is no valid {scheme} URL", "look at its host and brackets"
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            return "a file source needs an absolute path", "write file:///path/to/directory"
        return _check_path(parts.path)
    if not parts.netloc:
        return f"the source names no bucket, host or owner after {scheme}://", ""
    return None


def _check_path(path: str) -> tuple[str, str] | None:
    if ".." in path.split("/"):
        return "the source's path holds '..'", "write the path that it leads to"
    return None


def describe(node: Node) -> str:
    """Return what kind of value stands at ``node``, in the words of messages."""
    if node.value is None:
        return "nothing"
    return _WORDS.get(type(node.value), "a number")


def shown(text: str) -> str:
    """Return a text as messages repeat it: quoted and short."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def one_of(words: Iterable[str]) -> str:
    """Return ``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def nearest(name: str, known: tuple[str, ...]) -> str:
    """Return a hint that names the known field nearest to ``name``, or all of them."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else f"known fields: {', '.join(known)}"
