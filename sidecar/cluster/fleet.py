"""Many pods at a glance: each pod's agent is asked through the API server's pod proxy.

Needs ``list`` on pods and ``get`` on pods/proxy. ``look`` holds one page of pods and the answers
of ``ASK_AT_ONCE`` agents at a time; of an answer only what ``FleetAnswer`` has is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from sidecar.cluster.fleet_facts import (
    Fleet,
    FleetAnswer,
    FleetPod,
    FleetTarget,
    NoAgent,
    has_converged,
    parse_answer,
    parse_pod,
    say_unsettled,
    settled_answers,
    unsettled,
    why_not_asked,
)
from sidecar.errors import SidecarError
from sidecar.kube.client import KubeClient
from sidecar.kube.errors import (
    KubeDenied,
    KubeError,
    KubeGone,
    KubeNotFound,
    KubeProtocolError,
    KubeRedirected,
    KubeUnavailable,
)

__all__ = [
    "Fleet",
    "FleetAnswer",
    "FleetPod",
    "FleetTarget",
    "FleetTimeout",
    "has_converged",
    "look",
    "unsettled",
    "wait_converged",
]

PAGE_PODS = 100
LIST_SECONDS = 15.0
LIST_ATTEMPTS = 3
"""A page after the first can come too late (410): the list is begun anew."""
ASK_SECONDS = 5.0
"""Deadline of one agent's answer."""
LOOK_SECONDS = 300.0
"""Of one look at everybody: long enough for 1,500 pods that hang."""
ASK_AT_ONCE = 32
LEAST_SECONDS = 0.1
"""What a request begun just before the end still gets."""
NOT_REACHED = "error trying to reach service: "
"""How the pod proxy begins what it says of a pod that it cannot connect to (1.36)."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0


class FleetTimeout(SidecarError):
    """Not every running pod converged in time; ``fleet`` is how they stood last."""

    def __init__(self, fleet: Fleet, why: str) -> None:
        super().__init__(why)
        self.fleet = fleet


async def look(
    client: KubeClient, *, namespace: str, selector: str, port: int, https: bool = False
) -> Fleet:
    """List the pods of ``selector`` and ask each for its status.

    ``port`` and ``https`` are for pods whose agent's container does not say: without the names
    that injection gives. Raises ``KubeError`` when the pods cannot be listed; a pod that does not
    answer is in the fleet, as unknown.
    """
    until = time.monotonic() + LOOK_SECONDS
    asker = _Asker(client, namespace, selector, port=port, https=https, until=until)
    return await asker.ask(await asker.list())


async def wait_converged(
    client: KubeClient,
    *,
    namespace: str,
    selector: str,
    port: int,
    digest: str | None,
    deadline_seconds: float,
    https: bool = False,
) -> Fleet:
    """Look until every running pod converged: on ``digest``, or else on one document a template.

    Pods that are pending, ended or being deleted are not waited for; without any running one it
    waits for the first. Raises ``FleetTimeout`` after ``deadline_seconds``, and ``KubeError`` when
    the API server refuses to list the pods.
    """
    until = time.monotonic() + deadline_seconds
    asker = _Asker(client, namespace, selector, port=port, https=https, until=until)
    fleet = Fleet(namespace=namespace, selector=selector)
    pause = FIRST_PAUSE_SECONDS
    while True:
        trouble: KubeUnavailable | None = None
        try:
            fleet = await _turn(asker, fleet, digest)
        except KubeUnavailable as error:
            trouble = error
        if trouble is None and has_converged(fleet, digest):
            return fleet
        if (left := until - time.monotonic()) < FIRST_PAUSE_SECONDS:
            why = str(trouble) if trouble is not None else say_unsettled(fleet, digest)
            raise FleetTimeout(fleet, f"not converged within {deadline_seconds:g} s: {why}")
        # Half of what is left, so that the last look is near the end and not cut short by it.
        await asyncio.sleep(min(pause, left / 2))  # noqa: TID251 - between looks there is no event
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


async def _turn(asker: _Asker, before: Fleet, digest: str | None) -> Fleet:
    """Ask those that had not converged; where that was the last of them, everybody once more."""
    listed = await asker.list()
    known = settled_answers(before, digest)
    fleet = await asker.ask(listed, known)
    return await asker.ask(listed) if known and has_converged(fleet, digest) else fleet


class _Asker:
    """One question to the pods of one selector, until ``until`` by the monotonic clock."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        selector: str,
        *,
        port: int,
        https: bool,
        until: float,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._selector = selector
        self._port = port
        self._https = https
        self._until = until
        self._path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods"

    async def list(self) -> Fleet:
        """Return the pods, none of them asked."""
        for _ in range(LIST_ATTEMPTS - 1):
            try:
                return await self._list_once()
            except KubeGone:
                continue
        return await self._list_once()

    async def ask(self, fleet: Fleet, known: Mapping[str, FleetAnswer] | None = None) -> Fleet:
        """Return the fleet with every pod's answer; ``known`` has those not to ask, by UID."""
        slots = asyncio.Semaphore(ASK_AT_ONCE)

        async def ask(pod: FleetPod) -> FleetPod:
            if known is not None and pod.uid in known:
                return replace(pod, answer=known[pod.uid])
            async with slots:
                return await self._ask_one(pod)

        return replace(fleet, pods=tuple(await asyncio.gather(*map(ask, fleet.pods))))

    async def _list_once(self) -> Fleet:
        query = {"labelSelector": self._selector, "limit": str(PAGE_PODS)}
        pods: list[FleetPod] = []
        while True:
            page = await self._client.get_json(self._path, query, timeout=self._left(LIST_SECONDS))
            try:
                items = page["items"]
                pods += [parse_pod(one, port=self._port, https=self._https) for one in items]
                resume = (page.get("metadata") or {}).get("continue")
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise KubeProtocolError("the API server sent what is no list of pods") from error
            if not resume:
                break
            query["continue"] = str(resume)
        pods.sort(key=lambda pod: pod.name)
        return Fleet(namespace=self._namespace, selector=self._selector, pods=tuple(pods))

    async def _ask_one(self, pod: FleetPod) -> FleetPod:
        if why := why_not_asked(pod):
            return replace(pod, trouble=why)
        if time.monotonic() >= self._until:
            return replace(pod, trouble="it was not asked in time")
        scheme = "https:" if pod.https else ""
        path = f"{self._path}/{scheme}{pod.name}:{pod.port}/proxy/status"
        seconds = self._left(ASK_SECONDS)
        try:
            status = await self._client.get_json(path, {}, timeout=seconds)
            return replace(pod, answer=parse_answer(status))
        except NoAgent:
            return replace(pod, trouble=f"what listens on port {pod.port} is no agent")
        except KubeError as error:
            return replace(pod, trouble=_explain(error, pod, self._namespace, seconds))

    def _left(self, seconds: float) -> float:
        return max(LEAST_SECONDS, min(seconds, self._until - time.monotonic()))


def _explain(error: KubeError, pod: FleetPod, namespace: str, seconds: float) -> str:
    """Say what to do about a pod that did not answer."""
    match error:
        case KubeDenied(forbidden=True) if "pods/proxy" in str(error):
            return f"403: needs get on pods/proxy in namespace {namespace}"
        case KubeNotFound() if "pods " in str(error):
            return "it is gone"
        case KubeRedirected():
            return f"what listens on port {pod.port} is no agent: it answers with a redirect"
        case KubeProtocolError() | KubeNotFound():
            return f"what listens on port {pod.port} is no agent"
        case KubeUnavailable() if isinstance(error.__cause__, TimeoutError):
            return f"no answer from port {pod.port} within {seconds:g} s"
        case KubeUnavailable() if NOT_REACHED in str(error):
            return f"port {pod.port} is not reached: {str(error).partition(NOT_REACHED)[2]}"
        case _:
            return str(error)
