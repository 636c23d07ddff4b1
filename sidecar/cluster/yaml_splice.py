"""Edits the list ``models:`` inside a YAML text, so that comments and layout stay. No I/O.

Nothing here is trusted: ``splice`` proposes texts, the least change first, and whoever asked reads
each again and takes the first that says exactly what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import yaml
from yaml.nodes import MappingNode, ScalarNode, SequenceNode

LIST = "models"
MERGE = "<<"

_LOADER: type[yaml.CSafeLoader] | type[yaml.SafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)
_COMMENT = re.compile(r"(?:^|\s)#", re.MULTILINE)

Item = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What happens to the items of a list."""

    replaced: tuple[int, Item] | None = None
    removed: frozenset[int] = frozenset()
    appended: Item | None = None

    def apply(self, items: Sequence[object]) -> list[object]:
        """Return the items afterwards."""
        replaced, new = self.replaced or (-1, None)
        kept = [
            new if at == replaced else item
            for at, item in enumerate(items)
            if at not in self.removed
        ]
        return [*kept, self.appended] if self.appended is not None else kept

    @property
    def touched(self) -> frozenset[int]:
        """Places of the items that do not stay as they are."""
        return self.removed | ({self.replaced[0]} if self.replaced else frozenset())


@dataclass(frozen=True, slots=True, order=True)
class _Edit:
    """``text`` in the place of the characters from ``start`` to ``end``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where one item or field stands: whole lines, without the idle ones behind it."""

    start: int
    end: int


class _Dumper(yaml.SafeDumper):
    """Writes what is not plainly visible, line ends included, as escapes on one line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(value: object) -> str:
    """Write YAML as people do: one field a line, in the order given."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30))


def has_comments(text: str) -> bool:
    """Tell whether there may be comments in it."""
    return _COMMENT.search(text) is not None


def splice(text: str, before: Sequence[object], delta: Delta) -> Iterator[tuple[str, bool]]:
    """Yield texts in which only ``delta`` happened, and whether each may lose comments.

    ``before`` are the items that ``text`` writes.
    ``text`` is YAML that was parsed within limits before: libyaml composes it here. Yields nothing
    where the list is not written one item below the other.
    """
    text = text.removeprefix("\ufeff")
    text = text if text.endswith("\n") else text + "\n"
    found = _find_list(text)
    if found is None:
        return
    key, items = found
    if not items.value:
        if delta.appended is not None:
            yield _fill(text, key, items, delta.appended), False
        return
    places = _item_places(text, items)
    if places is None:
        return
    edits = [_Edit(places[at].start, places[at].end, "") for at in delta.removed]
    column = items.start_mark.column
    if len(delta.removed) == len(places):
        edits.append(_Edit(colon := text.index(":", key.end_mark.index) + 1, colon, " []"))
    if delta.appended is not None:
        end = places[-1].end
        edits.append(_Edit(end, end, _indented([delta.appended], column)))
    if delta.replaced is None:
        yield _apply(text, edits), False
        return
    at, item = delta.replaced
    place = places[at]
    fields = _field_edits(text, place, items.value[at], before[at], item)
    if fields is not None:
        yield _apply(text, [*edits, *fields]), False
    whole = _Edit(place.start, place.end, _indented([item], column))
    yield _apply(text, [*edits, whole]), has_comments(text[place.start : place.end])


def _find_list(text: str) -> tuple[ScalarNode, SequenceNode] | None:
    try:
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError:
        return None
    for key, value in root.value if isinstance(root, MappingNode) and not root.flow_style else ():
        if isinstance(key, ScalarNode) and key.value == LIST and isinstance(value, SequenceNode):
            # The node of an alias stands where its anchor is.
            is_alias = value.start_mark.index < key.end_mark.index
            return None if is_alias else (key, value)
    return None


def _fill(text: str, key: ScalarNode, items: SequenceNode, item: Item) -> str:
    """Write the first item into an empty list ``[]``; what follows it on its line stays."""
    start, end = items.start_mark.index, items.end_mark.index
    line_end = text.index("\n", end) + 1
    new = _indented([item], key.start_mark.column)
    return text[:start].rstrip(" ") + text[end:line_end] + new + text[line_end:]


def _item_places(text: str, items: SequenceNode) -> list[_Place] | None:
    if items.flow_style:
        return None
    column, end = items.start_mark.column, items.end_mark.index
    first = _line_start(text, items.start_mark.index)
    # What stands inside an item is written further to the right.
    dash = re.compile(rf"^[ ]{{{column}}}-(?=\s)", re.MULTILINE)
    starts = [match.start() for match in dash.finditer(text, first, end)]
    if len(starts) != len(items.value):
        return None
    return _places(text, starts, _line_start(text, end) if end < len(text) else end)


def _places(text: str, starts: list[int], end: int) -> list[_Place]:
    nexts = [*starts[1:], end]
    return [
        _Place(start=start, end=_content_end(text, start, after))
        for start, after in zip(starts, nexts, strict=True)
    ]


def _content_end(text: str, start: int, end: int) -> int:
    """Return where the last line ends that is neither blank nor a comment."""
    while (line := text.rfind("\n", start, end - 1) + 1) > start:
        words = text[line:end].strip()
        if words and not words.startswith("#"):
            break
        end = line
    return end


def _field_edits(
    text: str, place: _Place, node: yaml.Node, old: object, new: Item
) -> list[_Edit] | None:
    """Return the edits, field by field; None where the item is not written one field a line."""
    if not isinstance(node, MappingNode) or node.flow_style or not isinstance(old, dict):
        return None
    keys = [key for key, _ in node.value]
    starts = [place.start, *(_line_start(text, key.start_mark.index) for key in keys[1:])]
    if any(one >= after for one, after in pairwise(starts)):
        return None
    edits = []
    column = keys[0].start_mark.column
    for (key, value), one in zip(node.value, _places(text, starts, place.end), strict=True):
        name = key.value
        if name not in new and name != MERGE:
            edits.append(_Edit(one.start, one.end, ""))
        elif name != MERGE and repr(new[name]) != repr(old[name]):
            edits.append(_value_edit(text, key, value, one, new[name], column))
    added = {name: new[name] for name in new if name not in old}
    if added:
        edits.append(_Edit(place.end, place.end, _indented(added, column)))
    return edits


def _value_edit(
    text: str, key: ScalarNode, value: yaml.Node, place: _Place, new: object, column: int
) -> _Edit:
    start, end = value.start_mark.index, value.end_mark.index
    is_scalar = isinstance(value, ScalarNode) and not isinstance(new, dict | list)
    if is_scalar and place.start <= start < end <= place.end and "\n" not in text[start:end]:
        # Comments behind it on its line stay.
        return _Edit(start, end, dump([new]).removeprefix("- ").rstrip("\n"))
    return _Edit(key.start_mark.index, place.end, _indented({key.value: new}, column).lstrip(" "))


def _indented(value: object, column: int) -> str:
    indent = " " * column
    return "".join(indent + line for line in dump(value).splitlines(keepends=True))


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _apply(text: str, edits: Sequence[_Edit]) -> str:
    """Make the edits, of which no two touch the same characters, from the end on."""
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text
