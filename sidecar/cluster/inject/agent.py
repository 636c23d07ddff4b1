"""The agent's container and volumes, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.cluster.inject.asked import Asked
from sidecar.cluster.inject.facts import SecretKey
from sidecar.cluster.inject.model import CONTAINER, Json, JsonView, mapping
from sidecar.settings import Settings

CONFIG_DIR: Final = "/etc/model-sidecar/config"
CREDENTIALS_DIR: Final = "/etc/model-sidecar/credentials"
KEY_DIR: Final = "/etc/model-sidecar/engine"
KEY_FILE: Final = "api-key"
SOURCES_DIR: Final = "/sources"
TOKEN_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
USER: Final = 65532
"""The image's own."""
STORE, REPOSITORY, CONFIG, TOKEN, KEY = (
    f"{CONTAINER}-{name}" for name in ("store", "repository", "config", "token", "engine-key")
)
API_FLAGS: Final = {"events": "create and patch on events", "condition": "patch on pods/status"}
"""Flags with which the agent talks to the API server, and the rights that each needs."""
PORT_NAME: Final = "sidecar"
_TOKEN_SECONDS: Final = 3607
"""As the API server asks for its own (kube-apiserver, serviceaccount admission)."""
_REPOSITORY_SIZE: Final = "16Mi"
"""It holds links only."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """Volumes of the pod, and mounts of the agent, in the order in which they were added."""

    volumes: list[Json] = field(default_factory=list)
    mounts: list[Json] = field(default_factory=list)

    def add_volume(self, name: str, content: Json) -> None:
        self.volumes.append({"name": name, **content})

    def mount(self, name: str, path: str, *, read_only: bool = True, sub_path: str = "") -> None:
        mount: Json = {"name": name, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        if sub_path:
            mount["subPath"] = sub_path
        self.mounts.append(mount)


def add_store(parts: Parts, asked: Asked, path: str, *, sub_path: str) -> str:
    """Add the store; return its volume."""
    name = asked.store_volume or STORE
    if not asked.store_volume:
        parts.add_volume(name, {"emptyDir": {"sizeLimit": asked.store_size}})
    parts.mount(name, path, read_only=False, sub_path=sub_path)
    return name


def add_repository(parts: Parts, path: str) -> None:
    """Add a directory for Triton's links, which no other pod sees."""
    parts.add_volume(REPOSITORY, {"emptyDir": {"sizeLimit": _REPOSITORY_SIZE}})
    parts.mount(REPOSITORY, path, read_only=False)


def add_document(parts: Parts, asked: Asked) -> None:
    """Add where the document comes from: the ConfigMap, or what it takes to ask the API server."""
    if asked.api or asked.given & API_FLAGS.keys():
        parts.add_volume(TOKEN, {"projected": {"sources": _token_sources()}})
        parts.mount(TOKEN, TOKEN_DIR)
    if not asked.api:
        # A ConfigMap that is missing must not hold the pod back.
        parts.add_volume(CONFIG, {"configMap": {"name": asked.configmap, "optional": True}})
        parts.mount(CONFIG, CONFIG_DIR)


def _token_sources() -> list[Json]:
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]


def add_secrets(parts: Parts, asked: Asked, key: SecretKey | None) -> None:
    """Add the engine's API key, and the credentials that documents name."""
    if key is not None:
        items = [{"key": key.key, "path": KEY_FILE}]
        secret: Json = {"secretName": key.name, "items": items}
        if key.optional:
            secret["optional"] = True
        parts.add_volume(KEY, {"secret": secret})
        parts.mount(KEY, KEY_DIR)
    for index, name in enumerate(asked.credentials):
        volume = f"{CONTAINER}-credentials-{index}"
        parts.add_volume(volume, {"secret": {"secretName": name, "optional": True}})
        parts.mount(volume, f"{CREDENTIALS_DIR}/{name}")


def agent_container(
    asked: Asked,
    *,
    arguments: Sequence[str],
    settings: Settings,
    port: int,
    mounts: Sequence[Json],
    resources: Json,
    user: int | None,
) -> Json:
    """Return the container: a native sidecar without a startupProbe, so that an agent that fails
    never keeps an engine from starting."""
    container: Json = {
        "name": CONTAINER,
        "image": asked.image,
        "restartPolicy": "Always",
        "args": list(arguments),
        "env": [
            _from_pod("POD_NAME", "metadata.name"),
            _from_pod("POD_NAMESPACE", "metadata.namespace"),
            _from_pod("POD_UID", "metadata.uid"),
        ],
    }
    if asked.env_from:
        kinds = {"configmap": "configMapRef", "secret": "secretRef"}
        container["envFrom"] = [{kinds[kind]: {"name": name}} for kind, name in asked.env_from]
    container |= {
        "ports": [{"name": PORT_NAME, "containerPort": port}],
        "readinessProbe": {**_get("/ready", settings), "periodSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {**_get("/live", settings), "periodSeconds": 10, "failureThreshold": 6},
    }
    if resources:
        container["resources"] = resources
    container["securityContext"] = _security(user)
    container["volumeMounts"] = list(mounts)
    return container


def _from_pod(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _get(path: str, settings: Settings) -> Json:
    asked: Json = {"path": path, "port": PORT_NAME}
    if settings.tls_cert_file:
        asked["scheme"] = "HTTPS"
    return {"httpGet": asked}


def _security(user: int | None) -> Json:
    """Return what the Pod Security level `restricted` asks for, whatever the pod's level is."""
    context: Json = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": user != 0,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if user is not None:
        context["runAsUser"] = user
    return context


def agent_user(spec: JsonView, asked: Asked) -> int | None:
    """Return the user to run as; None for the pod's own, or the image's where the pod names none.

    The store is readable for everybody (directories 0755, files 0644), and a new emptyDir writable,
    so the engine's user does not matter. The pod's own is kept, because platforms assign one by
    namespace; only root is not taken over.
    """
    if asked.run_as_user is not None:
        return asked.run_as_user
    held = mapping(spec.get("securityContext"), "spec.securityContext")
    if held.get("runAsUser") == 0:
        return USER
    return None


def account_of(spec: JsonView) -> str:
    """Return the pod's ServiceAccount; ``serviceAccount`` is its older name, still read."""
    return str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "default")
