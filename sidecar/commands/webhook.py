"""``webhook``: the admission server."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping

from sidecar.cluster.webhook.settings import from_flags
from sidecar.commands.run import SWITCH_SECONDS


def main(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Serve until asked to stop. Raises ``UsageError``."""
    settings = from_flags(arguments, environment)
    # What the server needs is imported only for flags that fit together.
    from sidecar.cluster.webhook import serving

    # As there, for threads that read documents while pods wait.
    sys.setswitchinterval(SWITCH_SECONDS)
    return asyncio.run(serving.run(settings))
