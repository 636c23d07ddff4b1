"""What the benchmarks ask for: LoRAs on disk, documents about them, a mounted ConfigMap."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.tiny_model import write_lora

KEY = "models.yaml"
SETTLE_SECONDS = 0.1
"""A source that changed this shortly before it was copied is read again, not trusted by its times.
"""


def write_loras(directory: Path, count: int) -> list[Path]:
    """Write so many LoRAs (50 KB each, no two with equal bytes) and return where they are."""
    pattern = write_lora(directory / "pattern", seed=1)
    paths = []
    for number in range(count):
        path = directory / f"lora-{number}"
        shutil.copytree(pattern, path)
        # The last bytes of the last tensor: another revision, and still a valid LoRA.
        with (path / "adapter_model.safetensors").open("r+b") as weights:
            weights.seek(-8, os.SEEK_END)
            weights.write(number.to_bytes(4) * 2)
        paths.append(path)
    time.sleep(SETTLE_SECONDS)
    return paths


def native(sources: Iterable[Path]) -> str:
    """Return the native document that asks for these LoRAs, named after their directories."""
    entries = [f"- {{name: {path.name}, source: {path}}}\n" for path in sources]
    return "models:\n" + "".join(entries) if entries else "models: []\n"


def lora_syncer(port: int, wanted: Iterable[Path], unwanted: Iterable[Path] = ()) -> str:
    """Return the document of the retired lora-syncer, which also says what must not exist."""

    def models(paths: Iterable[Path]) -> str:
        entries = [f"\n    - {{id: {path.name}, source: {path}}}" for path in paths]
        return "".join(entries) if entries else " []"

    return (
        f"vLLMLoRAConfig:\n  host: 127.0.0.1\n  port: {port}\n"
        f"  ensureExist:\n    models:{models(wanted)}\n"
        f"  ensureNotExist:\n    models:{models(unwanted)}\n"
    )


class Mount:
    """A mounted ConfigMap with one key, replaced as the kubelet does it."""

    def __init__(self, path: Path, key: str = KEY) -> None:
        self.path = path
        self._key = key
        self._numbers = itertools.count(1)
        path.mkdir(parents=True)

    def write(self, text: str) -> int:
        """Show ``text``; return the moment of the swap (CLOCK_MONOTONIC, nanoseconds)."""
        link, fresh = self.path / "..data", self.path / "..data_tmp"
        before = os.readlink(link) if link.is_symlink() else None
        version = self.path / f"..2026_01_01_00_00_00.{next(self._numbers)}"
        version.mkdir()
        (version / self._key).write_text(text)
        fresh.symlink_to(version.name)
        swapped = time.monotonic_ns()
        fresh.rename(link)
        if before is None:
            (self.path / self._key).symlink_to(f"..data/{self._key}")
        else:
            shutil.rmtree(self.path / before)
        return swapped


def rotation(pool: Sequence[Path], edits: int, width: int = 5) -> list[list[Path]]:
    """Return the contents of so many edits: each drops the oldest of ``width`` and adds one."""
    endless = itertools.cycle(pool)
    window = list(itertools.islice(endless, width))
    contents = []
    for _ in range(edits):
        window = [*window[1:], next(endless)]
        contents.append(window)
    return contents
