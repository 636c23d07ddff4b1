"""What the agent tells the cluster of its own pod, as the flags say; off by default."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sidecar.board import Board
from sidecar.cluster.conditions import PodConditions
from sidecar.cluster.events import PodEvents
from sidecar.cluster.pod import PodIdentity
from sidecar.settings import Settings

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


def open_telling(settings: Settings, board: Board, now: Callable[[], float]) -> dict[str, Work]:
    """Return the tasks to run beside the agent's own, by name; ``now`` gives unix seconds."""
    pod = PodIdentity(
        name=settings.pod_name, namespace=settings.pod_namespace, uid=settings.pod_uid
    )
    kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig is not None else None
    tasks: dict[str, Work] = {}
    if settings.events and not pod.uid:
        log.warning("--events is off: it needs POD_UID, from the downward API")
    elif settings.events:
        tasks["events"] = PodEvents(board, pod, kubeconfig=kubeconfig, now=now).run
    if settings.condition:
        names = tuple(dict.fromkeys(settings.condition))
        conditions = PodConditions(board, pod, names, kubeconfig=kubeconfig, now=now)
        tasks["conditions"] = conditions.run
    return tasks
