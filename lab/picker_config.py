"""The configurations that we ship for the picker, made to run in the lab.

Only what a lab cannot have is changed: where pods are found (a file, for there is no cluster), and
the port, which is a free one. Everything else is what the shipped file says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(__file__).parents[1] / "manifests" / "epp"
KIND = "EndpointPickerConfig"
DISCOVERY = "lab-pods"
SOURCE = "metrics-data-source"


def shipped_configs() -> list[Path]:
    """Every EndpointPickerConfig among the manifests."""
    found = sorted(SHIPPED.glob("*.yaml"))
    return [path for path in found if _first(path).get("kind") == KIND]


def lab_config(
    shipped: str | Path, *, port: int, endpoints: Path | None = None, without: str | None = None
) -> str:
    """The text of a shipped configuration (a file name of ``manifests/epp`` without its ending, or
    a path) that scrapes ``port``, and finds its pods in the file ``endpoints`` where one is given.

    ``without`` leaves a plugin out of the profile, to show what it is there for.
    """
    path = SHIPPED / f"{shipped}.yaml" if isinstance(shipped, str) else shipped
    config = _first(path)
    (source,) = [plugin for plugin in config["plugins"] if plugin["type"] == SOURCE]
    source["parameters"]["port"] = port
    for profile in config["schedulingProfiles"]:
        profile["plugins"] = [one for one in profile["plugins"] if one["pluginRef"] != without]
    if endpoints is not None:
        parameters = {"path": str(endpoints), "watchFile": True}
        config["plugins"].append(
            {"name": DISCOVERY, "type": "file-discovery", "parameters": parameters}
        )
        config["dataLayer"]["discovery"] = {"pluginRef": DISCOVERY}
    text: str = yaml.safe_dump(config, sort_keys=False)
    return text


def staleness_seconds(shipped: str) -> float:
    """How old a pod's figures may be before a shipped configuration leaves the pod out."""
    (detector,) = [
        plugin
        for plugin in _first(SHIPPED / f"{shipped}.yaml")["plugins"]
        if plugin["type"] == "utilization-detector"
    ]
    return float(detector["parameters"]["metricsStalenessThreshold"].removesuffix("ms")) / 1000


def _first(path: Path) -> dict[str, Any]:
    document = next(yaml.safe_load_all(path.read_text()))
    return document if isinstance(document, dict) else {}
