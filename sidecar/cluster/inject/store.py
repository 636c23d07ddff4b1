"""Volumes that can hold the store, and those that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sidecar.cluster.inject.model import (
    PREFIX,
    InjectError,
    Json,
    JsonView,
    mapping,
    objects,
    refusal,
)
from sidecar.cluster.inject.qos import parse_quantity
from sidecar.cluster.inject.record import read_record

OF_THE_POD: Final = ("emptyDir", "ephemeral")
"""Kinds of volumes that no other pod sees."""
_OF_ONE_NODE: Final = (*OF_THE_POD, "hostPath")
_NEVER_WRITTEN: Final = ("configMap", "secret", "downwardAPI", "projected", "image")


def volume_of(spec: JsonView, name: object) -> Json | None:
    """Return a volume of the pod; a StatefulSet's claims are not among them."""
    held = objects(spec.get("volumes"), "spec.volumes")
    return next((one for one in held if one.get("name") == name), None)


def check_writable(volume: JsonView | None) -> None:
    """Raise ``InjectError`` for a volume that the agent can write nothing to."""
    for kind, content in (volume or {}).items():
        is_bound = isinstance(content, Mapping) and content.get("readOnly") is True
        if kind in _NEVER_WRITTEN or is_bound:
            raise _refused(
                volume, f"is read-only ({kind})", "name a volume that the agent can write to"
            )


def size_of(volume: JsonView | None) -> int | None:
    """Return how many bytes a volume may hold before the pod is evicted; None for no such limit."""
    content = (volume or {}).get("emptyDir")
    limit = content.get("sizeLimit") if isinstance(content, Mapping) else None
    size = parse_quantity(limit) if limit is not None else None
    return int(size) if size else None


def is_for_many_nodes(volume: JsonView) -> bool:
    """Tell whether pods of other nodes can see the same files."""
    return not any(kind in volume for kind in _OF_ONE_NODE)


def has_shared_store(pod: JsonView) -> bool:
    """Tell whether pods of other nodes can see the store of an injected pod."""
    record = read_record(pod)
    spec = mapping(pod.get("spec"), "spec")
    volume = volume_of(spec, record.store_volume) if record is not None else None
    return volume is not None and is_for_many_nodes(volume)


def _refused(volume: JsonView | None, what: str, hint: str) -> InjectError:
    name = (volume or {}).get("name")
    return refusal(
        f"metadata.annotations[{PREFIX}store-volume]", f"the volume {name!r} {what}", hint
    )
