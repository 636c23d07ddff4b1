"""How the picker's language reads numbers and blanks, where Python would read others.

The picker is a Go program; these are the rules of ``strconv``, ``strings`` and of the conversion
to an integer as amd64 does it.
"""

from __future__ import annotations

import math
import re

MIN_INT64 = -(2**63)
MAX_INT64 = 2**63 - 1
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.ASCII | re.I)
_SPECIAL = re.compile(r"nan|[+-]?inf(?:inity)?", re.ASCII | re.I)
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def parse_float(text: str) -> float | None:
    """Read a sample's value; None is an error, and so is a number too large for a float.

    Hexadecimal floats need a ``p`` and underscores are taken elsewhere in Go, but the text parser
    refuses both letters.
    """
    if _SPECIAL.fullmatch(text):
        return float(text)
    if not _DECIMAL.fullmatch(text):
        return None
    value = float(text)
    return None if math.isinf(value) else value


def parse_int(text: str) -> int | None:
    """Read a label or a timestamp that is an integer; None is an error."""
    if not _INTEGER.fullmatch(text):
        return None
    # Longer than any 64-bit integer without leading zeros, and Python refuses very long ones.
    if len(text.lstrip("+-").lstrip("0")) > 19:
        return None
    value = int(text)
    return value if MIN_INT64 <= value <= MAX_INT64 else None


def int_after_error(text: str) -> int:
    """Return what a failed conversion gives beside its error: 0, or the nearest that fits."""
    if not _INTEGER.fullmatch(text):
        return 0
    return MIN_INT64 if text.startswith("-") else MAX_INT64


def to_int(value: float) -> int:
    """Convert as ``int(value)`` does: towards zero; what does not fit becomes the least."""
    return int(value) if -(2.0**63) <= value < 2.0**63 else MIN_INT64


def trim_space(text: str) -> str:
    """Take the white space off both ends; Python's ``strip`` takes more off."""
    return text.strip(_SPACES)
