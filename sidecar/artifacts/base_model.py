"""Whether a LoRA was made for the engine's base model, as far as that can be proven.

Names. A refusal that is wrong is worse than none, so a mismatch counts only between two names of
the same sort:

1. Equal names, or names with an equal last component, are the same model, whatever their sort
   (``/models/Llama-3.1-8B`` and ``meta-llama/Llama-3.1-8B``). Case does not matter. A path into a
   hub cache (``models--org--name``) counts as ``org/name``.
2. A hub name (``org/name``) is compared with the engine's hub names only: a served alias such as
   ``chat`` and a directory such as ``/models/merged`` say nothing about it. Two hub names differ
   only when neither is a variant of the other: words for tuning, quantization and packaging are
   left out, and the rest of the one must lie within the rest of the other
   (``Llama-3.1-8B`` fits ``Llama-3.1-8B-Instruct-FP8``; ``Qwen2.5-7B`` and ``Llama-3.1-70B`` do
   not).
3. A plain name (``base``) in ``adapter_config.json`` is compared with a plain name that the engine
   serves and whose last component its base model's path bears too: then it is no mere alias. A
   plain name in a document is compared with every plain name that the engine serves, because
   that is what its author sees.
4. A path that is equal to nothing is not compared: the trainer's disk is not the engine's.

A ``base_model`` in the document that matches the engine outranks what ``adapter_config.json``
says: it is how a person overrides a refusal.

Shapes. Only architectures and modules whose dimensions follow from ``config.json`` are judged;
everything else is left to the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adapters.base import EngineState
from sidecar.artifacts.safetensors import Tensor
from sidecar.core.desired import Entry, Format
from sidecar.errors import IncompatibleArtifact

MAX_CONFIG_BYTES = 16 << 20
_VARIANT = re.compile(
    r"instruct|chat|it|base|hf|sft|dpo|rl|(?:fine)?tuned|meta|unsloth|mlx|awq|gptq|gguf|bnb"
    r"|(?:nv|mx)?fp[0-9]+|bf16|nf4|int[0-9]|[0-9]+bit|w[0-9]+a[0-9]+|quantized|dynamic"
)
_SEPARATORS = re.compile(r"[-_\s]+")
_HUB_CACHE = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/|$)")
_HUB_NAME = re.compile(r"[^/.~\s][^/\s]*/[^/\s]+")

_MODULE = re.compile(
    r"(?:base_model\.model\.)?(?:model\.)*(?:language_model\.)?(?:model\.)*"
    r"(?:layers\.(?P<layer>[0-9]{1,6})\.(?:self_attn|mlp)\.(?P<module>[qkvo]_proj|gate_proj|up_proj|down_proj)"
    r"|(?P<head>embed_tokens|lm_head))"
)
_HEAD_DIM = {
    "llama": None,
    "mistral": None,
    "mixtral": None,
    "qwen2": None,
    "granite": None,
    "olmo": None,
    "olmo2": None,
    "qwen3": 128,
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
}
"""Architectures of uniform layers -> the size of a head where the config does not say it; None:
hidden size over heads."""


def require_same_base(entry: Entry, config: Mapping[str, Any], engine: EngineState) -> None:
    """Raise ``IncompatibleArtifact`` when the LoRA is evidently for another base model."""
    served = [name for name in engine.base_names if name]
    path = [engine.base_model_path] if engine.base_model_path else []
    known = [*served, *path]
    if not known:
        return
    if entry.base_model:
        if _matches(entry.base_model, known):
            return
        rivals = [name for name in served if _sort(name) == "plain"]
        # Other formats carry the field without any meaning of its own.
        if entry.format is Format.NATIVE and _is_another(entry.base_model, known, rivals):
            raise IncompatibleArtifact(
                f"{entry.where}: base_model is {entry.base_model}, the engine serves "
                f"{_listed(known)}: correct base_model, or run this LoRA on that engine"
            )
    made_for = config.get("base_model_name_or_path")
    if not isinstance(made_for, str) or not made_for.strip() or _matches(made_for, known):
        return
    last = _last(path[0]) if path else None
    rivals = [name for name in served if _sort(name) == "plain" and _last(name) == last]
    if _is_another(made_for, known, rivals):
        raise IncompatibleArtifact(
            f"adapter_config.json: made for the base model {made_for}, the engine serves "
            f"{_listed(known)}: use a LoRA for that model, or, where it fits all the same, say "
            "so by base_model in the entry"
        )


def read_base_config(engine: EngineState) -> Mapping[str, Any] | None:
    """Return the base model's ``config.json`` where the agent can see and read it."""
    if not engine.base_model_path or not engine.base_model_path.startswith("/"):
        return None
    try:
        with Path(engine.base_model_path, "config.json").open("rb") as handle:
            value = json.loads(handle.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def require_fitting_shapes(
    pairs: Mapping[str, tuple[Tensor, Tensor]], base: Mapping[str, Any]
) -> None:
    """Raise ``IncompatibleArtifact`` where A's inputs or B's outputs cannot fit the base model.

    ``pairs`` holds A and B, two-dimensional, by module.
    """
    text = base.get("text_config")
    config = text if isinstance(text, dict) else base
    if str(config.get("model_type")) not in _HEAD_DIM:
        return
    layers = _count(config, "num_hidden_layers")
    for module, (a, b) in pairs.items():
        found = _MODULE.fullmatch(module)
        if found is None:
            continue
        if found["layer"] and layers is not None and int(found["layer"]) >= layers:
            raise IncompatibleArtifact(
                f"tensor {module!r} is for layer {found['layer']}, the base model has {layers} "
                "layers: the LoRA was made for another base model"
            )
        inputs, outputs = _dimensions(found["module"] or found["head"], config)
        if found["head"] == "lm_head" and outputs is not None and b.shape[0] < outputs:
            # A base model may have more rows of output than its tokenizer needs, never fewer.
            outputs = None
        for what, is_, must in (("inputs", a.shape[1], inputs), ("outputs", b.shape[0], outputs)):
            if must is not None and is_ != must:
                raise IncompatibleArtifact(
                    f"{module!r} has {is_} {what}, the base model's has {must}: "
                    "the LoRA was made for another base model"
                )


def _dimensions(module: str, config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    head = _count(config, "head_dim") or _HEAD_DIM[config["model_type"]]
    if head is None and hidden and heads:
        head = hidden // heads
    queries = heads * head if heads and head else None
    kv_heads = _count(config, "num_key_value_heads")
    keys = kv_heads * head if kv_heads and head else None
    wide, words = _count(config, "intermediate_size"), _count(config, "vocab_size")
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
        "embed_tokens": (words, hidden),
        "lm_head": (hidden, words),
    }[module]


def _count(config: Mapping[str, Any], field: str) -> int | None:
    value = config.get(field)
    return value if type(value) is int and value > 0 else None


def _matches(name: str, known: Iterable[str]) -> bool:
    mine = {_plain(name), _last(name)}
    return any(mine & {_plain(one), _last(one)} for one in known)


def _is_another(name: str, known: Iterable[str], plain_rivals: Iterable[str]) -> bool:
    """Tell whether there are names of the same sort, and none is a variant of ``name``."""
    match _sort(name):
        case "hub":
            rivals = [one for one in known if _sort(one) == "hub"]
        case "plain":
            rivals = list(plain_rivals)
        case _:
            rivals = []
    return bool(rivals) and not any(_is_variant(name, one) for one in rivals)


def _is_variant(one: str, other: str) -> bool:
    first, second = _words(one), _words(other)
    return first <= second or second <= first


def _words(name: str) -> set[str]:
    words = {word for word in _SEPARATORS.split(_last(name)) if word}
    return {word for word in words if not _VARIANT.fullmatch(word)} or words


def _sort(name: str) -> str:
    if _HUB_CACHE.search(name):
        return "hub"
    if name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1:
        return "path"
    return "hub" if _HUB_NAME.fullmatch(name.strip()) else "plain"


def _plain(name: str) -> str:
    found = _HUB_CACHE.search(name)
    plain = f"{found[1]}/{found[2]}" if found else name
    return plain.strip().rstrip("/").lower()


def _last(name: str) -> str:
    return _plain(name).rpartition("/")[2]


def _listed(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))
