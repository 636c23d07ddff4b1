"""Printing: whatever a text holds, it cannot steer the terminal that shows it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from sidecar.core.desired import Problem


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that is not plainly visible, line ends included."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def write_line(line: str) -> None:
    """Print one line; what the terminal's encoding lacks is escaped, too."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(shown + "\n")


def write_json(value: object) -> None:
    """Print JSON in ASCII, for machines and terminals alike."""
    text = json.dumps(value, indent=2, ensure_ascii=True)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def problems_json(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Return problems in the shape that ``/status`` has for them."""
    return [{"where": one.where, "what": one.what, "hint": one.hint} for one in problems]


def count(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 entry`` or ``2 entries``."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
