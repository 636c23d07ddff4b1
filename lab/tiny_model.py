"""A tiny random Llama and LoRAs for it, written by hand in safetensors: no download, no PyTorch.

Everything is a function of its seed. The weights of a LoRA are so large that they drown the base
model's, so that each seed answers the same prompt with a text of its own.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN = 256
LAYERS = 2
HEADS = 4
KV_HEADS = 2
# vLLM's CPU attention supports this one; with 16 the engine loads, and dies at the first request.
HEAD_SIZE = 64
INTERMEDIATE = 512
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
# Printable ASCII, a line break, Latin letters with accents: a token is one visible character.
CHARACTERS = [*map(chr, range(32, 127)), "\n", *map(chr, range(0xC0, 0xC0 + 220))]
VOCABULARY = [*SPECIAL_TOKENS, *CHARACTERS]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
LORA_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of safetensors: its type name, its shape, its little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def _floats(values: Sequence[float]) -> bytes:
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _bfloat16(values: Sequence[float]) -> bytes:
    """The upper half of each float32, which is what bfloat16 is."""
    wide = _floats(values)
    narrow = bytearray(len(wide) // 2)
    narrow[0::2] = wide[2::4]
    narrow[1::2] = wide[3::4]
    return bytes(narrow)


def random_tensor(
    seed: str, shape: tuple[int, ...], deviation: float, *, dtype: str = "F32"
) -> Tensor:
    """Evenly distributed numbers of this standard deviation, the same ones for the same seed."""
    count = 1
    for size in shape:
        count *= size
    numbers = array("h", random.Random(seed).randbytes(2 * count))
    if sys.byteorder == "big":
        numbers.byteswap()
    factor = deviation * 3**0.5 / 32768
    values = [number * factor for number in numbers]
    return Tensor(dtype, shape, _bfloat16(values) if dtype == "BF16" else _floats(values))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Eight bytes of length, a JSON header, the data of the tensors in the order of the header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            handle.write(tensor.data)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _shape(module: str, hidden: int) -> tuple[int, int]:
    """Outputs and inputs of a linear layer of the base model, were its hidden size `hidden`."""
    queries = HEADS * HEAD_SIZE * hidden // HIDDEN
    keys = KV_HEADS * HEAD_SIZE * hidden // HIDDEN
    intermediate = INTERMEDIATE * hidden // HIDDEN
    shapes = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    return shapes.get(module, (hidden, hidden))


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def _group(module: str) -> str:
    return "mlp" if module in MLP else "self_attn"


def write_base_model(directory: Path, *, seed: int = 0, deviation: float = 0.05) -> Path:
    """Write a random Llama (2 layers, 2.7 MB), its character-level tokenizer and chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    embedding = (len(VOCABULARY), HIDDEN)
    ones = Tensor("BF16", (HIDDEN,), _bfloat16([1.0] * HIDDEN))
    tensors = {
        "model.embed_tokens.weight": random_tensor(f"{seed}/embed", embedding, 1.0, dtype="BF16")
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for module in (*ATTENTION, *MLP):
            name = f"{prefix}.{_group(module)}.{module}.weight"
            shape = _shape(module, HIDDEN)
            tensors[name] = random_tensor(f"{seed}/{name}", shape, deviation, dtype="BF16")
        tensors[f"{prefix}.input_layernorm.weight"] = ones
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ones
    tensors["model.norm.weight"] = ones
    tensors["lm_head.weight"] = random_tensor(f"{seed}/head", embedding, deviation, dtype="BF16")
    write_safetensors(directory / "model.safetensors", tensors)
    _write_json(directory / "config.json", _base_config())
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    _write_tokenizer(directory)
    return directory


def _base_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _write_tokenizer(directory: Path) -> None:
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    _write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": t, **flags} for i, t in enumerate(SPECIAL_TOKENS)
            ],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            # Without a decoder, the characters of an answer come out with spaces between them.
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: index for index, token in enumerate(VOCABULARY)},
                "merges": [],
            },
        },
    )
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
            "pad_token": "<pad>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": CHAT_TEMPLATE,
        },
    )


def write_lora(
    directory: Path,
    *,
    seed: int,
    rank: int = 8,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
    scale: float = 1.0,
    base_model_name: str = "base",
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
) -> Path:
    """Write a LoRA of random weights, as PEFT does. Another `seed` is another answer.

    Broken ones: `hidden=128` has shapes that do not fit (vLLM accepts and serves it), `rank=64` is
    above the starter's limit, `base_model_name="other"` belongs elsewhere (accepted too),
    `target_modules=("nonsense",)` is unknown, `layers=0` has no tensors.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in range(layers):
        for module in target_modules:
            outputs, inputs = _shape(module, hidden)
            name = f"base_model.model.model.layers.{layer}.{_group(module)}.{module}"
            for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                key = f"{name}.{part}.weight"
                tensors[key] = random_tensor(f"lora {seed}/{key}", shape, 0.3 * scale)
    write_safetensors(directory / LORA_FILE, tensors)
    _write_json(
        directory / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model_name,
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(target_modules),
            "inference_mode": True,
        },
    )
    return directory


def truncate_safetensors(directory: Path, *, keep: float = 0.5) -> None:
    """Break a LoRA as an interrupted copy does: the header promises more bytes than there are."""
    path = directory / LORA_FILE
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def replace_by_pickle(directory: Path) -> None:
    """Turn a LoRA into one with its weights in a pickle, which can run code when it is read."""
    (directory / LORA_FILE).unlink()
    (directory / "adapter_model.bin").write_bytes(pickle.dumps({}))
