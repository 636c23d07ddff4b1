"""``models``: edits a model-config ConfigMap, and waits until the pods converged on it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base import Kind
from sidecar.cluster.entries import MichelangeloModel, ModelEntry, NativeModel
from sidecar.commands.models_words import list_json, list_lines, say_written
from sidecar.commands.output import count, printable, problems_json, write_json, write_line
from sidecar.core.desired import Format, Readiness, Rollout
from sidecar.errors import DocumentError, SidecarError
from sidecar.flags import UsageError

if TYPE_CHECKING:
    from sidecar.cluster.modelconfig import ModelConfig, Written
    from sidecar.kube.client import KubeClient

EXIT_FAILED = 1
EXIT_ABSENT = 2
NEEDED = {
    "list": "get",
    "exists": "get",
    "add": "get, update",
    "remove": "get, update",
    "create": "create",
    "delete": "get, delete",
}
"""Verbs on configmaps that each operation needs."""

NATIVE_ONLY = (
    "kind",
    "digest",
    "base_model",
    "readiness",
    "rollout_percent",
    "rollout_otherwise",
    "warmup",
    "pinned",
    "credentials",
    "refresh_seconds",
    "parameters",
)
MICHELANGELO_ONLY = ("deployment", "phase", "canary_pod")


def main(arguments: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    """Carry out one operation; ``exists`` answers 2 for no. Raises ``UsageError``."""
    if getattr(arguments, "wait", False) and not arguments.selector:
        raise UsageError("--wait needs to know the pods: name them with -l SELECTOR")
    if getattr(arguments, "selector", None) and not arguments.wait:
        raise UsageError("-l names the pods that --wait waits for: give both")
    try:
        return asyncio.run(_run(arguments))
    except DocumentError as error:
        hint = f"; {error.hint}" if error.hint else ""
        return _fail(f"{error.where}: {error}{hint}")
    except SidecarError as error:
        return _fail(_explain(error, arguments))


async def _run(arguments: argparse.Namespace) -> int:
    # The Kubernetes client costs half a second and 30 MB.
    from sidecar.cluster.modelconfig import ModelConfig
    from sidecar.kube.client import open_client

    kubeconfig = Path(arguments.kubeconfig) if arguments.kubeconfig is not None else None
    form = Format(arguments.format) if arguments.format is not None else None
    async with open_client(kubeconfig) as client:
        try:
            config = ModelConfig(
                client,
                arguments.namespace,
                arguments.configmap,
                format=form,
                key=arguments.config_key,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        match arguments.operation:
            case "list":
                return await _list(config, as_json=arguments.json)
            case "exists":
                return await _exists(config, as_json=arguments.json)
            case "create":
                written = await config.create()
            case "delete":
                written = await config.delete()
            case "add":
                written = await config.add(_entry(arguments, form or await config.find_format()))
            case _:
                written = await config.remove(arguments.name, deployment=arguments.deployment or "")
        return await _finish(arguments, client, config, written)


def _entry(arguments: argparse.Namespace, form: Format) -> ModelEntry:
    """Return the entry that the flags describe. Raises ``UsageError``."""
    of_another = NATIVE_ONLY if form is Format.MICHELANGELO else MICHELANGELO_ONLY
    for name in of_another:
        if getattr(arguments, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: documents of format {form} have no such field")
    if form is Format.MICHELANGELO:
        return MichelangeloModel(
            name=arguments.name,
            source=arguments.source,
            deployment=arguments.deployment or "",
            phase=arguments.phase or "",
            canary_pod=arguments.canary_pod or "",
        )
    rollout = None
    if arguments.rollout_percent is not None:
        percent, otherwise = arguments.rollout_percent, arguments.rollout_otherwise
        rollout = Rollout(percent=percent, otherwise=otherwise)
    elif arguments.rollout_otherwise is not None:
        raise UsageError("--rollout-otherwise needs --rollout-percent")
    return NativeModel(
        name=arguments.name,
        source=arguments.source,
        kind=Kind(arguments.kind) if arguments.kind is not None else None,
        digest=arguments.digest,
        base_model=arguments.base_model,
        readiness=Readiness(arguments.readiness) if arguments.readiness is not None else None,
        rollout=rollout,
        warmup=arguments.warmup,
        pinned=arguments.pinned,
        credentials=arguments.credentials,
        refresh_seconds=arguments.refresh_seconds,
        parameters=arguments.parameters,
    )


async def _list(config: ModelConfig, *, as_json: bool) -> int:
    listing = await config.list()
    if as_json:
        write_json(list_json(str(config.address), listing))
    else:
        for line in list_lines(str(config.address), listing):
            write_line(line)
    return 0 if listing.valid else EXIT_FAILED


async def _exists(config: ModelConfig, *, as_json: bool) -> int:
    exists = await config.exists()
    if as_json:
        write_json({"configmap": str(config.address), "exists": exists})
    else:
        write_line(f"{config.address} {'exists' if exists else 'does not exist'}")
    return 0 if exists else EXIT_ABSENT


async def _finish(
    arguments: argparse.Namespace, client: KubeClient, config: ModelConfig, written: Written
) -> int:
    """Say what was done, and wait for the pods where that is asked."""
    operation, name = arguments.operation, getattr(arguments, "name", "")
    if not arguments.json:
        for line in say_written(operation, name, str(config.address), written):
            write_line(line)
        sys.stdout.flush()
    converged, trouble = None, ""
    if getattr(arguments, "wait", False):
        converged, trouble = await _wait(arguments, client, config, written)
    if arguments.json:
        write_json(
            {
                "configmap": str(config.address),
                "operation": operation,
                **({"name": name} if name else {}),
                "changed": written.changed,
                "key": written.key or None,
                "digest": written.digest,
                "problems": problems_json(written.problems),
                "comments_lost": written.comments_lost,
                "converged": converged,
            }
        )
    return _fail(trouble) if trouble else 0


async def _wait(
    arguments: argparse.Namespace, client: KubeClient, config: ModelConfig, written: Written
) -> tuple[bool | None, str]:
    """Return whether the pods converged, None where there is nothing to do, and why not."""
    from sidecar.cluster.fleet import FleetTimeout, wait_converged
    from sidecar.kube.errors import KubeDenied

    if written.digest is None:
        return None, ""
    try:
        fleet = await wait_converged(
            client,
            namespace=config.address.namespace,
            selector=arguments.selector,
            port=arguments.port,
            digest=written.digest,
            deadline_seconds=arguments.timeout,
        )
    except FleetTimeout as error:
        return False, f"it was written, and the pods did not follow: {error}"
    except KubeDenied as error:
        needs = "; needs list on pods and get on pods/proxy" if error.forbidden else ""
        return False, f"it was written, and the pods cannot be asked: {error}{needs}"
    if not arguments.json:
        write_line(f"{count(len(fleet.pods), 'pod')} with {arguments.selector}: converged")
    return True, ""


def _explain(error: SidecarError, arguments: argparse.Namespace) -> str:
    from sidecar.kube.errors import KubeDenied

    # What a policy refuses is a 403 too, and no right helps.
    if isinstance(error, KubeDenied) and error.forbidden and " cannot " in str(error):
        verbs = NEEDED[arguments.operation]
        return f"{error}; needs {verbs} on configmaps/{arguments.configmap}"
    return str(error)


def _fail(message: str) -> int:
    sys.stdout.flush()
    first, *rest = message.split("\n")
    sys.stderr.write(f"model-sidecar models: {printable(first)}\n")
    for line in rest:
        sys.stderr.write(f"{printable(line)}\n")
    return EXIT_FAILED
