"""The shipped alerts, as promtool takes them: each fires when it should, and only then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import LabError
from lab.prometheus import promtool
from tests.support import monitoring

pytestmark = pytest.mark.monitoring

ALERTS = monitoring.alerts()
WAITING = [name for name, rule in ALERTS.items() if "for" in rule]
# Each of these makes an alert worse in a way that its tests have to notice.
WORSE = {
    "ModelSidecarNoPodReady": [
        ("max by (namespace, workload) (m", "min by (namespace, workload) (m"),
        ('job="model-sidecar"', 'job="none"'),
        ('job="model-sidecar"', 'job=~".*"'),
        ("asleep", "none"),
        ("asleep == 1", "asleep"),
        ("ready unless on (namespace, pod)", "ready unless on (namespace, workload)"),
        ('"} unless on (namespace, pod) model_sidecar_engine_asleep == 1', '"}'),
    ],
    "ModelSidecarReadyWithoutResident": [
        ("== 1", ">= 0"),
        ('kind="model"', 'kind=~".+"'),
        ("resident", "none"),
        ("EngineUnsupported", "None"),
        ("NameConflict", "None"),
        (", target)", ")"),
    ],
    "ModelSidecarDocumentInvalid": [
        ("document_valid", "none"),
        ("document_problems", "none"),
    ],
    "ModelSidecarDocumentsDiffer": [
        ("<=", "<"),
        ("0.5 *", "1 *"),
        ("workload, template", "workload"),
        (", workload", ""),
    ],
    "ModelSidecarTargetFailed": [
        ("target, reason", "target, kind, reason"),
        ("Dropped|", ""),
        ("InvalidEntry|", ""),
        ("Spread|", ""),
        ("StoreFull|", ""),
        ("Unverified|", ""),
        ("|WaitingForParts", ""),
    ],
    "ModelSidecarStoreFull": [
        ('{reason="StoreFull"}', ""),
    ],
    "ModelSidecarNotConverged": [
        ("document_valid", "none"),
        ("document_problems", "none"),
        ("engine_up", "none"),
        ("engine_asleep", "none"),
        ("target_reason", "none"),
        ("Dropped|", ""),
    ],
    "ModelSidecarReplacementGap": [
        ("0.9", "0.999"),
        ("> 1", "> 0.05"),
    ],
    "ModelSidecarEngineRestarting": [
        (">= 3", ">= 2"),
        ("[1h]", "[3h]"),
    ],
    "ModelSidecarSampleStale": [
        ("> 120", "> 30"),
        ("and on (namespace, pod) model_sidecar_engine_up == 1", ""),
        ("(model_sidecar_engine_up)", "(model_sidecar_none)"),
    ],
    "ModelSidecarDown": [
        ('job="model-sidecar"', 'job=~".*"'),
    ],
    "ModelSidecarAbsent": [
        ('{job="model-sidecar"}', ""),
    ],
    "ModelSidecarEventLoopLag": [
        ("> 0.5", "> 0.05"),
        ("[5m]", "[15m]"),
        ("0.99", "0.9"),
    ],
}


def files_for(alert: str) -> list[Path]:
    """The unit tests that look at an alert."""
    return list(dict.fromkeys(file for file, _ in monitoring.tested(alert)))


def test_promtool_finds_nothing_wrong(tmp_path):
    (tmp_path / "rules.yaml").write_text(json.dumps(monitoring.groups()))
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", cwd=tmp_path)


def test_every_alert_fires_when_it_should_and_only_then(tmp_path):
    monitoring.run_tests(tmp_path, monitoring.groups(), monitoring.ALERT_TESTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_that_never_fires_is_noticed(tmp_path, alert):
    never = monitoring.changed(alert, lambda rule: rule.update(expr="vector(0) > 0"))
    with pytest.raises(LabError, match=f"alertname: {alert}"):
        monitoring.run_tests(tmp_path, never, files_for(alert))


@pytest.mark.parametrize("alert", WAITING)
def test_an_alert_that_does_not_wait_is_noticed(tmp_path, alert):
    hasty = monitoring.changed(alert, lambda rule: rule.pop("for"))
    with pytest.raises(LabError, match=f"alertname: {alert}"):
        monitoring.run_tests(tmp_path, hasty, files_for(alert))


@pytest.mark.parametrize(
    ("alert", "old", "new"), [(alert, *one) for alert, ones in WORSE.items() for one in ones]
)
def test_an_alert_that_is_worse_is_noticed(tmp_path, alert, old, new):
    assert old in ALERTS[alert]["expr"]
    worse = monitoring.changed(alert, lambda rule: rule.update(expr=rule["expr"].replace(old, new)))
    with pytest.raises(LabError, match=r"got:\["):
        monitoring.run_tests(tmp_path, worse, files_for(alert))
