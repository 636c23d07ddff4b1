"""Regular expressions of routes: written for RE2, which Envoy has, and matched with Python's.

What one of them knows alone is told apart from what is wrong. RE2 takes linear time and Python's
matching may take for ever, so it ends at a deadline.
"""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

_PLAIN = r"(?:^|[^\\])(?:\\\\)*"
"""What follows is not escaped."""
_NOT_RE2 = re.compile(_PLAIN + r"(?:\(\?(?:[=!>]|<[=!]|P=)|\\[1-9])")
"""Look-around, atomic groups and back references, which Python knows and RE2 does not."""
_RE2_ALONE = re.compile(_PLAIN + r"(?:\\[pPQC]|\\x\{|\(\?<[^=!]|\(\?[imsU-]+[:)]|\[:\^)")
"""Classes of Unicode, quotation, long numbers, named groups without P, flags anywhere, and classes
that are negated: https://github.com/google/re2/wiki/Syntax."""
_NEGATED_CLASS = "[:^"
"""Python reads something else in it, and does not complain."""
_POSIX_CLASS = re.compile(r"\[:([a-z]+):\]")
_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "digit": "0-9",
    "lower": "a-z",
    "space": r"\s",
    "upper": "A-Z",
    "word": r"\w",
    "xdigit": "0-9A-Fa-f",
}


class MatchingTimeout(Exception):
    """Matching took longer than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """What one expression says, as far as it can be told."""

    pattern: re.Pattern[str] | None = None
    """None where it is not known what it matches."""
    problem: str = ""
    """Why Envoy refuses it."""
    doubt: str = ""
    """Why Python cannot match what Envoy may take."""


def read_expression(value: str) -> Expression:
    """Read RE2's syntax with Python's."""
    python = _POSIX_CLASS.sub(
        lambda found: _POSIX_CLASSES.get(found.group(1), found.group()), value
    ).replace(r"\z", r"\Z")
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            pattern = re.compile(python, re.ASCII)
    except (re.error, OverflowError) as error:
        if _RE2_ALONE.search(value):
            return Expression(doubt=f"the regular expression is RE2's alone: {error}")
        return Expression(problem=f"the regular expression cannot be read: {error}")
    except RecursionError:
        return Expression(doubt="the regular expression is nested too deep")
    if _NOT_RE2.search(value):
        what = "the regular expression looks around or back, which Envoy refuses"
        return Expression(pattern=pattern, problem=what)
    if _NEGATED_CLASS in value:
        return Expression(doubt="the regular expression is RE2's alone: a negated class")
    return Expression(pattern=pattern)


@contextmanager
def matching_ends(seconds: float) -> Iterator[None]:
    """Raise ``MatchingTimeout`` out of the block ``seconds`` from now, also out of one match.

    In the main thread only: Python looks for signals while it matches, and for nothing else.
    """

    def end(*_: object) -> NoReturn:
        raise MatchingTimeout

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
