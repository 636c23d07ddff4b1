"""What a container runs: the command of an engine, found among its command and arguments.

A container's ``command`` and ``args`` are one command line, or a line for a shell. Of a shell's
line the simple commands are looked at, one by one; the one that starts an engine is taken. What a
variable holds is known where the manifest says it, and the line itself does not change it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.cluster.inject.model import InjectError, JsonView
from sidecar.cluster.inject.shell import (
    MAX_CHARS,
    Expanded,
    ShellError,
    Word,
    expand,
    simple_commands,
)
from sidecar.core.desired import Problem

VLLM, SGLANG, TRITON = "vllm", "sglang", "triton"
ENGINES = (VLLM, SGLANG, TRITON)

_IMAGES = (
    (VLLM, re.compile(r"vllm")),
    (SGLANG, re.compile(r"sglang")),
    (TRITON, re.compile(r"triton-?serv(er|ing)")),
)
_MODULES = {"vllm.entrypoints.openai.api_server": VLLM, "sglang.launch_server": SGLANG}
_PROGRAMS = {(VLLM, "serve"): VLLM, (SGLANG, "serve"): SGLANG}
_SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh"})
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)")
"""The kubelet replaces ``$(NAME)``; ``$$`` is the escape (Kubernetes, "dependent variables")."""
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=")
_DECLARING = frozenset({"export", "declare", "local", "readonly", "typeset", "read", "for"})
_REARRANGING = frozenset({"set", "shift"})
_MODEL = re.compile(r"[\w.-]+/[\w.-]+|(?:/[\w.-]+)+/?")
"""A model as vLLM's first argument: a name of Hugging Face, or a directory."""
_SCRIPT = re.compile(r".*\.(sh|py)|(/usr(/local)?)?/s?bin/.*")
_ONE_VALUE = frozenset(
    {"--api-key", "--admin-api-key", "--model", "--model-path", "--served-model-name", "--host"}
    | {"--port", "--tensor-parallel-size", "-tp", "--max-model-len", "--gpu-memory-utilization"}
)
"""Flags whose value is one word, whatever the variable holds that stands for it."""
_OPTIONS_WITH_VALUE = frozenset({"--rcfile", "--init-file"})


class UnreadableError(InjectError):
    """What a shell is given cannot be read; whether it starts an engine is not known."""


class UnclearError(InjectError):
    """An engine is started, and with what arguments cannot be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """How an engine is started."""

    engine: str
    is_module: bool = False
    """``python -m ...``, which starts one API server only."""
    arguments: tuple[str, ...]
    where: str
    """Place of the arguments, below the pod."""
    assignments: tuple[tuple[str, str], ...] = ()
    """Variables that a shell's line sets for it."""
    is_shell: bool = False
    """Whether ``$NAME`` is a variable."""
    unknown: tuple[str, ...] = ()
    """Words among the arguments that may turn out to be several flags."""


def literal_env(container: JsonView) -> dict[str, str]:
    """Return the variables whose values the manifest itself says."""
    found: dict[str, str] = {}
    for one in container.get("env") or ():
        if isinstance(one, Mapping) and isinstance(value := one.get("value"), str):
            found[str(one.get("name"))] = _expanded(value, found)
    return found


def image_engine(image: object) -> str | None:
    """Return the engine that an image's name tells, without registry and tag."""
    name = str(image or "").split("@")[0].rsplit("/", 1)[-1].split(":")[0].lower()
    return next((engine for engine, pattern in _IMAGES if pattern.search(name)), None)


def find_invocation(container: JsonView, where: str) -> Invocation | None:
    """Return how the container starts an engine, or None where it is not seen to start one.

    Raises ``UnreadableError`` and ``UnclearError``.
    """
    command, arguments = _words(container.get("command")), _words(container.get("args"))
    literals = literal_env(container)
    words = [_expanded(word, literals) for word in (*command, *arguments)]
    place = f"{where}.args" if arguments else f"{where}.command"
    at = _script(words)
    if at is not None:
        return _from_script(words[at], words[at + 1 :], literals, place)
    found = _from_words([Expanded(word) for word in words], place)
    if found is None and not command and _is_for_vllm_image(container, words):
        return Invocation(engine=VLLM, arguments=tuple(words), where=place)
    return found


def _is_for_vllm_image(container: JsonView, words: Sequence[str]) -> bool:
    """vLLM's images start ``vllm serve`` by themselves: flags, or a model's name and flags."""
    if image_engine(container.get("image")) != VLLM or not words:
        return False
    if words[0].startswith("--"):
        return True
    has_flags = len(words) == 1 or words[1].startswith("-")
    return bool(has_flags and _MODEL.fullmatch(words[0]) and not _SCRIPT.fullmatch(words[0]))


def _words(value: Any) -> list[str]:  # noqa: ANN401 - whatever the manifest has there
    return [str(word) for word in value] if isinstance(value, list) else []


def _expanded(word: str, literals: Mapping[str, str]) -> str:
    room = MAX_CHARS

    def value(match: re.Match[str]) -> str:
        nonlocal room
        found = "$" if match[1] is None else literals.get(match[1], match[0])
        # Values of values grow without end: what is longer than any command line stays as it is.
        room -= len(found)
        return found if room >= 0 else match[0]

    return _REFERENCE.sub(value, word)


def _script(words: Sequence[str]) -> int | None:
    """Return the place of the line that is given to a shell."""
    shells = (at for at, word in enumerate(words) if word.rsplit("/", 1)[-1] in _SHELLS)
    at = next(shells, None)
    if at is None:
        return None
    at, is_line = at + 1, False
    while at < len(words) and words[at][:1] in ("-", "+") and words[at] != "--":
        option = words[at]
        if option.startswith("--"):
            at += 2 if option in _OPTIONS_WITH_VALUE else 1
            continue
        is_line |= option.startswith("-") and "c" in option
        # `-o pipefail`, and the same among others: `-euo pipefail`.
        at += 1 + option.count("o") + option.count("O")
    if at < len(words) and words[at] == "--":
        at += 1
    return at if is_line and at < len(words) else None


def _from_script(
    script: str, after: Sequence[str], literals: Mapping[str, str], where: str
) -> Invocation | None:
    try:
        commands = simple_commands(script)
    except ShellError as error:
        problem = Problem(
            where=where, what=f"the shell's line cannot be read: {error}", hint="mend it"
        )
        raise UnreadableError([problem]) from error
    values = {name: value for name, value in literals.items() if name not in _assigned(commands)}
    # `sh -c LINE NAME ARGUMENTS`
    arguments: Sequence[str] | None = after[1:]
    if any(_first(command) in _REARRANGING for command in commands):
        arguments = None
    else:
        values |= {str(index): one for index, one in enumerate(after)}
    found = []
    for command in commands:
        words = [one for word in command for one in expand(word, values, arguments)]
        if (one := _from_words(words, where, is_shell=True)) is not None:
            found.append(one)
    if len(found) > 1:
        what = f"the script starts {len(found)} engines, or one in {len(found)} ways"
        raise UnclearError([Problem(where=where, what=what, hint=_ONE)])
    return found[0] if found else None


_ONE = (
    "start one engine in a container, in one way; or say what holds for all: which it is by "
    "annotation model-sidecar.io/engine, and --engine-url=http://127.0.0.1:PORT and the like by "
    "annotation model-sidecar.io/flags"
)


def _first(command: Sequence[Word]) -> str:
    return "".join(piece.text for piece in command[0])


def _assigned(commands: Sequence[Sequence[Word]]) -> set[str]:
    """Return the variables to which a script gives values of its own, somewhere."""
    names = set()
    for command in commands:
        texts = ["".join(piece.text for piece in word) for word in command]
        names |= {match[1] for text in texts if (match := _ASSIGNMENT.match(text))}
        if not _DECLARING.isdisjoint(texts):
            names |= set(texts)
    return names


def _from_words(
    words: Sequence[Expanded], where: str, *, is_shell: bool = False
) -> Invocation | None:
    """Find an engine's program in one command: behind wrappers such as ``exec`` or ``numactl``."""
    texts = [word.text for word in words]
    for index, word in enumerate(texts):
        following = texts[index + 1] if index + 1 < len(texts) else ""
        engine, is_module, taken = None, False, 2
        if word == "-m" and following in _MODULES:
            engine, is_module = _MODULES[following], True
        elif (program := word.rsplit("/", 1)[-1]) == "tritonserver":
            engine, taken = TRITON, 1
        else:
            engine = _PROGRAMS.get((program, following))
        if engine is not None:
            before = [one for one in texts[:index] if _ASSIGNMENT.match(one)]
            return Invocation(
                engine=engine,
                is_module=is_module,
                arguments=tuple(texts[index + taken :]),
                where=where,
                assignments=tuple(
                    (name, value) for name, _, value in (one.partition("=") for one in before)
                ),
                is_shell=is_shell,
                unknown=tuple(
                    word.text
                    for last, word in zip(
                        texts[index + taken - 1 :], words[index + taken :], strict=False
                    )
                    if word.is_open and last not in _ONE_VALUE
                ),
            )
    return None
