"""The lora-syncer that Gateway API Inference Extension retired, for a comparison side by side.

Nothing of it is here. Whoever wants the comparison gets it (`tools/dynamic-lora-sidecar/sidecar` of
`kubernetes-sigs/gateway-api-inference-extension` up to v1.4) and says where it is:
`BENCH_LORA_SYNCER` is the directory of its `sidecar.py`, `BENCH_LORA_SYNCER_PYTHON` a Python that
has its requirements.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab import LabError
from lab.process import Process, free_port

VERSION = "GAIE v1.4"
KEY = "configmap.yaml"


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is, and what runs it."""

    directory: Path
    python: Path


def find() -> Place | None:
    """Return where it is; None when nobody said so. Raises ``LabError`` when it is not there."""
    directory = os.environ.get("BENCH_LORA_SYNCER")
    if not directory:
        return None
    python = os.environ.get("BENCH_LORA_SYNCER_PYTHON", "python3")
    if not (Path(directory) / "sidecar.py").is_file():
        raise LabError(f"BENCH_LORA_SYNCER: there is no sidecar.py in {directory}")
    return Place(Path(directory), Path(python))


class Syncer:
    """It, at work on one mounted ConfigMap."""

    def __init__(self, work: Path, place: Place, config: Path) -> None:
        flags = (f"--config={config / KEY}", f"--metrics-port={free_port()}")
        # It looks for its schema in the directory that it is started from.
        self._process = Process(
            "lora-syncer",
            [place.python, "sidecar.py", *flags],
            log=work / "lora-syncer.log",
            cwd=place.directory,
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
