"""Agents on a real API server with the rights that ``inject`` writes, beside engines that count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from adapters.fake.engine import FakeEngine
from adapters.fake.server import FakeServer
from adapters.fake.vllm_face import vllm_app
from lab.kube import Kube
from lab.tiny_model import write_lora
from sidecar.cluster.inject import Options, inject_stream
from tests.support.agent_process import AgentProcess
from tests.support.cluster_tokens import MountedToken, bind_token
from tests.support.cluster_wire import LoopThread, Wire

Json = dict[str, Any]

ACCOUNT = "chat"
NAME = "chat-models"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
MANIFEST = f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat}}
spec:
  selector: {{matchLabels: {{app: chat}}}}
  template:
    metadata: {{labels: {{app: chat}}}}
    spec:
      serviceAccountName: {ACCOUNT}
      automountServiceAccountToken: false
      containers:
      - name: engine
        image: vllm/vllm-openai:v0.32.0
        args: [--model=base, --enable-lora]
"""
WAIT_SECONDS = 60.0


class ClusterPlace:
    """A namespace with a Deployment as ``inject`` writes it, and its ServiceAccount."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.user = f"system:serviceaccount:{namespace}:{ACCOUNT}"
        self._secrets = 0
        metadata = {"name": ACCOUNT, "namespace": namespace}
        kube.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        )
        options = Options(configmap=NAME, api=True, image="registry.example/model-sidecar:1")
        self.injected = inject_stream([("chat.yaml", MANIFEST)], options).text

    def allow(self) -> None:
        """Apply what ``inject`` wrote, its Role and RoleBinding among it."""
        self.kubectl("apply", "--validate=strict", "-f", "-", input=self.injected)

    def forbid(self) -> None:
        """Take the rights away again."""
        bindings = [
            one["metadata"]["name"]
            for one in yaml.safe_load_all(self.injected)
            if one["kind"] == "RoleBinding"
        ]
        self.kubectl("delete", "rolebinding", *bindings)

    def kubectl(
        self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None
    ) -> str:
        return self.kube.kubectl(
            "-n", self.namespace, *arguments, input=input, kubeconfig=kubeconfig
        )

    def grant(self) -> tuple[str, str]:
        """A new token of the ServiceAccount, and the Secret without which it is worth nothing."""
        self._secrets += 1
        secret = f"life-{self._secrets}"
        return bind_token(self.kube, self.namespace, ACCOUNT, secret), secret

    def revoke(self, secret: str) -> None:
        self.kubectl("delete", "secret", secret)

    def write(self, *entries: Json) -> None:
        """Edit the ConfigMap through the API."""
        data = {"models.yaml": json.dumps({"models": entries})}
        metadata = {"name": NAME, "namespace": self.namespace}
        value = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        self.kube.apply(value)

    def kubeconfig(self, path: Path, token: Path, port: int) -> Path:
        """A kubeconfig that reads the token from a file, and reaches the server at ``port``."""
        cluster = {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority": str(self.kube.ca_file),
        }
        context = {"cluster": "lab", "user": ACCOUNT, "namespace": self.namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": ACCOUNT, "user": {"tokenFile": str(token)}}],
            "contexts": [{"name": "lab", "context": context}],
            "current-context": "lab",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        return path


class Chat:
    """A real agent in such a place, its token, its wire, and the engine that it looks after."""

    def __init__(self, place: ClusterPlace, work: Path, thread: LoopThread) -> None:
        self.place = place
        self.engine = FakeEngine(max_loras=16)
        self.wire = Wire(thread, place.kube.port)
        self.token = MountedToken(work / "token")
        self._thread = thread
        self._work = work
        self._server = FakeServer(vllm_app(self.engine))
        thread.call(self._server.start())
        kubeconfig = place.kubeconfig(work / "kubeconfig", self.token.file, self.wire.port)
        self.agent = AgentProcess(
            work,
            engine="vllm",
            engine_urls=[self._server.url],
            documents=[f"--configmap={NAME}", f"--kubeconfig={kubeconfig}"],
            flags=["--resync-seconds=1"],
        )
        self.wire.mend()

    def lora(self, name: str, seed: int) -> Json:
        """Write a LoRA, and return its entry."""
        return {"name": name, "source": str(write_lora(self._work / f"seed-{seed}", seed=seed))}

    def wait_held(self, *names: str) -> Json:
        """Wait until the agent is converged and the engine holds exactly these."""
        return self.agent.wait_status(
            lambda status: status["converged"] and self.engine.held.keys() == set(names),
            WAIT_SECONDS,
            what=f"engine with {', '.join(names)}",
        )

    def wait_problem(self, words: str) -> None:
        """Wait until the status says so of the document."""
        self.agent.wait_status(
            lambda status: any(words in one["what"] for one in status["document"]["problems"]),
            WAIT_SECONDS,
            what=f"problem {words!r}",
        )

    def close(self) -> None:
        self.agent.stop()
        self.wire.cut()
        self._thread.call(self._server.stop())
