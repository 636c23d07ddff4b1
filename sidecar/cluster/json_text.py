"""Writes JSON again in which little changed: the layout stays, and so does the text of numbers.

No I/O. As with YAML, whoever asked reads the result and sees that it says what was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NoReturn

from sidecar.core.desired import Format

_INDENT = re.compile(r"^( +)\S", re.MULTILINE)
_GO_ESCAPES = re.compile("[<>&\u2028\u2029]")

_NOT_YAML = re.compile(
    "[^\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
"""Characters that JSON allows as they are and YAML does not, or takes for the end of a line: a
``.yaml`` key may hold JSON."""

_NUMBER = "\udc00"
"""Begins a text that is to be written as a number: half a character, which no document holds."""
_WRITTEN_NUMBER = re.compile(f'"{_NUMBER}([^"]+)"')


def is_json(text: str) -> bool:
    """Tell whether it is JSON, and not empty."""
    try:
        return bool(json.loads(text.removeprefix("\ufeff"), parse_constant=_refuse_constant))
    except (ValueError, RecursionError):
        return False


def read_spelled(text: str) -> object:
    """Return the value of a JSON text for ``write_json``, in which numbers keep their text: no
    float holds ``12345678901234567890.5`` or ``1e400``."""
    return json.loads(
        text.removeprefix("\ufeff"),
        parse_float=_NUMBER.__add__,
        parse_int=_NUMBER.__add__,
        object_pairs_hook=_first_of_each,
    )


def write_json(whole: object, before: str, form: Format) -> str:
    """Write JSON as it was written before, or exactly as Michelangelo's controller does.

    Raises ``ValueError`` where JSON has no such number.
    """
    if form is Format.MICHELANGELO:
        # Go's MarshalIndent: no newline at the end, and these are escaped for HTML and scripts.
        return _GO_ESCAPES.sub(_escape, _dump(whole, 2))
    found = _INDENT.search(before)
    is_one_line = found is None and "\n" not in before.strip()
    indent = None if is_one_line else len(found.group(1)) if found is not None else 2
    return _NOT_YAML.sub(_escape, _dump(whole, indent)) + before[len(before.rstrip()) :]


def canonical(value: object) -> str:
    """Return equal texts for values that say the same; true is not 1, and 1 is not 1.0."""
    return json.dumps(value, sort_keys=True)


def _dump(whole: object, indent: int | None) -> str:
    text = json.dumps(whole, indent=indent, ensure_ascii=False, allow_nan=False)
    return _WRITTEN_NUMBER.sub(r"\1", text)


def _first_of_each(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    """Return the mapping that agents read where a key stands twice."""
    first: dict[str, object] = {}
    for name, value in pairs:
        first.setdefault(name, value)
    return first


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found.group()):04x}"


def _refuse_constant(name: str) -> NoReturn:
    # To agents it is no JSON, and in YAML a word.
    raise ValueError(name)
