"""What a LoRA's own files say before an engine reads them.

A vLLM 0.32 answers 200 to tensors that do not fit, and serves garbage; for the rest it has one
status for everything, after the replaced LoRA is already gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.artifacts.files import source_errors
from sidecar.artifacts.listing import ADAPTER_CONFIG
from sidecar.artifacts.safetensors import Tensor
from sidecar.errors import IncompatibleArtifact, InvalidArtifact

WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 16 << 20
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_CLASSIFIER = frozenset({"classifier", "score"})
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a LoRA bias",
    "alora_invocation_tokens": "an activated LoRA",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
_TENSOR = re.compile(r"(?P<module>.+?)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.weight)?")
_PREFIX = "base_model.model."
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.]+")


def read_lora_config(directory: Path) -> dict[str, Any]:
    """Return ``adapter_config.json``. Raises ``InvalidArtifact`` when it is none of a LoRA."""
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        raise InvalidArtifact(f"{directory}: a LoRA needs {ADAPTER_CONFIG}, and there is none")
    with source_errors(str(path)), path.open("rb") as handle:
        data = handle.read(MAX_CONFIG_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f"{path}: no valid JSON ({error}); write it again") from error
    if not isinstance(value, dict):
        raise InvalidArtifact(f"{path}: no JSON object; write it again")
    kind = value.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise InvalidArtifact(f"{path}: peft_type is {kind!r}, engines load LORA only")
    for field in ("r", "lora_alpha", "target_modules"):
        if field not in value:
            raise InvalidArtifact(f"{path}: the field {field} is missing; save it again by PEFT")
    alpha = value["lora_alpha"]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise InvalidArtifact(f"{path}: lora_alpha is {alpha!r}, no number")
    pattern = value.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise InvalidArtifact(f"{path}: rank_pattern is no mapping")
    for where, rank in {"r": value["r"], **pattern}.items():
        if type(rank) is not int or rank <= 0:
            raise InvalidArtifact(f"{path}: {where} is {rank!r}, no positive whole number")
    return value


def require_supported(config: Mapping[str, Any], max_rank: int | None) -> None:
    """Raise ``IncompatibleArtifact`` for what vLLM 0.32 refuses by ``adapter_config.json``."""
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if max_rank is not None and rank > max_rank:
        raise IncompatibleArtifact(
            f"{ADAPTER_CONFIG}: rank {rank} is above the engine's limit {max_rank}: start the "
            f"engine with --max-lora-rank {rank} or more"
        )
    for field, what in _UNSUPPORTED.items():
        if config.get(field):
            raise _refused(f"{what} ({field})")
    bias = config.get("bias", "none")
    if bias != "none":
        raise _refused(f"bias {bias!r}")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise _refused(f"init_lora_weights {init!r}, which changes the base model's weights")
    saved = config.get("modules_to_save") or []
    names = map(str, saved) if isinstance(saved, list) else ()
    others = [one for one in names if one not in _CLASSIFIER]
    if others:
        raise _refused(f"modules_to_save {', '.join(others)}")


def pair_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every module of plain (two-dimensional) layers.

    Raises ``InvalidArtifact`` where one of the two is missing, or their ranks contradict each
    other or ``adapter_config.json``. Names of another form and stacked experts are not judged.
    """
    if not tensors:
        raise InvalidArtifact(f"{WEIGHTS}: it holds no tensor; save the LoRA again")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _TENSOR.fullmatch(name)
        if found is not None and ".experts" not in name:
            parts.setdefault(found["module"], {})[found["part"][-1]] = tensor
    pairs = {}
    for module, both in parts.items():
        if len(both) < 2:
            (part,) = both
            raise InvalidArtifact(f"{WEIGHTS}: {module!r} has lora_{part} alone; save it again")
        a, b = both["A"], both["B"]
        if len(a.shape) != 2 or len(b.shape) != 2:
            continue
        rank = _rank_of(module, config)
        if a.shape[0] != b.shape[1] or (rank is not None and a.shape[0] != rank):
            raise InvalidArtifact(
                f"{WEIGHTS}: {module!r} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, "
                f"{ADAPTER_CONFIG} says rank {rank}: the two files do not belong together"
            )
        pairs[module] = (a, b)
    return pairs


def _rank_of(module: str, config: Mapping[str, Any]) -> int | None:
    """Return the rank that PEFT gives a module; None where that takes a regular expression.

    PEFT's patterns may be any; one of a stranger's could keep the agent busy for ever.
    """
    name = f".{module.removeprefix(_PREFIX)}"
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            return None
        if name.endswith(f".{pattern}"):
            return int(rank)
    return int(config["r"])


def _refused(what: str) -> IncompatibleArtifact:
    return IncompatibleArtifact(
        f"{ADAPTER_CONFIG}: {what} is refused by engines (vLLM 0.32): train or convert without it"
    )
