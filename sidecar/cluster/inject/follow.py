"""A new injection, made to fit what others did to the pod since the last one."""

from __future__ import annotations

from sidecar.cluster.inject.model import (
    CONTAINER,
    Json,
    JsonView,
    mapping,
    objects,
    unshared,
)
from sidecar.cluster.inject.record import read_record


def follow(pod: JsonView, fresh: Json) -> Json:
    """Return ``fresh`` with the agent's container as it is in ``pod``, and things in their order.

    Of the container the arguments and mounts change, and only when the injection has come to
    others than it wrote into ``pod``.
    """
    held, written = read_record(pod), read_record(fresh)
    result: Json = unshared(fresh)
    before, after = mapping(pod.get("spec"), "spec"), mapping(result.get("spec"), "spec")
    agent, wanted = _agent(before), _agent(after)
    if held is None or written is None or agent is None or wanted is None:
        return result
    kept: Json = unshared(agent)
    if held.digest != written.digest:
        kept["args"] = wanted["args"]
        kept["volumeMounts"] = _mounts(agent, wanted, {*held.volumes, held.store_volume})
    wanted.clear()
    wanted.update(kept)
    for name in ("initContainers", "volumes"):
        _order(before, after, name, "name")
    containers = {one.get("name"): one for one in objects(before.get("containers"), "containers")}
    for one in objects(after.get("containers"), "containers"):
        old = containers.get(one.get("name"), {})
        _order(old, one, "volumeMounts", "mountPath")
        _order(old, one, "env", "name")
    return result


def _agent(spec: JsonView) -> Json | None:
    found = objects(spec.get("initContainers"), "spec.initContainers")
    return next((one for one in found if one.get("name") == CONTAINER), None)


def _mounts(agent: Json, wanted: Json, ours: set[str]) -> list[Json]:
    """Return the mounts that are wanted, and those that others added."""
    new = objects(wanted.get("volumeMounts"), "volumeMounts")
    paths = {one.get("mountPath") for one in new}
    return [
        *new,
        *(
            one
            for one in objects(agent.get("volumeMounts"), "volumeMounts")
            if one.get("mountPath") not in paths and one.get("name") not in ours
        ),
    ]


def _order(before: JsonView, after: Json, name: str, key: str) -> None:
    """Sort a list as it was; what is new comes last."""
    if after.get(name):
        places = {str(one.get(key)): at for at, one in enumerate(objects(before.get(name), name))}
        after[name] = sorted(
            objects(after[name], name),
            key=lambda one: places.get(str(one.get(key)), len(places)),
        )
