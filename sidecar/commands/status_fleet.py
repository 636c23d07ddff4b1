"""``status -l``: what the agents of many pods say, asked through the API server."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from sidecar.cluster.fleet import Fleet, FleetTimeout, look, wait_converged
from sidecar.commands.fleet_words import fleet_json, head_line, headings, rows
from sidecar.commands.output import printable, write_json, write_line
from sidecar.commands.table import table_lines
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeDenied, KubeError

DEFAULT_PORT = 9110


def show_fleet(arguments: argparse.Namespace) -> int:
    """Show the pods; 1 when none of them answered, or not all converged in time."""
    try:
        fleet = asyncio.run(_read(arguments))
    except FleetTimeout as error:
        _show(error.fleet, arguments)
        return _fail(str(error))
    except KubeError as error:
        return _fail(_explain(error))
    if not fleet.pods:
        return _fail(f"no pod matches {fleet.selector} in namespace {fleet.namespace}")
    _show(fleet, arguments)
    if all(pod.answer is None for pod in fleet.pods):
        return _fail("no agent answered")
    return 0


async def _read(arguments: argparse.Namespace) -> Fleet:
    kubeconfig = Path(arguments.kubeconfig) if arguments.kubeconfig is not None else None
    async with open_client(kubeconfig) as client:
        namespace, selector = arguments.namespace or client.namespace, arguments.selector
        port, https = arguments.port or DEFAULT_PORT, arguments.https
        if arguments.wait:
            return await wait_converged(
                client,
                namespace=namespace,
                selector=selector,
                port=port,
                https=https,
                digest=None,
                deadline_seconds=arguments.timeout,
            )
        return await look(client, namespace=namespace, selector=selector, port=port, https=https)


def _show(fleet: Fleet, arguments: argparse.Namespace) -> None:
    if arguments.json:
        write_json(fleet_json(fleet, targets=arguments.targets))
        return
    if not fleet.pods:
        return
    now = time.time()  # noqa: TID251 - a command is its own composition root
    cells = rows(fleet, now, targets=arguments.targets)
    table = table_lines(cells, headings(fleet, targets=arguments.targets))
    for line in (head_line(fleet), "", *table):
        write_line(line)


def _explain(error: KubeError) -> str:
    if isinstance(error, KubeDenied) and error.forbidden:
        return f"{error}; needs list on pods and get on pods/proxy"
    return str(error)


def _fail(message: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"model-sidecar status: {printable(message)}\n")
    return 1
