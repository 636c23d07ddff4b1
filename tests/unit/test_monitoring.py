"""The shipped alerts and dashboard, as far as the project itself can tell: names, places, words."""

from __future__ import annotations

import re

import pytest

from adapters.base import Kind
from sidecar.core.picker_page import LoraView, lora_labels, render_picker_page
from sidecar.core.status import Reason, State
from sidecar.core.translate import Sample
from tests.support import monitoring
from tests.support import picker_oracle as oracle
from tools.docs import own_families

ALERTS = monitoring.alerts()
PANELS = monitoring.panels()
WORDS = {
    "state": frozenset(State),
    "reason": frozenset(Reason),
    "kind": frozenset({*Kind, "unknown"}),
    "level": frozenset({"gpu", "cpu"}),
    "job": frozenset({"model-sidecar"}),
}


def series_there_can_be() -> set[str]:
    """Every name on `/metrics/all` that is the agent's own, and `up`, which is Prometheus'."""
    names = {sample.name for family in own_families() for sample in family.samples}
    view = LoraView(slots=1, resident=frozenset({"a"}), in_slot=frozenset({"a"}))
    page = render_picker_page(
        Sample(taken_at=0.0), view, lora_labels(view), ready=True, changed_at=1.0
    )
    return {"up", *names, *oracle.parse(page)}


def expressions() -> list[str]:
    """Every expression that is shipped, and those of the dashboard's variables."""
    variables = monitoring.dashboard()["templating"]["list"]
    return [
        *(rule["expr"] for rule in ALERTS.values()),
        *(expression for _, expression in monitoring.queries()),
        *(one["query"]["query"] for one in variables if one["type"] == "query"),
    ]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_reads_series_that_there_can_be(expression):
    found = monitoring.selectors(expression)
    assert found
    assert {one.partition("{")[0] for one in found} <= series_there_can_be()


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_words_that_are_said(expression):
    for label, operator, text in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', expression):
        if not text.startswith("$"):
            values = text.split("|") if operator.endswith("~") else [text]
            assert set(values) <= WORDS[label]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (page, anchor) == ("docs/monitoring.md", alert.lower())
    assert f"### {alert}\n" in monitoring.PAGE.read_text()


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_seen_to_fire_and_to_keep_quiet(alert):
    assert {expected for _, expected in monitoring.tested(alert)} == {True, False}


def test_the_page_has_no_alert_that_is_not_shipped():
    told = re.findall(r"^### (ModelSidecar\w+)$", monitoring.PAGE.read_text(), re.MULTILINE)
    assert told == list(ALERTS)


def test_no_two_panels_share_a_place_or_a_number():
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in monitoring.dashboard()["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert {x for x, _ in places} == set(range(24))
    numbers = [panel["id"] for panel in monitoring.dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_follows_the_variables_and_has_units(panel):
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
        for name in ("namespace", "workload", "pod"):
            assert f'{name}=~"${name}"' in target["expr"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))
    if panel["type"] in ("timeseries", "stat"):
        assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_what_a_panel_changes_by_name_is_there(panel):
    """Grafana says nothing of an override or a column whose name is wrong."""
    columns: dict[str, str] = {}
    for step in panel.get("transformations", ()):
        columns |= step["options"].get("renameByName", {})
    expressions = " ".join(target["expr"] for target in panel["targets"])
    for label in columns:
        assert label.startswith("Value #") or re.search(rf"\b{label}\b", expressions)
    shown = {target.get("legendFormat") for target in panel["targets"]}
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in {*shown, *columns.values(), *State}
