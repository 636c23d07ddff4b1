"""``--events``: Kubernetes Events on the pod, for what ``kubectl describe pod`` shows.

Written in the background: an API server that is slow, away or unwilling holds up nothing. They are
core/v1 Events, as the kubelet's own on the same pod: ``count`` and ``lastTimestamp`` are what tools
read and sort by. Needs create and patch on events in the pod's namespace.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidecar.board import Board
from sidecar.cluster.notices import Happening, Watched, watch
from sidecar.cluster.outbox import Outbox, Record
from sidecar.cluster.pod import (
    COMPONENT,
    REQUEST_SECONDS,
    RETRY_SECONDS,
    PodIdentity,
    wait_for_ever,
)
from sidecar.kube.client import KubeClient, open_client
from sidecar.kube.errors import KubeDenied, KubeError, KubeNotFound

IDLE_SECONDS = 3600.0
MAX_MESSAGE_BYTES = 1000
"""An API server takes 1024 in newer kinds of Event; more does not fit a line anyway."""

log = logging.getLogger(__name__)


class PodEvents:
    """Watches the board, and writes what happened; off for good once it was refused (403)."""

    def __init__(
        self,
        board: Board,
        pod: PodIdentity,
        *,
        kubeconfig: Path | None,
        now: Callable[[], float],
    ) -> None:
        """``now`` gives unix seconds."""
        self._board = board
        self._pod = pod
        self._kubeconfig = kubeconfig
        self._now = now
        self._outbox = Outbox()
        self._watched: Watched | None = None
        self._troubled = False
        self._off = False

    async def run(self) -> None:
        """Work until cancelled."""
        while not self._off:
            status = self._board.status
            self._watched, notices = watch(self._watched, status, self._now())
            self._outbox.add(notices, self._now())
            if self._outbox.due_in(self._now()) == 0.0:
                await self._write_due()
            elif self._board.status is status:
                due = self._outbox.due_in(self._now())
                await self._board.wait_changed(IDLE_SECONDS if due is None else due)
        await wait_for_ever()

    async def _write_due(self) -> None:
        try:
            async with open_client(self._kubeconfig) as client:
                while (record := self._outbox.take(self._now())) is not None:
                    try:
                        await self._write(client, record)
                    except KubeError:
                        self._outbox.give_back(record)
                        raise
            self._troubled = False
        except KubeDenied as error:
            self._refused(error)
        except KubeError as error:
            self._wait(error)

    async def _write(self, client: KubeClient, record: Record) -> None:
        """Write one record: on the Event that it repeats, or as a new one."""
        namespace = self._pod.namespace or client.namespace
        path = f"/api/v1/namespaces/{namespace}/events"
        event, whole = self._outbox.repeated(record)
        if not event or not await _was_changed(client, f"{path}/{event}", whole):
            event = f"{self._pod.name}.{secrets.token_hex(8)}"
            body = event_object(whole, self._pod, namespace, event)
            await client.send_json("POST", path, body, timeout=REQUEST_SECONDS)
        self._outbox.written(whole, event)

    def _refused(self, error: KubeDenied) -> None:
        if not error.forbidden:
            self._wait(error)
            return
        self._off = True
        log.warning(
            "--events is off until the agent restarts: %s; needs create, patch on events", error
        )

    def _wait(self, error: KubeError) -> None:
        self._outbox.hold(self._now() + RETRY_SECONDS)
        if not self._troubled:
            log.warning("Events on the pod have to wait: %s", error)
        self._troubled = True


async def _was_changed(client: KubeClient, path: str, record: Record) -> bool:
    """Count a repeat on its Event; False when that is there no more."""
    try:
        await client.send_json(
            "PATCH",
            path,
            _changes(record),
            content_type="application/merge-patch+json",
            timeout=REQUEST_SECONDS,
        )
    except KubeNotFound:
        return False
    return True


def event_object(record: Record, pod: PodIdentity, namespace: str, name: str) -> dict[str, Any]:
    """Return a core/v1 Event on the pod."""
    happening, _ = record.key
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod.name,
            "namespace": namespace,
            "uid": pod.uid,
        },
        "reason": str(happening),
        "type": "Warning" if happening is Happening.FAILED else "Normal",
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": pod.name,
        "firstTimestamp": _timestamp(record.first_at),
        **_changes(record),
    }


def _changes(record: Record) -> dict[str, Any]:
    message = record.message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    return {
        "message": message,
        "count": record.count,
        "lastTimestamp": _timestamp(record.last_at),
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
