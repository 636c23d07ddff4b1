"""What is asked for: the options, and the annotations of the pod, which win."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, NoReturn

from sidecar.cluster.inject.invocation import ENGINES
from sidecar.cluster.inject.model import PREFIX, Json, JsonView, Options, mapping, refusal
from sidecar.flags import UsageError, add_flags, flags, parse_bytes, parse_switch
from sidecar.settings import Settings, check_for_run, from_flags

OTHERS = frozenset({"inject", "injected"})
"""Annotations of the prefix that are not read here."""
OURS = {"config_dir": "configmap", "config_file": "configmap", "configmap": "configmap"}
OURS |= {"kubeconfig": "api", "engine": "engine", "credentials_dir": "credentials"}
"""Flags that follow from what is asked for otherwise."""
_WHERE = "metadata.annotations"
_NAMING = ("engine", "container")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(M|G|T|Ki|Mi|Gi|Ti)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All that one pod is to get; names are those of the annotations."""

    configmap: str
    api: bool
    image: str
    store_size: str
    flags: tuple[str, ...]
    engine: str = ""
    container: str = ""
    store_volume: str = ""
    """A volume of the pod that holds the store instead of one that is added."""
    credentials: tuple[str, ...] = ()
    """Secrets that entries of documents name."""
    env_from: tuple[tuple[str, str], ...] = ()
    """("configmap" or "secret", name), for the agent's environment."""
    sources: tuple[str, ...] = ()
    """Volumes of the engine that the agent shall see too."""
    run_as_user: int | None = None

    @property
    def given(self) -> frozenset[str]:
        """Fields of ``Settings`` that somebody said."""
        return frozenset(vars(parse_flags(self.flags)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a pod's annotations say of its engine: all that finding it takes."""

    engine: str
    container: str


ANNOTATIONS = tuple(one.name.replace("_", "-") for one in fields(Asked))


def read_named(pod: JsonView) -> Named:
    """Return which engine is named, if one is. Raises ``InjectError``."""
    held = _annotations(pod)
    engine, container = (str(held.get(PREFIX + one) or "").strip() for one in _NAMING)
    if engine:
        try:
            _parse_engine(engine)
        except ValueError as error:
            what = f"{engine!r} is not usable"
            raise refusal(f"{_WHERE}[{PREFIX}engine]", what, str(error)) from error
    return Named(engine=engine, container=container)


def _annotations(pod: JsonView) -> Json:
    return mapping(mapping(pod.get("metadata"), "metadata").get("annotations"), _WHERE)


def read_asked(pod: Json, options: Options) -> Asked:
    """Return what is asked for this pod. Raises ``InjectError`` with the wrong annotation."""
    where = _WHERE
    held = _annotations(pod)
    said: dict[str, Any] = {}
    for key, value in held.items():
        name = str(key).removeprefix(PREFIX)
        if not str(key).startswith(PREFIX) or name in OTHERS:
            continue
        if name not in ANNOTATIONS:
            near = difflib.get_close_matches(name, ANNOTATIONS, n=1)
            hint = (
                f"did you mean {PREFIX}{near[0]}?" if near else f"known: {', '.join(ANNOTATIONS)}"
            )
            raise refusal(f"{where}[{key}]", "this annotation is not known", hint)
        field = name.replace("-", "_")
        try:
            said[field] = _PARSERS.get(field, str)(str(value).strip())
        except ValueError as error:
            raise refusal(f"{where}[{key}]", f"{value!r} is not usable", str(error)) from error
    asked = Asked(
        configmap=options.configmap,
        api=options.api,
        image=options.image,
        store_size=options.store_size,
        flags=options.flags,
    )
    said["flags"] = (*options.flags, *said.get("flags", ()))
    return _checked(replace(asked, **said), where)


def _checked(asked: Asked, where: str) -> Asked:
    if not _NAME.fullmatch(asked.configmap):
        what = f"{asked.configmap!r} is no name" if asked.configmap else "no ConfigMap is named"
        raise refusal(
            f"{where}[{PREFIX}configmap]",
            f"{what} of one with the documents",
            f"say --configmap NAME, or annotate the pod with {PREFIX}configmap: NAME",
        )
    try:
        _parse_quantity(asked.store_size)
        given = asked.given
    except (UsageError, ValueError) as error:
        raise refusal(where, str(error), "docs/flags.md has the agent's flags") from error
    for field in sorted(given & OURS.keys()):
        flag = "--" + field.replace("_", "-")
        hint = f"leave it out; {PREFIX}{OURS[field]} is for that"
        raise refusal(f"{where}[{PREFIX}flags]", f"{flag} is set by the injection", hint)
    return asked


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the agent's flags that are given, and no others. Raises ``UsageError``."""
    parsed, rest = _parser().parse_known_args(list(arguments))
    if rest:
        known = [name for name, _, _ in flags(Settings).values()]
        near = difflib.get_close_matches(rest[0].split("=")[0], known, n=1)
        raise UsageError(
            f"{rest[0]!r} is no flag of the agent" + (f"; did you mean {near[0]}?" if near else "")
        )
    return argparse.Namespace(
        **{key: value for key, value in vars(parsed).items() if value is not None}
    )


@cache
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="flags", add_help=False, allow_abbrev=False)
    add_flags(Settings, parser)
    return parser


def parse_settings(arguments: Sequence[str]) -> Settings:
    """Return what the agent makes of its flags. Raises ``UsageError`` where it would not start."""
    given = parse_flags(arguments)
    every = {name: getattr(given, name, None) for name in flags(Settings)}
    settings = from_flags(argparse.Namespace(**every), {"POD_NAME": "pod"})
    check_for_run(settings)
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parse_quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text) or parse_bytes(text) < 1024:
        raise ValueError(f"{text!r} is no size; write one such as 50Gi")
    return text


def _parse_engine(text: str) -> str:
    if text not in ENGINES:
        raise ValueError(f"write one of {', '.join(ENGINES)}")
    return text


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name; write names with commas between them")
    return names


def _parse_env_from(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for one in text.split(","):
        kind, _, name = one.strip().partition("/")
        if kind not in ("configmap", "secret") or not _NAME.fullmatch(name):
            raise ValueError("write configmap/NAME or secret/NAME, with commas between them")
        found.append((kind, name))
    return tuple(found)


def _parse_user(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise ValueError("write a number of a user")
    return int(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "api": parse_switch,
    "store_size": _parse_quantity,
    "flags": lambda text: tuple(shlex.split(text)),
    "engine": _parse_engine,
    "credentials": _parse_names,
    "sources": _parse_names,
    "env_from": _parse_env_from,
    "run_as_user": _parse_user,
}
