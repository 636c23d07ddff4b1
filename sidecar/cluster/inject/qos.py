"""The agent's resources, such that the pod keeps its class of service.

Source: Kubernetes, "Pod Quality of Service Classes": Guaranteed asks that every container, those of
init included, has limits of CPU and memory, and requests equal to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from sidecar.cluster.inject.model import Json, JsonView, mapping, objects

_QUANTITY = re.compile(r"([0-9.]+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]+))?")
_UNITS = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_UNITS |= {
    unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)
}
_UNITS |= {
    unit: Decimal(1024) ** power
    for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)
}
MEMORY: Final = "512Mi"
"""Four fetches at once need 111 MB, a thousand targets 86 MB (docs/benchmarks.md)."""
_DISK: Final = "ephemeral-storage"


def agent_resources(spec: JsonView, *, store_size: str | None) -> Json:
    """Return the agent's ``resources``; ``store_size`` is that of a volume on the node's disk."""
    if has_pod_level(spec):
        # Its containers share what the pod has. Requests of ours could exceed it, which is invalid.
        return {}
    if is_guaranteed(spec):
        same = {"cpu": "500m", "memory": MEMORY}
        resources: Json = {"requests": same, "limits": dict(same)}
    else:
        requests = {"cpu": "50m", "memory": "128Mi"}
        resources = {"requests": requests, "limits": {"memory": MEMORY}}
    if store_size is not None and _limits_disk(spec):
        # The kubelet adds these limits up, and evicts the pod when its volumes exceed the sum.
        resources["requests"][_DISK] = resources["limits"][_DISK] = store_size
    return resources


def has_pod_level(spec: JsonView) -> bool:
    """Tell whether the pod as a whole has resources."""
    held = mapping(spec.get("resources"), "spec.resources")
    return bool(held.get("limits") or held.get("requests"))


def is_guaranteed(spec: JsonView) -> bool:
    """Tell whether Kubernetes puts a pod without resources of its own into class Guaranteed."""
    return all(_is_guaranteed_container(one) for one in _containers(spec))


def _is_guaranteed_container(container: JsonView) -> bool:
    limits, requests = _part(container, "limits"), _part(container, "requests")
    for name in ("cpu", "memory"):
        limit = parse_quantity(limits.get(name))
        if not limit or parse_quantity(requests.get(name, limits.get(name))) != limit:
            return False
    return True


def _limits_disk(spec: JsonView) -> bool:
    return any(parse_quantity(_part(one, "limits").get(_DISK)) for one in _containers(spec))


def _containers(spec: JsonView) -> list[Json]:
    regular = objects(spec.get("containers"), "spec.containers")
    return [*regular, *objects(spec.get("initContainers"), "spec.initContainers")]


def _part(container: JsonView, name: str) -> JsonView:
    resources = container.get("resources")
    part = resources.get(name) if isinstance(resources, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def parse_quantity(value: object) -> Decimal | None:
    """Return a Kubernetes quantity as a number; None where it is none."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None or match[1].count(".") > 1 or not match[1].strip("."):
        return None
    return (
        Decimal(match[1])
        * _UNITS.get(match[2] or "", Decimal(1))
        * Decimal(10) ** int(match[3] or 0)
    )
