"""The shipped configurations of the picker avoid its traps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.picker_config import SHIPPED, shipped_configs
from sidecar.settings import from_flags

configs = pytest.mark.parametrize("path", shipped_configs(), ids=lambda path: path.stem)


def test_there_are_configurations():
    assert {"default"} <= {path.stem for path in shipped_configs()}


def default_port() -> int:
    return int(from_flags(argparse.Namespace(), {}).listen.rpartition(":")[2])


def plugins(path: Path) -> dict[str, dict[str, Any]]:
    found = yaml.safe_load(path.read_text())["plugins"]
    return {one["type"]: one for one in found}


def seconds(text: object) -> float:
    text = str(text)
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


def weights(path: Path) -> dict[str, float]:
    (profile,) = yaml.safe_load(path.read_text())["schedulingProfiles"]
    return {one["pluginRef"]: one.get("weight", 0) for one in profile["plugins"]}


@configs
def test_the_picker_scrapes_the_agents_own_port(path):
    assert plugins(path)["metrics-data-source"]["parameters"]["port"] == default_port()


@configs
def test_nothing_else_writes_into_what_scorers_read(path):
    assert "name" not in plugins(path)["metrics-data-source"]
    assert yaml.safe_load(path.read_text())["dataLayer"]["injectDefaults"] is False


@configs
def test_a_few_lost_polls_do_not_make_a_pod_stale(path):
    source = plugins(path)["metrics-data-source"]["parameters"]
    detector = plugins(path)["utilization-detector"]["parameters"]
    assert seconds(detector["metricsStalenessThreshold"]) > 3 * seconds(source["interval"])


@configs
def test_pods_without_a_page_are_left_out_and_busy_ones_are_not(path):
    assert "utilization-detector" in weights(path)
    assert plugins(path)["utilization-detector"]["parameters"]["headroom"] >= 100


@configs
def test_every_plugin_of_the_profile_is_declared_once(path):
    declared = [one["type"] for one in yaml.safe_load(path.read_text())["plugins"]]
    assert len(declared) == len(set(declared))
    assert set(weights(path)) <= set(declared)


def load_weight(found: dict[str, float]) -> float:
    return found["active-request-scorer"] + found["queue-scorer"]


def test_a_slot_gains_less_than_load_costs():
    found = weights(SHIPPED / "default.yaml")
    # The gap between the tiers of a LoRA in a slot and of one that is held elsewhere.
    assert found["lora-affinity-scorer"] * (1.0 - 0.6) < load_weight(found)


def test_holding_a_lora_outweighs_all_else():
    found = weights(SHIPPED / "default.yaml")
    others = sum(found.values()) - found["lora-affinity-scorer"]
    assert found["lora-affinity-scorer"] * 0.6 > others


def test_the_flag_for_older_pickers_names_the_same_port():
    (operation,) = yaml.safe_load((SHIPPED / "older-flags.yaml").read_text())
    assert operation["value"] == f"--model-server-metrics-port={default_port()}"
