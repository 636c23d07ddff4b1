"""A pool of the lab's pods on a real API server: objects of our manifests, and pickers on them.

The pods' processes are those of a ``PickerLab``. The Pod objects, the InferencePool and the rights
of the picker are the shipped manifests, with two things changed that a lab cannot have: ports are
free ones, and a Pod is bound to a node that does not exist.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import yaml

from lab.envoy import SERVED_BY
from lab.kube import Kube
from lab.kubelet import NODE, Kubelet
from lab.picker import Entry, Picker, PickerLab, Pod
from lab.picker_config import lab_config
from lab.web import post
from tests.support.picker_claims import EXTRACT_ERRORS, POLL_ERRORS, QUEUE

MANIFESTS = Path(__file__).parents[2] / "manifests"
CRDS = "MODEL_SIDECAR_CRDS"
"""Environment variable: a directory with custom resource definitions of the ecosystem."""
NO_CRDS = (
    f"{CRDS} names no directory. Put the CRDs of the Gateway API Inference Extension (v1.6) and of "
    "llm-d-router (v0.10) into one, as YAML, and set it."
)
WANTED = ("inferencepools.inference.networking.k8s.io", "inferencemodelrewrites.llm-d.ai")
AGENT, ENGINE = "model-sidecar", "vllm"
"""Names of the containers in the manifest."""
CONFIG = "default"
"""For pods that do not all hold the same LoRAs."""
Json = dict[str, Any]
_numbers = count(1)


def crd_files() -> list[Path]:
    """The files that define the objects of a pool."""
    directory = Path(os.environ[CRDS])
    texts = {path: path.read_text() for path in sorted(directory.glob("*.yaml"))}
    found = {
        name: next((path for path, text in texts.items() if f"\n  name: {name}\n" in text), None)
        for name in WANTED
    }
    missing = [name for name, path in found.items() if path is None]
    assert not missing, f"no file in {directory} defines {missing}"
    return [path for path in found.values() if path is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a client got through the gateway."""

    status: int
    endpoint: str
    """`address:port` of the engine that answered; empty where none did."""
    model: str
    """The name in the answer."""
    text: str
    """Of the completion, or of the error."""


def fresh_prompt() -> str:
    """A prompt that nobody asked before: the picker goes back to where it sent a prompt."""
    return f"{next(_numbers)} and so on"


def complete(url: str, model: str, prompt: str | None = None, *, timeout: float = 30.0) -> Said:
    """Ask for a completion of 8 tokens, to a fresh prompt unless one is given."""
    prompt = prompt or fresh_prompt()
    payload = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
    payload["ignore_eos"] = True
    answer = post(f"{url}/v1/completions", payload, timeout=timeout)
    endpoint = answer.headers.get(SERVED_BY, "")
    if answer.status != 200:
        return Said(status=answer.status, endpoint=endpoint, model="", text=answer.text)
    body = answer.json()
    text = body["choices"][0]["text"]
    return Said(status=200, endpoint=endpoint, model=body["model"], text=text)


class PoolPlace:
    """One namespace with a pool, the account of its picker, and a kubelet for its Pods."""

    def __init__(self, cluster: Kube, namespace: str, lab: PickerLab) -> None:
        self.namespace = namespace
        self.lab = lab
        self.kubelet = Kubelet(cluster, namespace)
        self._cluster = cluster
        metadata = {"name": namespace}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        rights = MANIFESTS / "epp" / "rbac.yaml"
        cluster.kubectl("apply", "-n", namespace, "--validate=strict", "-f", str(rights))
        pool = yaml.safe_load((MANIFESTS / "epp" / "inferencepool.yaml").read_text())
        pool["spec"]["targetPorts"] = [{"number": lab.ports.engine}]
        self.pool = pool["metadata"]["name"]
        self._apply(pool)
        # The name of the account is that in rbac.yaml.
        self._kubeconfig = cluster.service_account_kubeconfig(namespace, f"{self.pool}-epp")

    def add(self, pod: Pod, *, unprobed: Collection[str] = ()) -> None:
        """Make the Pod of these processes, and begin to probe it.

        Containers in ``unprobed`` have no readinessProbe, as if nobody had thought of it.
        """
        shipped = self._cluster.kubectl("kustomize", str(MANIFESTS / "overlays" / "vllm"))
        documents = yaml.safe_load_all(shipped)
        (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
        template = deployment["spec"]["template"]
        spec = template["spec"] | {"nodeName": NODE}
        ports = {"sidecar": self.lab.ports.agent, "http": self.lab.ports.engine}
        for container in (*spec["initContainers"], *spec["containers"]):
            for port in container["ports"]:
                port["containerPort"] = ports[port["name"]]
            if container["name"] in unprobed:
                del container["readinessProbe"]
        metadata = {"name": pod.name, "labels": template["metadata"]["labels"]}
        self._apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        self.kubelet.run(pod.name, pod.address)

    def remove(self, pod: Pod) -> None:
        """Delete the Pod; its processes are none of its business."""
        self.kubelet.delete(pod.name)

    def restart_agent(self, pod: Pod) -> None:
        """End the agent and start it again, as the kubelet restarts a container."""
        pod.agent.kill()
        self.kubelet.crash(pod.name, AGENT)
        pod.start_agent()
        self.kubelet.restarted(pod.name, AGENT)

    def rewrite(self, name: str, targets: Mapping[str, int]) -> None:
        """Split what asks for ``name`` over these models, by weight."""
        rule = {
            "matches": [{"model": {"value": name}}],
            "targets": [
                {"modelRewrite": target, "weight": weight} for target, weight in targets.items()
            ],
        }
        self._apply(
            {
                "apiVersion": "llm-d.ai/v1alpha2",
                "kind": "InferenceModelRewrite",
                "metadata": {"name": name},
                "spec": {"poolRef": {"name": self.pool}, "rules": [rule]},
            }
        )

    def picker(self, name: str, *, port: int | None = None) -> Picker:
        """Start a picker of this pool with the shipped configuration, as the account of rbac.yaml.

        It scrapes the agents; or another ``port`` of the pods, such as the engines' own.
        """
        return self.lab.picker(
            f"{self.namespace}-{name}",
            lab_config(CONFIG, port=port or self.lab.ports.agent),
            pool=self.pool,
            args=[f"--pool-namespace={self.namespace}"],
            env={"KUBECONFIG": str(self._kubeconfig)},
        )

    def stop(self) -> None:
        """Probe no more."""
        self.kubelet.stop()

    def _apply(self, made: Json) -> None:
        made["metadata"]["namespace"] = self.namespace
        self._cluster.apply(made)


def endpoints(picker: Picker) -> set[str]:
    """The names of the Pods that a picker may choose now."""
    samples = picker.epp.samples(QUEUE)
    return {labels["model_server_endpoint"].removesuffix("-rank-0") for labels, _ in samples}


class Watch:
    """What a picker's endpoints are, over and over again until the end of the ``with``."""

    def __init__(self, picker: Picker) -> None:
        self.seen: list[set[str]] = []
        self._picker = picker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.seen.append(endpoints(self._picker))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(20.0)


def poll_errors(picker: Picker) -> float:
    """How many of its scrapes have failed; an engine that is slow to answer is among the causes."""
    return picker.epp.total(POLL_ERRORS)


def extract_errors(picker: Picker) -> float:
    """How many pages lacked something, or had it in another form; no load excuses that."""
    return picker.epp.total(EXTRACT_ERRORS)


def renew(pod: Pod, entries: Iterable[Entry]) -> None:
    """Make a pod a new one that has never been ready: its agent remembers nothing."""
    pod.agent.stop()
    shutil.rmtree(pod.work / "store" / ".agent")
    pod.write(entries)
    pod.start_agent()
