"""The shipped manifests: which engines, commands and patches belong together."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sidecar.cluster.inject import Options, inject_stream

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
INTEGRATIONS = MANIFESTS / "integrations"
MICHELANGELO = INTEGRATIONS / "michelangelo" / "patch.yaml"
_KEYS = {"volumeMounts": "mountPath"}
"""What tells items of a list apart, where that is not their name (Kubernetes' API reference)."""
_UNORDERED = ("env", "volumeMounts", "volumes")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """One overlay: ``inject`` with these options, of a base whose pods got these fields first."""

    overlay: str
    component: str
    base: str
    options: Options
    annotations: Json = field(default_factory=dict)
    account: str = ""

    def plain(self) -> Json:
        """The Deployment before injection."""
        return asked_for(
            read(MANIFESTS / "base" / self.base / "engine.yaml")[0],
            self.annotations,
            self.account,
        )

    def patch(self) -> Json:
        """What the component adds to it."""
        (patch,) = read(MANIFESTS / "components" / self.component / "agent.yaml")
        return patch


def _simple(base: str, configmap: str) -> Injected:
    options = Options(configmap=configmap)
    return Injected(overlay=base, component=f"agent-{base}", base=base, options=options)


INJECTED = (
    _simple("vllm", "chat-models"),
    _simple("triton", "scoring-models"),
    _simple("sglang", "draft-models"),
    Injected(
        overlay="vllm-full",
        component="agent-vllm-api",
        base="vllm",
        options=Options(),
        annotations={
            "model-sidecar.io/configmap": "chat-models",
            "model-sidecar.io/api": "true",
            "model-sidecar.io/flags": "--events --condition=converged",
        },
        account="chat",
    ),
)


def read(path: Path) -> list[Json]:
    """Every object of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def asked_for(deployment: Json, annotations: Json, account: str = "") -> Json:
    """The Deployment with these annotations and this account in its pods."""
    changed = deepcopy(deployment)
    pod = changed["spec"]["template"]
    if annotations:
        pod["metadata"].setdefault("annotations", {}).update(annotations)
    if account:
        pod["spec"]["serviceAccountName"] = account
    return changed


def injected(deployment: Json, options: Options) -> list[Json]:
    """What ``inject`` makes of it: the Deployment, and the rights that it needs."""
    answer = inject_stream([("in", json.dumps(deployment))], options)
    assert (answer.problems, answer.engines) == ([], 1)
    return [one for one in yaml.safe_load_all(answer.text) if one]


def merged(value: Any, patch: Any, name: str = "") -> Any:
    """A strategic merge, as far as these patches need it: items of lists meet by their names."""
    if isinstance(value, dict) and isinstance(patch, dict):
        both = {key: merged(value[key], patch[key], key) for key in value.keys() & patch.keys()}
        return value | patch | both
    if isinstance(value, list) and isinstance(patch, list):
        key = _KEYS.get(name, "name")
        held = {one[key]: one for one in value}
        return list((held | {one[key]: merged(held.get(one[key]), one) for one in patch}).values())
    return patch


def unordered(value: Any, name: str = "") -> Any:
    """The same with lists sorted whose order says nothing."""
    if isinstance(value, dict):
        return {key: unordered(one, key) for key, one in value.items()}
    if isinstance(value, list):
        found = [unordered(one) for one in value]
        if name not in _UNORDERED:
            return found
        return sorted(found, key=lambda one: json.dumps(one, sort_keys=True))
    return value


def michelangelo_deployment() -> Json:
    """What Michelangelo's controller creates, with nothing of ours."""
    (deployment,) = read(ROOT / "tests" / "data" / "inject" / "michelangelo-triton.yaml")
    del deployment["spec"]["template"]["metadata"]["annotations"]
    return deployment


def michelangelo_asked() -> Json:
    """The annotations with which the patch is what ``inject`` makes."""
    (patch,) = read(MICHELANGELO)
    annotations = patch["spec"]["template"]["metadata"]["annotations"]
    return {key: value for key, value in annotations.items() if key != "model-sidecar.io/injected"}
