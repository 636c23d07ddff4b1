"""The shipped manifests, as a real API server takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lab.kube import Kube

MANIFESTS = Path(__file__).parents[2] / "manifests"
NAMESPACE = "strict"

pytestmark = pytest.mark.kube


@pytest.fixture(scope="module")
def kube(tmp_path_factory):
    with Kube(tmp_path_factory.mktemp("kube")) as kube:
        kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": NAMESPACE,
                    "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
                },
            }
        )
        yield kube


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_manifest_is_accepted_with_strict_validation(kube, path):
    kube.kubectl("apply", "-n", NAMESPACE, "--validate=strict", "--dry-run=server", "-f", str(path))


@pytest.mark.parametrize("name", ["vllm.yaml", "triton.yaml"])
def test_the_pods_of_a_manifest_are_restricted(kube, name):
    documents = yaml.safe_load_all((MANIFESTS / name).read_text())
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name.split(".")[0], "namespace": NAMESPACE},
        "spec": template["spec"],
    }
    text = yaml.safe_dump(pod)
    kube.kubectl("create", "--validate=strict", "--dry-run=server", "-f", "-", input=text)


def test_the_flags_of_a_manifest_are_the_agents_own():
    from sidecar.cli import build_parser
    from sidecar.settings import check_for_run, from_flags

    for name in ("vllm.yaml", "triton.yaml"):
        documents = yaml.safe_load_all((MANIFESTS / name).read_text())
        (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
        (agent,) = deployment["spec"]["template"]["spec"]["initContainers"]
        check_for_run(from_flags(build_parser().parse_args(agent["args"]), {}))
