"""The patch for older pickers, as kustomize applies it."""

from __future__ import annotations

import shutil

import pytest
import yaml

from lab import golang
from lab.install import run
from lab.picker_config import SHIPPED

pytestmark = pytest.mark.kube

PICKER = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "my-pool-epp"},
    "spec": {
        "selector": {"matchLabels": {"app": "epp"}},
        "template": {
            "metadata": {"labels": {"app": "epp"}},
            "spec": {
                "containers": [
                    {"name": "epp", "image": "epp:v1.5", "args": ["--pool-name=my-pool"]}
                ]
            },
        },
    },
}
KUSTOMIZATION = {
    "resources": ["picker.yaml"],
    "patches": [
        {"path": "older-flags.yaml", "target": {"kind": "Deployment", "name": "my-pool-epp"}}
    ],
}


def test_the_patch_adds_its_flag_to_the_pickers_own(tmp_path):
    shutil.copy(SHIPPED / "older-flags.yaml", tmp_path)
    (tmp_path / "picker.yaml").write_text(yaml.safe_dump(PICKER))
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(KUSTOMIZATION))
    kubectl = golang.find(golang.KUBECTL)
    assert kubectl is not None, "run `python -m lab install kube`"
    patched = yaml.safe_load(run([kubectl, "kustomize", tmp_path], timeout=60))
    (container,) = patched["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["--pool-name=my-pool", "--model-server-metrics-port=9110"]
