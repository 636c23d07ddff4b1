"""What the agent costs: memory, time to start, and CPU while nothing happens."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.cluster import NAME, open_cluster
from bench.documents import KEY, Mount, native, write_loras
from bench.processes import Agent, Engine
from bench.report import NOT_MEASURED, NotMeasuredError, Table, median, megabytes, seconds
from lab import LabError

FEW = 5
MANY = 1000
STARTS = 7
IDLE_SECONDS = 60.0
REST_SECONDS = 10.0
"""After convergence, before memory is read and idleness begins."""
DEADLINE_SECONDS = 120.0
START_DEADLINE_SECONDS = 20.0


def run(work: Path) -> list[Table]:
    """Measure, and return the table."""
    loras = write_loras(work / "loras", MANY)
    started = [_start(work / f"start-{number}") for number in range(STARTS)]
    columns = ("figure", "median", "slowest or greatest")
    with ExitStack() as running:
        few = _open(running, work / "few", loras[:FEW])
        many = _open(running, work / "many", loras)
        time.sleep(REST_SECONDS)
        resident, peak = many.resident_bytes(), many.peak_bytes()
        before = few.cpu_seconds(), many.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        idle = [
            (after - earlier) / IDLE_SECONDS
            for after, earlier in zip((few.cpu_seconds(), many.cpu_seconds()), before, strict=True)
        ]
    through_api = _memory_through_api(work / "api", loras)
    rows = (
        (f"resident memory, {MANY:,} targets, file mode", megabytes(resident), megabytes(peak)),
        (f"resident memory, {MANY:,} targets, API mode", *through_api),
        ("start to the first answer on /live", seconds(median(started)), seconds(max(started))),
        (f"CPU while idle, {FEW} targets", _share(idle[0]), ""),
        (f"CPU while idle, {MANY:,} targets", _share(idle[1]), ""),
    )
    notes = (
        "Memory after convergence, and its peak on the way there. "
        f"{STARTS} starts. Idle: resync every 5 s, nobody asks, {IDLE_SECONDS:g} s.",
    )
    return [Table("Footprint", columns, rows, notes)]


def _share(value: float) -> str:
    return f"{value * 100:.2f} % of a core"


def _open(running: ExitStack, work: Path, loras: Sequence[Path]) -> Agent:
    mount = Mount(work / "config")
    mount.write(native(loras))
    engine = running.enter_context(Engine(work))
    agent = running.enter_context(Agent(work, engine, [f"--config-dir={mount.path}"]))
    agent.wait_holds(len(loras), DEADLINE_SECONDS)
    return agent


def _memory_through_api(work: Path, loras: Sequence[Path]) -> tuple[str, str]:
    try:
        cluster = open_cluster(work)
    except LabError:
        return NOT_MEASURED, ""
    with cluster:
        kubeconfig = cluster.allow_agent()
        cluster.patch({KEY: native(loras)})
        source = [f"--configmap={NAME}", f"--kubeconfig={kubeconfig}"]
        with Engine(work) as engine, Agent(work, engine, source) as agent:
            agent.wait_holds(len(loras), DEADLINE_SECONDS)
            time.sleep(REST_SECONDS)
            return megabytes(agent.resident_bytes()), megabytes(agent.peak_bytes())


def _start(work: Path) -> float:
    """Return how long one agent takes from its start to its first answer."""
    mount = Mount(work / "config")
    mount.write(native(()))
    with Engine(work) as engine:
        agent = Agent(work, engine, [f"--config-dir={mount.path}"])
        began = time.monotonic()
        agent.process.start()
        try:
            while not _is_live(agent.port):
                if time.monotonic() - began > START_DEADLINE_SECONDS:
                    raise NotMeasuredError("the agent does not answer on /live")
                time.sleep(0.005)
            return time.monotonic() - began
        finally:
            agent.process.stop()


def _is_live(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/live")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
