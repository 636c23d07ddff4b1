"""An engine of somebody else: a package of its own, found by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ADAPTER = """
from adapters.base import Capabilities, EngineOptions, EngineState, Kind, MetricMap, Resident


class MineAdapter:
    capabilities = Capabilities(
        kinds=frozenset({Kind.MODEL}),
        serves_alone=False,
        replaces_in_place=True,
        reports_paths=False,
    )
    metric_map = MetricMap()

    def __init__(self, url):
        self.url = url
        self.held = {}

    @classmethod
    def open(cls, options: EngineOptions):
        return cls(options.url)

    async def observe(self):
        return EngineState(
            residents=tuple(Resident(name=name, kind=Kind.MODEL) for name in self.held)
        )

    async def load(self, target, path):
        self.held[target.name] = path
"""
USER = """
import asyncio
from adapters import engine_names, open_engine
from adapters.base import EngineOptions, Kind, Target

assert engine_names()[-1] == "mine", engine_names()
adapter = open_engine("mine", (EngineOptions(url="mine://here"),))
asyncio.run(adapter.load(Target(name="fraud", kind=Kind.MODEL), "/x"))
(resident,) = asyncio.run(adapter.observe()).residents
print(adapter.url, resident.name)
"""


def test_an_installed_package_adds_an_engine(tmp_path: Path):
    (tmp_path / "mine_adapter.py").write_text(ADAPTER)
    info = tmp_path / "mine_adapter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[model_sidecar.adapters]\nmine = mine_adapter:MineAdapter\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", USER],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("mine://here fraud\n", "", 0)
