"""The last look at an artifact before the engine gets it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from adapters.base import EngineState, Kind, Limits
from sidecar.artifacts.base_model import (
    read_base_config,
    require_fitting_shapes,
    require_same_base,
)
from sidecar.artifacts.files import read_file, source_errors
from sidecar.artifacts.lora import WEIGHTS, pair_tensors, read_lora_config, require_supported
from sidecar.artifacts.safetensors import read_header
from sidecar.artifacts.threads import Workers
from sidecar.artifacts.triton_layout import TritonConfig, find_versions, read_config
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.errors import InvalidArtifact

THREADS = 4
_NEEDS_A_FILE = frozenset({"onnxruntime", "pytorch", "tensorflow", "tensorrt", "python"})
_NEEDS_A_FILE_PLATFORM = frozenset(
    {"onnxruntime_onnx", "pytorch_libtorch", "tensorrt_plan"}
    | {"tensorflow_graphdef", "tensorflow_savedmodel"}
)


class Preflight:
    """Checks artifacts in threads of its own."""

    def __init__(self) -> None:
        self._workers = Workers("preflight", THREADS)

    async def check(
        self, revision: Revision, entry: Entry, engine: EngineState | None, limits: Limits
    ) -> Revision:
        """Return the revision, completed by what its files say (``parts``).

        Raises ``InvalidArtifact`` or ``IncompatibleArtifact`` for what is proven wrong, and other
        ``ArtifactError`` when the files cannot be read. An unverified revision passes unseen; an
        unknown engine (None) is compared with nothing. A LoRA's weights are read once.
        """
        if not revision.verified:
            return revision

        def work(stop: Event) -> Revision:
            if revision.kind is Kind.LORA:
                _check_lora(Path(revision.path), entry, engine, limits, stop)
                return revision
            return replace(revision, parts=_check_model(Path(revision.path), entry))

        return await self._workers.run(work)

    def close(self) -> None:
        """Accept no more work."""
        self._workers.close()


def _check_lora(
    directory: Path, entry: Entry, engine: EngineState | None, limits: Limits, stop: Event
) -> None:
    config = read_lora_config(directory)
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise InvalidArtifact(f"{directory}: a LoRA needs {WEIGHTS}, and there is none")
    require_supported(config, limits.max_lora_rank)
    pairs = pair_tensors(config, read_header(weights))
    if engine is not None:
        require_same_base(entry, config, engine)
        base = read_base_config(engine)
        if base is not None:
            require_fitting_shapes(pairs, base)
    read_file(weights, stop=stop)


def _check_model(directory: Path, entry: Entry) -> tuple[str, ...]:
    override = _parse_override(entry)
    config = _from_override(override) if override is not None else read_config(directory)
    if config is not None and config.name and config.name != entry.name:
        raise InvalidArtifact(
            f"{directory}/config.pbtxt: its name is {config.name!r}, the entry's {entry.name!r}, "
            "and Triton refuses that: make them equal, or remove the name from config.pbtxt"
        )
    with source_errors(str(directory)):
        versions = find_versions(directory)
        has_files = any(any((directory / one).iterdir()) for one in versions)
    if not versions:
        raise InvalidArtifact(
            f"{directory}: Triton needs a numeric version directory, such as 1/, and there is none"
        )
    if not has_files and _needs_a_file(config):
        raise InvalidArtifact(
            f"{directory}: the version directories {', '.join(versions)} are empty; "
            "put the model's files into them"
        )
    return config.parts if config is not None else ()


def _needs_a_file(config: TritonConfig | None) -> bool:
    if config is None:
        return True
    is_known = config.backend in _NEEDS_A_FILE or config.platform in _NEEDS_A_FILE_PLATFORM
    return is_known and not config.has_file_name


def _parse_override(entry: Entry) -> Mapping[str, Any] | None:
    value = entry.parameters.get("config")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidArtifact(
                f"{entry.where}: parameters.config is no valid JSON ({error}); correct it"
            ) from error
    if not isinstance(value, Mapping):
        raise InvalidArtifact(f"{entry.where}: parameters.config is no JSON object; correct it")
    return value


def _from_override(value: Mapping[str, Any]) -> TritonConfig:
    """Return the fields of a configuration that takes the place of ``config.pbtxt``."""
    scheduling = value.get("ensemble_scheduling", value.get("ensembleScheduling"))
    steps = scheduling.get("step") if isinstance(scheduling, Mapping) else None
    names = [
        step.get("model_name", step.get("modelName"))
        for step in (steps if isinstance(steps, list) else [])
        if isinstance(step, Mapping)
    ]
    file_name = value.get("default_model_filename", value.get("defaultModelFilename"))
    return TritonConfig(
        name=_text(value.get("name")),
        platform=_text(value.get("platform")),
        backend=_text(value.get("backend")),
        parts=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
        is_ensemble=scheduling is not None,
        has_file_name=bool(file_name),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
