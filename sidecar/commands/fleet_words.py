"""The pods of a fleet as lines, rows and JSON. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sidecar.cluster.fleet_facts import (
    SHOWN_DIGEST,
    Fleet,
    FleetAnswer,
    FleetPod,
    FleetTarget,
    has_converged,
    unsettled,
    why_unconverged,
)
from sidecar.commands.output import count, printable
from sidecar.commands.table import REVISION_CHARACTERS, age

HEADINGS = ("POD", "READY", "CONVERGED", "DOCUMENT", "AGE", "AGENT")
UNKNOWN, NOTHING = "unknown", "-"


def head_line(fleet: Fleet) -> str:
    """Say how the fleet as a whole stands."""
    pods = fleet.pods
    answers = [pod.answer for pod in pods if pod.answer is not None]
    documents = Counter(answer.digest for answer in answers)
    parts = [
        f"{sum(pod.runs for pod in pods)} running",
        f"{sum(answer.ready for answer in answers)} ready",
        f"{sum(answer.converged for answer in answers)} converged",
        f"{len(pods) - len(answers)} unknown",
        count(len(documents), "document"),
    ]
    return printable(
        f"{count(len(pods), 'pod')} of {fleet.selector} in {fleet.namespace}: {', '.join(parts)}"
    )


def headings(fleet: Fleet, *, targets: bool) -> tuple[str, ...]:
    """Return the headings: with ``targets``, one a target that any pod knows."""
    return (*HEADINGS, *map(printable, _names(fleet) if targets else ()), "REASON")


def rows(fleet: Fleet, now: float, *, targets: bool) -> list[tuple[str, ...]]:
    """Return one row a pod; ``now`` is unix seconds."""
    waiting = unsettled(fleet, None)
    names = _names(fleet) if targets else ()
    return [
        tuple(map(printable, (*_pod_cells(pod, now), *_cells(pod, names), _reason(pod, waiting))))
        for pod in fleet.pods
    ]


def fleet_json(fleet: Fleet, *, targets: bool, digest: str | None = None) -> dict[str, Any]:
    """Return the plain form of a fleet; a pod that did not answer has ``unknown`` instead."""
    return {
        "namespace": fleet.namespace,
        "selector": fleet.selector,
        "converged": has_converged(fleet, digest),
        "pods": [_pod_json(pod, targets=targets) for pod in fleet.pods],
    }


def _names(fleet: Fleet) -> list[str]:
    answers = (pod.answer for pod in fleet.pods if pod.answer is not None)
    return sorted({one.name for answer in answers for one in answer.targets})


def _pod_cells(pod: FleetPod, now: float) -> tuple[str, ...]:
    old = age(max(0.0, now - pod.created_at))
    if (answer := pod.answer) is None:
        return (pod.name, UNKNOWN, UNKNOWN, UNKNOWN, old, UNKNOWN)
    digest = answer.digest[:SHOWN_DIGEST] or NOTHING
    return (pod.name, _yes(answer.ready), _yes(answer.converged), digest, old, answer.version)


def _cells(pod: FleetPod, names: list[str] | tuple[()]) -> list[str]:
    if pod.answer is None:
        return [UNKNOWN for _ in names]
    held = {one.name: one for one in pod.answer.targets}
    return [_target_cell(held[name]) if name in held else NOTHING for name in names]


def _target_cell(one: FleetTarget) -> str:
    parts = [one.state, one.revision[:REVISION_CHARACTERS], one.reason]
    return " ".join(part for part in parts if part)


def _reason(pod: FleetPod, waiting: dict[str, str]) -> str:
    if (answer := pod.answer) is None:
        return pod.trouble
    parts = [*(("is being deleted",) if pod.leaving else ()), *answer.reasons]
    if why := waiting.get(pod.name) or _unconverged(answer):
        parts.append(why)
    return "; ".join(parts)


def _unconverged(answer: FleetAnswer) -> str:
    return "" if answer.converged else why_unconverged(answer)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _pod_json(pod: FleetPod, *, targets: bool) -> dict[str, Any]:
    known: dict[str, Any] = {
        "name": pod.name,
        "phase": pod.phase,
        "leaving": pod.leaving,
        "rollout": pod.rollout,
        "created_at": pod.created_at,
    }
    if (answer := pod.answer) is None:
        return known | {"unknown": pod.trouble}
    known |= {
        "version": answer.version,
        "digest": answer.digest,
        "source": answer.source,
        "problems": answer.problems,
        "converged": answer.converged,
        "ready": answer.ready,
        "reasons": answer.reasons,
        "cycle": answer.cycle,
    }
    if targets:
        known["targets"] = {one.name: _target_json(one) for one in answer.targets}
    return known


def _target_json(one: FleetTarget) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "desired": one.desired,
        "state": one.state,
        "revision": one.revision,
        "reason": one.reason,
        "message": one.message,
    }
