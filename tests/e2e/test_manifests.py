"""The manifests of the picker, as a real API server takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lab import LabError
from lab.kube import Kube
from lab.picker_config import shipped_configs
from tests.support.pool_place import crd_files

MANIFESTS = Path(__file__).parents[2] / "manifests"
PICKER = MANIFESTS / "epp"
NAMESPACE = "strict"

pytestmark = pytest.mark.kube


def is_of_objects(path: Path) -> bool:
    """Tell whether a file is for the API server; others there are the picker's own files."""
    first = next(yaml.safe_load_all(path.read_text()))
    return isinstance(first, dict) and "metadata" in first


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


@pytest.fixture(scope="module")
def pools(kube):
    """The same server, knowing the objects of a pool."""
    kube.install_crds(*crd_files())
    return kube


@pytest.mark.crds
@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PICKER.glob("*.yaml")) if is_of_objects(path)],
    ids=lambda path: path.name,
)
def test_a_manifest_of_the_picker_is_accepted_with_strict_validation(pools, path):
    pools.kubectl(
        "apply", "-n", NAMESPACE, "--validate=strict", "--dry-run=server", "-f", str(path)
    )


@pytest.mark.crds
def test_a_field_that_no_pool_has_is_refused(pools):
    pool = yaml.safe_load((PICKER / "inferencepool.yaml").read_text())
    pool["spec"]["metricsPort"] = 9110
    with pytest.raises(LabError, match="metricsPort"):
        pools.kubectl(
            *("apply", "-n", NAMESPACE, "--validate=strict", "--dry-run=server", "-f", "-"),
            input=yaml.safe_dump(pool),
        )


def test_the_pool_and_the_pickers_configuration_are_those_of_the_pods(kube):
    documents = yaml.safe_load_all(kube.kubectl("kustomize", str(MANIFESTS / "overlays" / "vllm")))
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    (agent,) = template["spec"]["initContainers"]
    (engine,) = template["spec"]["containers"]
    pool = yaml.safe_load((PICKER / "inferencepool.yaml").read_text())
    assert pool["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert [one["number"] for one in pool["spec"]["targetPorts"]] == [
        one["containerPort"] for one in engine["ports"]
    ]
    for path in shipped_configs():
        plugins = yaml.safe_load(path.read_text())["plugins"]
        (source,) = [one for one in plugins if one["type"] == "metrics-data-source"]
        assert source["parameters"]["port"] == agent["ports"][0]["containerPort"]
    _, role, _ = yaml.safe_load_all((PICKER / "rbac.yaml").read_text())
    assert [one["resourceNames"] for one in role["rules"] if "resourceNames" in one] == [
        [pool["metadata"]["name"]]
    ]
