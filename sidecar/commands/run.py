"""``run``: the agent."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

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

    async def run_to_the_end() -> NoReturn:
        code = await agent.run(settings)
        # A thread that hangs in the operating system would be waited for at a regular end; and
        # until here a second signal is heard.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)

    asyncio.run(run_to_the_end())
