"""Small artifacts that the fake engines take, and some that they refuse."""

from __future__ import annotations

import json
from pathlib import Path


def write_fake_lora(directory: Path, *, seed: int = 0, rank: int = 8) -> str:
    """Write a LoRA of a few bytes; another seed is other bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": "base"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(f"weights {seed}".encode())
    return str(directory)


def write_fake_model(directory: Path, *, seed: int = 0) -> str:
    """Write a model of Triton's layout; another seed is other bytes."""
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text('backend: "python"\n')
    (directory / "1" / "model.py").write_text(f"ANSWER = {seed}\n")
    return str(directory)
