"""The flags of ``models``; imported at every start, and light."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TypeVar

from adapters.base import Kind
from sidecar.core.desired import Format, Readiness
from sidecar.flags import parse_positive_seconds, parse_seconds, parse_switch

DEFAULT_PORT = 9110
DEFAULT_WAIT_SECONDS = 300.0

Parsed = TypeVar("Parsed")


def add_operations(models: argparse.ArgumentParser) -> None:
    """Add one subcommand for each operation."""
    operations = models.add_subparsers(dest="operation", metavar="OPERATION", required=True)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        one = operations.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        one.set_defaults(parser=one)
        _add_place(one)
        return one

    add("list", "Shows what the documents of the ConfigMap ask for.")
    add("create", "Creates the ConfigMap, with no document in it.")
    add("delete", "Deletes the ConfigMap; agents keep what it last asked for.")
    add("exists", "Exit code: 0 the ConfigMap exists, 2 it does not, 1 it could not be told.")
    adding = add("add", "Adds an entry, or replaces the one that has its name.")
    adding.add_argument("name", metavar="NAME", help="the name that clients use")
    _add_entry(adding)
    removing = add("remove", "Removes the entry of this name.")
    removing.add_argument("name", metavar="NAME", help="the name that clients use")
    removing.add_argument("--deployment", metavar="NAME", help="whose entry it is (michelangelo)")
    for one in (adding, removing):
        _add_wait(one)


def _add_place(one: argparse.ArgumentParser) -> None:
    one.add_argument("--configmap", metavar="NAME", required=True, help="the ConfigMap")
    one.add_argument("-n", "--namespace", help="where it is (default: as kubectl would look)")
    one.add_argument(
        "--kubeconfig", metavar="FILE", help="how to reach the API server (default: as kubectl)"
    )
    one.add_argument(
        "--format",
        choices=(str(Format.NATIVE), str(Format.MICHELANGELO)),
        help="of the document (default: told by the ConfigMap, and native where nothing tells)",
    )
    one.add_argument(
        "--config-key",
        metavar="KEY",
        help="the native document's key (default: the one of models.yaml, models.yml and "
        "models.json that is there)",
    )
    one.add_argument("--json", action="store_true", help="print JSON")


def _add_entry(add: argparse.ArgumentParser) -> None:
    add.add_argument("--source", required=True, help="where its files are: a URL or absolute path")
    native = add.add_argument_group("native", "Fields of the native format.")
    native.add_argument("--kind", choices=tuple(map(str, Kind)), help="default: told by the files")
    native.add_argument("--digest", metavar="sha256:HEX", help="pins the content of the files")
    native.add_argument("--base-model", metavar="NAME", help="checked against the engine")
    native.add_argument("--readiness", choices=tuple(map(str, Readiness)), help="default: initial")
    native.add_argument(
        "--rollout-percent", type=_type(float), metavar="0-100", help="for this share of the pods"
    )
    native.add_argument("--rollout-otherwise", metavar="SOURCE", help="what the other pods hold")
    for name, words in (("warmup", "one tiny request first"), ("pinned", "never evicted")):
        native.add_argument(
            f"--{name}",
            nargs="?",
            const=True,
            type=_type(parse_switch),
            metavar="true|false",
            help=words,
        )
    native.add_argument("--credentials", metavar="NAME", help="a mounted secret directory")
    native.add_argument(
        "--refresh-seconds",
        type=_type(parse_seconds),
        metavar="SECONDS",
        help="how often its source is looked at for changes",
    )
    native.add_argument(
        "--parameters", type=_type(_parse_mapping), metavar="JSON", help="for the engine"
    )
    theirs = add.add_argument_group("michelangelo", "Fields of Michelangelo's second generation.")
    theirs.add_argument("--deployment", metavar="NAME", help="whose entry it is")
    theirs.add_argument("--phase", choices=("canary", "staged", "serving"))
    theirs.add_argument("--canary-pod", metavar="POD", help="the pod that holds a canary")


def _add_wait(one: argparse.ArgumentParser) -> None:
    wait = one.add_argument_group(
        "waiting", "Needs list on pods and get on pods/proxy in their namespace."
    )
    wait.add_argument(
        "--wait", action="store_true", help="wait until every running pod converged on it"
    )
    wait.add_argument("-l", "--selector", metavar="SELECTOR", help="labels of the pods")
    wait.add_argument(
        "--port",
        type=_type(_parse_port),
        default=DEFAULT_PORT,
        metavar="PORT",
        help="where agents listen whose container does not say (default: %(default)s)",
    )
    wait.add_argument(
        "--timeout",
        type=_type(parse_positive_seconds),
        default=DEFAULT_WAIT_SECONDS,
        metavar="SECONDS",
        help="how long --wait waits (default: %(default)g)",
    )


def _parse_mapping(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a JSON object")
    return value


def _parse_port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError("a port, 1 to 65535")
    return int(text)


def _type(parse: Callable[[str], Parsed]) -> Callable[[str], Parsed]:
    """Return ``parse`` with errors in the words of the command line."""

    def parsed(text: str) -> Parsed:
        try:
            return parse(text)
        except (ValueError, RecursionError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not usable: {error}") from error

    return parsed
