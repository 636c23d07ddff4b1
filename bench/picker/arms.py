"""The routers that are compared, and the configuration of those that are pickers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml

ROOT = Path(__file__).parents[2]
SHIPPED_FILE = ROOT / "manifests" / "epp" / "default.yaml"
DISCOVERY = "bench-pods"
SOURCE = "metrics-data-source"
INTERVAL = "50ms"
"""The picker's own default; only the shipped file says another one."""
SCORERS = {
    "lora": "lora-affinity-scorer",
    "queue": "queue-scorer",
    "kv": "kv-cache-utilization-scorer",
    "active-request": "active-request-scorer",
    "running": "running-requests-size-scorer",
    "prefix": "prefix-cache-scorer",
}
DEFAULT = "default.yaml"
"""The shipped file, read as it is."""
UPSTREAM = "queue 2, kv 2, lora 1"
COMPARED = (
    UPSTREAM,
    "lora 4, active-request 1, queue 1",
    "lora 2.5, active-request 2, queue 1",
    DEFAULT,
)


class Page(StrEnum):
    """Whose page the picker reads."""

    ENGINE = "engine's"
    AGENT = "agent's"


@dataclass(frozen=True, slots=True)
class Arm:
    """One router."""

    label: str
    """Its weights; what it does where it is no picker."""
    page: Page | None = None

    @property
    def key(self) -> str:
        """How the command line calls it."""
        return f"{self.label} @ {self.page.name.lower()}" if self.page else self.label


ROUND_ROBIN = Arm("round robin")
ORACLE = Arm("oracle")


def all_arms(more_weights: tuple[str, ...] = ()) -> tuple[Arm, ...]:
    """Return every router; further weights are read from the agents' pages alone."""
    pickers = [Arm(weights, page) for weights in COMPARED for page in Page]
    further = [Arm(weights, Page.AGENT) for weights in more_weights]
    return (ORACLE, ROUND_ROBIN, *pickers, *further)


def parse_weights(said: str) -> dict[str, float]:
    """Return the weight of each scorer, of a list like ``queue 2, kv 2, lora 1``.

    Raises:
        ValueError: it names no scorer, or no number.
    """
    weights = {}
    for part in said.split(","):
        name, _, number = part.strip().partition(" ")
        if name not in SCORERS:
            raise ValueError(f"{name!r} is no scorer; there are: {', '.join(SCORERS)}")
        weights[SCORERS[name]] = float(number)
    return weights


def config(weights: str, *, port: int, endpoints: Path) -> str:
    """Return the picker's configuration: the shipped file as it is, or its sources with these
    weights in place of its profile. Pods come from a file, and their pages from ``port``."""
    shipped: dict[str, Any] = next(yaml.safe_load_all(SHIPPED_FILE.read_text()))
    (source,) = [plugin for plugin in shipped["plugins"] if plugin["type"] == SOURCE]
    source["parameters"]["port"] = port
    if weights != DEFAULT:
        _replace_profile(shipped, source, parse_weights(weights))
    where = {"path": str(endpoints), "watchFile": True}
    shipped["plugins"].append({"name": DISCOVERY, "type": "file-discovery", "parameters": where})
    shipped["dataLayer"]["discovery"] = {"pluginRef": DISCOVERY}
    return yaml.safe_dump(shipped, sort_keys=False)


def _replace_profile(
    shipped: dict[str, Any], source: dict[str, Any], weights: dict[str, float]
) -> None:
    source["parameters"]["interval"] = INTERVAL
    names = ("core-metrics-extractor", *weights, "max-score-picker", "single-profile-handler")
    known = {plugin["type"]: plugin for plugin in shipped["plugins"]}
    shipped["plugins"] = [source, *(known.get(name, {"type": name}) for name in names)]
    scorers = [{"pluginRef": name, "weight": weight} for name, weight in weights.items()]
    profile = {"name": "default", "plugins": [*scorers, {"pluginRef": "max-score-picker"}]}
    shipped["schedulingProfiles"] = [profile]


T = TypeVar("T")


def rotated(items: Sequence[T], turn: int, turns: int) -> list[T]:
    """Return the items in another order for each turn: none is always the first, or after another's
    leftovers."""
    first = turn * len(items) // max(1, turns)
    return [*items[first:], *items[:first]]
