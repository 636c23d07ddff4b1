"""What scraping costs: the API process of the engine, by the number of pickers, and the picker."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from bench.picker.arms import ROOT, UPSTREAM, Page, rotated
from bench.picker.clocks import cpu_seconds
from bench.picker.place import Place
from bench.picker.relay import Relay
from bench.picker.routers import RoundRobin
from bench.picker.workload import LIGHT, Phase, schedule
from bench.report import NOT_MEASURED, NotMeasuredError, Table, median
from lab import LabError
from lab.process import Process
from lab.web import get

PICKERS = (1, 3, 10)
"""The first is the EPP itself; the others only ask, as often as it does."""
SETTLE_SECONDS = 0.6
WINDOW_SECONDS = 2.0
EPP_SECONDS = 3.0
PART_OF_TIME = 0.35
"""Of what is left when it begins."""
TIMES_LESS = 20
"""For the picker to parse and to work: the aim."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Who asks, and what else the engine has to do."""

    page: Page | None
    pickers: int
    is_busy: bool


@dataclass(frozen=True, slots=True)
class ApiCost:
    """Of one window."""

    share: float
    """CPU of the engine's API process, as a share of a core."""
    asked: float | None
    """Answers a second that the pickers beside the EPP got from the page; None without any."""


@dataclass(frozen=True, slots=True)
class EppCost:
    """Of one window of an idle picker."""

    share: float
    """Its CPU, as a share of a core."""
    scrapes: float
    """A second, of all pods."""
    wire_bytes: float
    """Of one answer, with its head."""


class Bare(StrEnum):
    """What an EPP costs before there is anything to parse."""

    NO_POD = "no pod"
    EMPTY = "empty page"


ApiCosts = Mapping[Setup, list[ApiCost]]
EppCosts = Mapping[Page | Bare, list[EppCost]]


def run(place: Place, turns: int, *, deadline: float) -> list[Table]:
    """Measure both ends, turn by turn; no turn begins after the deadline (monotonic)."""
    setups = [
        Setup(page, count, is_busy)
        for is_busy in (False, True)
        for page, count in ((None, 0), *((page, count) for count in PICKERS for page in Page))
    ]
    api: dict[Setup, list[ApiCost]] = defaultdict(list)
    epp: dict[Page | Bare, list[EppCost]] = defaultdict(list)
    begun = 0
    for turn in range(turns):
        if time.monotonic() > deadline:
            break
        begun += 1
        for setup in rotated(setups, turn, turns):
            # What one of them cannot be measured for, the next may.
            with _reported(f"{setup}"):
                api[setup].append(_api_cost(place, setup, turn))
        for page in rotated([*Bare, *Page], turn, turns):
            with _reported(f"EPP, {page}"):
                epp[page].append(_epp_cost(place, page))
    return [_api_table(api, begun), _epp_table(place, epp)]


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except (LabError, NotMeasuredError, OSError) as exc:
        print(f"not measured: {what}: {exc}", file=sys.stderr, flush=True)


def _api_cost(place: Place, setup: Setup, turn: int) -> ApiCost:
    pid = place.lab.pods[0].engine.process.pid
    with ExitStack() as stack:
        if setup.page is not None:
            picker = place.picker(UPSTREAM, place.page_port(setup.page))
            stack.callback(picker.stop)
        pollers = None
        if setup.page is not None and setup.pickers > 1:
            pollers = stack.enter_context(_pollers(place, setup.page, setup.pickers - 1))
        if setup.is_busy:
            stack.enter_context(_background(place, f"scraping/{turn}"))
        time.sleep(SETTLE_SECONDS)
        begun, before = time.monotonic(), cpu_seconds(pid)
        time.sleep(WINDOW_SECONDS)
        ended, after = time.monotonic(), cpu_seconds(pid)
        asked = _answers(pollers, begun, ended) if pollers else None
    return ApiCost(share=(after - before) / (ended - begun), asked=asked)


@contextmanager
def _pollers(place: Place, page: Page, count: int) -> Iterator[Process]:
    log = place.work / "pollers.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.picker.poller", place.page_url(page), str(count)]
    process = Process("pollers", command, log=log, cwd=ROOT)
    with process:
        process.wait_ready(lambda: log.stat().st_size > 0, 10.0)
        yield process
        process.kill()


def _answers(pollers: Process, begun: float, ended: float) -> float:
    """Return the answers a second in a window."""
    said = [json.loads(line) for line in pollers.log.read_text().splitlines()[:-1]]
    within = [one for one in said if begun <= one["at"] <= ended]
    if len(within) < 2 or within[-1]["answered"] == within[0]["answered"]:
        raise NotMeasuredError("the pollers got no answer")
    first, last = within[0], within[-1]
    return float((last["answered"] - first["answered"]) / (last["at"] - first["at"]))


@contextmanager
def _background(place: Place, seed: str) -> Iterator[None]:
    """Ask the engines, past every picker, at the light load."""
    phase = Phase(name="background", seconds=SETTLE_SECONDS + WINDOW_SECONDS, load=LIGHT)
    due = schedule([phase], place.loras, "", capacity=place.capacity, seed=seed)
    client = place.client(RoundRobin(tuple(place.probes)))
    with ThreadPoolExecutor(max_workers=1) as threads:
        sending = threads.submit(client.send, due)
        yield
        _, asked = sending.result()
    if any(one.status != 200 for one in asked):
        raise NotMeasuredError("requests of the background failed")


def _epp_cost(place: Place, page: Page | Bare) -> EppCost:
    """Watch an idle picker."""
    nobody = place.work / "nobody.yaml"
    nobody.write_text('{"endpoints": []}')
    with ExitStack() as stack:
        target = None if isinstance(page, Bare) else place.page_port(page)
        relay = stack.enter_context(Relay([pod.address for pod in place.lab.pods], target))
        # Nothing was read of an endpoint whose page is empty, so it does not count as ready.
        ready = None if target is not None else 0
        endpoints = nobody if page is Bare.NO_POD else place.lab.endpoints
        picker = place.picker(UPSTREAM, relay.port, endpoints=endpoints, ready=ready)
        stack.callback(picker.stop)
        time.sleep(SETTLE_SECONDS)
        pid = picker.epp.process.pid
        begun, requests, received = time.monotonic(), relay.requests, relay.answer_bytes
        before = cpu_seconds(pid)
        time.sleep(EPP_SECONDS)
        seconds, cpu = time.monotonic() - begun, cpu_seconds(pid) - before
        requests, received = relay.requests - requests, relay.answer_bytes - received
    return EppCost(
        share=cpu / seconds, scrapes=requests / seconds, wire_bytes=received / max(1, requests)
    )


def _api_table(costs: ApiCosts, turns: int) -> Table:
    columns = (
        "pickers",
        *(
            f"{'under load' if busy else 'idle'}, {page} page"
            for busy in (False, True)
            for page in Page
        ),
    )
    rows = []
    for count in (0, *PICKERS):
        cells = [
            _api_cell(costs.get(Setup(page if count else None, count, busy), ()))
            for busy in (False, True)
            for page in Page
        ]
        rows.append((str(count), *cells))
    notes = (
        f"{turns} turns. The first picker is the EPP (every 50 ms), the others ask as often. In "
        "brackets: answers a second that the others got (20 each are due). Medians of windows of "
        f"{WINDOW_SECONDS:g} s; the first pod's API process alone. The load goes past the pickers.",
        *(_growth(costs, busy) for busy in (False, True)),
    )
    return Table("CPU of vLLM's API process, share of a core", columns, tuple(rows), notes)


def _api_cell(costs: Sequence[ApiCost]) -> str:
    if not costs:
        return NOT_MEASURED
    share = f"{median([cost.share for cost in costs]):.1%}"
    asked = [cost.asked for cost in costs if cost.asked is not None]
    return f"{share} ({median(asked):.0f}/s)" if asked else share


def _growth(costs: ApiCosts, busy: bool) -> str:
    """Say whether ten pickers cost more than one."""
    words = []
    for page in Page:
        few, many = (costs.get(Setup(page, count, busy)) for count in (1, PICKERS[-1]))
        if not few or not many:
            return f"{'Under load' if busy else 'Idle'}: growth {NOT_MEASURED}."
        more = median([one.share for one in many]) - median([one.share for one in few])
        words.append(f"{page} page {more * 100:+.1f} points")
    return f"{'Under load' if busy else 'Idle'}, from 1 picker to 10: {', '.join(words)}."


def _epp_table(place: Place, costs: EppCosts) -> Table:
    columns = (
        "page",
        "to parse",
        "on the wire",
        "scrapes a second",
        "CPU of the EPP",
        "per scrape",
    )
    alone = median([cost.share for cost in costs[Bare.NO_POD]]) if costs.get(Bare.NO_POD) else None
    rows, sizes, works = [], {}, {}
    for page in (Bare.EMPTY, *Page):
        found = costs.get(page, ())
        if alone is None or not found or not all(cost.scrapes for cost in found):
            rows.append((page.value, *[NOT_MEASURED] * (len(columns) - 1)))
            continue
        size = 0 if page is Bare.EMPTY else len(get(place.page_url(page)).body)
        sizes[page.value] = float(size)
        works[page.value] = median([(cost.share - alone) / cost.scrapes for cost in found])
        rows.append(
            (
                page.value,
                f"{size:,} bytes",
                f"{median([cost.wire_bytes for cost in found]):,.0f} bytes",
                f"{median([cost.scrapes for cost in found]):.1f}",
                f"{median([cost.share for cost in found]):.1%} of a core",
                f"{works[page.value] * 1000:.3f} ms",
            )
        )
    notes = [
        f"An idle picker, {len(place.lab.pods)} pods, medians of windows of {EPP_SECONDS:g} s. Per "
        f"scrape: less what a picker without pods takes ({_percent(alone)} of a core)."
    ]
    if len(works) == len(Page) + 1:
        floor = works[Bare.EMPTY]
        parsing = {page: work - floor for page, work in works.items()}
        notes += [
            f"Bytes to parse: {_times_less(sizes)}.",
            f"CPU per scrape: {_times_less(works)}; no page can be "
            f"{_ratio(works[Page.ENGINE], floor):.1f} times less, as an empty one is not.",
            f"CPU of parsing alone, less an empty page: {_times_less(parsing)}.",
        ]
    return Table("Scraping, on the picker's side", columns, tuple(rows), tuple(notes))


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{share:.1%}"


def _ratio(many: float, few: float) -> float:
    # What the clock does not show is not infinitely less: a microsecond, then.
    return many / max(few, 1e-6)


def _times_less(figures: Mapping[str, float]) -> str:
    times = _ratio(figures[Page.ENGINE], figures[Page.AGENT])
    verdict = "met" if times >= TIMES_LESS else "missed"
    return f"{times:.1f} times less (aim {TIMES_LESS}: {verdict})"
