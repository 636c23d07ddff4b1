"""Objects of a manifest that have pods, and where those stand in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sidecar.cluster.inject.agent import account_of
from sidecar.cluster.inject.asked import read_named
from sidecar.cluster.inject.engines import find_engine
from sidecar.cluster.inject.invocation import image_engine
from sidecar.cluster.inject.model import (
    CONTAINER,
    INJECT_LABEL,
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
from sidecar.cluster.inject.pod import inject_pod
from sidecar.cluster.inject.record import Record, read_record
from sidecar.cluster.inject.removal import remove_pod
from sidecar.cluster.inject.store import is_for_many_nodes, volume_of
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
KINDS: Final = frozenset({kind for _, kind in _TEMPLATES} | {"Role", "RoleBinding"})
"""Of all objects that are looked at."""
_RBAC: Final = "rbac.authorization.k8s.io"
_GROUP = ("spec", "leaderWorkerTemplate")


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
    if says_no(pod):
        raise NoEngineError([Problem(where=where, what=f"its label {INJECT_LABEL} is false")])
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


def says_no(pod: JsonView) -> bool:
    """Tell whether the pods of a template are to be left alone, here as by the webhook."""
    metadata = mapping(pod.get("metadata"), "metadata")
    return mapping(metadata.get("labels"), "metadata.labels").get(INJECT_LABEL) == "false"


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
    version, kind = str(value.get("apiVersion") or ""), value.get("kind")
    if version.rpartition("/")[0] != _RBAC or kind not in ("Role", "RoleBinding"):
        return False
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
    if isinstance(error, NoEngineError):
        return NoEngineError(problems, image=error.image)
    return InjectError(problems)


def _leader(value: Json, path: tuple[str, ...]) -> tuple[str, ...]:
    """Of a LeaderWorkerSet without a template for leaders, all pods are made from the workers'."""
    if path[:2] != _GROUP or _find(value, path) is not None:
        return path
    workers = (*_GROUP, "workerTemplate")
    if _size(_at(value, _GROUP)) == 1:
        return workers
    pod = _at(value, workers)
    find_engine(mapping(pod.get("spec"), ".".join(workers)), read_named(pod))
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
    held = volume_of(leader, record.store_volume)
    workers = mapping(mapping(group.get("workerTemplate"), where).get("spec"), where)
    if held is not None and is_for_many_nodes(held) and _mount_same(leader, workers, held, record):
        return
    hint = (
        "put a claim that many nodes can mount into both templates, mount it in the workers' "
        f"engine at {record.store}, and name it in the leader's by annotation "
        "model-sidecar.io/store-volume"
    )
    what = f"the workers cannot see the store, {record.store} in volume {record.store_volume!r}"
    raise refusal(f"{where}.workerTemplate.spec", what, hint)


def _mount_same(leader: Json, workers: Json, volume: Json, record: Record) -> bool:
    """Tell whether every engine of the workers sees the leader's store where the leader has it."""
    own = _mount(_named(leader, "initContainers", CONTAINER), record.store)
    image = _named(leader, "containers", record.container).get("image")
    engines = [
        one
        for one in objects(workers.get("containers"), "spec.containers")
        if one.get("name") == record.container
        or one.get("image") == image
        or image_engine(one.get("image")) is not None
    ]
    return bool(engines) and all(
        _is_same(workers, volume, _mount(one, record.store), own) for one in engines
    )


def _is_same(spec: Json, volume: Json, mount: Json, own: Json) -> bool:
    held = volume_of(spec, mount.get("name"))
    parts = [(one.get("subPath") or "", one.get("subPathExpr")) for one in (mount, own)]
    return (
        held is not None
        and {**held, "name": ""} == {**volume, "name": ""}
        and (parts[0] == parts[1])
    )


def _named(spec: Json, part: str, name: str) -> Json:
    held = objects(spec.get(part), f"spec.{part}")
    return next((one for one in held if one.get("name") == name), {})


def _mount(container: Json, path: str) -> Json:
    held = objects(container.get("volumeMounts"), "volumeMounts")
    return next((one for one in held if str(one.get("mountPath")).rstrip("/") == path), {})


def _rights(record: Record, pod: Json, namespace: str) -> tuple[Json, ...]:
    """Return what lets the pod's ServiceAccount read that one ConfigMap, and nothing else."""
    if not record.api:
        return ()
    account = account_of(mapping(pod.get("spec"), "spec"))
    # Names with hyphens can be put together from other pairs, too.
    pair = hashlib.sha256(f"{record.configmap}/{account}".encode()).hexdigest()[:8]
    group = _RBAC
    metadata: Json = {"name": f"{CONTAINER}-{record.configmap}"}
    binding: Json = {"name": f"{CONTAINER}-{record.configmap}-{account}-{pair}"}
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
