"""A namespace of a real API server: one ConfigMap, and a ServiceAccount that may read just that."""

from __future__ import annotations

from random import Random

from lab.kube import Kube
from sidecar.sources.kube import KubeSource

AGENT = "agent"
NAME = "models"


class Place:
    """One namespace with the agent's ServiceAccount, its least Role, and the ConfigMap."""

    def __init__(self, cluster: Kube, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.kubeconfig = cluster.service_account_kubeconfig(namespace, AGENT)
        rule = {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [NAME],
            "verbs": ["get", "list", "watch"],
        }
        self.apply("rbac.authorization.k8s.io/v1", "Role", AGENT, rules=[rule])
        self.allow()

    def apply(self, version: str, kind: str, name: str, **content: object) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        self.cluster.apply({"apiVersion": version, "kind": kind, "metadata": metadata, **content})

    def allow(self) -> None:
        group = "rbac.authorization.k8s.io"
        self.apply(
            f"{group}/v1",
            "RoleBinding",
            AGENT,
            roleRef={"apiGroup": group, "kind": "Role", "name": AGENT},
            subjects=[{"kind": "ServiceAccount", "name": AGENT, "namespace": self.namespace}],
        )

    def forbid(self) -> None:
        self.kubectl("delete", "rolebinding", AGENT)

    def write(self, files: dict[str, str], **more: object) -> None:
        self.apply("v1", "ConfigMap", NAME, data=files, **more)

    def delete(self) -> None:
        self.kubectl("delete", "configmap", NAME)

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def source(self) -> KubeSource:
        """Return a source that reads this ConfigMap as this ServiceAccount."""
        return KubeSource(NAME, None, kubeconfig=self.kubeconfig, random=Random(1))
