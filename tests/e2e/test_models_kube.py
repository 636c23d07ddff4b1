"""``models`` on a real API server, as a ServiceAccount with the Role of the documentation.

The API server's pod proxy is real; its connections to pods come through `PodNetwork`, as it
refuses pods with a loopback address. The engine is the fake one inside the agent.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kube import Kube
from lab.tiny_model import write_lora
from sidecar.cluster.modelconfig import MichelangeloModel, ModelConfig, NativeModel
from sidecar.core.desired import Format
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeInvalid
from tests.e2e.conftest import StartAgent
from tests.support.agent_process import ROOT
from tests.support.pod_network import PodNetwork

pytestmark = pytest.mark.kube

Json = dict[str, Any]
NAME = "chat-models"
RBAC = "rbac.authorization.k8s.io"
WRITERS, EACH = 20, 5


class Place:
    """A namespace of its own, and an editor in it with the documented Role for one ConfigMap."""

    def __init__(self, kube: Kube, namespace: str, configmap: str = NAME) -> None:
        self.kube = kube
        self.namespace = namespace
        self.configmap = configmap
        self.kubeconfig = kube.service_account_kubeconfig(namespace, "editor")
        rules = documented_role()["rules"]
        rules[0]["resourceNames"] = [configmap]
        self.allow("editor", rules)

    def allow(self, account: str, rules: list[Json]) -> None:
        """Let a ServiceAccount do this, and nothing more."""
        metadata = {"name": account}
        ref = {"apiGroup": RBAC, "kind": "Role", "name": account}
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.namespace}
        version = f"{RBAC}/v1"
        role = {"apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules}
        binding = {"apiVersion": version, "kind": "RoleBinding", "metadata": metadata}
        self.apply(role)
        self.apply({**binding, "roleRef": ref, "subjects": [subject]})

    def apply(self, content: Json) -> None:
        self.kubectl("apply", "--validate=strict", "-f", "-", input=json.dumps(content))

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self.kube.kubectl("-n", self.namespace, *arguments, input=input)

    def stored(self) -> Json:
        found: Json = json.loads(self.kubectl("get", "configmap", self.configmap, "-o", "json"))
        return found

    def models(self, *argv: str, configmap: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command as a user does."""
        operation, *rest = argv
        command = [sys.executable, "-m", "sidecar", "models", operation]
        command += [f"--configmap={configmap or self.configmap}", *rest]
        return subprocess.run(
            [*command, f"--kubeconfig={self.kubeconfig}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def documented_role() -> Json:
    text = (ROOT / "docs" / "models.md").read_text()
    (role,) = (yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    return dict(role)


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    return name.removeprefix("test_").replace("_", "-")[:60].strip("-")


@pytest.fixture
def place(pod_cluster: Kube, namespace: str) -> Place:
    return Place(pod_cluster, namespace)


async def test_many_writers_lose_nothing(place: Place) -> None:
    place.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "annotations": {"kept": "yes"}},
            "data": {"models.yaml": "# Ours.\nmodels: []\n", "notes.txt": "kept"},
        }
    )

    async def write(writer: int) -> list[bool]:
        async with open_client(place.kubeconfig) as client:
            config = ModelConfig(client, place.namespace, NAME, format=Format.NATIVE)
            changed = []
            for number in range(EACH):
                entry = NativeModel(name=f"m-{writer}-{number}", source=f"/{writer}/{number}")
                changed.append((await config.add(entry)).changed)
            # One of one's own goes again, while the others write.
            changed.append((await config.remove(f"m-{writer}-0")).changed)
            return changed

    results = await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    assert all(all(one) for one in results)
    stored = await asyncio.to_thread(place.stored)
    names = [one["name"] for one in yaml.safe_load(stored["data"]["models.yaml"])["models"]]
    assert len(names) == len(set(names))
    assert set(names) == {f"m-{w}-{n}" for w in range(WRITERS) for n in range(1, EACH)}
    assert stored["data"]["models.yaml"].startswith("# Ours.\n")
    assert stored["data"]["notes.txt"] == "kept"
    assert stored["metadata"]["annotations"]["kept"] == "yes"


def test_life_of_a_configmap_by_command(place: Place) -> None:
    assert place.models("exists").returncode == 2
    early = place.models("add", "a", "--source=/a")
    assert early.returncode == 1
    assert "does not exist; create it first (models create)" in early.stderr
    assert place.models("create").returncode == 0
    assert place.models("create").stdout == f"configmap {place.namespace}/{NAME} exists already\n"
    assert "data" not in place.stored()
    assert place.models("exists").returncode == 0
    added = place.models("add", "a", "--source=/a", "--kind=lora", "--pinned", "--json")
    told = json.loads(added.stdout)
    assert (told["changed"], told["key"], told["converged"]) == (True, "models.yaml", None)
    assert json.loads(place.models("list", "--json").stdout)["digest"] == told["digest"]
    lines = place.models("list").stdout.splitlines()
    assert lines[1].split() == ["a", "lora", "/a", "models.yaml", "initial,", "pinned"]
    before = place.stored()["metadata"]["resourceVersion"]
    again = place.models("add", "a", "--source=/a", "--kind=lora", "--pinned")
    assert again.stdout.endswith("models.yaml: a is there already\n")
    assert place.stored()["metadata"]["resourceVersion"] == before
    assert place.models("remove", "a").returncode == 0
    assert place.models("remove", "a").stdout.endswith(": a is not there\n")
    assert place.stored()["data"] == {"models.yaml": "models: []\n"}
    assert place.models("delete").stdout.endswith(" deleted\n")
    assert place.models("delete").stdout.endswith(" does not exist\n")
    assert place.models("exists").returncode == 2


def test_michelangelos_configmap_is_as_its_controller_leaves_it(
    pod_cluster: Kube, namespace: str
) -> None:
    place = Place(pod_cluster, namespace, "fraud-model-config")
    assert place.models("create", "--format=michelangelo").returncode == 0
    fresh = place.stored()
    assert "data" not in fresh
    assert fresh["metadata"]["labels"] == {
        "app.kubernetes.io/component": "model-config",
        "app.kubernetes.io/part-of": "michelangelo",
        "michelangelo.ai/inference-server": "fraud",
    }
    entry = ("add", "fraud-2026-04", "--source=s3://deploy-models/fraud-2026-04/")
    assert place.models(*entry).returncode == 0
    assert place.stored()["data"]["model-list.json"] == (
        '[\n  {\n    "name": "fraud-2026-04",\n'
        '    "storage_path": "s3://deploy-models/fraud-2026-04/"\n  }\n]'
    )
    wrong = place.models("add", "x", "--source=s3://b/x/", "--digest=sha256:1")
    assert wrong.returncode == 64
    assert "--digest: documents of format michelangelo have no such field" in wrong.stderr
    assert place.models("remove", "fraud-2026-04").returncode == 0
    assert place.stored()["data"] == {"model-list.json": "[]"}


async def test_whatever_the_api_server_keeps_survives(place: Place) -> None:
    place.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME,
                "labels": {"l": "1"},
                "annotations": {"a": "2"},
                "finalizers": ["example.com/kept"],
            },
            "data": {"model-list.json": '[{"name": "m", "storage_path": "s3://b/m/", "x": 1}]'},
            "binaryData": {"blob": "/w=="},
        }
    )
    before = place.stored()
    async with open_client(place.kubeconfig) as client:
        config = ModelConfig(client, place.namespace, NAME)
        await config.add(MichelangeloModel(name="m", source="s3://b/m2/", deployment=""))
    after = place.stored()
    assert after["binaryData"] == before["binaryData"]
    for field in ("labels", "annotations", "finalizers", "uid"):
        assert after["metadata"][field] == before["metadata"][field]
    wanted = [{"name": "m", "storage_path": "s3://b/m2/", "x": 1}]
    assert json.loads(after["data"]["model-list.json"]) == wanted
    place.kubectl("patch", "configmap", NAME, "-p", '{"metadata": {"finalizers": null}}')


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
async def test_what_the_api_server_does_not_take_is_told_and_changes_nothing(place: Place) -> None:
    data = {"notes.txt": "n" * 1_000_000, "models.yaml": "models:\n- {name: a, source: /a}\n"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": data}
    place.kube.call("POST", f"/api/v1/namespaces/{place.namespace}/configmaps", body)
    async with open_client(place.kubeconfig) as client:
        config = ModelConfig(client, place.namespace, NAME)
        with pytest.raises(KubeInvalid, match="Too long"):
            await config.add(NativeModel(name="b", source="/b", parameters={"x": "y" * 60_000}))
        place.kubectl("patch", "configmap", NAME, "-p", '{"immutable": true}')
        with pytest.raises(KubeInvalid, match="immutable"):
            await config.add(NativeModel(name="b", source="/b"))
        assert (await config.list()).documents["models.yaml"].names == {"a"}


def test_without_rights_it_says_which_are_needed(place: Place) -> None:
    denied = place.models("add", "a", "--source=/a", configmap="another")
    assert denied.returncode == 1
    assert "needs get, update on configmaps/another" in denied.stderr
    assert "Traceback" not in denied.stderr


def test_broken_document_is_told_and_left_alone(place: Place) -> None:
    text = "models:\n- name: a\n   source: /a\n"
    content = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}}
    place.apply({**content, "data": {"models.yaml": text}})
    failed = place.models("add", "b", "--source=/b")
    assert failed.returncode == 1
    assert failed.stderr.startswith("model-sidecar models: models.yaml (line 3, column ")
    assert place.stored()["data"]["models.yaml"] == text
    assert place.models("list").returncode == 1


def test_wait_follows_the_pods_until_they_converged(
    place: Place, network: PodNetwork, start_agent: StartAgent, tmp_path: Path
) -> None:
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME]}
    place.allow("agent", [{**rule, "verbs": ["get", "list", "watch"]}])
    kubeconfig = place.kube.service_account_kubeconfig(place.namespace, "agent")
    assert place.models("create").returncode == 0
    watched = [f"--configmap={NAME}", f"--kubeconfig={kubeconfig}"]
    agents = [start_agent("fake", documents=watched, flags=["--resync-seconds=1"]) for _ in "ab"]
    for number, agent in enumerate(agents):
        make_pod(place, network, f"chat-{number}", f"10.8.0.{number + 1}", agent.port)
    source = write_lora(tmp_path / "lora", seed=1)
    wait = ("--wait", "-l", "app=chat", "--timeout=60")
    done = place.models("add", "a", f"--source={source}", *wait)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 pods with app=chat: converged\n")
    digest = json.loads(place.models("list", "--json").stdout)["digest"]
    for agent in agents:
        status = agent.status()
        assert status["document"]["digest"] == digest
        assert status["targets"]["a"]["state"] == "resident"
    late = place.models("add", "b", "--source=/nowhere", "--wait", "-l", "app=chat", "--timeout=3")
    assert late.returncode == 1
    assert "it was written, and the pods did not follow: not converged within 3 s" in late.stderr
    assert re.search(r"; chat-0: .*b", late.stderr)
    told = json.loads(place.models("remove", "b", "--json", *wait).stdout)
    assert (told["changed"], told["converged"]) == (True, True)


def make_pod(place: Place, network: PodNetwork, name: str, address: str, port: int) -> None:
    """Make a pod that runs, as a kubelet would tell it; its agent is at ``port`` here."""
    network.routes[f"{address}:9110"] = port
    spec = {"containers": [{"name": "engine", "image": "x"}], "automountServiceAccountToken": False}
    metadata = {"name": name, "labels": {"app": "chat"}}
    place.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    place.kube.call(
        "PATCH",
        f"/api/v1/namespaces/{place.namespace}/pods/{name}/status",
        {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}},
        content_type="application/strategic-merge-patch+json",
    )
