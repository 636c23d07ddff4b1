"""One ConfigMap: read, create, replace, delete; one attempt each, with a deadline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.kube.client import KubeClient
from sidecar.kube.errors import KubeConflict, KubeNotFound, KubeProtocolError

REQUEST_SECONDS = 15.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Which ConfigMap."""

    namespace: str
    name: str

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for names that no object can have; they become part of a path."""
        for one in (self.namespace, self.name):
            if not _NAME.fullmatch(one):
                raise ValueError(f"{one!r} cannot be the name of a ConfigMap or namespace")

    def __str__(self) -> str:
        """Return it as people write it."""
        return f"configmap {self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        return f"{self.collection}/{self.name}"

    @property
    def collection(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"


async def read(client: KubeClient, address: Address) -> Object | None:
    """Return the ConfigMap; None where there is none. Raises ``KubeError``."""
    try:
        found = await client.get_json(address.path, {}, timeout=REQUEST_SECONDS)
    except KubeNotFound:
        return None
    if not isinstance(found.get("metadata"), dict):
        raise KubeProtocolError("the API server sent a ConfigMap without metadata")
    return found


async def create(
    client: KubeClient, address: Address, labels: Mapping[str, str], annotations: Mapping[str, str]
) -> bool:
    """Create it without any key; false where there is one already. Raises ``KubeError``."""
    metadata: dict[str, object] = {"name": address.name, "namespace": address.namespace}
    metadata |= {"labels": dict(labels)} if labels else {}
    metadata |= {"annotations": dict(annotations)} if annotations else {}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    try:
        await client.send_json("POST", address.collection, body, timeout=REQUEST_SECONDS)
    except KubeConflict:
        return False
    return True


async def replace(client: KubeClient, address: Address, found: Object, key: str, text: str) -> str:
    """Write one key of what was read; return the new resource_version.

    Raises ``KubeConflict`` where it changed since, and every other ``KubeError``.
    """
    data = {**(found.get("data") or {}), key: text}
    # Whatever else was read goes back as it came: other keys, binaryData, labels, annotations.
    body = {**found, "apiVersion": "v1", "kind": "ConfigMap", "data": data}
    answer = await client.send_json("PUT", address.path, body, timeout=REQUEST_SECONDS)
    return version(answer)


async def delete(client: KubeClient, address: Address, found: Object) -> bool:
    """Delete what was read; false where it is gone already.

    Raises ``KubeConflict`` where it changed since, and every other ``KubeError``.
    """
    metadata = found["metadata"]
    preconditions = {"uid": metadata.get("uid"), "resourceVersion": version(found)}
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
    try:
        await client.send_json("DELETE", address.path, body, timeout=REQUEST_SECONDS)
    except KubeNotFound:
        return False
    return True


def version(found: Object) -> str:
    """Return the resource_version. Raises ``KubeProtocolError``."""
    metadata = found.get("metadata")
    known = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(known, str) or not known:
        raise KubeProtocolError("the API server sent an object without a resourceVersion")
    return known
