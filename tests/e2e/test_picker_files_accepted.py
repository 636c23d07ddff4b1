"""The shipped configurations, as the real picker takes them; no engine is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lab import LabError
from lab.epp import Epp
from lab.picker_config import SHIPPED, lab_config, shipped_configs
from lab.process import free_port

pytestmark = pytest.mark.epp


@pytest.fixture
def endpoints(tmp_path):
    path = tmp_path / "endpoints.yaml"
    path.write_text("endpoints: []\n")
    return path


@pytest.mark.parametrize("shipped", shipped_configs(), ids=lambda path: path.stem)
def test_the_picker_starts_with_a_shipped_configuration(shipped, endpoints, tmp_path):
    text = lab_config(shipped, port=free_port(), endpoints=endpoints)
    with Epp(tmp_path / "epp", text) as epp:
        log = epp.log.read_text()
    assert '"level":"error"' not in log
    # What the picker thinks odd in a configuration, it says so while it starts.
    assert "WARNING" not in log
    assert "DEPRECAT" not in log


def test_the_picker_takes_the_shipped_headroom_with_the_remark_that_is_documented(
    endpoints, tmp_path
):
    """Any other words on it, or a refusal, are news for the files and for docs/picker.md."""
    with Epp(tmp_path / "epp", lab_config("default", port=free_port(), endpoints=endpoints)) as epp:
        lines = epp.log.read_text().splitlines()
    said = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(one["level"], one["msg"]) for one in said if "headroom" in one] == [
        ("info", "Creating new UtilizationDetector"),
        (
            "info",
            "Unusually high headroom configured; verify value is a fraction, not a percentage",
        ),
    ]


def test_the_picker_refuses_a_headroom_that_is_none(endpoints, tmp_path):
    config = yaml.safe_load(lab_config("default", port=free_port(), endpoints=endpoints))
    (detector,) = [one for one in config["plugins"] if one["type"] == "utilization-detector"]
    detector["parameters"]["headroom"] = -1
    with pytest.raises(LabError, match="headroom must be a non-negative value"):
        Epp(tmp_path / "epp", yaml.safe_dump(config)).start()


def test_the_picker_refuses_an_unknown_field(endpoints, tmp_path):
    config = yaml.safe_load(lab_config("default", port=free_port(), endpoints=endpoints))
    config["plugins"][0]["parameters"]["prot"] = 9110
    with pytest.raises(LabError, match="unknown field"):
        Epp(tmp_path / "epp", yaml.safe_dump(config)).start()


def test_the_flags_for_older_pickers_are_refused_by_this_one(endpoints, tmp_path):
    flags = [one["value"] for one in _patch(SHIPPED / "older-flags.yaml")]
    text = lab_config("default", port=free_port(), endpoints=endpoints)
    with pytest.raises(LabError, match="unknown flag: --model-server-metrics-port"):
        Epp(tmp_path / "epp", text, args=flags).start()


def _patch(path: Path) -> list[dict[str, str]]:
    operations: list[dict[str, str]] = yaml.safe_load(path.read_text())
    assert {one["op"] for one in operations} == {"add"}
    return operations
