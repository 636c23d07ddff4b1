"""What is known of the pods of a fleet, and whether they converged. Pure.

A pod whose agent was not heard is unknown, with the reason: nothing is concluded from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from sys import intern
from typing import Any

AGENT_CONTAINER, AGENT_PORT = "model-sidecar", "sidecar"
"""Names that injection gives to the agent's container and to its port."""
ROLLOUT_LABELS = ("pod-template-hash", "controller-revision-hash")
"""Set by Deployments, and by StatefulSets and DaemonSets: pods of one template share the value."""
ENDED = frozenset({"Succeeded", "Failed"})
SHOWN_PODS, SHOWN_TARGETS = 10, 3
SHOWN_DIGEST = 12

Json = Mapping[str, Any]


class NoAgent(Exception):
    """What answered is no agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTarget:
    """One target of one pod, in the words of ``/status``."""

    name: str
    kind: str
    desired: bool
    state: str
    revision: str
    reason: str
    message: str

    @property
    def settled(self) -> bool:
        """Nothing of it keeps its pod from being converged."""
        return (self.state == "resident") == self.desired and not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAnswer:
    """What one agent says of its pod."""

    version: str
    digest: str
    """Of the last document that it accepted; empty when there is none."""
    source: str
    problems: int
    """Problems of the document as it is now."""
    converged: bool
    ready: bool
    reasons: tuple[str, ...]
    cycle: str
    targets: tuple[FleetTarget, ...]
    """By name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPod:
    """One pod: as the API server knows it, and as its agent does."""

    name: str
    uid: str
    phase: str
    leaving: bool
    """It is being deleted."""
    address: str
    """Its IP; empty while it has none."""
    rollout: str
    """The same for pods of one template; empty for pods that nothing rolls out."""
    created_at: float
    """Unix seconds."""
    port: int
    https: bool
    answer: FleetAnswer | None = None
    """None: unknown."""
    trouble: str = ""
    """Why it is unknown."""

    @property
    def runs(self) -> bool:
        """It is one of those that a wait is for."""
        return self.phase == "Running" and not self.leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The pods of one selector, by name."""

    namespace: str
    selector: str
    pods: tuple[FleetPod, ...] = ()


def parse_pod(item: Json, *, port: int, https: bool) -> FleetPod:
    """Read one Pod object; ``port`` and ``https`` are for pods that injection did not make."""
    metadata, status = item.get("metadata") or {}, item.get("status") or {}
    labels = metadata.get("labels") or {}
    known_port, known_https = _agent_port(item.get("spec") or {})
    return FleetPod(
        name=str(metadata.get("name")),
        uid=str(metadata.get("uid")),
        phase=intern(str(status.get("phase") or "Pending")),
        leaving="deletionTimestamp" in metadata,
        address=str(status.get("podIP") or ""),
        rollout=intern(next((str(labels[one]) for one in ROLLOUT_LABELS if one in labels), "")),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]).timestamp(),
        port=known_port or port,
        https=https or known_https,
    )


def _agent_port(spec: Json) -> tuple[int | None, bool]:
    """Return where the agent listens, as its own container says, and whether it is probed so."""
    # A native sidecar is an init container.
    for one in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        if one.get("name") == AGENT_CONTAINER:
            probe = (one.get("readinessProbe") or {}).get("httpGet") or {}
            ports = {port.get("name"): port.get("containerPort") for port in one.get("ports") or ()}
            return ports.get(AGENT_PORT), probe.get("scheme") == "HTTPS"
    return None, False


def why_not_asked(pod: FleetPod) -> str:
    """Say why there is nobody to ask; empty when there is."""
    if pod.phase in ENDED:
        return f"it has ended: {pod.phase}"
    return "" if pod.address else f"it has no address yet: {pod.phase}"


def parse_answer(status: Json) -> FleetAnswer:
    """Read what ``/status`` answered. Raises ``NoAgent``."""
    targets, document = status.get("targets"), status.get("document")
    if not isinstance(targets, dict) or not isinstance(document, dict):
        raise NoAgent
    try:
        return FleetAnswer(
            version=intern(str(status.get("version") or "")),
            digest=intern(str(document.get("digest") or "")),
            source=intern(str(document.get("source") or "")),
            problems=len(document.get("problems") or ()),
            converged=bool(status.get("converged")),
            ready=bool(status.get("ready")),
            reasons=tuple(intern(str(one)) for one in status.get("reasons") or ()),
            cycle=intern(str(status.get("cycle") or "")),
            targets=tuple(_parse_target(targets[name]) for name in sorted(targets)),
        )
    except (AttributeError, TypeError) as error:
        raise NoAgent from error


def _parse_target(one: Json) -> FleetTarget:
    # Pods of one fleet say the same of the same targets: what they say is held once.
    def text(field: str) -> str:
        return intern(str(one.get(field) or ""))

    return FleetTarget(
        name=text("name"),
        kind=text("kind"),
        desired=bool(one.get("desired")),
        state=text("state"),
        revision=text("revision"),
        reason=text("reason"),
        message=text("message"),
    )


def settled_answers(fleet: Fleet, digest: str | None) -> dict[str, FleetAnswer]:
    """Return what those running pods said, by UID, that converged; see ``unsettled``."""
    waiting = unsettled(fleet, digest)
    return {
        pod.uid: pod.answer
        for pod in fleet.pods
        if pod.runs and pod.answer is not None and pod.name not in waiting
    }


def has_converged(fleet: Fleet, digest: str | None) -> bool:
    """Tell whether there are running pods, and all of them converged; see ``unsettled``."""
    return any(pod.runs for pod in fleet.pods) and not unsettled(fleet, digest)


def unsettled(fleet: Fleet, digest: str | None) -> dict[str, str]:
    """Say of each running pod that did not converge why not.

    With ``digest`` they are to converge on that document; without, on one document for all pods of
    one template (of pods without a template: for all that read it from the same place).
    """
    running = [pod for pod in fleet.pods if pod.runs]
    split = _split_rollouts(running) if digest is None else {}
    reasons = {pod.name: _why(pod, digest) or split.get(_rollout(pod), "") for pod in running}
    return {name: why for name, why in reasons.items() if why}


def say_unsettled(fleet: Fleet, digest: str | None) -> str:
    """Say in one sentence which running pods did not converge, and why."""
    waiting = unsettled(fleet, digest)
    running = sum(1 for pod in fleet.pods if pod.runs)
    if not running:
        return f"no pod runs; pods that match {fleet.selector}: {len(fleet.pods)}"
    parts = [f"{name}: {why}" for name, why in list(waiting.items())[:SHOWN_PODS]]
    if len(waiting) > SHOWN_PODS:
        parts.append(f"{len(waiting) - SHOWN_PODS} more pods")
    return f"{len(waiting)} of {running} running pods did not converge; " + "; ".join(parts)


def _why(pod: FleetPod, digest: str | None) -> str:
    answer = pod.answer
    if answer is None:
        return f"unknown: {pod.trouble}"
    if digest is not None and answer.digest != digest:
        has = f"has document {answer.digest[:SHOWN_DIGEST]}" if answer.digest else "has no document"
        return f"{has}, not {digest[:SHOWN_DIGEST]}" + _problems(answer, ", and ")
    return "" if answer.converged else why_unconverged(answer)


def why_unconverged(answer: FleetAnswer) -> str:
    """Say in one sentence what keeps an agent from being converged."""
    waiting = [one for one in answer.targets if not one.settled]
    parts = [_say_target(one) for one in waiting[:SHOWN_TARGETS]]
    if len(waiting) > SHOWN_TARGETS:
        parts.append(f"{len(waiting) - SHOWN_TARGETS} more targets")
    if problems := _problems(answer):
        parts.append(problems)
    return ", ".join(parts) or answer.cycle or "no cycle has ended yet"


def _say_target(one: FleetTarget) -> str:
    said = f": {one.message}" if one.message else ""
    return f"{one.name} ({one.reason or one.state}{said})"


def _problems(answer: FleetAnswer, before: str = "") -> str:
    if not answer.problems:
        return ""
    noun = "problem" if answer.problems == 1 else "problems"
    return f"{before}the document has {answer.problems} {noun}"


def _rollout(pod: FleetPod) -> str:
    """Return the same for pods that should hold one document."""
    return pod.rollout or (pod.answer.source if pod.answer is not None else "")


def _split_rollouts(pods: Iterable[FleetPod]) -> dict[str, str]:
    """Name the rollouts whose pods hold different documents, and say which."""
    held: defaultdict[str, set[str]] = defaultdict(set)
    for pod in pods:
        if pod.answer is not None:
            held[_rollout(pod)].add(pod.answer.digest)
    return {
        rollout: "pods like it hold different documents: "
        + ", ".join(sorted(one[:SHOWN_DIGEST] or "none" for one in digests))
        for rollout, digests in held.items()
        if len(digests) > 1
    }
