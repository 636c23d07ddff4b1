"""Tiny sources for the store, and the entries that name them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.core.desired import Entry, Format

SIZES = {"F32": 4, "BF16": 2}


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "F32", fill: int = 0
) -> None:
    """Write a valid file whose tensors have these shapes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = SIZES[dtype]
        for one in shape:
            size *= one
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([fill]) * end)


def lora_shapes(
    module: str = "q_proj", *, rank: int = 4, inputs: int = 32, outputs: int = 32, layer: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return A and B of one module, as PEFT names them."""
    group = "mlp" if module in {"gate_proj", "up_proj", "down_proj"} else "self_attn"
    name = f"base_model.model.model.layers.{layer}.{group}.{module}"
    return {f"{name}.lora_A.weight": (rank, inputs), f"{name}.lora_B.weight": (outputs, rank)}


def write_tiny_lora(
    directory: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    **config: object,
) -> Path:
    """Write a LoRA of about 2 KB; ``config`` replaces fields of ``adapter_config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    value: dict[str, object] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(value | config))
    write_safetensors(
        directory / "adapter_model.safetensors", shapes or lora_shapes(rank=rank), fill=seed % 256
    )
    return directory


def write_tiny_model(directory: Path, *, config: str | None = 'backend: "python"\n') -> Path:
    """Write a model of Triton's layout."""
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "1" / "model.py").write_text("ANSWER = 1\n")
    if config is not None:
        (directory / "config.pbtxt").write_text(config)
    return directory


def entry_for(source: Path | str, name: str = "sql", **fields: Any) -> Entry:
    """Return a native entry for a source."""
    fields = {"format": Format.NATIVE, "where": "models.yaml: models[0]"} | fields
    return Entry(name=name, source=str(source), **fields)
