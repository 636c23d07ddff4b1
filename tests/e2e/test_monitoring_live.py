"""The shipped queries, asked of a real Prometheus that scrapes running agents in trouble."""

from __future__ import annotations

import math
import re

import pytest

from lab import LabError
from tests.support import monitoring
from tests.support.monitoring_scene import Engines, Scene

pytestmark = pytest.mark.monitoring

ALERTS = monitoring.alerts()
# No pod of the scene can have this one: there are agents to be scraped.
NOT_IN_THE_SCENE = {"ModelSidecarAbsent"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    with Engines() as engines, Scene(tmp_path_factory.mktemp("scene"), engines) as scene:
        scene.play()
        yield scene


def firing(scene: Scene, alert: str) -> list[dict[str, dict[str, str]]]:
    """The alerts of one name."""
    return [one for one in scene.prometheus.alerts() if one["labels"]["alertname"] == alert]


def test_the_agents_are_scraped_as_the_podmonitor_says(scene):
    found = {
        one.labels["pod"]: (one.labels["workload"], one.labels.get("template"), one.value)
        for one in scene.prometheus.query("up")
    }
    # The container of web-0 is no agent, nobody listens at chat-2, and nothing controls slow-0.
    assert found == {
        "chat-0": ("chat", "5d4f8c7b9", 1),
        "chat-1": ("chat", "5d4f8c7b9", 1),
        "chat-2": ("chat", "5d4f8c7b9", 0),
        "slow-0": ("slow-0", None, 1),
        "idle-0": ("idle-set", None, 1),
        "scoring-0": ("scoring", "scoring-6c8", 1),
    }
    labels = scene.prometheus.query('up{pod="chat-0"}')[0].labels
    assert (labels["job"], labels["namespace"]) == ("model-sidecar", "ml")


def test_prometheus_takes_every_line_of_every_page(scene):
    for target in scene.prometheus.ask("targets", state="active")["activeTargets"]:
        assert target["labels"]["pod"] == "chat-2" or target["lastError"] == ""


@pytest.mark.parametrize("alert", [name for name in ALERTS if name not in NOT_IN_THE_SCENE])
def test_an_alert_comes_of_real_trouble_and_says_where(scene, alert):
    scene.wait(f"alert {alert}", lambda: bool(firing(scene, alert)))
    for one in firing(scene, alert):
        text = " ".join(one["annotations"].values())
        assert "<" not in text, "a template that failed says so in angle brackets"
        for label in ("namespace", "workload", "pod", "target"):
            assert one["labels"].get(label, "") in text or label == "workload"


def test_nothing_is_wrong_with_what_works(scene):
    """chat-0 answers, follows its document and can be sampled, whatever else is wrong there."""
    quiet = {
        "ModelSidecarDocumentInvalid",
        "ModelSidecarDown",
        "ModelSidecarEngineDown",
        "ModelSidecarNotConverged",
        "ModelSidecarReadyWithoutResident",
        "ModelSidecarSampleStale",
    }
    scene.wait("all of these", lambda: all(firing(scene, alert) for alert in quiet))
    there = {
        one["labels"]["alertname"]
        for one in scene.prometheus.alerts()
        if one["labels"].get("pod") == "chat-0"
    }
    assert not quiet & there


def test_agents_are_absent_before_any_is_scraped(scene):
    expression = ALERTS["ModelSidecarAbsent"]["expr"]
    assert scene.prometheus.query(expression) == []
    before = scene.prometheus.ask("query", query=expression, time=str(scene.began - 3600))
    assert before["result"][0]["metric"] == {"job": "model-sidecar"}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_series_of_an_alert_exists(scene, alert):
    for selector in monitoring.selectors(ALERTS[alert]["expr"]):
        # Of whatever value, as long as there is one.
        anything = re.sub(r'(=~|!~|!=|=)"[^"]*"', '!=""', selector)
        assert scene.prometheus.query(f"max_over_time({anything}[10m])"), selector


@pytest.mark.parametrize(("panel", "expression"), monitoring.queries())
def test_a_query_of_the_dashboard_has_data(scene, panel, expression):
    found = scene.prometheus.query(monitoring.substituted(expression))
    assert any(math.isfinite(one.value) for one in found), f"{panel} shows nothing"


@pytest.mark.parametrize("panel", monitoring.panels(), ids=lambda panel: panel["title"])
def test_a_panel_shows_more_than_zeros(scene, panel):
    values = [
        one.value
        for target in panel["targets"]
        for one in scene.prometheus.query(monitoring.substituted(target["expr"]))
    ]
    assert any(value > 0 for value in values)


@pytest.mark.parametrize(("panel", "expression"), monitoring.queries())
def test_a_query_of_the_dashboard_follows_the_variables(scene, panel, expression):
    for variable in ("namespace", "workload", "pod"):
        chosen = monitoring.substituted(expression, **{variable: "none-such"})
        assert scene.prometheus.query(chosen) == [], f"{panel} leaves out {variable}"


def test_the_variables_of_the_dashboard_offer_what_is_there(scene):
    offered = {}
    for variable in monitoring.dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            text = monitoring.substituted(variable["query"]["query"])
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", text)
            assert match is not None
            data = scene.prometheus.ask(f"label/{match[2]}/values", **{"match[]": match[1]})
            offered[variable["name"]] = data
    assert offered == {
        "namespace": ["ml"],
        "workload": ["chat", "idle-set", "scoring", "slow-0"],
        "pod": ["chat-0", "chat-1", "idle-0", "scoring-0", "slow-0"],
    }


def test_a_query_that_is_wrong_is_an_error(scene):
    with pytest.raises(LabError, match="parse error"):
        scene.prometheus.query("sum by (pod (up)")
    assert scene.prometheus.query("model_sidecar_none") == []
