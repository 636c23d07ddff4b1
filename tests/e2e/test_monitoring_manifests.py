"""The shipped monitoring, as a real API server and Grafana's own types take it."""

from __future__ import annotations

import json

import pytest

from lab import LabError, grafana
from lab.kube import Kube
from lab.prometheus import crds
from tests.support import monitoring

pytestmark = pytest.mark.monitoring

TYPES = (monitoring.ROOT / "tests/support/monitoring_dashboard.ts").read_text()
NAMESPACE = "watching"


@pytest.fixture(scope="module")
def kube(tmp_path_factory):
    with Kube(tmp_path_factory.mktemp("kube")) as kube:
        for path in crds():
            kube.kubectl("apply", "--server-side", "-f", str(path))
        kube.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        kube.kubectl("create", "namespace", NAMESPACE)
        yield kube


def applied(kube: Kube, manifest: object) -> str:
    """Send one manifest as strictly as the server can take it; what it refuses is a LabError."""
    arguments = ("apply", "-n", NAMESPACE, "--validate=strict", "--dry-run=server", "-f", "-")
    return kube.kubectl(*arguments, input=json.dumps(manifest))


def kept(kube: Kube, kind: str) -> object:
    """What the server made of our object of this kind."""
    text = kube.kubectl("get", kind, "model-sidecar", "-n", NAMESPACE, "-o", "json")
    return json.loads(text)["spec"]


def test_the_folder_is_applied_at_once(kube):
    folder = str(monitoring.FOLDER)
    kube.kubectl("apply", "-n", NAMESPACE, "--server-side", "--validate=strict", "-k", folder)
    found = json.loads(kube.kubectl("get", "configmap", "-n", NAMESPACE, "-o", "json"))["items"]
    (shipped,) = (one for one in found if "grafana_dashboard" in one["metadata"].get("labels", {}))
    assert json.loads(shipped["data"]["model-sidecar.json"]) == monitoring.dashboard()
    assert kept(kube, "prometheusrule") == monitoring.read("rules.yaml")["spec"]
    expected = monitoring.read("podmonitor.yaml")["spec"]
    for rule in expected["podMetricsEndpoints"][0]["relabelings"]:
        rule.setdefault("action", "replace")
    assert kept(kube, "podmonitor") == expected


@pytest.mark.parametrize("name", ["podmonitor.yaml", "rules.yaml"])
def test_a_field_that_does_not_exist_is_refused(kube, name):
    manifest = monitoring.read(name)
    assert "configured" in applied(kube, manifest) or "created" in applied(kube, manifest)
    manifest["spec"]["nobody"] = True
    with pytest.raises(LabError, match="unknown field"):
        applied(kube, manifest)


def test_the_dashboard_is_what_grafanas_types_say(tmp_path):
    grafana.check(tmp_path / "types", TYPES + json.dumps(monitoring.dashboard(), indent=1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"showHeader"', '"showHeaders"'),
        ('"drawStyle": "bars"', '"drawStyle": "bar"'),
        ('"schemaVersion": 41', '"schemaVersion": "41"'),
        ('"type": "timeseries"', '"type": "graph"'),
        ('"description"', '"describes"'),
        ('"expr"', '"query"'),
    ],
)
def test_a_dashboard_that_is_not_is_refused(tmp_path, old, new):
    text = json.dumps(monitoring.dashboard(), indent=1)
    assert old in text
    with pytest.raises(LabError, match="error TS"):
        grafana.check(tmp_path / "types", TYPES + text.replace(old, new, 1))
