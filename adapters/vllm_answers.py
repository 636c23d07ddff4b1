"""What vLLM's answers mean: lists of models, limits, and the words of its errors.

Its status codes do not separate a bad LoRA from a bad moment: the words do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adapters.base import (
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineUnavailable,
    EngineUnsupported,
    Kind,
    Limits,
    Target,
)
from adapters.http import Answer, cut, status_error

ENGINE = "vLLM"
HOW_TO_START = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
ENGINE_IS_DEAD = re.compile(r"EngineDeadError|EngineCore encountered an issue")
PARAMETERS: Mapping[str, type] = {"is_3d_lora_weight": bool}


def check_kind(target: Target) -> None:
    """Raise ``EngineUnsupported`` for anything but a LoRA."""
    if target.kind is not Kind.LORA:
        raise EngineUnsupported(
            f"vLLM loads LoRAs only at run time; {target.name!r} is a {target.kind}"
        )


def lora_parameters(target: Target) -> dict[str, object]:
    """Return the fields that the entry adds to a load; raise ``EngineRejected`` for a wrong one."""
    # vLLM ignores fields that it does not know, so a misspelt one would go unnoticed.
    for name, value in target.parameters.items():
        if name not in PARAMETERS:
            raise EngineRejected(
                f"vLLM takes no parameter {name!r}; it takes: {', '.join(PARAMETERS)}"
            )
        if not isinstance(value, PARAMETERS[name]):
            raise EngineRejected(f"parameter {name!r} must be a {PARAMETERS[name].__name__}")
    return dict(target.parameters)


def parse_error(answer: Answer) -> tuple[str, str]:
    """Return type and message of an error; releases differ in whether they nest them."""
    try:
        body = answer.json()
    except EngineProtocolError:
        return "", answer.words
    if isinstance(body, dict):
        error = body.get("error")
        body = error if isinstance(error, dict) else body
        if isinstance(body.get("message"), str):
            return str(body.get("type", "")), cut(body["message"])
    return "", answer.words


def lora_error(path: str, answer: Answer) -> EngineError:
    """Return what it means that loading or unloading at ``path`` was not answered with 200."""
    kind, message = parse_error(answer)
    if answer.status == 404 and kind != "NotFoundError":
        return EngineUnsupported(f"vLLM answers 404 for {path}: {HOW_TO_START}")
    if answer.status in (400, 404, 422):
        return EngineRejected(f"vLLM refused: {message}")
    return server_error(f"POST {path}", answer)


def server_error(what: str, answer: Answer) -> EngineError:
    """Return what an error means that blames the server, as far as the words tell."""
    kind, message = parse_error(answer)
    if ENGINE_IS_DEAD.search(message) or kind == "EngineDeadError":
        return EngineUnavailable(f"vLLM's engine died: {message}")
    # What a LoRA does wrong (its rank, its modules, its files) comes as 500 with vLLM's words.
    if answer.status == 500 and kind:
        return EngineRejected(f"vLLM refused: {message}")
    return status_error(ENGINE, what, answer.status, answer.words)


def parse_limits(body: object) -> Limits:
    """Return the limits that ``/server_info`` tells."""
    config = body.get("vllm_config") if isinstance(body, dict) else None
    lora = config.get("lora_config") if isinstance(config, dict) else None
    if not isinstance(lora, dict):
        return Limits()

    def number(key: str) -> int | None:
        value = lora.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    return Limits(
        max_loras=number("max_loras"),
        max_cpu_loras=number("max_cpu_loras"),
        max_lora_rank=number("max_lora_rank"),
    )
