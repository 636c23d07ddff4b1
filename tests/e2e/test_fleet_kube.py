"""Fleets, Events and conditions on a real API server, with the Roles of the documentation.

There is no kubelet: the tests say which pods run, and where. The API server's pod proxy is real;
its connections to pods come through `PodNetwork`, as it refuses pods with a loopback address.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kube import Kube
from lab.tiny_model import write_lora
from lab.tls import Authority
from sidecar.cluster.conditions import Condition, patch_of
from sidecar.cluster.events import event_object
from sidecar.cluster.notices import Happening
from sidecar.cluster.outbox import Record
from sidecar.cluster.pod import PodIdentity
from tests.e2e.conftest import StartAgent
from tests.support.agent import running_agent
from tests.support.agent_process import ROOT
from tests.support.pod_network import PodNetwork
from tests.support.scripted_api import Call, agent_status, scripted_api

pytestmark = pytest.mark.kube

Json = dict[str, Any]
NATIVE = {"restartPolicy": "Always"}
RBAC = "rbac.authorization.k8s.io"


def role_of(page: str) -> Json:
    """The one Role that a page of the documentation shows."""
    text = (ROOT / "docs" / page).read_text()
    blocks = [yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    (role,) = (one for one in blocks if isinstance(one, dict) and one.get("kind") == "Role")
    return role


@dataclass
class Place:
    """A namespace of its own, with pods whose addresses nobody else has."""

    kube: Kube
    network: PodNetwork
    namespace: str

    def account(self, name: str, *rules: Json, role: Json | None = None) -> Path:
        """A kubeconfig of a ServiceAccount that may do just this."""
        path = self.kube.service_account_kubeconfig(self.namespace, name)
        given = role or {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": list(rules),
        }
        binding = {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": given["metadata"]["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.namespace}],
        }
        for one in (given, binding):
            self.kubectl("apply", "--validate=strict", "-f", "-", input=json.dumps(one))
        return path

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self.kube.kubectl("-n", self.namespace, *arguments, input=input)

    def pod(self, name: str, *, serves: int | None = None, address: str = "", **more: Any) -> str:
        """Make a running pod; its port 9110 is ``serves`` of the loopback. Returns its UID."""
        address = address or self.network.address()
        if serves is not None:
            self.network.routes[f"{address}:9110"] = serves
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        spec = {"containers": [{"name": "engine", "image": "x"}], **more}
        spec["automountServiceAccountToken"] = False
        metadata = {"name": name, "labels": {"app": "chat", "pod-template-hash": "1"}}
        made = self.kube.call(
            "POST",
            f"{path}?fieldValidation=Strict",
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        )
        self.kube.call(
            "PATCH",
            f"{path}/{name}/status",
            {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}},
            content_type="application/strategic-merge-patch+json",
        )
        uid: str = made["metadata"]["uid"]
        return uid

    def status(self, kubeconfig: Path, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the command as a user does."""
        command = [sys.executable, "-m", "sidecar", "status", "-l", "app=chat"]
        return subprocess.run(
            [*command, f"--kubeconfig={kubeconfig}", *argv],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def conditions(self, name: str) -> dict[str, Json]:
        """The conditions of a pod, by type."""
        found = json.loads(self.kubectl("get", "pod", name, "-o", "json"))
        return {one["type"]: one for one in found["status"].get("conditions", ())}

    def events(self) -> list[Json]:
        items: list[Json] = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return items


@pytest.fixture
def place(pod_cluster: Kube, network: PodNetwork, request: pytest.FixtureRequest) -> Place:
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    network.routes.clear()
    pod_cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return Place(pod_cluster, network, name)


@pytest.fixture
def viewer(place: Place) -> Path:
    return place.account("viewer", role=role_of("fleet.md"))


def pods_of(done: subprocess.CompletedProcess[str]) -> dict[str, Json]:
    return {one["name"]: one for one in json.loads(done.stdout)["pods"]}


def test_agents_of_many_pods_are_seen_and_awaited(
    place: Place, viewer: Path, start_agent: StartAgent, tmp_path: Path
):
    entries = [{"name": "sql", "source": str(write_lora(tmp_path / "sql", seed=1))}]
    agents = [start_agent("fake", pod_name=f"chat-{number}") for number in range(2)]
    for number, agent in enumerate(agents):
        place.pod(f"chat-{number}", serves=agent.port)
    agents[0].apply(entries)
    done = place.status(viewer, "--json", "--targets")
    assert done.returncode == 0, done.stderr
    pods = pods_of(done)
    assert pods["chat-0"]["digest"] == agents[0].status()["document"]["digest"]
    assert pods["chat-0"]["targets"]["sql"]["state"] == "resident"
    assert pods["chat-1"]["digest"] == ""
    done = place.status(viewer, "--wait", "converged", "--timeout", "2")
    assert done.returncode == 1
    assert "2 of 2 running pods did not converge; chat-0: pods like it hold" in done.stderr
    agents[1].write(entries)
    done = place.status(viewer, "--wait", "converged", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert "2 running, 2 ready, 2 converged, 0 unknown, 1 document" in done.stdout


async def test_an_agent_that_serves_https_is_asked_so(
    place: Place, viewer: Path, tmp_path: Path, authority: Authority
):
    shown = authority.issue()
    flags: Json = {"tls_cert_file": str(shown.chain), "tls_key_file": str(shown.key)}
    async with running_agent(tmp_path, **flags) as run:
        await run.apply([])
        place.pod("plain", serves=run.port)
        probe = {"httpGet": {"path": "/ready", "port": "sidecar", "scheme": "HTTPS"}}
        port = {"name": "sidecar", "containerPort": 9110}
        injected = {"name": "model-sidecar", "image": "x", "ports": [port], "readinessProbe": probe}
        place.pod("injected", serves=run.port, initContainers=[{**injected, **NATIVE}])
        before = pods_of(await asyncio.to_thread(place.status, viewer, "--json"))
        after = pods_of(await asyncio.to_thread(place.status, viewer, "--json", "--https"))
    assert before["injected"]["converged"] is True
    assert before["plain"]["unknown"] == "port 9110 is not reached: EOF"
    assert after["plain"]["converged"] is True


def test_who_cannot_be_asked_is_unknown_and_the_reason_is_said(
    place: Place, viewer: Path, start_agent: StartAgent
):
    agent = start_agent("fake")
    place.pod("well", serves=agent.port)
    place.pod("silent")
    place.pod("loopback", address="127.0.0.1")
    pods = pods_of(place.status(viewer, "--json"))
    assert "unknown" not in pods["well"]
    assert pods["silent"]["unknown"].startswith("port 9110 is not reached: ")
    assert pods["loopback"]["unknown"].endswith("400 address not allowed")
    agent.stop()
    assert "is not reached" in pods_of(place.status(viewer, "--json"))["well"]["unknown"]


def test_a_pod_cannot_send_its_reader_elsewhere(place: Place, viewer: Path, tmp_path: Path):
    paths: list[str] = []

    def reply(call: Call) -> object:
        paths.append(call.path)
        return 302 if call.path == "/status" else agent_status()

    headers: dict[str, str] = {}
    server = f"//127.0.0.1:{place.kube.port}"
    with scripted_api(tmp_path, reply, headers=headers) as pod:
        url = json.loads(pod.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        place.pod("chat-0", serves=int(url.rsplit(":", 1)[1]))
        for begin in ("", server, f"https:{server}"):
            headers["location"] = f"{begin}/api/v1/namespaces"
            done = place.status(viewer)
            assert done.returncode == 1
            assert "port 9110 is no agent: it answers with a redirect" in done.stdout
    assert paths == ["/status"] * 3


def test_missing_rights_are_named(place: Place):
    place.pod("chat-0")
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    done = place.status(place.account("nobody"))
    assert done.returncode == 1
    assert "needs list on pods and get on pods/proxy" in done.stderr
    done = place.status(place.account("lister", pods))
    assert done.returncode == 1
    assert f"403: needs get on pods/proxy in namespace {place.namespace}" in done.stdout


def test_200_pods_are_seen_at_once(place: Place, viewer: Path, tmp_path: Path):
    def reply(call: Call) -> object:
        return agent_status()

    with scripted_api(tmp_path, reply) as agents:
        url = json.loads(agents.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        for number in range(200):
            place.pod(f"chat-{number:03}", serves=int(url.rsplit(":", 1)[1]))
        started = time.monotonic()
        done = place.status(viewer, "--wait", "converged", "--timeout", "60")
        seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 pods of app=chat")
    assert "200 converged, 0 unknown" in done.stdout
    print(f"200 pods in {seconds:.1f} s, the command's start included")


def telling(place: Place, kubeconfig: Path, uid: str) -> dict[str, Any]:
    return {
        "pod_name": "chat-0",
        "env": {"POD_UID": uid, "POD_NAMESPACE": place.namespace},
        "flags": [
            f"--kubeconfig={kubeconfig}",
            "--events",
            "--condition=ready",
            "--condition=converged",
            "--resync-seconds=0.5",
        ],
    }


def test_events_and_conditions_with_the_documented_role(
    place: Place, start_agent: StartAgent, tmp_path: Path
):
    gate = [{"conditionType": "model-sidecar.io/ready"}]
    uid = place.pod("chat-0", readinessGates=gate)
    account = place.account("agent", role=role_of("operations.md"))
    agent = start_agent("fake", **telling(place, account, uid))
    agent.apply([{"name": "sql", "source": str(write_lora(tmp_path / "sql", seed=1))}])

    def is_set(**wanted: str) -> bool:
        held = place.conditions("chat-0")
        return all(
            held.get(f"model-sidecar.io/{name}", {}).get("status") == value
            for name, value in wanted.items()
        )

    agent.wait_for("conditions", lambda: is_set(ready="True", converged="True"))
    agent.edit([{"name": "gone", "source": "/nowhere"}])
    agent.wait_for("condition", lambda: is_set(ready="True", converged="False"))
    held = place.conditions("chat-0")["model-sidecar.io/converged"]
    assert (held["reason"], held["message"]) == ("NotConverged", "gone (NotFound)")
    agent.wait_for(
        "counted Event",
        lambda: any(one["reason"] == "TargetFailed" and one["count"] > 1 for one in place.events()),
        60,
    )
    shown = place.kubectl("describe", "pod", "chat-0")
    assert re.search(r"Normal +TargetLoaded .* model-sidecar +lora sql revision", shown)
    assert re.search(
        r"Warning +TargetFailed .*\(x\d+ over .*\) +model-sidecar +gone: NotFound", shown
    )
    place.kubectl(
        "wait", "--for=condition=model-sidecar.io/converged=False", "pod/chat-0", "--timeout=5s"
    )


async def test_a_healed_engine_is_told(place: Place, tmp_path: Path):
    uid = place.pod("chat-0")
    flags: Json = {
        "events": True,
        "kubeconfig": str(place.account("agent", role=role_of("operations.md"))),
        "pod_namespace": place.namespace,
        "pod_name": "chat-0",
        "pod_uid": uid,
    }
    async with running_agent(tmp_path, **flags) as run:
        await run.apply([{"name": "sql", "source": str(write_lora(tmp_path / "sql", seed=1))}])
        run.engine.kill()
        await run.wait(lambda status: not status.converged)
        run.engine.restart()
        await run.wait(lambda status: status.converged)
        async with asyncio.timeout(30):
            while "EngineHealed" not in {one["reason"] for one in place.events()}:
                await run.agent.board.wait_changed(0.1)
    shown = place.kubectl("describe", "pod", "chat-0")
    assert re.search(r"Normal +EngineHealed .* +the engine restarted; 1 target .* is back", shown)


def test_what_is_written_has_no_field_that_the_api_does_not_know(place: Place):
    uid = place.pod("chat-0")
    pod = PodIdentity(name="chat-0", namespace=place.namespace, uid=uid)
    record = Record(key=(Happening.HEALED, ""), message="x", count=1, first_at=1.0, last_at=2.0)
    path = f"/api/v1/namespaces/{place.namespace}"
    strict = "fieldValidation=Strict"
    event = event_object(record, pod, place.namespace, "chat-0.1")
    place.kube.call("POST", f"{path}/events?{strict}", event)
    condition = Condition(name="ready", is_true=True, message="", since=1.0)
    place.kube.call(
        "PATCH",
        f"{path}/pods/chat-0/status?{strict}",
        patch_of([condition], pod),
        content_type="application/strategic-merge-patch+json",
    )
    assert place.conditions("chat-0")["model-sidecar.io/ready"]["reason"] == "Ready"


def test_without_rights_both_are_off_with_a_line_each(
    place: Place, start_agent: StartAgent, tmp_path: Path
):
    uid = place.pod("chat-0")
    agent = start_agent("fake", **telling(place, place.account("agent"), uid))
    agent.apply([{"name": "sql", "source": str(write_lora(tmp_path / "sql", seed=1))}])
    agent.wait_for("both lines", lambda: agent.log_text().count("is off until") == 2)
    agent.apply([])
    assert agent.is_ready()
    assert agent.log_text().count("is off until") == 2
    assert agent.log_text().count("403") == 2
    assert place.events() == []
    assert place.conditions("chat-0") == {}


def test_a_later_pod_of_the_same_name_is_not_written_to(place: Place, start_agent: StartAgent):
    place.pod("chat-0")
    account = place.account("agent", role=role_of("operations.md"))
    agent = start_agent("fake", **telling(place, account, "another-uid"))
    agent.apply([])
    agent.wait_for("refusal", lambda: "conditions have to wait" in agent.log_text())
    assert "metadata.uid" in agent.log_text()
    assert place.conditions("chat-0") == {}
