"""The command line. A command's module is imported only when it was asked for.

Exit codes: 0 done or asked to stop, 1 failed, 64 bad usage; ``plan`` answers 2 for changes,
``models exists`` 2 for no.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

from sidecar.cluster.webhook.settings import WebhookSettings
from sidecar.commands.models_arguments import add_operations
from sidecar.flags import Parser, UsageError, add_flags, flags, parse_positive_seconds
from sidecar.settings import DISK, DOCUMENT, ENGINE, Settings

PROGRAM = "model-sidecar"
EXIT_FAILED = 1
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
    _add_models(add)
    _add_inject(add)
    webhook = add(
        "webhook",
        "serve admission reviews: pods are injected, broken documents refused",
        "Serves the API server's admission webhooks until SIGTERM or SIGINT: the agent is put into "
        "pods that ask for it, and ConfigMaps with broken documents are refused. Each flag has an "
        "environment variable, which is named beside it; the flag wins.",
    )
    add_flags(WebhookSettings, webhook)
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
    validate.add_argument(
        "--with",
        dest="with_files",
        metavar="FILE",
        action="append",
        help="manifests with routes (AIGatewayRoute, InferenceModelRewrite, InferenceModel): what "
        "they lead to must be in the documents, and something must lead to each LoRA; repeatable",
    )
    _add_json(validate)


def _add_status(add: _Add) -> None:
    status = add(
        "status",
        "show the targets of a running agent",
        "Shows what a running agent says of itself: at a terminal live, until Ctrl-C; elsewhere "
        "once. With -l, what the agents of many pods say, once: one row a pod.",
    )
    status.add_argument("--url", metavar="URL", help="the agent (default: http://127.0.0.1:9110)")
    _add_fleet(status)
    status.add_argument(
        "--wait",
        choices=("converged",),
        metavar="converged",
        help="wait until the agent, or with -l every running pod, converged; exit code 1 when the "
        "time passes before",
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


def _add_fleet(status: argparse.ArgumentParser) -> None:
    fleet = status.add_argument_group(
        "pods of a cluster", "Needs list on pods and get on pods/proxy in their namespace."
    )
    fleet.add_argument(
        "-l", "--selector", metavar="SELECTOR", help="labels of the pods, such as app=chat"
    )
    fleet.add_argument(
        "-n", "--namespace", help="where the pods are (default: as kubectl would look)"
    )
    fleet.add_argument(
        "--kubeconfig", metavar="FILE", help="how to reach the API server (default: as kubectl)"
    )
    fleet.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        help="where agents listen whose container does not say (default: 9110)",
    )
    fleet.add_argument("--https", action="store_true", help="they serve https (--tls-cert-file)")
    fleet.add_argument("--targets", action="store_true", help="one column a target, too")


def _add_models(add: _Add) -> None:
    models = add(
        "models",
        "edit a model-config ConfigMap",
        "Says what a model-config ConfigMap shall hold: done already is done, and no update of "
        "another writer is lost.",
    )
    add_operations(models)


def _add_inject(add: _Add) -> None:
    inject = add(
        "inject",
        "put the agent into the pods of manifests",
        "Reads manifests, and writes them with the agent in every pod that runs vLLM, SGLang or "
        "Triton. Annotations model-sidecar.io/... of a pod win over the flags. Exit code: 0 "
        "written, 1 something is in the way, and nothing is written.",
    )
    inject.add_argument(
        *("-f", "--filename"),
        dest="files",
        metavar="FILE",
        action="append",
        required=True,
        help="manifests, - for standard input; repeatable",
    )
    inject.add_argument(
        "--configmap",
        metavar="NAME",
        default="",
        help="ConfigMap with the documents, in the pod's namespace",
    )
    inject.add_argument(
        "--api",
        action="store_true",
        help="watch it through the API server instead of mounting it; a Role is written, too",
    )
    inject.add_argument("--image", metavar="IMAGE", help="the agent's image")
    inject.add_argument(
        "--store-size", metavar="SIZE", help="of the volume that the engine shares (default: 50Gi)"
    )
    inject.add_argument("--remove", action="store_true", help="take the agent out again")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return parse_positive_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable: {error}") from error
