"""What SGLang's answers mean: its limits, and the words of its errors.

Every refusal to load or unload is a 400 with a sentence; only the sentence tells what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.base import (
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineUnsupported,
    Kind,
    Limits,
    Target,
)
from adapters.http import Answer, cut, status_error

ENGINE = "SGLang"
HOW_TO_START = (
    "start it with --enable-lora, --max-lora-rank and --lora-target-modules (or --lora-paths)"
)
NOT_ENABLED = "LoRA is not enabled"
ALREADY_LOADED = "already loaded"
HALF_UNLOADED = "incomplete unload"
UNKNOWN = "does not exist"
PARAMETERS: Mapping[str, type] = {"pinned": bool}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What ``/server_info`` tells of how the server was started."""

    model_path: str | None = None
    replicas: int = 1
    """Data-parallel ones, behind this one server."""
    limits: Limits = field(default_factory=Limits)


def check_kind(target: Target) -> None:
    """Raise ``EngineUnsupported`` for anything but a LoRA."""
    if target.kind is not Kind.LORA:
        raise EngineUnsupported(
            f"SGLang loads LoRAs only at run time; {target.name!r} is a {target.kind}"
        )


def lora_parameters(target: Target) -> dict[str, object]:
    """Return the fields that the entry adds to a load; raise ``EngineRejected`` for a wrong one."""
    for name, value in target.parameters.items():
        if name not in PARAMETERS:
            raise EngineRejected(
                f"SGLang takes no parameter {name!r}; it takes: {', '.join(PARAMETERS)}"
            )
        if not isinstance(value, PARAMETERS[name]):
            raise EngineRejected(f"parameter {name!r} must be a {PARAMETERS[name].__name__}")
    return dict(target.parameters)


def refusal_words(answer: Answer) -> str:
    """Return the whole sentence of a refusal; empty when the answer is none."""
    if answer.status != 400:
        return ""
    try:
        body = answer.json()
    except EngineProtocolError:
        return ""
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    nested = error.get("message") if isinstance(error, dict) else None
    for words in (body.get("error_message"), nested, body.get("message")):
        if isinstance(words, str) and words:
            return words
    return ""


def lora_error(path: str, answer: Answer, info: ServerInfo) -> EngineError:
    """Return what it means that loading or unloading at ``path`` was not answered with 200."""
    words = refusal_words(answer)
    if NOT_ENABLED in words:
        return EngineUnsupported(f"SGLang refused: {cut(words)} {HOW_TO_START}")
    if words:
        return EngineRejected(f"SGLang refused: {cut(words)}")
    if answer.status == 404:
        return EngineUnsupported(f"SGLang answers 404 for {path}: is this an SGLang server?")
    # An assertion in SGLang, and so an answer without words.
    if answer.status == 500 and info.replicas > 1:
        return EngineUnsupported(
            f"SGLang loads no LoRAs at run time with --dp-size {info.replicas}:"
            " start one server a replica, and name each by an --engine-url"
        )
    return status_error(ENGINE, f"POST {path}", answer.status, answer.words)


def parse_server_info(body: object) -> ServerInfo:
    """Return what matters of ``/server_info``; what is missing or no number stays unknown.

    The number of slots is left out on purpose: nothing tells which LoRAs are in them.
    """
    if not isinstance(body, dict):
        return ServerInfo()

    def number(key: str) -> int | None:
        value = body.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    path = body.get("model_path")
    return ServerInfo(
        model_path=path if isinstance(path, str) else None,
        replicas=number("dp_size") or 1,
        limits=Limits(
            max_lora_rank=number("max_lora_rank"),
            # Above it SGLang refuses nothing: it unloads another LoRA.
            max_residents=number("max_loaded_loras"),
        ),
    )
