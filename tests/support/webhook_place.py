"""The shipped webhook configurations on a real API server, leading to a server on loopback.

Nothing runs behind a Service here. So it becomes one of type ExternalName, for ``localhost``, and
the port in the configurations that of the server; the API server still asks for the certificate of
the Service's own name.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from lab.kube import Kube
from lab.process import free_port
from lab.tls import Certificate

Json = dict[str, Any]

MANIFESTS = Path(__file__).parents[2] / "manifests" / "webhook"
NAME = "model-sidecar-webhook"
NAMESPACE = "model-sidecar"
HOST = f"DNS:{NAME}.{NAMESPACE}.svc"
CONFIGURATIONS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


def render(cluster: Kube, directory: str) -> list[Json]:
    """The objects of one kustomization of ``manifests/webhook``."""
    text = cluster.kubectl("kustomize", str(MANIFESTS / directory))
    return [one for one in yaml.safe_load_all(text) if one]


def leading_to(port: int, objects: list[Json], authority: Path | None = None) -> list[Json]:
    """Service and configurations as they must be here; all else as it is shipped."""
    bundle = base64.b64encode(authority.read_bytes()).decode() if authority else None
    for one in objects:
        if one["kind"] == "Service":
            one["spec"] = {"type": "ExternalName", "externalName": "localhost"}
        for webhook in one.get("webhooks", ()) if one["kind"] in CONFIGURATIONS else ():
            webhook["clientConfig"]["service"]["port"] = port
            if bundle is not None:
                webhook["clientConfig"]["caBundle"] = bundle
    return objects


def engine_pod(name: str, labels: Json | None = None, **annotations: str) -> Json:
    """A pod with vLLM, as strict as the Pod Security level asks for."""
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.11.0",
        "args": ["--model=Qwen/Qwen3-8B", "--port=8000", "--enable-lora", "--max-loras=4"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    given = {f"model-sidecar.io/{key}": value for key, value in annotations.items()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}, "annotations": given},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


class Place:
    """A namespace under the Pod Security level ``restricted``, and pods in it."""

    def __init__(self, cluster: Kube, name: str, **labels: str) -> None:
        self.cluster = cluster
        self.name = name
        enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": name, "labels": {**enforced, **labels}}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def create(self, one: Json, *flags: str) -> Json:
        """Create an object with strict validation; what the API server made of it."""
        command = ("create", "-n", self.name, "--validate=strict", "-o", "json", *flags)
        made: Json = json.loads(self.cluster.kubectl(*command, "-f", "-", input=json.dumps(one)))
        return made

    def apply(self, one: Json) -> str:
        """What kubectl says when a person applies it."""
        command = ("apply", "-n", self.name, "--validate=strict", "-f", "-")
        return self.cluster.kubectl(*command, input=json.dumps(one))


def agents(pod: Json) -> int:
    """How many agents are in a pod."""
    containers = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
    return sum(one["name"] == "model-sidecar" for one in containers)


@contextmanager
def other_webhook(issued: Certificate, change: Callable[[Json], list[Json]]) -> Iterator[int]:
    """Somebody else's mutating webhook on loopback: ``change`` gives the JSON patch of a pod."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            patch = base64.b64encode(json.dumps(change(request["object"])).encode()).decode()
            said = {"uid": request["uid"], "allowed": True}
            said |= {"patchType": "JSONPatch", "patch": patch}
            kind = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
            body = json.dumps({**kind, "response": said}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    port = free_port()
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
