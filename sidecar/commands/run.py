"""``run``: the agent."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping

from sidecar.settings import check_for_run, from_flags

SWITCH_SECONDS = 0.0005
"""How long a thread that reads files may keep the event loop waiting (Python's default: 5 ms, which
every answer of the engine would wait while a thousand artifacts are checked)."""


def main(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run the agent until it is asked to stop. Raises ``UsageError``."""
    settings = from_flags(arguments, environment)
    check_for_run(settings)
    # What the agent needs is imported only for flags that fit together.
    from sidecar import agent

    sys.setswitchinterval(SWITCH_SECONDS)
    return asyncio.run(agent.run(settings))
