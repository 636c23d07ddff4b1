"""The pods that are measured: real engines whose slots are watched, their agents, their LoRAs."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.picker import arms
from bench.picker.client import Client, Router, complete
from bench.picker.routers import RoundRobin
from bench.picker.truth import History
from bench.picker.workload import Phase, schedule
from bench.report import NotMeasuredError
from lab.picker import Picker, PickerLab, Pod, wait_until
from lab.probe import Probe
from lab.tiny_model import ATTENTION, MLP, write_lora
from sidecar.core.documents.resolve import Pod as Identity
from sidecar.core.documents.resolve import is_in_share

CONVERGE_SECONDS = 120.0
SEEN_SECONDS = 10.0
CAPACITY_SECONDS = 6.0
AT_ONCE = 8
"""Requests in flight on each pod while its capacity is measured: what an engine of the lab computes
at once."""
LEAST_RATE = 2.0
"""Requests a second; a machine that does less has no time for us."""
LONE_PERCENT = 50
ENGINE_ENV = {
    # By default every engine binds its only thread to the same core, and the others stand idle.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the routers are compared on."""

    pods: int = 2
    slots: int = 4
    """For LoRAs, of each pod."""
    loras: int = 16
    """That every pod holds."""
    rank: int = 16
    tokens: int = 4
    """Of each answer."""
    labels: str = "auto"
    """The agents' `--lora-labels`."""


class Place:
    """Entering it starts the engines, and waits until every pod holds every LoRA."""

    def __init__(self, work: Path, shape: Shape, *, capacity: float | None = None) -> None:
        """Without a ``capacity`` in requests a second, it is measured."""
        self.shape = shape
        self.work = work
        probes = {f"pod-{n}": Probe(work / f"slots-{n}.jsonl") for n in range(shape.pods)}
        self.lab = PickerLab(
            work,
            addresses=[f"127.0.0.{number + 2}" for number in range(shape.pods)],
            max_loras=shape.slots,
            # Room for all in host memory: slots are filled from there, not from disk.
            max_cpu_loras=2 * shape.loras,
            engine_args=[f"--max-lora-rank={shape.rank}"],
            agent_flags=[f"--lora-labels={shape.labels}"],
            engine_env=lambda name: {**ENGINE_ENV, **probes[name].env()},
        )
        self.probes = {pod.engine_endpoint: probes[pod.name] for pod in self.lab.pods}
        """By the `address:port` of the engine."""
        self.loras = tuple(f"lora-{number:02}" for number in range(shape.loras))
        """Most popular first."""
        self.lone, self.lone_pod = _lone(self.lab.pods)
        self.capacity = capacity or 0.0
        """Requests a second, all pods together."""
        self._runs = itertools.count(1)

    def __enter__(self) -> Self:
        self.lab.start()
        try:
            self._load()
            self.capacity = self.capacity or self._measure_capacity()
        except BaseException:
            self.lab.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.lab.stop()

    def _load(self) -> None:
        entries: list[dict[str, Any]] = []
        for seed, name in enumerate((*self.loras, self.lone)):
            path = self.work / "loras" / name
            write_lora(path, seed=seed, rank=self.shape.rank, target_modules=(*ATTENTION, *MLP))
            entries.append({"name": name, "source": str(path)})
        # One document for all pods, as one ConfigMap is.
        entries[-1]["rollout"] = {"percent": LONE_PERCENT}
        for pod in self.lab.pods:
            pod.apply(entries, CONVERGE_SECONDS)
            targets = pod.status()["targets"]
            held = {name for name, one in targets.items() if one["state"] == "resident"}
            wanted = {*self.loras, *([self.lone] if pod is self.lone_pod else [])}
            if held != wanted:
                raise NotMeasuredError(f"{pod.name} differs in {', '.join(sorted(held ^ wanted))}")

    def histories(self) -> dict[str, History]:
        """Return what the slots of every engine held until now."""
        return {endpoint: History(probe) for endpoint, probe in self.probes.items()}

    def page_port(self, page: arms.Page) -> int:
        """Return the port at which every pod has that page."""
        return self.lab.ports.engine if page is arms.Page.ENGINE else self.lab.ports.agent

    def page_url(self, page: arms.Page) -> str:
        """Return where the first pod has that page."""
        return f"http://{self.lab.pods[0].address}:{self.page_port(page)}/metrics"

    def client(self, router: Router) -> Client:
        """Return a client whose prompts are new to every engine."""
        return Client(router, tokens=self.shape.tokens, run=f"{next(self._runs):05}")

    def picker(
        self, weights: str, port: int, *, endpoints: Path | None = None, ready: int | None = None
    ) -> Picker:
        """Start a picker, and wait until it has read every pod's page, or those of ``ready``."""
        text = arms.config(weights, port=port, endpoints=endpoints or self.lab.endpoints)
        picker = self.lab.picker(f"picker-{next(self._runs)}", text)
        expected = len(self.lab.pods) if ready is None else ready
        try:
            wait_until(
                "scrape of every pod",
                lambda: picker.epp.total("llm_d_epp_ready_endpoints") == expected,
                SEEN_SECONDS,
            )
        except BaseException:
            picker.stop()
            raise
        return picker

    def reset(self) -> None:
        """Fill the slots of every pod with the least popular LoRAs, as before any other run."""
        last = self.loras[-self.shape.slots :]

        def fill(endpoint: str) -> None:
            for name in last:
                status, _ = complete(endpoint, name, f"{next(self._runs):05} reset", 1)
                if status != 200:
                    raise NotMeasuredError(f"{endpoint} answered {status} for {name}")

        with ThreadPoolExecutor(max_workers=len(self.probes)) as threads:
            list(threads.map(fill, self.probes))
        for endpoint, probe in self.probes.items():
            if set(probe.slots()) != set(last):
                raise NotMeasuredError(f"the slots of {endpoint} hold {probe.slots()}, not {last}")

    def _measure_capacity(self) -> float:
        """Ask every pod at once, round robin, with a fixed number of requests in flight."""
        router = RoundRobin(tuple(self.probes))
        # More than can be answered: the names and their order are all that is taken of them.
        many = Phase(name="capacity", seconds=1.0, load=1.0)
        names = [due.lora for due in schedule([many], self.loras, "", capacity=1000.0, seed="0")]
        for _ in range(2):
            # The first round is the engines' warm-up.
            rate = self._closed_loop(router, deque(names))
        if rate < LEAST_RATE:
            raise NotMeasuredError(f"all pods together answer {rate:.1f} requests a second")
        return rate

    def _closed_loop(self, router: RoundRobin, names: deque[str]) -> float:
        begun = time.monotonic()
        end = begun + CAPACITY_SECONDS / 2

        def work(_: int) -> int:
            answered = 0
            while time.monotonic() < end:
                lora = names.popleft()
                names.append(lora)
                place = router.choose(lora)
                prompt = f"{next(self._runs):05} how fast"
                answered += complete(place, lora, prompt, self.shape.tokens)[0] == 200
            return answered

        count = AT_ONCE * len(self.probes)
        with ThreadPoolExecutor(max_workers=count) as threads:
            answered = sum(threads.map(work, range(count)))
        return answered / (time.monotonic() - begun)


def _lone(pods: Sequence[Pod]) -> tuple[str, Pod]:
    """Return a name that a rollout gives to one pod alone, and that pod."""
    for name in map("lone-{}".format, itertools.count()):
        holders = [
            pod
            for pod in pods
            if is_in_share(name, Identity(name=pod.name, uid=pod.name), LONE_PERCENT)
        ]
        if len(holders) == 1:
            return name, holders[0]
    raise AssertionError
