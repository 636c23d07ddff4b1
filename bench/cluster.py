"""A real kube-apiserver with one ConfigMap, which the agent may read and we may patch."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from bench.report import NotMeasuredError
from lab.kube import Kube

NAMESPACE = "bench"
NAME = "models"
ACCOUNT = "agent"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}"
GROUP = "rbac.authorization.k8s.io"


class Cluster:
    """An API server; entering it starts it."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._connection: http.client.HTTPSConnection | None = None
        self._token = ""

    def __enter__(self) -> Self:
        self._kube.start()
        config = json.loads(self._kube.admin_kubeconfig.read_text())
        self._token = config["users"][0]["user"]["token"]
        authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
        context = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
        # Kept open, so that no patch pays for a handshake.
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", self._kube.port, context=context, timeout=10.0
        )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._connection is not None:
            self._connection.close()
        self._kube.kill()

    def allow_agent(self) -> Path:
        """Make the ConfigMap, and an account that may read it alone; return its kubeconfig."""
        kubeconfig = self._kube.service_account_kubeconfig(NAMESPACE, ACCOUNT)
        metadata = {"name": ACCOUNT, "namespace": NAMESPACE}
        rule = {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [NAME],
            "verbs": ["get", "list", "watch"],
        }
        self._kube.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
            },
            {"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
            {
                "apiVersion": f"{GROUP}/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": ACCOUNT},
                "subjects": [{"kind": "ServiceAccount", **metadata}],
            },
        )
        return kubeconfig

    def patch(self, data: Mapping[str, str]) -> int:
        """Change the ConfigMap; return the moment at which the patch was sent."""
        if self._connection is None:
            raise NotMeasuredError("the API server is not started")
        body = json.dumps({"data": data})
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/merge-patch+json",
        }
        sent = time.monotonic_ns()
        self._connection.request("PATCH", PATH, body=body, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise NotMeasuredError(f"the API server answered {answer.status} to a patch")
        return sent


def open_cluster(work: Path) -> Cluster:
    """Return an API server of the lab. Raises ``LabError`` when it is not installed."""
    return Cluster(Kube(work / "kube"))
