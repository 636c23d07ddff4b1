"""The webhook between a real API server and those who write pods and documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import LabError
from lab.kube import Kube
from lab.tls import Authority
from tests.support.documents import recorded
from tests.support.webhook_place import (
    HOST,
    Place,
    agents,
    engine_pod,
    leading_to,
    other_webhook,
    render,
)
from tests.support.webhook_process import Files, WebhookProcess, wait_until

pytestmark = pytest.mark.kube

Json = dict[str, Any]

YES = {"model-sidecar.io/inject": "true"}
NO = {"model-sidecar.io/inject": "false"}
DOCUMENTS = {"model-sidecar.io/documents": "true"}
BROKEN = """\
models:
- {name: sql, source: s3://adapters/sql/, digset: x}
- {name: chat, source: ftp://adapters/chat}
"""


class Hook:
    """The server beside a cluster that knows it by the shipped configurations."""

    def __init__(self, cluster: Kube, authority: Authority, work: Path) -> None:
        self.cluster = cluster
        self.authority = authority
        self.files = Files(work / "certificate")
        self.files.write(authority.issue(HOST))
        flags = (*self.files.flags, "--log-level=debug", "--shutdown-grace-seconds=0")
        self.server = WebhookProcess(work, *flags)
        objects = leading_to(self.server.port, render(cluster, "base"), authority.file)
        cluster.apply(*(one for one in objects if one["kind"] != "Deployment"))

    def wait_injecting(self) -> None:
        """Wait until the API server asks for the pods of a namespace that exists for this alone."""
        place = Place(self.cluster, "probe")
        pod = engine_pod("probe", YES, configmap="chat-models")
        wait_until("injected pod", lambda: agents(place.create(pod, "--dry-run=server")) == 1)


@pytest.fixture(scope="module")
def hook(
    cluster: Kube, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hook]:
    hook = Hook(cluster, authority, tmp_path_factory.mktemp("webhook"))
    with hook.server:
        hook.wait_injecting()
        yield hook


def place_of(hook: Hook, request: pytest.FixtureRequest, **labels: str) -> Place:
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    return Place(hook.cluster, name, **labels)


@pytest.fixture
def place(hook: Hook, request: pytest.FixtureRequest) -> Place:
    return place_of(hook, request)


@pytest.fixture
def opted_in(hook: Hook, request: pytest.FixtureRequest) -> Place:
    return place_of(hook, request, **YES)


def configmap(name: str, data: dict[str, str], labels: Json | None = None) -> Json:
    metadata = {"name": name, "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def test_only_a_pod_that_asks_for_it_is_injected(place: Place):
    assert agents(place.create(engine_pod("yes", YES, configmap="chat-models"))) == 1
    assert agents(place.create(engine_pod("silent"))) == 0
    assert agents(place.create(engine_pod("no", NO))) == 0


def test_a_namespace_asks_for_all_its_pods_save_those_that_refuse(opted_in: Place):
    assert agents(opted_in.create(engine_pod("silent", configmap="chat-models"))) == 1
    assert agents(opted_in.create(engine_pod("yes", YES, configmap="chat-models"))) == 1
    refusing = opted_in.create(engine_pod("no", NO))
    assert agents(refusing) == 0


def test_a_dry_run_tells_the_same_and_leaves_nothing(place: Place):
    pod = engine_pod("yes", YES, configmap="chat-models")
    tried = place.create(pod, "--dry-run=server")
    assert place.cluster.kubectl("get", "pods", "-n", place.name, "-o", "name") == ""
    made = place.create(pod)
    assert made["spec"] == tried["spec"]


def test_a_pod_that_cannot_be_injected_is_refused_in_words_of_its_own(place: Place):
    with pytest.raises(LabError) as caught:
        place.create(engine_pod("yes", YES))
    assert "the agent cannot be put into this pod" in str(caught.value)
    assert "configmap" in str(caught.value)


def test_another_webhook_that_changes_the_pod_afterwards_has_us_asked_again(
    hook: Hook, place: Place
):
    """As KServe's does, which brings the model's files and moves containers while it is at it."""

    def bring_files(pod: Json) -> list[Json]:
        first = pod["spec"].get("initContainers", [])
        if any(one["name"] == "storage-initializer" for one in first):
            return []
        strict = pod["spec"]["containers"][0]["securityContext"]
        mount = {"name": "kserve-provision-location", "mountPath": "/mnt/models"}
        added = {"name": "storage-initializer", "image": "storage:1", "securityContext": strict}
        spec = {
            "volumes": [{"name": mount["name"], "emptyDir": {}}, *pod["spec"].get("volumes", [])],
            "initContainers": [{**added, "volumeMounts": [mount]}, *first],
            "containers": [
                {**one, "volumeMounts": [*one.get("volumeMounts", []), mount]}
                for one in pod["spec"]["containers"]
            ],
        }
        return [
            {"op": "add", "path": f"/spec/{name}", "value": value} for name, value in spec.items()
        ]

    with other_webhook(hook.authority.issue(), bring_files) as port:
        configuration = leading_to(port, render(hook.cluster, "base"), hook.authority.file)
        other = next(one for one in configuration if one["kind"].startswith("Mutating"))
        # By name it is asked after us.
        other["metadata"] = {"name": "zz-other"}
        webhook = other["webhooks"][0]
        webhook["name"] = "pods.other.example"
        webhook["clientConfig"] = {
            "url": f"https://127.0.0.1:{port}/",
            "caBundle": webhook["clientConfig"]["caBundle"],
        }
        webhook["objectSelector"] = {"matchLabels": {"other": "yes"}}
        other["webhooks"] = [webhook]
        hook.cluster.apply(other)
        try:
            probe = engine_pod("probe", {"other": "yes"})
            wait_until(
                "the other webhook",
                lambda: "initContainers" in place.create(probe, "--dry-run=server")["spec"],
            )
            asked = hook.server.log_text().count(f"Pod {place.name}/twice")
            labels = {**YES, "other": "yes"}
            pod = place.create(engine_pod("twice", labels, configmap="chat-models"))
            asked = hook.server.log_text().count(f"Pod {place.name}/twice") - asked
        finally:
            hook.cluster.kubectl("delete", "mutatingwebhookconfiguration", "zz-other")
    assert asked == 2
    assert agents(pod) == 1
    names = [one["name"] for one in pod["spec"]["initContainers"]]
    assert sorted(names) == ["model-sidecar", "storage-initializer"]
    (engine,) = pod["spec"]["containers"]
    mounts = {one["name"] for one in engine["volumeMounts"]}
    assert mounts > {"kserve-provision-location"}


def test_a_broken_document_is_refused_with_all_places(place: Place):
    broken = configmap("chat-models", {"models.yaml": BROKEN}, DOCUMENTS)
    with pytest.raises(LabError) as caught:
        place.apply(broken)
    for words in ("models[0].digset (line 2)", "did you mean digest", "models[1].source (line 3)"):
        assert words in str(caught.value)
    good = configmap("chat-models", {"models.yaml": "models: []\n"}, DOCUMENTS)
    place.apply(good)
    with pytest.raises(LabError, match="line 3"):
        place.apply(broken)
    place.cluster.kubectl("delete", "configmap", "-n", place.name, "chat-models")


def test_what_is_not_said_to_hold_documents_is_nobodys_business(place: Place):
    place.apply(configmap("other", {"models.yaml": BROKEN}))


def test_michelangelos_writes_pass_and_what_breaks_its_controller_does_not(place: Place):
    labels = {
        "app.kubernetes.io/component": "model-config",
        "app.kubernetes.io/part-of": "michelangelo",
        "michelangelo.ai/inference-server": "fraud-server",
    }
    name = "fraud-server-model-config"
    fresh = {key: one for key, one in configmap(name, {}, labels).items() if key != "data"}
    place.create(fresh)
    clash = [
        {"name": "m", "storage_path": "s3://m/1/", "deployment_name": "a"},
        {"name": "m", "storage_path": "s3://m/2/", "deployment_name": "b", "phase": "canary"},
    ]
    for data in (
        recorded("michelangelo-1"),
        recorded("michelangelo-2"),
        {"model-list.json": json.dumps(clash, indent=2)},
        {"model-list.json": "[]"},
    ):
        place.apply(configmap(name, data, labels))
    with pytest.raises(LabError, match=r"model-list\.json"):
        place.apply(configmap(name, {"model-list.json": '[{"name": "m",}]'}, labels))


def test_while_it_is_down_only_pods_that_ask_for_it_wait(hook: Hook, place: Place):
    asking = engine_pod("yes", YES, configmap="chat-models")
    hook.server.stop()
    try:
        with pytest.raises(LabError, match="failed calling webhook"):
            place.create(asking)
        place.create(engine_pod("silent"))
        place.create(engine_pod("no", NO))
        place.apply(configmap("chat-models", {"models.yaml": BROKEN}, DOCUMENTS))
    finally:
        hook.server.start()
    wait_until("injected pod", lambda: agents(place.create(asking)) == 1)


def test_a_certificate_is_replaced_while_pods_come(hook: Hook, place: Place):
    before = hook.server.certificate()
    hook.files.write(hook.authority.issue(HOST))
    numbers = iter(range(1000))

    def look() -> bool:
        pod = engine_pod(f"yes-{next(numbers)}", YES, configmap="chat-models")
        assert agents(place.create(pod, "--dry-run=server")) == 1
        return hook.server.certificate() != before

    wait_until("new certificate", look)
    assert look()
