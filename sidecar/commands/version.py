"""``version``: what runs here."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping

from adapters import engine_names
from sidecar import __version__
from sidecar.commands.output import write_line


def main(_arguments: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    """Print the versions and the engines that can be asked for."""
    write_line(f"model-sidecar {__version__}")
    write_line(f"Python {platform.python_version()}")
    write_line(f"engines: {', '.join(engine_names())}")
    return 0
