"""The Prometheus text format 0.0.4 as bytes: picked from by name, merged by family, written.

Reading is a search for a few names and no parse of the page: an engine's page has hundreds of
lines, of which a handful matter, several times a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_REST = re.compile(
    rb'[ \t]*(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?[ \t]*([^ \t\r{}]+)(?:[ \t]+-?[0-9]+)?[ \t\r]*'
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_COMMENT = re.compile(rb"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) ?(.*)")
_LABEL_TEXT = rb'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(
    rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:" + _LABEL_TEXT + rb"(?:," + _LABEL_TEXT + rb")*,?)?\})?"
    rb"[ \t]+([^ \t]+)(?:[ \t]+-?[0-9]{1,18})?"
)
_HELP = re.compile(rb'(?:[^\\]|\\[\\n"])*')
_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|([+-]?inf(?:inity)?|nan)", re.ASCII | re.I
)
_TYPES = frozenset({b"counter", b"gauge", b"histogram", b"summary", b"untyped"})
_PARTS = (b"_bucket", b"_sum", b"_count")
_COUNTED = {b"histogram": "le", b"summary": "quantile"}
"""Types whose samples have names of their own, and the label that bounds each of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One sample: its label text as written and its value, which is finite."""

    label_text: str
    value: float

    def labels(self) -> dict[str, str]:
        """Return the labels, unescaped."""
        return {name: _unescape(text) for name, text in _LABEL.findall(self.label_text)}


def find_lines(page: bytes, family: str) -> list[Line]:
    """Return the well-formed samples of one name in page order; NaN and infinities are none."""
    name = family.encode()
    found: list[Line] = []
    at = 0 if page.startswith(name) else _next_line(page, name, 0)
    while at >= 0:
        end = page.find(b"\n", at)
        rest = page[at + len(name) : end if end >= 0 else len(page)]
        if rest[:1] in (b"{", b" ", b"\t") and (line := _parse_rest(rest)) is not None:
            found.append(line)
        at = _next_line(page, name, at)
    return found


def has_family(page: bytes, family: str) -> bool:
    """Tell whether the page declares ``family`` or has a sample of it."""
    name = family.encode()
    return any(
        page.startswith(head + end) or b"\n" + head + end in page
        for head, ends in ((b"# TYPE " + name, (b" ",)), (name, (b"{", b" ", b"\t")))
        for end in ends
    )


def as_text(value: str) -> str:
    """Return what UTF-8 can say of ``value``: a lone surrogate becomes a question mark."""
    return value.encode("utf-8", "replace").decode()


def escape_label(value: str) -> str:
    """Write a label value between its quotes."""
    return as_text(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render_family(
    name: str, samples: Iterable[tuple[Mapping[str, str], float | int | str]], type_: str = "gauge"
) -> str:
    """Write one family: its TYPE line and its samples, labels in the order given."""
    lines = [f"# TYPE {name} {type_}\n"]
    for labels, value in samples:
        text = ",".join(f'{key}="{escape_label(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{text}}} {value}\n" if text else f"{name} {value}\n")
    return "".join(lines)


def merge_pages(ours: Sequence[bytes], engine: Sequence[bytes]) -> bytes:
    """Put pages together so that each family name has one block; the first page wins a name.

    The engine's pages are those of its ranks: their series are kept apart by a label
    ``engine_rank`` where there are several. Lines that the format does not know are left out:
    a reader loses the whole page by one of them.
    """
    merged: dict[bytes, _Family] = {}
    for page in ours:
        _collect(page, merged, reserved=frozenset(merged), extra=b"")
    reserved = frozenset(merged)
    for rank, page in enumerate(engine):
        extra = b'engine_rank="%d"' % rank if len(engine) > 1 else b""
        _collect(page, merged, reserved=reserved, extra=extra)
    # A name that a histogram of the page claims for itself cannot have a block of its own.
    return b"".join(
        family.render()
        for family in merged.values()
        if family.lines and _whole(family.name, merged) is None
    )


@dataclass(slots=True)
class _Family:
    name: bytes
    help: bytes | None = None
    type: bytes | None = None
    lines: list[bytes] = field(default_factory=list)

    def render(self) -> bytes:
        head = b""
        if self.help is not None:
            head += b"# HELP %b %b\n" % (self.name, self.help)
        head += b"# TYPE %b %b\n" % (self.name, self.type or b"untyped")
        return head + b"\n".join(self.lines) + b"\n"


def _collect(
    page: bytes, merged: dict[bytes, _Family], *, reserved: frozenset[bytes], extra: bytes
) -> None:
    current: _Family | None = None
    for raw in page.split(b"\n"):
        line = raw.rstrip(b"\r")
        if (comment := _COMMENT.fullmatch(line)) is not None:
            what, name, text = comment.groups()
            current = merged.setdefault(name, _Family(name)) if name not in reserved else None
            if current is None:
                continue
            if what == b"HELP" and current.help is None and _HELP.fullmatch(text):
                current.help = text
            elif what == b"TYPE" and current.type is None:
                current.type = text if text in _TYPES else b"untyped"
        elif (sample := _SAMPLE.fullmatch(line)) is not None:
            name = _family_of(sample[1], merged)
            if name not in reserved and _is_taken(sample, merged.get(name)):
                family = merged.setdefault(name, _Family(name))
                family.lines.append(_with_label(line, sample, extra))


def _family_of(name: bytes, merged: Mapping[bytes, _Family]) -> bytes:
    if name in merged:
        return name
    whole = _whole(name, merged)
    return name if whole is None else whole.name


def _whole(name: bytes, merged: Mapping[bytes, _Family]) -> _Family | None:
    for part in _PARTS:
        if name.endswith(part):
            family = merged.get(name[: -len(part)])
            if family is not None and family.type in _COUNTED:
                return family
    return None


def _is_taken(sample: re.Match[bytes], family: _Family | None) -> bool:
    """Tell whether readers take a line: its value, its labels, and what they mean to its family."""
    value = _number(sample[3].decode("latin-1"))
    try:
        labels = _LABEL.findall((sample[2] or b"").decode())
    except UnicodeDecodeError:
        return False
    names = {name for name, _ in labels}
    if value is None or len(names) < len(labels) or "__name__" in names:
        return False
    if family is None or (bound := _COUNTED.get(family.type or b"")) is None:
        return True
    bounds = [_number(text) for name, text in labels if name == bound]
    return None not in bounds and (not value < 0 or bound != "le" or sample[1].endswith(b"_sum"))


def _with_label(line: bytes, sample: re.Match[bytes], extra: bytes) -> bytes:
    name, labels = sample[1], sample[2] or b""
    if not extra or b"engine_rank=" in labels:
        return line
    inner = labels[1:-1]
    text = extra + b"," + inner if inner else extra
    return name + b"{" + text + b"}" + line[len(name) + len(labels) :]


def _number(text: str) -> float | None:
    """Read a value as the format has it; Python takes more, such as ``1_0``."""
    match = _NUMBER.fullmatch(text)
    value = math.nan if match is None else float(text)
    # Out of range is an error to others; here it becomes infinite.
    return None if match is None or (math.isinf(value) and match[1] is None) else value


def _next_line(page: bytes, name: bytes, after: int) -> int:
    at = page.find(b"\n" + name, after)
    return at + 1 if at >= 0 else -1


def _parse_rest(rest: bytes) -> Line | None:
    match = _REST.fullmatch(rest)
    if match is None:
        return None
    value = _number(match[2].decode("latin-1"))
    if value is None or not math.isfinite(value):
        return None
    return Line((match[1] or b"").decode("utf-8", "replace"), value)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], text)
