"""A hundred agents on one API server: what they cost it, and how they come back after a restart.

Five are real processes; the others are their sources alone, each with a client, connections and a
random of its own. Requests are counted by the server's audit log, watches by its gauge, bytes on
the wire, with TLS.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from lab.kube import Kube
from sidecar.core.snapshot import Snapshot
from sidecar.sources.base import BACKOFF_FIRST_SECONDS
from sidecar.sources.kube import KubeSource
from tests.support.agent_process import AgentProcess, Json
from tests.support.cluster_audit import Asked, Audit
from tests.support.cluster_place import NAME, ClusterPlace
from tests.support.cluster_tokens import MountedToken
from tests.support.cluster_wire import LoopThread, Wire
from tests.support.snapshots import Published, running

pytestmark = pytest.mark.kube

AGENTS = 100
PROCESSES = 5
WAIT_SECONDS = 60.0
IDLE_SECONDS = 10.0
OUTAGE_FAILURES = 5
OUTAGE_SECONDS = BACKOFF_FIRST_SECONDS * (2.0**OUTAGE_FAILURES - 1)
"""By then each has failed at least so often: even the longest waits end within it."""
MEAN_WAIT_SECONDS = BACKOFF_FIRST_SECONDS * 2.0**OUTAGE_FAILURES / 2
"""Half of the step from which the next wait is drawn."""
PEAK = 1.5 * AGENTS / MEAN_WAIT_SECONDS
"""Requests in the worst second: not much more than such waits bring when they are long spread."""


@pytest.fixture
def wire(audited_cluster: Kube) -> Iterator[Wire]:
    with LoopThread() as thread, Wire(thread, audited_cluster.port) as wire:
        yield wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What went on between two moments."""

    asked: tuple[Asked, ...]
    connections: int
    sent: int
    received: int

    @property
    def verbs(self) -> Counter[str]:
        return Counter(one.verb for one in self.asked)

    def __str__(self) -> str:
        requests = ", ".join(f"{count} {verb}" for verb, count in sorted(self.verbs.items()))
        return (
            f"{requests or 'no requests'}; {self.connections} connections; "
            f"{self.sent:,} bytes sent, {self.received:,} received"
        )


class Meter:
    """Tells what went on since it was asked last."""

    def __init__(self, audit: Audit, user: str, wire: Wire) -> None:
        self._audit, self._user, self._wire = audit, user, wire
        self._before = (0, 0, 0, 0)

    def read(self) -> Cost:
        asked = self._audit.received(self._user)
        wire = self._wire
        now = (len(asked), wire.connections, wire.sent_bytes, wire.received_bytes)
        before, self._before = self._before, now
        return Cost(
            asked=tuple(asked[before[0] :]),
            connections=now[1] - before[1],
            sent=now[2] - before[2],
            received=now[3] - before[3],
        )


def open_watches(kube: Kube) -> int:
    """How many watches of one ConfigMap are open, by the server's own gauge."""
    page = kube.kubectl("get", "--raw", "/metrics")
    lines = re.findall(r"(?m)^apiserver_longrunning_requests\{(.*)\} (\d+)$", page)
    wanted = ('resource="configmaps"', 'verb="WATCH"', 'scope="resource"')
    return sum(int(value) for labels, value in lines if all(one in labels for one in wanted))


def worst_second(asked: tuple[Asked, ...], verb: str) -> int:
    """The most requests of a kind in any second."""
    times = sorted(one.at for one in asked if one.verb == verb)
    return max(sum(start <= at < start + 1.0 for at in times) for start in times)


class Fleet:
    """The agents, and what each of them has seen."""

    def __init__(self, place: ClusterPlace, kubeconfig: Path, work: Path) -> None:
        self.place = place
        self._kubeconfig = kubeconfig
        self._work = work
        self._seen: list[Published] = []
        self._agents: list[AgentProcess] = []

    async def start(self, stack: AsyncExitStack) -> None:
        for number in range(PROCESSES):
            agent = AgentProcess(
                self._work / f"agent-{number}",
                engine="fake",
                documents=[f"--configmap={NAME}", f"--kubeconfig={self._kubeconfig}"],
            )
            stack.callback(agent.stop)
            self._agents.append(agent)
        await asyncio.gather(*(asyncio.to_thread(agent.start) for agent in self._agents))
        for number in range(AGENTS - PROCESSES):
            source = KubeSource(NAME, None, kubeconfig=self._kubeconfig, random=Random(number))
            self._seen.append(await stack.enter_async_context(running(source)))

    async def edit(self, generation: int) -> None:
        """Change the document; every ``generation`` is another one."""
        entries = [{"name": f"m-{number}", "source": "/none"} for number in range(generation)]
        await asyncio.to_thread(self.place.write, *entries)

    async def wait_seen(self, generation: int) -> None:
        """Wait until every agent has seen that document."""

        def shows(snapshot: Snapshot) -> bool:
            text = snapshot.files.get("models.yaml", "{}")
            return len(json.loads(text).get("models", ())) == generation

        def knows(status: Json) -> bool:
            return len(status["targets"]) == generation

        async with asyncio.timeout(WAIT_SECONDS):
            for published in self._seen:
                await published.wait_for(shows, WAIT_SECONDS)
        for agent in self._agents:
            await asyncio.to_thread(agent.wait_status, knows, WAIT_SECONDS)


async def pass_seconds(seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


async def test_a_hundred_agents_cost_a_watch_each_and_come_back_spread(
    audited_cluster: Kube,
    wire: Wire,
    audit: Audit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_property,
):
    place = ClusterPlace(audited_cluster, "fleet")
    place.allow()
    token = MountedToken(tmp_path / "token")
    token.rotate(place.grant()[0])
    kubeconfig = place.kubeconfig(tmp_path / "kubeconfig", token.file, wire.port)
    fleet, meter = Fleet(place, kubeconfig, tmp_path), Meter(audit, place.user, wire)
    before = open_watches(audited_cluster)
    await fleet.edit(1)
    async with AsyncExitStack() as stack:
        await fleet.start(stack)
        await fleet.wait_seen(1)
        await wait_watches(audited_cluster, before + AGENTS)
        start = meter.read()
        await fleet.edit(2)
        await fleet.wait_seen(2)
        edit = meter.read()
        await pass_seconds(IDLE_SECONDS)
        idle = meter.read()
        await restart(audited_cluster, wire, fleet)
        await fleet.wait_seen(3)
        await wait_watches(audited_cluster, before + AGENTS)
        back = meter.read()
    peak = worst_second(back.asked, "list")
    figures = (
        f"{AGENTS} agents, {PROCESSES} of them processes\n"
        f"  start: {start}\n  one edit: {edit}\n  {IDLE_SECONDS:g} s idle: {idle}\n"
        f"  after {OUTAGE_SECONDS:g} s without a server: {back}; "
        f"at most {peak} lists in a second"
    )
    record_property("fleet", figures)
    with capsys.disabled():
        print(f"\n{figures}")
    assert start.verbs == {"list": AGENTS, "watch": AGENTS}
    assert start.connections == AGENTS
    assert (edit.asked, edit.connections) == ((), 0)
    assert (idle.asked, idle.connections) == ((), 0)
    assert back.verbs == {"list": AGENTS, "watch": AGENTS}
    assert peak <= PEAK


async def wait_watches(cluster: Kube, count: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await asyncio.to_thread(open_watches, cluster) != count:
            await pass_seconds(0.2)


async def restart(cluster: Kube, wire: Wire, fleet: Fleet) -> None:
    """Crash the server, start it again, and let the agents reach it once all have failed often."""
    began = time.monotonic()
    await asyncio.to_thread(wire.cut)
    await asyncio.to_thread(cluster.kill_apiserver)
    await asyncio.to_thread(cluster.start_apiserver)
    await fleet.edit(3)
    await pass_seconds(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
    await asyncio.to_thread(wire.mend)
