"""The shipped manifests fit together: with ``inject``, with the agent's flags, with each other."""

from __future__ import annotations

import pytest

from sidecar.cli import build_parser, main
from sidecar.cluster.inject import Options, inject_pod
from sidecar.settings import check_for_run, from_flags
from tests.support.manifests import (
    INJECTED,
    INTEGRATIONS,
    MANIFESTS,
    MICHELANGELO,
    asked_for,
    injected,
    merged,
    michelangelo_asked,
    michelangelo_deployment,
    read,
    unordered,
)

GATEWAY = INTEGRATIONS / "envoy-ai-gateway"
ROUTES = [
    *sorted(GATEWAY.glob("*/route.yaml")),
    *sorted((INTEGRATIONS / "legacy").glob("*.yaml")),
    INTEGRATIONS / "llm-d" / "rewrite.yaml",
]
DOCUMENTS = sorted(INTEGRATIONS.glob("*/models.yaml"))


@pytest.mark.parametrize("one", INJECTED, ids=lambda one: one.overlay)
def test_a_component_adds_what_inject_writes(one):
    plain = one.plain()
    assert unordered(merged(plain, one.patch())) == unordered(injected(plain, one.options)[0])


def test_the_component_of_rights_is_what_inject_writes():
    (one,) = [one for one in INJECTED if one.overlay == "vllm-full"]
    assert (
        read(MANIFESTS / "components" / "rbac" / "role.yaml")
        == injected(one.plain(), one.options)[1:]
    )


def test_the_patch_for_michelangelo_is_what_inject_writes():
    plain = asked_for(michelangelo_deployment(), michelangelo_asked())
    (patch,) = read(MICHELANGELO)
    assert unordered(merged(plain, patch)) == unordered(injected(plain, Options())[0])


def test_the_label_and_annotations_for_the_webhook_ask_for_the_same():
    (patch,) = read(MICHELANGELO.with_name("webhook-patch.yaml"))
    metadata = patch["spec"]["template"]["metadata"]
    assert metadata["labels"] == {"model-sidecar.io/inject": "true"}
    assert metadata["annotations"] == michelangelo_asked()


@pytest.mark.parametrize("one", INJECTED, ids=lambda one: one.overlay)
def test_the_flags_of_a_component_are_the_agents_own(one):
    (agent,) = one.patch()["spec"]["template"]["spec"]["initContainers"]
    check_for_run(from_flags(build_parser().parse_args(agent["args"]), {}))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_a_document_of_an_integration_is_valid(path, capsys):
    assert main(["validate", str(path)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("route", ROUTES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_routes_lead_to_what_the_shipped_document_has(route, capsys):
    document = INTEGRATIONS / "llm-d" / "models.yaml"
    rewrite = INTEGRATIONS / "llm-d" / "rewrite.yaml"
    files = ["--with", str(rewrite), "--with", str(route)]
    assert main(["validate", str(document), *files]) == 0, capsys.readouterr().out


def test_a_route_to_a_lora_that_no_document_has_is_found(tmp_path, capsys):
    document = tmp_path / "models.yaml"
    document.write_text((INTEGRATIONS / "llm-d/models.yaml").read_text().replace("-v4", "-v5"))
    assert main(["validate", str(document), "--with", str(ROUTES[-1])]) == 1
    assert "'support-v4' is in no document" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["service.yaml", "runtime.yaml"])
def test_the_webhook_takes_pods_that_kserve_makes_of_an_integration(name):
    (value,) = read(INTEGRATIONS / "kserve" / name)
    made = value["spec"].get("predictor", value["spec"])
    assert made["labels"] == {"model-sidecar.io/inject": "true"}
    # KServe names the ConfigMap by the InferenceService, and adds the volume of a storageUri.
    asked = {"model-sidecar.io/configmap": "shop"} | made.get("annotations", {})
    spec = {"containers": made["containers"], "volumes": made.get("volumes", [])}
    if not spec["volumes"]:
        spec["volumes"] = [{"name": "kserve-provision-location", "emptyDir": {}}]
        mount = {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}
        spec["containers"][0]["volumeMounts"] = [mount]
    pod = inject_pod({"metadata": {"annotations": asked}, "spec": spec}, Options()).pod
    (agent,) = pod["spec"]["initContainers"]
    assert "--engine-url=http://127.0.0.1:8080" in agent["args"]


def test_names_and_ports_of_the_network_policy_are_those_of_pool_and_pods():
    (policy,) = read(MANIFESTS / "components" / "network-policy" / "policy.yaml")
    (deployment,) = read(MANIFESTS / "base" / "vllm" / "engine.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    agent, engine = policy["spec"]["ingress"]
    (one,) = [one for one in INJECTED if one.overlay == "vllm"]
    pods = merged(one.plain(), one.patch())["spec"]["template"]["spec"]
    for rule, containers in ((agent, pods["initContainers"]), (engine, pods["containers"])):
        listening = [port["containerPort"] for each in containers for port in each["ports"]]
        assert [port["port"] for port in rule["ports"]] == listening
    service, picker = read(INTEGRATIONS / "llm-d" / "picker.yaml")
    assert agent["from"][0]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert picker["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
