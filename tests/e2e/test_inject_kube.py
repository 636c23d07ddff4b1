"""Injected manifests on a real API server: taken as they are, no level and no class lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import LabError
from lab.kube import Kube
from sidecar.cluster.inject import inject_pod, inject_stream, remove_stream
from tests.support.inject import GOLDEN, NAMESPACES, OPTIONS, inputs, pods_of
from tests.support.pool_place import CRDS

pytestmark = pytest.mark.kube

Json = dict[str, Any]
LEVELS = ("restricted", "baseline", "privileged")
LWS = "lws-vllm-multinode"
NAMES = [path.stem for path in inputs()]
MARKED = [pytest.param(name, marks=pytest.mark.crds) if name == LWS else name for name in NAMES]


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    with Kube(tmp_path_factory.mktemp("kube")) as kube:
        for level in LEVELS:
            kube.apply(_namespace(level, level))
        for name in NAMESPACES - set(LEVELS):
            kube.apply(_namespace(name, "privileged"))
        kube.apply(
            {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": "nvidia"},
                "handler": "nvidia",
            }
        )
        if os.environ.get(CRDS):
            for path in Path(os.environ[CRDS]).glob("lws-*.yaml"):
                kube.install_crds(path)
        yield kube


def _namespace(name: str, level: str) -> Json:
    labels = {"pod-security.kubernetes.io/enforce": level}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _apply(kube: Kube, text: str, *arguments: str) -> None:
    kube.kubectl("apply", "--validate=strict", "-f", "-", *arguments, input=text)


def _made(kube: Kube, pod: Json, level: str) -> Json:
    """The pod as the API server would make it in a namespace of this level, or a LabError."""
    metadata = {**pod.get("metadata", {}), "name": "one", "namespace": level}
    metadata.pop("generateName", None)
    value = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}
    flags = ("create", "--validate=strict", "--dry-run=server", "-o", "yaml", "-f", "-")
    made: Json = yaml.safe_load(kube.kubectl(*flags, input=json.dumps(value)))
    return made


def _strictest(kube: Kube, pod: Json) -> str:
    for level in LEVELS:
        if level == LEVELS[-1] or _is_accepted(kube, pod, level):
            return level
    raise AssertionError("unreachable")


def _is_accepted(kube: Kube, pod: Json, level: str) -> bool:
    try:
        _made(kube, pod, level)
    except LabError as error:
        if "violates PodSecurity" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("name", MARKED)
def test_an_injected_manifest_is_accepted_unedited(kube: Kube, name: str):
    _apply(kube, (GOLDEN / f"{name}.injected.yaml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_injection_lowers_neither_level_nor_class_of_a_pod(kube: Kube, name: str):
    before, after = (
        pods_of((GOLDEN / f"{name}{ending}.yaml").read_text()) for ending in ("", ".injected")
    )
    assert len(before) == len(after) > 0
    for old, new in zip(before, after, strict=True):
        level = _strictest(kube, old)
        given, kept = _made(kube, old, level), _made(kube, new, level)
        classes = given["status"]["qosClass"], kept["status"]["qosClass"]
        assert (classes[0] == "Guaranteed") == (classes[1] == "Guaranteed")


def test_the_samples_have_every_level_and_a_guaranteed_pod(kube: Kube):
    pods = [pod for name in NAMES for pod in pods_of((GOLDEN / f"{name}.yaml").read_text())]
    assert {_strictest(kube, pod) for pod in pods} == set(LEVELS)
    classes = {_made(kube, pod, "privileged")["status"]["qosClass"] for pod in pods}
    assert "Guaranteed" in classes


@pytest.mark.parametrize("name", MARKED)
def test_what_the_api_server_made_of_it_is_what_remove_gives_back(kube: Kube, name: str):
    """The live object, with all defaults, becomes the live object of the input."""
    text = (GOLDEN / f"{name}.yaml").read_text()
    for value in (one for one in yaml.safe_load_all(text) if one):
        if not pods_of(json.dumps(value)):
            continue
        value["metadata"] |= {"name": f"{name}-live", "namespace": "privileged"}
        value["metadata"].pop("generateName", None)
        plain = json.dumps(value)
        injected = inject_stream([("in", plain)], OPTIONS).text
        if injected.strip() == plain:
            continue
        flags = ("create", "--validate=strict", "--dry-run=server", "-o", "yaml", "-f", "-")
        made = [kube.kubectl(*flags, input=one.split("---\n")[0]) for one in (plain, injected)]
        removed = remove_stream([("live", made[1])])
        assert removed.changed == 1
        assert pods_of(removed.text) == pods_of(made[0])


def test_an_injected_live_object_is_injected_already(kube: Kube):
    """Defaults of the API server and additions of others are no reason to write it anew."""
    text = (GOLDEN / "kserve-triton-pod.injected.yaml").read_text()
    flags = ("create", "--validate=strict", "--dry-run=server", "-o", "yaml", "-f", "-")
    live = yaml.safe_load(kube.kubectl(*flags, input=text.replace("x2x8q", "live")))
    agent = live["spec"]["initContainers"][-1]
    agent["volumeMounts"].append({"name": "kube-api-access-x", "mountPath": "/var/run/x"})
    live["spec"]["volumes"].append({"name": "kube-api-access-x", "emptyDir": {}})
    again = inject_stream([("live", json.dumps(live))], OPTIONS)
    assert (again.problems, again.changed, again.engines) == ([], 0, 1)


def test_a_field_that_no_container_has_is_refused(kube: Kube):
    text = (GOLDEN / "sglang.injected.yaml").read_text()
    with pytest.raises(LabError, match="startProbe"):
        _apply(kube, text.replace("livenessProbe:", "startProbe:", 1), "--dry-run=server")


def test_the_role_lets_the_agent_read_its_configmap_and_nothing_else(kube: Kube):
    _apply(kube, (GOLDEN / "restricted-guaranteed.injected.yaml").read_text())

    def may(verb: str, what: str) -> bool:
        who = "--as=system:serviceaccount:restricted:careful"
        try:
            answer = kube.kubectl("auth", "can-i", verb, what, "-n", "restricted", who)
        except LabError:
            # It answers no with an exit code.
            return False
        return answer.strip() == "yes"

    assert all(may(verb, "configmaps/chat-models") for verb in ("get", "list", "watch"))
    assert not any(may(verb, "configmaps/other") for verb in ("get", "list", "watch"))
    assert not any(may(verb, "configmaps/chat-models") for verb in ("update", "patch", "delete"))
    assert not may("get", "secrets")


def test_a_pod_whose_resources_are_all_given_away_takes_the_agent_and_stays_guaranteed(kube: Kube):
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    engine = {"name": "vllm", "image": "vllm/vllm-openai:v1", "args": ["--enable-lora"]}
    spec = {"resources": resources, "containers": [{**engine, "resources": resources}]}
    after = inject_pod({"metadata": {}, "spec": spec}, OPTIONS).pod
    assert _made(kube, after, "privileged")["status"]["qosClass"] == "Guaranteed"
    after["spec"]["initContainers"][-1]["resources"] = {"requests": {"cpu": "50m"}}
    with pytest.raises(LabError, match="aggregate container requests"):
        _made(kube, after, "privileged")
