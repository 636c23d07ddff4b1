"""The agent out of a pod again."""

from __future__ import annotations

import json

from sidecar.cluster.inject.model import (
    CONTAINER,
    RECORD,
    Json,
    JsonView,
    mapping,
    objects,
    refusal,
    unshared,
)
from sidecar.cluster.inject.record import Record, read_record, restore

_CONTAINERS = "spec.containers"


def remove_pod(pod: JsonView) -> Json:
    """Return the pod as it was before the agent came; one without an agent is returned as it is.

    Raises ``InjectError`` where what was written down of the injection is damaged, or is of a
    container that is gone while some of it is still there.
    """
    bare: Json = unshared(pod)
    record = read_record(bare)
    if record is None:
        return bare
    spec = mapping(bare.get("spec"), "spec")
    containers = objects(spec.get("containers"), _CONTAINERS)
    engine = _engine(containers, record)
    if engine is not None:
        _restore_engine(engine, record)
    else:
        _check_left(containers, record)
    for name, gone in (("initContainers", {CONTAINER}), ("volumes", set(record.volumes))):
        if spec.get(name):
            spec[name] = [
                one for one in objects(spec[name], f"spec.{name}") if one.get("name") not in gone
            ]
        restore(spec, name, f"spec.{name}", record)
    for container in (*containers, *objects(spec.get("initContainers"), "spec.initContainers")):
        _drop_mounts(container, record)
    metadata = mapping(bare.get("metadata"), "metadata")
    del metadata["annotations"][RECORD]
    restore(metadata, "annotations", "metadata.annotations", record)
    restore(bare, "metadata", "metadata", record)
    return bare


def _engine(containers: list[Json], record: Record) -> Json | None:
    """Return the engine that was injected, by its name or else by what it alone mounts."""
    for one in containers:
        if one.get("name") == record.container:
            return one
    ours = {*record.volumes, record.store_volume}
    paths = {*record.mounts, *record.moved}
    found = [
        one
        for one in containers
        if any(
            mount.get("name") in ours and mount.get("mountPath") in paths for mount in _mounts(one)
        )
    ]
    return found[0] if len(found) == 1 else None


def _check_left(containers: list[Json], record: Record) -> None:
    """Raise ``InjectError`` where something is left whose state before is not known."""
    for index, one in enumerate(containers):
        variables = objects(one.get("env"), f"{_CONTAINERS}[{index}].env")
        left = {entry.get("name") for entry in variables} & set(record.env)
        paths = {mount.get("mountPath") for mount in _mounts(one)}
        left |= paths & {*record.moved, *record.mounts}
        if left:
            raise refusal(
                f"{_CONTAINERS}[{index}]",
                f"the engine was {record.container!r}, which is not there, and "
                f"{', '.join(sorted(map(str, left)))} may be what was added to it",
                f"name it {record.container!r} until the agent is out, or take that out by hand",
            )


def _restore_engine(container: Json, record: Record) -> None:
    if container.get("volumeMounts"):
        kept = [one for one in _mounts(container) if one.get("mountPath") not in record.mounts]
        container["volumeMounts"] = [
            json.loads(record.moved.get(str(one.get("mountPath")), "null")) or one for one in kept
        ]
    if container.get("env"):
        container["env"] = [
            one for one in objects(container["env"], "env") if one.get("name") not in record.env
        ]
    for name in ("volumeMounts", "env"):
        restore(container, name, f"engine.{name}", record)


def _drop_mounts(container: Json, record: Record) -> None:
    """A mount of a volume that is gone would be refused."""
    if any(one.get("name") in record.volumes for one in _mounts(container)):
        container["volumeMounts"] = [
            one for one in _mounts(container) if one.get("name") not in record.volumes
        ]


def _mounts(container: Json) -> list[Json]:
    return objects(container.get("volumeMounts"), "volumeMounts")
