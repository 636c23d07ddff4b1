"""Objects of a manifest that have pods, and where those stand in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sidecar.cluster.inject.model import (
    CONTAINER,
    InjectError,
    Json,
    JsonView,
    NoEngineError,
    Options,
    mapping,
    objects,
    refusal,
    unshared,
)
from sidecar.cluster.inject.pod import inject_pod, remove_pod
from sidecar.cluster.inject.record import Record, read_record
from sidecar.core.desired import Problem

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OURS: Final = "model-sidecar-inject"
_TEMPLATES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("", "Pod"): (),
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("batch", "Job"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): (
        "spec",
        "leaderWorkerTemplate",
        "leaderTemplate",
    ),
}
_GROUP = ("spec", "leaderWorkerTemplate")
_PRIVATE = ("emptyDir", "ephemeral")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An object with the agent in its pods."""

    value: Json
    notes: tuple[str, ...] = ()
    rights: tuple[Json, ...] = ()
    """Role and RoleBinding that its ServiceAccount needs."""


def has_pods(value: JsonView) -> bool:
    """Tell whether the agent can be injected into objects of this kind."""
    return _path(value) is not None


def described(value: JsonView) -> str:
    """Return kind and name, for people."""
    metadata = value.get("metadata")
    held = metadata if isinstance(metadata, dict) else {}
    return f"{value.get('kind')} {held.get('name') or held.get('generateName') or 'without a name'}"


def inject_object(value: JsonView, options: Options) -> Workload:
    """Return an object with the agent in its pods; the input is not changed.

    Raises ``InjectError`` with places below the object, ``NoEngineError`` where nothing in it is
    an engine.
    """
    changed: Json = unshared(value)
    path = _path(changed)
    assert path is not None
    path = _leader(changed, path)
    where = ".".join(path)
    pod = _at(changed, path)
    namespace = str(mapping(changed.get("metadata"), "metadata").get("namespace") or "")
    try:
        injected = inject_pod(_only_pod(pod), options, namespace=namespace)
    except InjectError as error:
        raise _below(error, where) from error
    pod.update(injected.pod)
    record = read_record(pod)
    assert record is not None
    if path[:2] == _GROUP and path[2:] == ("leaderTemplate",):
        _check_workers(_at(changed, _GROUP), record)
    return Workload(value=changed, notes=injected.notes, rights=_rights(record, pod, namespace))


def remove_object(value: JsonView) -> Json:
    """Return an object as it was before the agent came into its pods. Raises ``InjectError``."""
    changed: Json = unshared(value)
    path = _path(changed)
    if path is None:
        return changed
    templates = (path, (*_GROUP, "workerTemplate")) if path[:2] == _GROUP else (path,)
    for one in templates:
        pod = _find(changed, one)
        if pod is None:
            continue
        try:
            bare = remove_pod(_only_pod(pod))
        except InjectError as error:
            raise _below(error, ".".join(one)) from error
        for key in ("metadata", "spec"):
            if key in bare:
                pod[key] = bare[key]
            else:
                pod.pop(key, None)
    return changed


def is_ours(value: JsonView) -> bool:
    """Tell whether a Role or RoleBinding was written by an injection."""
    metadata = value.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return isinstance(labels, dict) and labels.get(MANAGED_BY) == OURS


def _path(value: JsonView) -> tuple[str, ...] | None:
    version = str(value.get("apiVersion") or "")
    group = version.rpartition("/")[0]
    return _TEMPLATES.get((group, str(value.get("kind"))))


def _only_pod(value: Json) -> Json:
    """A Pod has more beside metadata and spec, which is none of ours."""
    return {key: value[key] for key in ("metadata", "spec") if key in value}


def _find(value: Json, path: Iterable[str]) -> Json | None:
    for part in path:
        held = value.get(part)
        if not isinstance(held, dict):
            return None
        value = held
    return value


def _at(value: Json, path: tuple[str, ...]) -> Json:
    found = _find(value, path)
    if found is None:
        raise refusal(".".join(path), "it is not there", "see the Kubernetes API reference")
    return found


def _below(error: InjectError, where: str) -> InjectError:
    problems = [
        Problem(where=f"{where}.{one.where}" if where else one.where, what=one.what, hint=one.hint)
        for one in error.problems
    ]
    return type(error)(problems)


def _leader(value: Json, path: tuple[str, ...]) -> tuple[str, ...]:
    """Of a LeaderWorkerSet without a template for leaders, all pods are made from the workers'."""
    if path[:2] != _GROUP or _find(value, path) is not None:
        return path
    if _size(_at(value, _GROUP)) == 1:
        return (*_GROUP, "workerTemplate")
    raise refusal(
        ".".join(path),
        "there is none, so leaders and workers are made alike, and the agent belongs into leaders "
        "only",
        "copy workerTemplate to leaderTemplate",
    )


def _size(group: Json) -> object:
    return group.get("size", 1)


def _check_workers(group: Json, record: Record) -> None:
    """Every worker reads a LoRA's files by itself, at the path that the leader was told."""
    where = ".".join(_GROUP)
    if _size(group) == 1:
        return
    leader = mapping(mapping(group.get("leaderTemplate"), where).get("spec"), where)
    held = _volume(leader, record.store_volume)
    workers = mapping(mapping(group.get("workerTemplate"), where).get("spec"), where)
    sees = held is not None and not any(kind in held for kind in _PRIVATE)
    if sees and held is not None and _mounts_same(workers, held, record.store):
        return
    hint = (
        "put a claim that many nodes can mount into both templates, mount it in the workers' "
        f"engine at {record.store}, and name it in the leader's by annotation "
        "model-sidecar.io/store-volume"
    )
    what = f"the workers cannot see the store, {record.store} in volume {record.store_volume!r}"
    raise refusal(f"{where}.workerTemplate.spec", what, hint)


def _mounts_same(spec: Json, volume: Json, path: str) -> bool:
    content = {key: value for key, value in volume.items() if key != "name"}
    for container in objects(spec.get("containers"), "spec.containers"):
        for mount in objects(container.get("volumeMounts"), "volumeMounts"):
            held = _volume(spec, mount.get("name"))
            same = held is not None and {**held, "name": ""} == {**content, "name": ""}
            if same and str(mount.get("mountPath")).rstrip("/") == path and "subPath" not in mount:
                return True
    return False


def _volume(spec: Json, name: object) -> Json | None:
    held = objects(spec.get("volumes"), "spec.volumes")
    return next((one for one in held if one.get("name") == name), None)


def _rights(record: Record, pod: Json, namespace: str) -> tuple[Json, ...]:
    """Return what lets the pod's ServiceAccount read that one ConfigMap, and nothing else."""
    if not record.api:
        return ()
    account = str(mapping(pod.get("spec"), "spec").get("serviceAccountName") or "default")
    group = "rbac.authorization.k8s.io"
    metadata: Json = {"name": f"{CONTAINER}-{record.configmap}"}
    binding: Json = {"name": f"{CONTAINER}-{record.configmap}-{account}"}
    subject: Json = {"kind": "ServiceAccount", "name": account}
    for one in (metadata, binding):
        if namespace:
            one["namespace"] = namespace
        one["labels"] = {MANAGED_BY: OURS}
    if namespace:
        subject["namespace"] = namespace
    rule = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [record.configmap],
        "verbs": ["get", "list", "watch"],
    }
    role = {"apiGroup": group, "kind": "Role", "name": metadata["name"]}
    return (
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": binding,
            "roleRef": role,
            "subjects": [subject],
        },
    )


__all__ = [
    "NoEngineError",
    "Workload",
    "described",
    "has_pods",
    "inject_object",
    "is_ours",
    "remove_object",
]
