"""The flags of an engine's command line, as their parsers read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FLAG = re.compile(r"--?[A-Za-z]")
OFF = frozenset({"false", "0", "no", "off"})


class EngineFlags:
    """``--name value``, ``--name=value`` and ``--name``; what comes last counts.

    ``--max_loras`` is ``--max-loras``, as vLLM takes both.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._given: dict[str, list[str]] = {}
        for word, following in zip(arguments, [*arguments[1:], "-"], strict=False):
            if not _FLAG.match(word):
                continue
            name, sign, value = word.partition("=")
            if not sign and following != "-" and not _FLAG.match(following):
                value = following
            self._given.setdefault(name.replace("_", "-"), []).append(value)

    def has(self, *names: str) -> bool:
        """Tell whether one of them is given."""
        return any(name in self._given for name in names)

    def is_on(self, name: str) -> bool:
        """Tell whether a switch is given, and neither as false nor taken back."""
        negated = "--no-" + name.removeprefix("--")
        return self.has(name) and not self.has(negated) and self.last(name).lower() not in OFF

    def last(self, *names: str, default: str = "") -> str:
        """Return the last value of a flag that has several names."""
        values = [value for name in names for value in self._given.get(name, ())]
        return values[-1] if values else default

    def all(self, *names: str) -> tuple[str, ...]:
        """Return every value of a flag that may be repeated."""
        return tuple(value for name in names for value in self._given.get(name, ()))
