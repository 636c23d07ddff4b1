"""The command line. A command's module is imported only when it was asked for.

Exit codes: 0 done or asked to stop, 1 failed, 64 bad usage; ``plan`` answers 2 for changes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

from sidecar.flags import Parser, UsageError, add_flags, flags, parse_positive_seconds
from sidecar.settings import DISK, DOCUMENT, ENGINE, Settings

PROGRAM = "model-sidecar"
EXIT_FAILED = 1
DEFAULT_URL = "http://127.0.0.1:9110"
DEFAULT_WAIT_SECONDS = 300.0

PLAN_GROUPS = (ENGINE, DOCUMENT, DISK)
PLAN_BEHAVIOUR = ("prune", "unload_grace_seconds", "warmup")
PLAN_LEAVES_OUT = ("engine_metrics_url", "load_timeout_seconds", "fetch_concurrency")
"""Flags of these groups that no plan depends on."""


class Command(Protocol):
    """What a module of ``sidecar.commands`` offers."""

    def main(self, arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
        """Carry out the command; return the exit code. Raises ``UsageError``."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Bad usage ends the process with 64."""
    arguments = build_parser().parse_args(argv)
    command = cast("Command", import_module(f"sidecar.commands.{arguments.command}"))
    try:
        code = command.main(arguments, os.environ)
        # What the reader of a pipe no longer takes shall be noticed here, not at the exit.
        sys.stdout.flush()
    except UsageError as error:
        arguments.parser.error(str(error))
    except KeyboardInterrupt:
        return EXIT_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = Parser(
        prog=PROGRAM,
        description="Makes an inference engine hold exactly the models and LoRAs of a ConfigMap.",
        epilog=f"{PROGRAM} COMMAND --help tells the flags of a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=description, allow_abbrev=False
        )
        command.set_defaults(parser=command)
        return command

    run = add(
        "run",
        "run the agent",
        "Runs the agent until SIGTERM or SIGINT. Each flag has an environment variable, which is "
        "named beside it; the flag wins.",
    )
    add_flags(Settings, run)
    _add_plan(add)
    _add_validate(add)
    _add_status(add)
    add("version", "tell the version", "Tells the version, and which engines are known.")
    return parser


class _Add(Protocol):
    def __call__(self, name: str, summary: str, description: str) -> argparse.ArgumentParser: ...


def _add_plan(add: _Add) -> None:
    plan = add(
        "plan",
        "tell what the agent would do, and change nothing",
        "Reads the document once, looks at the engine where --engine-url is given, and prints "
        "what the agent would do and why. Changes nothing at all. Exit code: 0 converged, "
        "2 changes, 1 error.",
    )
    add_flags(Settings, plan, only=plan_fields())
    _add_json(plan)


def plan_fields() -> tuple[str, ...]:
    """Return the settings on which a plan depends."""
    return tuple(
        field
        for field, (_, flag, _) in flags(Settings).items()
        if field in PLAN_BEHAVIOUR or (flag.group in PLAN_GROUPS and field not in PLAN_LEAVES_OUT)
    )


def _add_validate(add: _Add) -> None:
    validate = add(
        "validate",
        "check documents",
        "Checks documents and prints every problem with its place. Exit code: 0 none, 1 any. "
        "Files are merged as an agent that watches their directory would do; ConfigMaps are "
        "checked each for itself.",
    )
    validate.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a document, or Kubernetes manifests with ConfigMaps; - is standard input",
    )
    _add_json(validate)


def _add_status(add: _Add) -> None:
    status = add(
        "status",
        "show the targets of a running agent",
        "Shows what a running agent says of itself: at a terminal live, until Ctrl-C; elsewhere "
        "once.",
    )
    status.add_argument(
        "--url", default=DEFAULT_URL, metavar="URL", help="the agent (default: %(default)s)"
    )
    status.add_argument(
        "--wait",
        choices=("converged",),
        metavar="converged",
        help="wait until the agent converged; exit code 1 when the time passes before",
    )
    status.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_WAIT_SECONDS,
        metavar="SECONDS",
        help="how long --wait waits (default: %(default)g)",
    )
    status.add_argument("--once", action="store_true", help="print once, also at a terminal")
    _add_json(status)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    try:
        return parse_positive_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: {error}") from error
