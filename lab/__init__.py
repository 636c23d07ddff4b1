"""Real components for tests, demo and benchmarks, on one machine without a GPU or a cluster.

Development only: nothing of the product imports this package, and it imports nothing but the
standard library (save lab/picker_config.py, which no command of it needs), so that it works before
any virtual environment exists. What it installs comes from public package registries (PyPI, Go
modules, npm, Debian), into one directory that CI keeps between runs. What it starts listens on
loopback only (save the endpoint picker, which binds all interfaces: lab/epp.py), on free ports, and
ends with the process that started it.

`python -m lab install triton|vllm|kube|picker|sources|prometheus|all` installs (`peers` too, which
benchmarks alone need), `python -m lab where` tells what is there. One component is only looked
for: the endpoint picker is a binary that you have.
"""

from __future__ import annotations

import os
from pathlib import Path


class LabError(Exception):
    """A component cannot be installed, started or used. The message says what to do about it."""


def directory() -> Path:
    """Where components are: MODEL_SIDECAR_LAB, else model-sidecar/lab in the user's cache."""
    chosen = os.environ.get("MODEL_SIDECAR_LAB")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    base = Path(cache) if cache else Path.home() / ".cache"
    return base / "model-sidecar" / "lab"
