"""The figures of the routers, and the verdict on each choice of weights."""

from __future__ import annotations

from collections.abc import Sequence

from bench.picker.arms import DEFAULT, ORACLE, Arm, Page
from bench.picker.place import Place
from bench.picker.routing import Results, Run
from bench.picker.truth import largest_by_chance
from bench.picker.workload import LONE, SHARED, Phase
from bench.report import NOT_MEASURED, Table, median, milliseconds, percentile
from lab.web import get

OF_ORACLE = 0.9
"""Of the oracle's share of requests that find their LoRA in a slot."""
LARGEST = 1.3
"""Of the mean, for the requests of any one pod."""
ROUTER = ("router", "page")
LAWS = {"light": "Zipf 1", "medium": "Zipf 1", "change": "Zipf 2, other LoRAs than before"}


def tables(place: Place, results: Results, arms: Sequence[Arm]) -> list[Table]:
    """Return all of them."""
    return [
        *(_phase_table(place, phase, results, arms) for phase in SHARED),
        _lone_table(place, results, arms),
        _cpu_table(place, results, arms),
        _verdicts(results, arms),
    ]


def _names(arm: Arm) -> tuple[str, str]:
    return arm.label, arm.page.value if arm.page else "none"


def _phase_table(place: Place, phase: Phase, results: Results, arms: Sequence[Arm]) -> Table:
    columns = (
        *ROUTER,
        "LoRA in a slot",
        "loads into slots per 100 requests",
        "p50",
        "p99",
        "largest share of a pod",
        "failed",
    )
    rate = phase.load * place.capacity
    runs = [run.phases[phase.name] for arm in arms for run in results.of(arm)]
    late = sum(one.late for one in runs) / max(1, sum(one.requests for one in runs))
    hits = [seconds for one in runs for seconds in one.hits]
    misses = [seconds for one in runs for seconds in one.misses]
    rows = tuple((*_names(arm), *_phase_cells(phase, results.of(arm))) for arm in arms)
    counts = [one.requests for one in runs]
    dice = largest_by_chance(min(counts, default=0), len(place.lab.pods))
    notes = (
        f"{rate:.1f} requests a second ({phase.load:.0%} of the capacity), {LAWS[phase.name]}; "
        f"{len(results.turns)} of {results.wanted} turns of {min(counts, default=0)} to "
        f"{max(counts, default=0)} requests. Medians over turns; latencies are of all turns "
        f"together, from when a request was due. Sent more than 50 ms late: {late:.1%}. p50 of all "
        f"routers where the LoRA was in a slot {_p50(hits)}, where it was not {_p50(misses)}. "
        f"Dealt by dice, the fewest requests of a turn give a largest share of {dice:.2f}.",
    )
    return Table(f"Routing, {phase.name}", columns, rows, notes)


def _p50(latencies: Sequence[float]) -> str:
    return milliseconds(percentile(latencies, 50)) if latencies else NOT_MEASURED


def _phase_cells(phase: Phase, runs: Sequence[Run]) -> tuple[str, ...]:
    found = [run.phases[phase.name] for run in runs]
    latencies = [seconds for one in found for seconds in (*one.hits, *one.misses)]
    if not latencies:
        return (NOT_MEASURED,) * 6
    return (
        f"{median([one.found for one in found]):.0%}",
        f"{median([one.loads for one in found]) * 100:.0f}",
        milliseconds(percentile(latencies, 50)),
        milliseconds(percentile(latencies, 99)),
        f"{median([one.largest for one in found]):.2f}",
        f"{sum(one.failed for one in found)}",
    )


def _lone_table(place: Place, results: Results, arms: Sequence[Arm]) -> Table:
    columns = (*ROUTER, "requests for it", "reached its pod", "failed")
    rows = []
    for arm in arms:
        lone = [run.lone for run in results.of(arm)]
        requests = sum(one.requests for one in lone)
        if not requests:
            rows.append((*_names(arm), *[NOT_MEASURED] * 3))
            continue
        right, failed = sum(one.right for one in lone), sum(one.failed for one in lone)
        rows.append((*_names(arm), str(requests), f"{right / requests:.0%}", str(failed)))
    notes = (
        f"{LONE.lone:.0%} of {LONE.load * place.capacity:.1f} requests a second; nobody asked for "
        "it before in that run. All turns together. The oracle is told.",
    )
    return Table("A LoRA that one pod holds", columns, tuple(rows), notes)


def _cpu_table(place: Place, results: Results, arms: Sequence[Arm]) -> Table:
    kinds = {
        "EPP": "EPP",
        "Envoy": "Envoy",
        "API": "API process, each pod",
        "agent": "agent, each pod",
    }
    rows = []
    for arm in arms:
        runs = results.of(arm)
        rows.append((*_names(arm), *(_cpu_cell(kind, runs) for kind in kinds)))
    sizes = [f"{page} {len(get(place.page_url(page)).body):,} bytes" for page in Page]
    notes = (
        "Of a core, over whole runs; medians over turns. Pages after all of them: "
        f"{', '.join(sizes)}.",
    )
    return Table("CPU while routing", (*ROUTER, *kinds.values()), tuple(rows), notes)


def _cpu_cell(kind: str, runs: Sequence[Run]) -> str:
    if not runs:
        return NOT_MEASURED
    means = []
    for run in runs:
        shares = [share for name, share in run.cpu.items() if name.split(" ")[0] == kind]
        if not shares:
            return "none"
        means.append(sum(shares) / len(shares))
    return f"{median(means):.1%}"


def _verdicts(results: Results, arms: Sequence[Arm]) -> Table:
    columns = ("weights, agent's page", *(f"of the oracle's share, {one.name}" for one in SHARED))
    columns += (*(f"largest share, {one.name}" for one in SHARED), "lone LoRA", "verdict")
    rows = [(arm.label, *_verdict(results, arm)) for arm in arms if arm.page is Page.AGENT]
    notes = (
        f"Met: at least {OF_ORACLE} of the share of requests that the oracle router finds a slot "
        f"for, and no pod above {LARGEST} times the mean, in every phase; every request for the "
        f"LoRA that one pod holds reached it, which {DEFAULT} alone promises. Shares of the "
        "oracle's are of the same turn, then the median.",
    )
    return Table("Verdict on weights", columns, tuple(rows), notes)


def _verdict(results: Results, arm: Arm) -> tuple[str, ...]:
    both = [(turn[arm], turn[ORACLE]) for turn in results.turns if {arm, ORACLE} <= turn.keys()]
    if not both:
        return (NOT_MEASURED,) * (2 * len(SHARED) + 2)
    shares, largest, misses = [], [], []
    for phase in SHARED:
        ours = [(mine.phases[phase.name], best.phases[phase.name]) for mine, best in both]
        # An oracle that finds nothing leaves nothing to miss.
        share = median([mine.found / best.found if best.found else 1.0 for mine, best in ours])
        most = median([mine.largest for mine, _ in ours])
        shares.append(f"{share:.2f}")
        largest.append(f"{most:.2f}")
        if share < OF_ORACLE:
            misses.append(f"{phase.name}: {share:.2f} of the oracle's")
        if most > LARGEST:
            misses.append(f"{phase.name}: {most:.2f} times its share")
    lone = [mine.lone for mine, _ in both]
    right = sum(one.right for one in lone) / max(1, sum(one.requests for one in lone))
    if right < 1 and arm.label == DEFAULT:
        misses.append(f"lone LoRA: {right:.0%} reached its pod")
    return (*shares, *largest, f"{right:.0%}", f"missed ({'; '.join(misses)})" if misses else "met")
