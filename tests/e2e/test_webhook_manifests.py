"""The webhook's manifests, as a real API server takes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from lab.kube import Kube
from sidecar.cli import build_parser
from sidecar.cluster.webhook.settings import from_flags
from tests.support.webhook_place import NAME, NAMESPACE, render

pytestmark = pytest.mark.kube

MODES = [
    "self-signed",
    pytest.param("cert-manager", marks=pytest.mark.crds),
]


@pytest.fixture(scope="module")
def kube(cluster: Kube) -> Kube:
    directory = os.environ.get("MODEL_SIDECAR_CRDS")
    if directory:
        files = sorted(Path(directory).glob("cert-manager*.yaml"))
        assert files, f"no file in {directory} defines cert-manager's kinds"
        cluster.install_crds(*files)
    return cluster


@pytest.mark.parametrize("mode", MODES)
def test_a_set_up_is_accepted_with_strict_validation(kube: Kube, mode: str):
    text = yaml.safe_dump_all(render(kube, mode))
    kube.kubectl("apply", "--validate=strict", "-f", "-", input=text)
    template = next(one for one in render(kube, mode) if one["kind"] == "Deployment")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["spec"]["template"]["metadata"], "name": mode},
        "spec": template["spec"]["template"]["spec"],
    }
    # Its own namespace enforces the level restricted, and it starts while nobody answers for it.
    kube.kubectl(
        "create", "-n", NAMESPACE, "--validate=strict", "-f", "-", input=yaml.safe_dump(pod)
    )
    # Applied once more, nothing that the replicas wrote is taken back.
    kube.kubectl("apply", "--validate=strict", "-f", "-", input=text)


@pytest.mark.parametrize("mode", MODES)
def test_the_flags_and_names_of_a_set_up_fit_together(kube: Kube, mode: str):
    objects = render(kube, mode)
    (container,) = next(one for one in objects if one["kind"] == "Deployment")["spec"]["template"][
        "spec"
    ]["containers"]
    everywhere = ("Namespace", "ClusterRole", "ClusterRoleBinding")
    for one in objects:
        if not one["kind"].endswith("WebhookConfiguration") and one["kind"] not in everywhere:
            assert one["metadata"]["namespace"] == NAMESPACE
    settings = from_flags(build_parser().parse_args(container["args"]), {})
    assert settings.self_signed == (NAME if mode == "self-signed" else None)
    services = {one["metadata"]["name"] for one in objects if one["kind"] == "Service"}
    configurations = [one for one in objects if one["kind"].endswith("WebhookConfiguration")]
    assert {one["metadata"]["name"] for one in configurations} == services == {NAME}
    paths = {
        webhook["clientConfig"]["service"]["path"]: one["kind"]
        for one in configurations
        for webhook in one["webhooks"]
    }
    assert paths == {
        "/inject": "MutatingWebhookConfiguration",
        "/validate": "ValidatingWebhookConfiguration",
    }
    if mode == "cert-manager":
        certificate = next(one for one in objects if one["kind"] == "Certificate")
        assert f"{NAME}.{NAMESPACE}.svc" in certificate["spec"]["dnsNames"]
        source = f"{NAMESPACE}/{certificate['metadata']['name']}"
        for one in configurations:
            assert one["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": source}
