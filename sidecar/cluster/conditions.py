"""``--condition``: conditions in the pod's status, for readiness gates and ``kubectl wait``.

Set in the background when they change. Needs patch on pods/status in the pod's namespace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidecar.board import Board
from sidecar.cluster.pod import REQUEST_SECONDS, RETRY_SECONDS, PodIdentity, wait_for_ever
from sidecar.core.status import EngineCondition, Status
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeDenied, KubeError

PREFIX = "model-sidecar.io/"
PAUSE_SECONDS = 1.0
"""Between two changes of what a condition is."""
MESSAGE_SECONDS = 30.0
"""Between two changes of its message alone: some count seconds."""
IDLE_SECONDS = 3600.0
MAX_MESSAGE_CHARACTERS = 1000
SHOWN_TARGETS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition, as it should be."""

    name: str
    is_true: bool
    message: str
    since: float = 0.0
    """Unix seconds at which ``is_true`` last changed."""


def conditions_of(status: Status, names: Iterable[str]) -> dict[str, Condition] | None:
    """Return the conditions by name; None while nobody knows how the pod is.

    That is so when the agent alone restarted: what was set before still holds.
    """
    if status.engine.state is EngineCondition.UNKNOWN:
        return None
    known = {
        "ready": Condition(name="ready", is_true=status.ready, message=" ".join(status.reasons)),
        "converged": Condition(
            name="converged", is_true=status.converged, message=_why_unconverged(status)
        ),
    }
    return {name: known[name] for name in names}


def due_in(
    wanted: Mapping[str, Condition], told: Mapping[str, Condition], told_at: float, now: float
) -> float | None:
    """Return the seconds until ``wanted`` is to be set; None when it is as told already."""
    pause: float | None = None
    for name, one in wanted.items():
        before = told.get(name)
        if before is None or before.is_true != one.is_true:
            pause = PAUSE_SECONDS
        elif before.message != one.message and pause is None:
            pause = MESSAGE_SECONDS
    return None if pause is None else max(0.0, told_at + pause - now)


def patch_of(conditions: Iterable[Condition], pod: PodIdentity) -> dict[str, Any]:
    """Return the strategic merge patch that sets these conditions, and leaves others alone."""
    # Where a new pod has taken the name, its UID is another, and the API server refuses: 422.
    metadata = {"metadata": {"uid": pod.uid}} if pod.uid else {}
    return metadata | {
        "status": {
            "conditions": [
                {
                    "type": PREFIX + one.name,
                    "status": str(one.is_true),
                    "reason": ("" if one.is_true else "Not") + one.name.capitalize(),
                    "message": one.message[:MAX_MESSAGE_CHARACTERS],
                    "lastTransitionTime": datetime.fromtimestamp(one.since, UTC).strftime(
                        "%Y-%m-%dT%H:%M:%SZ"
                    ),
                }
                for one in conditions
            ]
        }
    }


class PodConditions:
    """Watches the board and sets the conditions; off for good once it was refused (403)."""

    def __init__(
        self,
        board: Board,
        pod: PodIdentity,
        names: tuple[str, ...],
        *,
        kubeconfig: Path | None,
        now: Callable[[], float],
    ) -> None:
        """``names`` are ``ready`` and ``converged``; ``now`` gives unix seconds."""
        self._board = board
        self._pod = pod
        self._names = names
        self._kubeconfig = kubeconfig
        self._now = now
        self._told: dict[str, Condition] = {}
        self._tried_at = 0.0
        self._not_before = 0.0
        self._troubled = False
        self._off = False

    async def run(self) -> None:
        """Work until cancelled."""
        while not self._off:
            status = self._board.status
            now = self._now()
            wanted = conditions_of(status, self._names)
            due = due_in(wanted, self._told, self._tried_at, now) if wanted is not None else None
            wait = IDLE_SECONDS if due is None else max(due, self._not_before - now)
            if wanted is not None and wait <= 0:
                await self._set(wanted)
            elif self._board.status is status:
                await self._board.wait_changed(wait)
        await wait_for_ever()

    async def _set(self, wanted: Mapping[str, Condition]) -> None:
        self._tried_at = now = self._now()
        dated = {name: _dated(one, self._told.get(name), now) for name, one in wanted.items()}
        try:
            async with open_client(self._kubeconfig) as client:
                namespace = self._pod.namespace or client.namespace
                await client.send_json(
                    "PATCH",
                    f"/api/v1/namespaces/{namespace}/pods/{self._pod.name}/status",
                    patch_of(dated.values(), self._pod),
                    content_type="application/strategic-merge-patch+json",
                    timeout=REQUEST_SECONDS,
                )
            self._told, self._troubled = dated, False
        except KubeError as error:
            self._failed(error)

    def _failed(self, error: KubeError) -> None:
        if isinstance(error, KubeDenied) and error.forbidden:
            self._off = True
            log.warning(
                "--condition is off until the agent restarts: %s; needs patch on pods/status", error
            )
            return
        self._not_before = self._now() + RETRY_SECONDS
        if not self._troubled:
            log.warning("the pod's conditions have to wait: %s", error)
        self._troubled = True


def _dated(one: Condition, before: Condition | None, now: float) -> Condition:
    same = before is not None and before.is_true == one.is_true
    return replace(one, since=before.since if same and before is not None else now)


def _why_unconverged(status: Status) -> str:
    if status.converged:
        return ""
    waiting = [
        f"{one.name} ({one.reason or one.state})"
        for one in status.targets.values()
        if (one.desired and not one.converged) or (not one.desired and one.reason)
    ]
    more = f" and {len(waiting) - SHOWN_TARGETS} more" if len(waiting) > SHOWN_TARGETS else ""
    parts = [", ".join(waiting[:SHOWN_TARGETS]) + more] if waiting else []
    if status.document.problems:
        parts.append(f"problems of the document: {len(status.document.problems)}")
    return "; ".join(parts)
