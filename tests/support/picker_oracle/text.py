"""The picker's text parser: format 0.0.4 with legacy names, as prometheus/common v0.67.5 has it.

Any error loses the whole page. Where the parser is more lenient than the format's description,
so is this one: it was compared with the real one on a million broken pages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.picker_oracle.go import parse_float, parse_int

_METRIC = re.compile(rb'([a-zA-Z_:][a-zA-Z0-9_:]*)?("(?:[^"\\]|\\[\\n"])*")?', re.DOTALL)
_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)?("(?:[^"\\]|\\[\\n"])*")?', re.DOTALL)
_VALUE = re.compile(rb'"((?:[^"\\]|\\["\\n])*)"', re.DOTALL)
_HELP = re.compile(rb'(?:[^\\]|\\[\\n"])*', re.DOTALL)
_ESCAPE = re.compile(rb'\\([\\n"])')
_TOKEN = re.compile(rb"[^ \t]*")
_BLANKS = b" \t"
_TYPES = {one: one.lower() for one in ("COUNTER", "GAUGE", "SUMMARY", "UNTYPED", "HISTOGRAM")} | {
    "GAUGE_HISTOGRAM": "gaugehistogram",
    "GAUGEHISTOGRAM": "gaugehistogram",
}
_HISTOGRAMS = ("histogram", "gaugehistogram")
_FOLDED = ("summary", *_HISTOGRAMS)


class PageRefused(Exception):
    """The parser loses the whole page."""


class PickerDies(PageRefused):
    """The parser runs into a nil pointer or map. Nothing around it recovers: the picker ends."""


@dataclass(eq=False)
class Metric:
    """One series as the extraction sees it. The lines of a histogram fold into one."""

    labels: list[tuple[str, str]] = field(default_factory=list)
    timestamp: int = 0
    gauge: float | None = None
    counter: float | None = None

    @property
    def value(self) -> float:
        """What extraction takes for the value: 0 for whatever is neither gauge nor counter."""
        if self.gauge is not None:
            return self.gauge
        return 0.0 if self.counter is None else self.counter

    @property
    def label(self) -> Mapping[str, str]:
        """The labels by name."""
        return dict(self.labels)


@dataclass
class Family:
    """One family. Those without a sample are kept here; to the picker they are not there."""

    name: str = ""
    typed: str | None = None
    """As declared; without a declaration the first sample makes it untyped."""
    helped: bool = False
    metrics: list[Metric] = field(default_factory=list)
    """What the picker makes of the lines."""
    samples: list[tuple[dict[str, str], float, int]] = field(default_factory=list)
    """The lines as written: labels, value, and the timestamp or 0."""

    @property
    def type(self) -> str:
        """The type in lower case."""
        return self.typed or "untyped"


def parse(page: bytes) -> dict[str, Family]:
    """Parse a page.

    Raises:
        PageRefused: the parser gives the whole page up.
    """
    *lines, rest = page.split(b"\n")
    parser = _Parser()
    for line in lines:
        parser.line(line)
    if rest.strip(_BLANKS):
        parser.line(rest)
        raise PageRefused(f"no newline at the end: {rest!r}")
    return parser.families


class _Parser:
    """What the parser carries from line to line, which matters to lines that start with a brace."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self._family: Family | None = None
        self._part = ""
        """``count`` or ``sum``, where the present line says one of a histogram or summary."""
        self._metric: Metric | None = None
        self._pairs: list[tuple[str, str]] = []
        self._identity: dict[str, str] | None = None
        self._bucket = math.nan
        self._folded: dict[tuple[bool, frozenset[tuple[str, str]]], Metric] = {}
        self._written: dict[str, str] = {}

    def line(self, line: bytes) -> None:
        """Read one line, without its newline."""
        line = line.lstrip(_BLANKS)
        if line.startswith(b"#"):
            self._comment(line[1:].lstrip(_BLANKS))
        elif line.startswith(b"{"):
            self._begin_labels()
            self._value(self._labels(line[1:], braced=True))
        elif line:
            name, rest = _token(_METRIC, line)
            if not name:
                raise PageRefused(f"bad name in {line!r}")
            self._enter(name)
            self._begin_sample()
            rest = rest.lstrip(_BLANKS)
            self._begin_labels()
            self._value(self._labels(rest[1:]) if rest.startswith(b"{") else rest)

    def _comment(self, text: bytes) -> None:
        keyword, rest = _word(text)
        if not rest or keyword not in (b"HELP", b"TYPE"):
            return
        name, rest = _token(_METRIC, rest.lstrip(_BLANKS))
        if not rest:
            return
        if rest[:1] not in (b" ", b"\t"):
            raise PageRefused(f"bad name in comment {text!r}")
        family = self._enter(name)
        rest = rest.lstrip(_BLANKS)
        if not rest:
            return
        if keyword == b"HELP":
            if family.helped:
                raise PageRefused(f"second HELP for {family.name}")
            if not _HELP.fullmatch(rest):
                raise PageRefused(f"bad escape in {text!r}")
            family.helped = True
            return
        if family.typed is not None:
            raise PageRefused(f"second TYPE for {family.name}, or a TYPE after samples")
        # Backslashes are read over; blanks at the end are not.
        kind = rest.replace(b"\\", b"").decode("utf-8", "replace").upper()
        if kind not in _TYPES:
            raise PageRefused(f"unknown type {kind!r}")
        family.typed = _TYPES[kind]

    def _enter(self, token: bytes) -> Family:
        """Make the family of a name the present one; ``x_count`` can be of a family ``x``."""
        if not re.fullmatch(rb"[a-zA-Z_:][a-zA-Z0-9_:]*", token):
            raise PageRefused(f"bad name {token!r}")
        name = token.decode()
        self._part = ""
        self._family = self.families.get(name)
        if self._family is None:
            self._family = self._whole(name) or self.families.setdefault(name, Family(name))
        return self._family

    def _whole(self, name: str) -> Family | None:
        for suffix, types in (
            ("_count", _FOLDED), ("_sum", _FOLDED), ("_bucket", _HISTOGRAMS)
        ):  # fmt: skip
            whole = self.families.get(name.removesuffix(suffix))
            if name.endswith(suffix) and whole is not None and whole.type in types:
                self._part = suffix[1:] if suffix != "_bucket" else ""
                return whole
        return None

    def _begin_sample(self) -> None:
        if self._family is not None and self._family.typed is None:
            self._family.typed = "untyped"
        self._metric = Metric()

    def _begin_labels(self) -> None:
        self._written = {}
        if self._type() in _FOLDED and self._family is not None:
            self._identity = {"__name__": self._family.name}
            self._bucket = math.nan

    def _type(self) -> str:
        return "" if self._family is None or self._family.typed is None else self._family.typed

    def _labels(self, text: bytes, *, braced: bool = False) -> bytes:
        """Read what stands after ``{``; return what stands after ``}``. In a line that starts with
        the brace, one item is the quoted name."""
        while True:
            text = text.lstrip(_BLANKS)
            if text.startswith(b"}"):
                return self._end_labels(text)
            token, rest = _token(_LABEL, text)
            if not token:
                raise PageRefused(f"bad label at {text!r}")
            rest = rest.lstrip(_BLANKS)
            if not rest.startswith(b"="):
                if not braced or rest[:1] not in (b",", b"}"):
                    raise PageRefused(f"label without value at {text!r}")
                self._enter(token)
                self._begin_sample()
                # A second name is no name any more, but a label that lacks its value.
                braced = False
                if rest.startswith(b"}"):
                    return self._end_labels(rest)
                text = rest[1:]
                continue
            text = self._pair(token, rest[1:].lstrip(_BLANKS))
            if text.startswith(b"}"):
                if self._family is None:
                    raise PageRefused("labels without a name")
                return self._end_labels(text)
            if not text.startswith(b","):
                raise PageRefused(f"no comma between labels at {text!r}")
            text = text[1:]

    def _pair(self, token: bytes, text: bytes) -> bytes:
        if not re.fullmatch(rb"[a-zA-Z_][a-zA-Z0-9_]*", token) or token == b"__name__":
            raise PageRefused(f"bad label name {token!r}")
        name = token.decode()
        special = (name == "quantile" and self._type() == "summary") or (
            name == "le" and self._type() in _HISTOGRAMS
        )
        if not special and any(name == known for known, _ in self._pairs):
            raise PageRefused(f"label {name} twice")
        match = _VALUE.match(text)
        if match is None:
            raise PageRefused(f"no finished label value at {text!r}")
        try:
            value = _unescape(match[1]).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise PageRefused(f"label value {match[1]!r} is not UTF-8") from exc
        self._written[name] = value
        if special:
            bound = parse_float(value)
            if bound is None:
                raise PageRefused(f"the bound {value!r} is no number")
            if name == "le":
                self._bucket = bound
        else:
            self._pairs.append((name, value))
            if self._type() in _FOLDED:
                if self._identity is None:
                    raise PickerDies("labels of a folded family without its name before them")
                self._identity[name] = value
        return text[match.end() :].lstrip(_BLANKS)

    def _end_labels(self, text: bytes) -> bytes:
        if self._metric is None:
            raise PickerDies("labels before any sample")
        self._metric.labels += self._pairs
        self._pairs = []
        return text[1:].lstrip(_BLANKS)

    def _value(self, text: bytes) -> None:
        family, metric = self._family, self._metric
        assert family is not None
        assert metric is not None
        kind = self._type()
        if kind in _FOLDED:
            key = kind == "summary", frozenset((self._identity or {}).items())
            known = self._folded.get(key)
            if known is None:
                self._folded[key] = metric
                family.metrics.append(metric)
            self._metric = metric = known or metric
        else:
            family.metrics.append(metric)
        word, rest = _word(text)
        value = parse_float(word.decode("latin-1"))
        if value is None:
            raise PageRefused(f"bad value {word!r}")
        if kind == "gauge":
            metric.gauge = value
        elif kind in ("counter", ""):
            metric.counter = value
        elif kind in _HISTOGRAMS and value < 0 and self._counts():
            raise PageRefused(f"negative count of {family.name}")
        family.samples.append((self._written, value, self._timestamp(rest, metric)))

    def _counts(self) -> bool:
        return self._part == "count" or (self._part != "sum" and not math.isnan(self._bucket))

    def _timestamp(self, text: bytes, metric: Metric) -> int:
        if not text:
            return 0
        word, rest = _word(text.lstrip(_BLANKS))
        timestamp = parse_int(word.decode("latin-1"))
        if timestamp is None:
            raise PageRefused(f"bad timestamp {word!r}")
        if rest:
            raise PageRefused(f"{rest!r} after the timestamp")
        metric.timestamp = timestamp
        return timestamp


def _word(text: bytes) -> tuple[bytes, bytes]:
    match = _TOKEN.match(text)
    end = match.end() if match is not None else 0
    return text[:end], text[end:]


def _token(pattern: re.Pattern[bytes], text: bytes) -> tuple[bytes, bytes]:
    """Read a name, which may be quoted, or end in a quoted part; return it and the rest."""
    match = pattern.match(text)
    assert match is not None
    plain, quoted = match[1] or b"", match[2]
    rest = text[match.end() :]
    if quoted is None:
        if rest.startswith(b'"'):
            raise PageRefused(f"unfinished name at {text!r}")
        return plain, rest
    return plain + _unescape(quoted[1:-1]), rest


def _unescape(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: b"\n" if match[1] == b"n" else match[1], text)
