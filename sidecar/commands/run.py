"""``run``: the agent."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from sidecar.settings import check_for_run, from_flags


def main(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run the agent until it is asked to stop. Raises ``UsageError``."""
    settings = from_flags(arguments, environment)
    check_for_run(settings)
    # What the agent needs is imported only for flags that fit together.
    from sidecar import agent

    return asyncio.run(agent.run(settings))
