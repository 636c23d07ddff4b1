"""Kustomizations and integrations, as a real API server takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab import LabError
from lab.kube import Kube
from lab.picker import wait_until
from sidecar.cluster.inject import Options
from tests.support.manifests import (
    INJECTED,
    INTEGRATIONS,
    MANIFESTS,
    MICHELANGELO,
    Json,
    asked_for,
    injected,
    michelangelo_asked,
    michelangelo_deployment,
    read,
    unordered,
)
from tests.support.pool_place import CRDS

pytestmark = pytest.mark.kube

RELEASED = (
    "envoy-ai-gateway-v*",
    "envoy-gateway-backend-*",
    "gaie-legacy-inferencemodel-*",
    "gaie-v*",
    "gateway-api-v*",
    "kserve-*",
    "llm-d-router-*",
    "podmonitor-*",
)
PROPOSED = "envoy-ai-gateway-pr2166-*"

GATEWAY = INTEGRATIONS / "envoy-ai-gateway"
PULL_REQUEST = GATEWAY / "pr-2166"
OTHERS = ("webhook", "monitoring")
"""Folders with tests of their own."""
FOLDERS = [
    path.parent
    for path in sorted(MANIFESTS.glob("**/kustomization.yaml"))
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
    and path.relative_to(MANIFESTS).parts[0] not in OTHERS
]
BUILT_IN = ("base", "overlays")
"""Nothing in these needs definitions, save monitoring in one."""
FILES = [
    INTEGRATIONS / "legacy" / "v1alpha2.yaml",
    INTEGRATIONS / "michelangelo" / "httproute.yaml",
    INTEGRATIONS / "michelangelo" / "models.yaml",
]


def shown(path: Path) -> str:
    return "/".join(path.relative_to(MANIFESTS).parts)


def definitions(pattern: str) -> list[Path]:
    """The files of one project's definitions."""
    found = sorted(Path(os.environ[CRDS]).glob(f"{pattern}.yaml"))
    assert found, f"no file {pattern}.yaml in {os.environ[CRDS]}"
    return found


def install(kube: Kube, *patterns: str) -> None:
    """Install definitions, and wait until objects of every one can be asked for."""
    for path in (path for pattern in patterns for path in definitions(pattern)):
        kube.kubectl("apply", "--server-side", "-f", str(path))
    names = json.loads(kube.kubectl("get", "crd", "-o", "json"))["items"]
    kinds = ",".join(one["metadata"]["name"] for one in names)
    wait_until("definitions served", lambda: succeeds(kube, "get", kinds, "-A"))


def succeeds(kube: Kube, *arguments: str, input: str | None = None) -> bool:
    try:
        kube.kubectl(*arguments, input=input)
    except LabError:
        return False
    return True


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A server that knows nothing but Kubernetes."""
    with Kube(tmp_path_factory.mktemp("plain")) as kube:
        yield kube


@pytest.fixture(scope="module")
def ecosystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A server with all released definitions."""
    with Kube(tmp_path_factory.mktemp("ecosystem")) as kube:
        install(kube, *RELEASED)
        yield kube


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    name = "".join(one if one.isalnum() else "-" for one in request.node.name.lower())
    return name[-50:].strip("-")


def objects(kube: Kube, folder: Path) -> list[Json]:
    """What a kustomization builds."""
    return [one for one in yaml.safe_load_all(kube.kubectl("kustomize", str(folder))) if one]


def apply(kube: Kube, namespace: str, *values: Json, level: str = "privileged") -> None:
    """Make a namespace of this Pod Security level, and apply these to it, strictly."""
    labels = {"pod-security.kubernetes.io/enforce": level}
    metadata = {"name": namespace, "labels": labels}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    flags = ("apply", "-n", namespace, "--validate=strict", "-f", "-")
    kube.kubectl(*flags, input=yaml.safe_dump_all(values))


@pytest.mark.parametrize(
    "folder",
    [one for one in FOLDERS if one.relative_to(MANIFESTS).parts[0] in BUILT_IN],
    ids=shown,
)
def test_engines_with_and_without_the_agent_are_accepted_and_restricted(plain, namespace, folder):
    values = [one for one in objects(plain, folder) if "monitoring" not in one["apiVersion"]]
    apply(plain, namespace, *values, level="restricted")
    (deployment,) = [one for one in values if one["kind"] == "Deployment"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one", "namespace": namespace},
        "spec": deployment["spec"]["template"]["spec"],
    }
    text = yaml.safe_dump(pod)
    plain.kubectl("create", "--validate=strict", "--dry-run=server", "-f", "-", input=text)


@pytest.mark.parametrize("one", INJECTED, ids=lambda one: one.overlay)
def test_an_overlay_is_what_inject_makes_of_its_base(plain, one):
    built = objects(plain, MANIFESTS / "overlays" / one.overlay)
    (deployment,) = [value for value in built if value["kind"] == "Deployment"]
    expected, *rights = injected(one.plain(), one.options)
    assert unordered(deployment) == unordered(expected)
    assert all(right in built for right in rights)


def test_the_rights_of_the_full_overlay_are_those_of_its_flags_and_nothing_else(plain, namespace):
    folder = MANIFESTS / "overlays" / "vllm-full"
    built = [one for one in objects(plain, folder) if "monitoring" not in one["apiVersion"]]
    apply(plain, namespace, *built)

    def may(verb: str, what: str, *flags: str) -> bool:
        who = f"--as=system:serviceaccount:{namespace}:chat"
        # It answers no with an exit code.
        return succeeds(plain, "auth", "can-i", verb, what, "-n", namespace, who, *flags)

    assert all(may(verb, "configmaps/chat-models") for verb in ("get", "list", "watch"))
    assert may("create", "events")
    assert may("patch", "events")
    assert may("patch", "pods", "--subresource=status")
    assert not may("get", "configmaps/other")
    assert not may("update", "configmaps/chat-models")
    assert not any(may(verb, "pods") for verb in ("get", "list", "delete", "patch"))
    assert not may("get", "secrets")


@pytest.mark.crds
@pytest.mark.parametrize(
    "folder",
    [
        one
        for one in FOLDERS
        if one.relative_to(MANIFESTS).parts[0] not in BUILT_IN and one != PULL_REQUEST
    ],
    ids=shown,
)
def test_an_integration_is_accepted_with_strict_validation(ecosystem, namespace, folder):
    apply(ecosystem, namespace, *objects(ecosystem, folder))


@pytest.mark.crds
@pytest.mark.parametrize("path", FILES, ids=shown)
def test_a_file_is_accepted_with_strict_validation(ecosystem, namespace, path):
    apply(ecosystem, namespace, *read(path))


@pytest.mark.crds
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("llm-d/objective.yaml", "modelName"),
        ("llm-d/rewrite.yaml", "models"),
        ("envoy-ai-gateway/pool/route.yaml", "backends"),
        ("envoy-ai-gateway/by-header/hosted.yaml", "hosts"),
        ("legacy/v1alpha2.yaml", "priority"),
        ("michelangelo/httproute.yaml", "backends"),
    ],
)
def test_a_field_that_does_not_exist_is_refused(ecosystem, namespace, path, field):
    value = read(INTEGRATIONS / path)[0]
    value["spec"][field] = "nothing"
    with pytest.raises(LabError, match=f'unknown field "spec.{field}"'):
        apply(ecosystem, namespace, value)


@pytest.mark.crds
def test_a_backend_that_is_a_pool_is_refused_today_and_accepted_as_proposed(
    tmp_path_factory, namespace
):
    with Kube(tmp_path_factory.mktemp("proposed")) as kube:
        install(kube, *RELEASED)
        built = objects(kube, PULL_REQUEST)
        with pytest.raises(
            LabError, match="BackendRef must be a Backend resource of Envoy Gateway"
        ):
            apply(kube, namespace, *built)
        install(kube, PROPOSED)
        backend = (PULL_REQUEST / "backend.yaml").read_text()
        flags = ("apply", "-n", namespace, "--dry-run=server", "-f", "-")
        # A definition that changes goes on for a moment as it was.
        wait_until("the proposed rule", lambda: succeeds(kube, *flags, input=backend))
        apply(kube, namespace, *built)


def test_the_patches_for_michelangelo_fit_the_deployment_of_its_controller(plain, namespace):
    deployment = michelangelo_deployment()
    name = deployment["metadata"]["name"]
    expected = injected(asked_for(deployment, michelangelo_asked()), Options())[0]
    for value in (deployment, expected):
        value["metadata"]["namespace"] = namespace
    made = {}
    for case, value, patch in (
        ("patched", deployment, MICHELANGELO),
        ("injected", expected, None),
        ("labelled", deployment, MICHELANGELO.with_name("webhook-patch.yaml")),
    ):
        apply(plain, namespace, value)
        if patch is not None:
            plain.kubectl("patch", "deployment", name, "-n", namespace, "--patch-file", str(patch))
        text = plain.kubectl("get", "deployment", name, "-n", namespace, "-o", "json")
        made[case] = json.loads(text)["spec"]["template"]
        plain.kubectl("delete", "deployment", name, "-n", namespace)
    assert unordered(made["patched"]) == unordered(made["injected"])
    assert made["labelled"]["metadata"]["labels"]["model-sidecar.io/inject"] == "true"
    assert "initContainers" not in made["labelled"]["spec"]
