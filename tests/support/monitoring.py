"""The shipped monitoring as tests take it apart: rules, scrape configuration, queries."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.prometheus import promtool

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "manifests" / "monitoring"
PAGE = ROOT / "docs" / "monitoring.md"
ALERT_TESTS = sorted((ROOT / "tests" / "data" / "alerts").glob("*.yaml"))
SELECTOR = re.compile(r"(?:\b(?:model_sidecar_|vllm:)\w+|\bup\b)(?:\{[^}]*\})?")

Json = dict[str, Any]


def read(name: str) -> Json:
    """One shipped manifest."""
    manifest: Json = yaml.safe_load((FOLDER / name).read_text())
    return manifest


def groups() -> Json:
    """What promtool and Prometheus take: the PrometheusRule without its wrapping."""
    spec: Json = read("rules.yaml")["spec"]
    return spec


def rules(spec: Json) -> Iterator[Json]:
    """Every rule of every group."""
    for group in spec["groups"]:
        yield from group["rules"]


def alerts() -> dict[str, Json]:
    """The shipped alerts by name."""
    return {rule["alert"]: rule for rule in rules(groups())}


def changed(alert: str, change: Callable[[Json], None]) -> Json:
    """The groups with one rule changed."""
    spec = copy.deepcopy(groups())
    (rule,) = (one for one in rules(spec) if one["alert"] == alert)
    change(rule)
    return spec


def run_tests(work: Path, spec: Json, files: list[Path]) -> None:
    """Run promtool's unit tests with these rules; a failed one is a LabError."""
    spec = copy.deepcopy(spec)
    for rule in rules(spec):
        # A test has to write out every annotation; the summary is enough to see the templates work.
        rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    (work / "rules.yaml").write_text(json.dumps(spec))
    for file in files:
        (work / file.name).write_text(file.read_text())
    promtool("test", "rules", *(file.name for file in files), cwd=work)


def tested(alert: str) -> list[tuple[Path, bool]]:
    """Where promtool's unit tests look at an alert, and whether they expect it there."""
    return [
        (file, bool(look["exp_alerts"]))
        for file in ALERT_TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for look in test["alert_rule_test"]
        if look["alertname"] == alert
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A container's port, as Prometheus discovers it in a cluster."""

    address: str
    pod: str
    namespace: str = "ml"
    container: str = "model-sidecar"
    controller: tuple[str, str] = ("", "")
    """Kind and name."""
    labels: Mapping[str, str] | None = None
    """Of the pod, names as Prometheus has them."""

    def discovered(self) -> Json:
        """One static target with the labels of discovery."""
        meta = "__meta_kubernetes_pod_"
        return {
            "targets": [self.address],
            "labels": {
                "__meta_kubernetes_namespace": self.namespace,
                f"{meta}name": self.pod,
                f"{meta}phase": "Running",
                f"{meta}container_name": self.container,
                f"{meta}container_port_name": "sidecar",
                f"{meta}controller_kind": self.controller[0],
                f"{meta}controller_name": self.controller[1],
                **{f"{meta}label_{name}": value for name, value in (self.labels or {}).items()},
            },
        }


def scrape_config(places: list[Place], *, interval: str = "1s") -> Json:
    """What the operator makes of the PodMonitor, save for discovery and the pace."""
    spec = read("podmonitor.yaml")["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    meta = "__meta_kubernetes_pod_"
    ours = [
        {re.sub(r"[A-Z]", lambda one: f"_{one[0].lower()}", key): rule[key] for key in rule}
        for rule in endpoint["relabelings"]
    ]
    return {
        "job_name": "podMonitor/monitoring/model-sidecar/0",
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "metrics_path": endpoint["path"],
        "static_configs": [place.discovered() for place in places],
        "relabel_configs": [
            {
                "source_labels": [f"{meta}container_port_name"],
                "regex": endpoint["port"],
                "action": "keep",
            },
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{meta}container_name"], "target_label": "container"},
            {"source_labels": [f"{meta}name"], "target_label": "pod"},
            {"target_label": "job", "replacement": "monitoring/model-sidecar"},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *ours,
        ],
    }


def dashboard() -> Json:
    """The shipped dashboard."""
    found: Json = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def panels() -> list[Json]:
    """Its panels, without the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Title of its panel and expression of every query."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def substituted(expression: str, **variables: str) -> str:
    """What Grafana sends: its variables replaced, all of them chosen unless told otherwise."""
    values = {"namespace": ".*", "workload": ".*", "pod": ".*", "__rate_interval": "5m"} | variables
    return re.sub(r"\$(\w+)", lambda one: values[one[1]], expression)


def selectors(expression: str) -> set[str]:
    """The series that an expression reads, as selectors."""
    return set(SELECTOR.findall(expression))
