"""What routers make of the pages: the same requests for each of them, turn by turn."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.picker.arms import ORACLE, ROUND_ROBIN, Arm, rotated
from bench.picker.client import Asked, Router
from bench.picker.clocks import cpu_seconds
from bench.picker.place import Place
from bench.picker.routers import Gateway, Oracle, RoundRobin
from bench.picker.truth import Figures, LoneFigures, figures, lone_figures
from bench.picker.workload import LONE, PHASES, SHARED, schedule
from bench.report import NotMeasuredError
from lab import LabError
from lab.picker import Picker

SWITCH_SECONDS = 6.0
"""Allowed between two runs for a picker's start and end, the slots' reset and the last answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One router, one turn."""

    phases: Mapping[str, Figures]
    lone: LoneFigures
    cpu: Mapping[str, float]
    """Of processes, as shares of a core, over the whole run."""


@dataclass(slots=True)
class Results:
    """Whole turns: in each of them every router had the same requests."""

    turns: list[dict[Arm, Run]] = field(default_factory=list)
    wanted: int = 0

    def of(self, arm: Arm) -> list[Run]:
        """Return the runs of a router."""
        return [turn[arm] for turn in self.turns if arm in turn]


def run(
    place: Place, arms: Sequence[Arm], *, turns: int, scale: float, seed: str, deadline: float
) -> Results:
    """Run every router in every turn, as many turns as end before the deadline (monotonic).

    A turn that is not whole is kept when there is no other.
    """
    results = Results(wanted=turns)
    seconds = sum(phase.seconds for phase in PHASES) * scale + SWITCH_SECONDS
    longest = 0.0
    for turn in range(turns):
        done: dict[Arm, Run] = {}
        begun = time.monotonic()
        if begun + longest > deadline:
            break
        for arm in rotated(arms, turn, turns):
            if time.monotonic() + seconds > deadline:
                if not results.turns and done:
                    results.turns.append(done)
                return results
            try:
                done[arm] = _run_one(place, arm, scale=scale, seed=f"{seed}/{turn}")
            except (LabError, NotMeasuredError, OSError) as exc:
                print(f"not measured: {arm.key}: {exc}", file=sys.stderr, flush=True)
        results.turns.append(done)
        longest = max(longest, time.monotonic() - begun)
    return results


def _run_one(place: Place, arm: Arm, *, scale: float, seed: str) -> Run:
    place.reset()
    with _router(place, arm) as (router, picker):
        due = schedule(
            PHASES, place.loras, place.lone, capacity=place.capacity, scale=scale, seed=seed
        )
        pids = _processes(place, picker)
        began, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in pids.items()}
        begun, asked = place.client(router).send(due)
        seconds = time.monotonic() - began
        cpu = {name: (cpu_seconds(pid) - before[name]) / seconds for name, pid in pids.items()}
    return _judge(place, begun, asked, scale=scale, cpu=cpu)


@contextmanager
def _router(place: Place, arm: Arm) -> Iterator[tuple[Router, Picker | None]]:
    if arm == ROUND_ROBIN:
        yield RoundRobin(tuple(place.probes)), None
    elif arm == ORACLE:
        yield Oracle(place.probes, place.lone, place.lone_pod.engine_endpoint), None
    else:
        assert arm.page is not None
        picker = place.picker(arm.label, place.page_port(arm.page))
        try:
            yield Gateway(picker.url.removeprefix("http://")), picker
        finally:
            picker.stop()


def _processes(place: Place, picker: Picker | None) -> dict[str, int]:
    pods = place.lab.pods
    pids = {f"API of {pod.name}": pod.engine.process.pid for pod in pods}
    pids |= {f"agent of {pod.name}": pod.agent.pid for pod in pods}
    if picker is not None:
        pids |= {"EPP": picker.epp.process.pid, "Envoy": picker.envoy.process.pid}
    return pids


def _judge(
    place: Place, begun: float, asked: Sequence[Asked], *, scale: float, cpu: Mapping[str, float]
) -> Run:
    histories = place.histories()
    by_phase: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        by_phase[one.due.phase].append(one)
    phases, at = {}, begun
    for phase in PHASES:
        end = at + phase.seconds * scale
        if phase in SHARED:
            phases[phase.name] = figures(by_phase[phase.name], histories, at, end)
        at = end
    lone = lone_figures(by_phase[LONE.name], place.lone, place.lone_pod.engine_endpoint)
    return Run(phases=phases, lone=lone, cpu=cpu)
