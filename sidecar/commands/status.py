"""``status``: what a running agent says of its targets; once, live, or when it converged.

With ``-l`` the agents of many pods are asked: ``status_fleet``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from sidecar.commands.client import AgentClient, AgentUnreachable, parse_url
from sidecar.commands.output import printable, write_json, write_line
from sidecar.commands.table import head_lines, rows, table_lines, unconverged
from sidecar.flags import UsageError

POLL_SECONDS = 1.0
LONG_POLL_SECONDS = 30.0
DEFAULT_URL = "http://127.0.0.1:9110"
FLEET_FLAGS = ("namespace", "kubeconfig", "port", "https", "targets")


def main(arguments: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    """Show the status; 1 when the agent is not reachable or did not converge in time."""
    if arguments.selector is not None:
        if arguments.url is not None:
            raise UsageError("--url is for one agent, -l for the pods of a cluster: give one")
        # The Kubernetes client costs half a second: only those who ask a cluster pay for it.
        from sidecar.commands.status_fleet import show_fleet

        return show_fleet(arguments)
    if given := [f"--{one}" for one in FLEET_FLAGS if getattr(arguments, one) not in (None, False)]:
        raise UsageError(f"{', '.join(given)}: only with -l, for the pods of a cluster")
    client = AgentClient(parse_url(arguments.url or DEFAULT_URL))
    try:
        if arguments.wait:
            return _wait(client, arguments.timeout, as_json=arguments.json)
        status = client.read_status()
        if arguments.json or arguments.once or not sys.stdout.isatty():
            _print(status, as_json=arguments.json)
        else:
            # Only a live table needs it, and importing it takes longer than all the rest.
            from sidecar.commands.live import show_live

            show_live(client, status, poll_seconds=POLL_SECONDS)
    except AgentUnreachable as error:
        return _fail(str(error))
    return 0


def _wait(client: AgentClient, timeout: float, *, as_json: bool) -> int:
    """Wait until the agent converged; one that is not there yet may still start."""
    until = time.monotonic() + timeout
    status: dict[str, Any] | None = None
    trouble = ""
    while (left := until - (asked_at := time.monotonic())) > 0:
        try:
            status = client.read_status(wait_seconds=min(left, LONG_POLL_SECONDS))
            trouble = ""
        except AgentUnreachable as error:
            trouble = str(error)
        if not trouble and status is not None and status.get("converged"):
            _print(status, as_json=as_json)
            return 0
        # An agent that is not there, or ends, answers at once.
        pause = min(asked_at + POLL_SECONDS, until) - time.monotonic()
        time.sleep(max(0.0, pause))
    if status is not None:
        _print(status, as_json=as_json)
    why = trouble or (unconverged(status) if status is not None else "it was not asked in time")
    return _fail(f"not converged within {timeout:g} s: {why}")


def _print(status: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(status)
        return
    now = time.time()  # noqa: TID251 - a command is its own composition root
    for line in (*head_lines(status, now), "", *table_lines(rows(status, now))):
        write_line(line)


def _fail(message: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"model-sidecar status: {printable(message)}\n")
    return 1
