"""Manifests of the shapes that public projects ship, and what injection makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sidecar.cluster.inject import Options

GOLDEN = Path(__file__).parents[1] / "data" / "inject"
OPTIONS = Options(configmap="chat-models", image="registry.example/model-sidecar:1")
"""Of every golden file: ``inject --configmap chat-models --image registry.example/...``."""
NAMESPACES = {"serving", "pd", "kserve-test", "michelangelo", "restricted"}
_PATHS = (("spec", "template"), ("spec", "leaderWorkerTemplate", "leaderTemplate"))

Json = dict[str, Any]


def inputs() -> list[Path]:
    """Every manifest before injection."""
    return sorted(path for path in GOLDEN.glob("*.yaml") if ".injected" not in path.name)


def output(path: Path) -> Path:
    """What injection makes of one."""
    return path.with_suffix(".injected.yaml")


def pods_of(text: str) -> list[Json]:
    """Metadata and spec of each pod and pod template that manifests hold."""
    found = []
    for value in yaml.safe_load_all(text):
        if isinstance(value, dict) and value.get("kind") == "Pod":
            found.append({"metadata": {"annotations": value["metadata"].get("annotations")}})
            found[-1]["spec"] = value["spec"]
            continue
        for path in _PATHS:
            held: Any = value
            for part in path:
                held = held.get(part) if isinstance(held, dict) else None
            if isinstance(held, dict) and "spec" in held:
                found.append(held)
    return found
