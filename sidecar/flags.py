"""Flags as data: a frozen dataclass whose fields say how they are written on a command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

ENVIRONMENT_PREFIX = "MODEL_SIDECAR_"
EXIT_USAGE = 64


class UsageError(Exception):
    """A flag is wrong; the message says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """How one setting is written on the command line."""

    group: str
    help: str
    metavar: str = ""
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    repeatable: bool = False


def define(default: Any, group: str, help: str, **more: Any) -> Any:  # noqa: ANN401 - a field of any type
    metadata = {"flag": Flag(group=group, help=help, **more)}
    return dataclasses.field(default=default, metadata=metadata)


def parse_seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("a number of seconds, 0 or more")
    return value


def parse_positive_seconds(text: str) -> float:
    if (value := parse_seconds(text)) <= 0:
        raise ValueError("a number of seconds above 0")
    return value


def parse_count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError("a whole number, 1 or more")
    return value


SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SIZE_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_bytes(text: str) -> int:
    """Parse a number of bytes, with the suffixes that Kubernetes quantities have."""
    unit = text.lstrip("0123456789.")
    if unit not in SIZE_UNITS or (value := float(text[: len(text) - len(unit)])) <= 0:
        raise ValueError("a size above 0, such as 50Gi")
    return int(value * SIZE_UNITS[unit])


def parse_prefix(text: str) -> tuple[str, str]:
    source, sign, target = text.partition("=")
    if not sign or not source.startswith("/") or not target.startswith("/"):
        raise ValueError("FROM=TO with two absolute paths")
    return (source, target)


def parse_switch(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("true or false")
    return known[text.lower()]


def flags(settings: type) -> dict[str, tuple[str, Flag, Any]]:
    """Return every flag by field name: (``--name``, its description, its default)."""
    return {
        field.name: (
            "--" + field.name.replace("_", "-"),
            cast("Flag", field.metadata["flag"]),
            field.default,
        )
        for field in dataclasses.fields(settings)
        if "flag" in field.metadata
    }


def environment_name(field: str) -> str:
    """Return the environment variable of one field."""
    return ENVIRONMENT_PREFIX + field.upper()


def add_flags(
    settings: type, parser: argparse.ArgumentParser, only: Sequence[str] | None = None
) -> None:
    """Add the flags (all, or some fields) to a parser. Values stay text until ``read_flags``."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field, (name, flag, default) in flags(settings).items():
        if only is not None and field not in only:
            continue
        group = groups.get(flag.group) or parser.add_argument_group(flag.group)
        groups[flag.group] = group
        words = f"{flag.help} [{environment_name(field)}]"
        if default is not False and default not in (None, ()):
            words += f" (default: {_shown(default)})"
        options: dict[str, Any] = {"dest": field, "default": None, "help": words.replace("%", "%%")}
        if flag.parse is parse_switch:
            options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        elif flag.repeatable:
            options |= {"action": "append", "metavar": flag.metavar}
        else:
            options |= {"metavar": flag.metavar or "|".join(flag.choices)}
        group.add_argument(name, **options)


def read_flags(
    settings: type, arguments: argparse.Namespace, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return the values that were given, by field name; a flag wins over its variable.

    Raises ``UsageError`` with the name of the flag or variable that is wrong.
    """
    values: dict[str, Any] = {}
    for field, (name, flag, _) in flags(settings).items():
        given, where = getattr(arguments, field, None), name
        if given is None:
            where = environment_name(field)
            given = environment.get(where)
            if given is None or given == "":
                continue
            if flag.repeatable:
                given = [part.strip() for part in given.split(",") if part.strip()]
        values[field] = _parsed(flag, given, where)
    return values


def _parsed(flag: Flag, given: str | list[str], where: str) -> Any:  # noqa: ANN401 - as the field
    texts = given if isinstance(given, list) else [given]
    parsed = []
    for text in texts:
        if flag.choices and text not in flag.choices:
            raise UsageError(f"{where}: {text!r} is not one of {', '.join(flag.choices)}")
        try:
            parsed.append(flag.parse(text))
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{where}: {text!r} is not usable: {error}") from error
    return tuple(parsed) if flag.repeatable else parsed[0]


def _shown(default: object) -> str:
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


class Parser(argparse.ArgumentParser):
    """Ends with the exit code of bad usage, after one line that says what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry: {self.prog} --help\n")
