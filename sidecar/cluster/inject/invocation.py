"""What a container runs: the command of an engine, found among its command and arguments.

A container's ``command`` and ``args`` are one command line, or a line for a shell. Of a shell's
line the simple commands are looked at, one by one; the one that starts an engine is taken.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.cluster.inject.model import JsonView, refusal

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
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_COMMENT = re.compile(r"(?m)^[ \t]*#.*$")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


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

    Raises ``InjectError`` for a shell's line that starts several.
    """
    command, arguments = _words(container.get("command")), _words(container.get("args"))
    literals = literal_env(container)
    words = [_expanded(word, literals) for word in (*command, *arguments)]
    place = f"{where}.args" if arguments else f"{where}.command"
    script = _script(words)
    if script is not None:
        return _from_script(script, literals, place)
    found = _from_words(words, place)
    if found is None and not command and _is_for_vllm_image(container, words):
        return Invocation(engine=VLLM, arguments=tuple(words), where=place)
    return found


def _is_for_vllm_image(container: JsonView, words: Sequence[str]) -> bool:
    """vLLM's images start ``vllm serve`` by themselves: flags, or a model's name and flags."""
    if image_engine(container.get("image")) != VLLM or not words:
        return False
    return words[0].startswith("--") or re.fullmatch(r"[\w.-]+/[\w.-]+", words[0]) is not None


def _words(value: Any) -> list[str]:  # noqa: ANN401 - whatever the manifest has there
    return [str(word) for word in value] if isinstance(value, list) else []


def _expanded(word: str, literals: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return "$" if match[1] is None else literals.get(match[1], match[0])

    return _REFERENCE.sub(value, word)


def _script(words: Sequence[str]) -> str | None:
    """Return the line that is given to a shell."""
    for index, word in enumerate(words):
        if word.rsplit("/", 1)[-1] in _SHELLS:
            for at in range(index + 1, len(words)):
                if not words[at].startswith("-"):
                    return None
                if "c" in words[at] and not words[at].startswith("--"):
                    return words[at + 1] if at + 1 < len(words) else None
    return None


def _from_script(script: str, literals: Mapping[str, str], where: str) -> Invocation | None:
    found = []
    for command in _simple_commands(script, where):
        words = [_with_variables(word, literals) for word in command]
        if (one := _from_words(words, where)) is not None:
            found.append(one)
    if len(found) > 1:
        raise refusal(
            where,
            f"the script starts {len(found)} engines",
            "start one engine in a container",
        )
    return found[0] if found else None


def _simple_commands(script: str, where: str) -> list[list[str]]:
    text = _COMMENT.sub("", script.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word and not word.strip(";&|\n"):
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError as error:
        raise refusal(where, f"the shell's line cannot be read: {error}", "mend it") from error
    return [command for command in commands if command]


def _with_variables(word: str, literals: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: literals.get(match[1] or match[2], match[0]), word)


def _from_words(words: Sequence[str], where: str) -> Invocation | None:
    """Find an engine's program in one command: behind wrappers such as ``exec`` or ``numactl``."""
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        engine, is_module, taken = None, False, 2
        if word == "-m" and following in _MODULES:
            engine, is_module = _MODULES[following], True
        elif (program := word.rsplit("/", 1)[-1]) == "tritonserver":
            engine, taken = TRITON, 1
        else:
            engine = _PROGRAMS.get((program, following))
        if engine is not None:
            before = [one for one in words[:index] if _ASSIGNMENT.match(one)]
            return Invocation(
                engine=engine,
                is_module=is_module,
                arguments=tuple(words[index + taken :]),
                where=where,
                assignments=tuple(
                    (name, value) for name, _, value in (one.partition("=") for one in before)
                ),
            )
    return None
