"""How often somebody is right about the LoRA slots of a real vLLM, and how late.

The truth is what `lab.probe` read in the engine's worker. A belief is a set of names at a moment.
All times are monotonic seconds.
"""

from __future__ import annotations

import json
import re
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol, Self

from lab.probe import SlotState
from sidecar.core.residency import LoraTracker
from tests.support.agent_process import AgentProcess
from tests.support.residency_workload import Call

Names = frozenset[str]

STEP_SECONDS = 0.05
_INFO = re.compile(r"^vllm:lora_requests_info\{([^\n]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def activity(page: str) -> list[tuple[float, tuple[str, ...]]]:
    """The sets of running LoRAs on a page, each with its time, oldest first."""
    found = []
    for labels, value in _INFO.findall(page):
        names = dict(_LABEL.findall(labels))["running_lora_adapters"].split(",")
        found.append((float(value), tuple(name for name in names if name)))
    return sorted(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What an agent said at one moment; None where it did not answer."""

    at: float
    page: Names | None
    """``running`` on its picker page."""
    status: Names | None
    """``in_slot`` in its status."""
    residents: Names
    """What the engine held, as far as the agent knew; what it knew last where it is silent."""


class Watcher:
    """Looks at an agent every 50 ms, as pickers do."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.moments: list[Moment] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.is_set():
            at = time.monotonic()
            self.moments.append(self._look(at))
            self._stop.wait(max(0.0, at + STEP_SECONDS - time.monotonic()))

    def _look(self, at: float) -> Moment:
        page = status = None
        residents = self.moments[-1].residents if self.moments else frozenset()
        try:
            answer = self._agent.metrics()
            if answer.status == 200:
                newest = activity(answer.text)
                page = frozenset(newest[-1][1]) if newest else frozenset()
            targets = self._agent.status()["targets"]
            status = frozenset(name for name, one in targets.items() if one.get("in_slot"))
            residents = frozenset(n for n, one in targets.items() if one["state"] == "resident")
        except OSError:
            pass  # The agent is being restarted.
        return Moment(at=at, page=page, status=status, residents=residents)


class Truth:
    """What was really in the slots at each moment."""

    def __init__(self, states: Sequence[SlotState]) -> None:
        self._states = states
        self._times = [state.at for state in states]

    def during(self, began: float, ended: float) -> list[Names]:
        """What was in the slots within a stretch of time, oldest first."""
        first = max(0, bisect_right(self._times, began) - 1)
        last = max(first + 1, bisect_right(self._times, ended))
        return [frozenset(state.names) for state in self._states[first:last]]

    def changes(self, after: float) -> Iterator[tuple[float, float, str, bool]]:
        """Yield when a LoRA came into a slot or left it, until when it stayed like that, its
        name, and whether it came."""
        last: dict[str, tuple[float, bool]] = {}
        held: Names = frozenset()
        for state in self._states:
            now = frozenset(state.names)
            for name in now ^ held:
                if name in last and last[name][0] > after:
                    began, came = last[name]
                    yield began, state.at, name, came
                last[name] = (state.at, name in now)
            held = now
        for name, (began, came) in last.items():
            if began > after:
                yield began, float("inf"), name, came


@dataclass(slots=True)
class Score:
    """Pairs of a moment and a resident LoRA, and moments, that a belief was right about."""

    pairs: int = 0
    right: int = 0
    claims: int = 0
    """Pairs that were said to be in a slot."""
    held: int = 0
    """Those of them that were."""
    moments: int = 0
    exact: int = 0

    def add(self, belief: Names, truths: Sequence[Names], residents: Names) -> None:
        """Count one moment; right is what was true at any time of it."""
        wrong = {
            name
            for name in residents
            if all((name in belief) != (name in truth) for truth in truths)
        }
        self.pairs += len(residents)
        self.right += len(residents - wrong)
        claimed = belief & residents
        self.claims += len(claimed)
        self.held += len(claimed - wrong)
        self.moments += 1
        self.exact += not wrong

    @property
    def share(self) -> float:
        """Share of the pairs that are right."""
        return self.right / self.pairs if self.pairs else 0.0

    def __str__(self) -> str:
        held, exact = self.held / max(1, self.claims), self.exact / max(1, self.moments)
        return (
            f"{100 * self.share:5.1f} % of {self.pairs} pairs right, {100 * held:5.1f} % of those "
            f"said to be in a slot are, {100 * exact:5.1f} % of moments without a mistake"
        )


Scored = dict[str, Score]
Sample = tuple[float, float, Names, Names]
"""From and to, the belief, the residents."""


def score(samples: Iterable[Sample], truth: Truth, is_busy: Callable[[float], bool]) -> Scored:
    """Score at all moments, at those with a request in flight, and at those with none."""
    scores = {"all": Score(), "busy": Score(), "rest": Score()}
    for began, ended, belief, residents in samples:
        truths = truth.during(began, ended)
        for kind in ("all", "busy" if is_busy(began) else "rest"):
            scores[kind].add(belief, truths, residents)
    return scores


def delays(moments: Sequence[Moment], truth: Truth, after: float) -> tuple[list[float], int]:
    """How long after each change of a resident's slot the page shows it, and how many changes
    were over before any page showed them."""
    shown, missed = [], 0
    times = [moment.at for moment in moments]
    for began, until, name, came in truth.changes(after):
        stretch = moments[bisect_left(times, began) : bisect_left(times, until)]
        if not stretch or name not in stretch[0].residents:
            continue
        seen = (one.at for one in stretch if one.page is not None and (name in one.page) == came)
        at = next(seen, None)
        if at is None:
            missed += 1
        else:
            shown.append(at - began)
    return shown, missed


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Model(Protocol):
    """A belief about the slots, from what an agent hears."""

    def loaded(self, name: str, at: float) -> None: ...
    def forgotten(self, name: str) -> None: ...
    def active(self, activity: Iterable[tuple[float, tuple[str, ...]]]) -> None: ...
    def in_slot(self) -> Names | None: ...


class ActivityOnly:
    """The simplest model, that of a picker that reads the engine's own page: who has requests."""

    def __init__(self) -> None:
        self._running: Names = frozenset()

    def loaded(self, name: str, at: float) -> None:
        """Change nothing."""

    def forgotten(self, name: str) -> None:
        """Change nothing."""

    def active(self, activity: Iterable[tuple[float, tuple[str, ...]]]) -> None:
        for _, names in activity:
            self._running = frozenset(names)

    def in_slot(self) -> Names:
        return self._running


class FirstInFirstOut:
    """Slots that give way in the order in which they were filled."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._queue: list[str] = []

    def loaded(self, name: str, at: float) -> None:
        if name not in self._queue:
            self._queue = [*self._queue, name][-self._slots :]

    def forgotten(self, name: str) -> None:
        # Its weights keep their slot.
        self._queue = ["" if one == name else one for one in self._queue]

    def active(self, activity: Iterable[tuple[float, tuple[str, ...]]]) -> None:
        for at, names in activity:
            for name in names:
                self.loaded(name, at)

    def in_slot(self) -> Names:
        return frozenset(self._queue) - {""}


def lru(slots: int) -> Model:
    """The model of the agent itself."""
    return LoraTracker(max_loras=slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A belief, and the stretch in which the engine said what it rests on."""

    began: float
    ended: float
    belief: Names


def residents_at(moments: Sequence[Moment], at: float) -> Names:
    """What the engine held at a time, as far as the agent knew."""
    return moments[max(0, bisect_right(moments, at, key=lambda one: one.at) - 1)].residents


def replayed(model: Model, calls: Sequence[Call]) -> list[Heard]:
    """Feed a model with the calls of an agent, and return its belief at each page."""
    heard: list[Heard] = []
    known = -1.0
    for call in sorted(calls, key=lambda call: call.ended):
        if call.status != 200:
            continue
        if call.path.startswith("/metrics"):
            sets = activity(call.body.decode())
            model.active([one for one in sets if one[0] > known])
            known = sets[-1][0] if sets else known
            belief = model.in_slot() or frozenset()
            heard.append(Heard(began=call.began, ended=call.ended, belief=belief))
        elif call.path.endswith("/load_lora_adapter"):
            model.loaded(json.loads(call.payload)["lora_name"], call.unix)
        elif call.path.endswith("/unload_lora_adapter"):
            model.forgotten(json.loads(call.payload)["lora_name"])
    return heard


def describe_delays(shown: Sequence[float], missed: int) -> str:
    """The delays in words."""
    return (
        f"a change of a slot is on the page after {1000 * median(shown):.0f} ms (median), "
        f"{1000 * quantile(shown, 0.99):.0f} ms (p99); {len(shown)} changes, "
        f"{missed} more were over before a page showed them"
    )
