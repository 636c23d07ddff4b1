"""What being scraped costs a real vLLM, directly and through the agent, and how old the news are.

The CPU is that of vLLM's API process alone (its threads, not EngineCore), in each setting next to
what it is with nobody scraping.
"""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from adapters.vllm import VLLM_METRICS
from adapters.vllm_figures import FiguresPage
from bench import lags
from bench.clients import CLIENT_SECONDS, CLIENT_TOKENS, Clients
from bench.documents import Mount, native
from bench.pickers import PERIOD_SECONDS, Pickers
from bench.processes import Served, request
from bench.report import NotMeasuredError, Table, median, milliseconds, percentile
from lab.process import free_port
from lab.tiny_model import write_base_model, write_lora
from lab.vllm import Vllm, stream

COUNTS = (1, 3, 10)
REPEATS = 3
SETTLE_SECONDS = 0.4
WINDOW_SECONDS = 2.0
SCRAPES = 100

_SAMPLES = b'model_sidecar_engine_samples_total{outcome="done"} '


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one measurement showed; shares are of one core."""

    api: float
    agent: float
    samples: float
    """Scrapes of the engine by the agent, a second."""
    bytes: float
    """Of one answer to a picker."""
    slow: float
    """The 99th percentile of a picker's waiting, in seconds."""
    failures: int


def run(work: Path) -> list[Table]:
    """Measure, and return the tables."""
    loras = {name: write_lora(work / name, seed=seed) for seed, name in enumerate("ab", 1)}
    mount = Mount(work / "config")
    mount.write(native(()))
    model = write_base_model(work / "model")
    with Vllm(work / "vllm", model, lora_modules=loras) as engine:
        for name in loras:
            list(stream(engine.url, name, max_tokens=8))
        once = _one_scrape(engine)
        with _Agent(work, engine, mount) as agent:
            agent.wait_settled()
            costs = [
                *_costs(engine, agent, "idle", nullcontext),
                *_costs(engine, agent, "busy", lambda: Clients(engine)),
            ]
            seen = [lags.measure(engine, agent.port, busy=busy) for busy in (False, True)]
    return [once, _cost_table(costs), lags.table(seen)]


class _Agent(Served):
    """`model-sidecar run` beside the engine."""

    def __init__(self, work: Path, engine: Vllm, mount: Mount) -> None:
        port = free_port()
        command = [
            *(sys.executable, "-m", "sidecar", "run", "--engine=vllm"),
            *(f"--engine-url={engine.url}", f"--store-dir={work / 'store'}"),
            *(f"--listen=127.0.0.1:{port}", f"--config-dir={mount.path}"),
        ]
        super().__init__("agent", command, work, port=port, probe="/live")

    def wait_settled(self) -> None:
        """Wait until it has nothing to do."""
        request(self.port, "/status?wait=converged&timeout=20", timeout=25.0)

    def samples(self) -> int:
        """Return how often it scraped the engine, this question not counted."""
        for line in request(self.port, "/metrics/all").splitlines():
            if line.startswith(_SAMPLES):
                return int(float(line.removeprefix(_SAMPLES)))
        raise NotMeasuredError("the agent does not say how often it scraped")


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads so far, to the nanosecond where the kernel counts so."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue
    return total / 1e9


def _one_scrape(engine: Vllm) -> Table:
    """Ask the engine itself in several ways, one after another."""
    figures = FiguresPage("/metrics", VLLM_METRICS).url
    ways = {
        "`/metrics`": ("/metrics", "identity"),
        "`/metrics`, gzip asked for": ("/metrics", "gzip"),
        "`/metrics/?name[]=...`, as the agent asks": (
            figures,
            "identity",
        ),
        "`/health`, for comparison": ("/health", "identity"),
    }
    rows = []
    for words, (path, encoding) in ways.items():
        used, size, seconds = _ask_often(engine, path, encoding)
        rows.append((words, f"{size:,}", milliseconds(used), milliseconds(median(seconds))))
    columns = ("asked", "bytes", "CPU of the API process", "median time")
    note = f"{SCRAPES} requests over one connection, one every 20 ms; the engine is idle."
    return Table("One scrape of vLLM", columns, tuple(rows), (note,))


def _ask_often(engine: Vllm, path: str, encoding: str) -> tuple[float, int, list[float]]:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10.0)
    seconds, size, pid = [], 0, engine.process.pid
    before = _cpu_seconds(pid)
    for _ in range(SCRAPES):
        began = time.monotonic()
        connection.request("GET", path, headers={"Accept-Encoding": encoding})
        answer = connection.getresponse()
        size = len(answer.read())
        if answer.status != 200:
            raise NotMeasuredError(f"GET {path}: {answer.status}")
        seconds.append(time.monotonic() - began)
        time.sleep(0.02)
    connection.close()
    return (_cpu_seconds(pid) - before) / SCRAPES, size, seconds


Cost = tuple[str, str, int, list[Window]]
"""Idle or busy, who is asked, by how many pickers, and what each turn showed."""


def _costs(
    engine: Vllm, agent: _Agent, state: str, work: Callable[[], AbstractContextManager[object]]
) -> list[Cost]:
    settings: list[tuple[str, int]] = [("nobody", 0)]
    settings += [(who, count) for who in ("the engine", "the agent") for count in COUNTS]
    found: dict[tuple[str, int], list[Window]] = {setting: [] for setting in settings}
    with work():
        # One setting after another and then all of them again, so that what else happens on the
        # machine meets each of them.
        for _ in range(REPEATS):
            for who, count in settings:
                port = engine.port if who == "the engine" else agent.port
                found[who, count].append(_window(engine, agent, port, count))
    return [(state, who, count, windows) for (who, count), windows in found.items()]


def _window(engine: Vllm, agent: _Agent, port: int, count: int) -> Window:
    with ExitStack() as running:
        pickers = running.enter_context(Pickers(port, count)) if count else None
        time.sleep(SETTLE_SECONDS)
        sampled = agent.samples()
        time.sleep(SETTLE_SECONDS)
        if pickers is not None:
            pickers.reset()
        began = time.monotonic()
        before = _cpu_seconds(engine.process.pid), _cpu_seconds(agent.process.pid)
        time.sleep(WINDOW_SECONDS)
        elapsed = time.monotonic() - began
        after = _cpu_seconds(engine.process.pid), _cpu_seconds(agent.process.pid)
        seen = pickers.seen if pickers is not None else None
        sampled = agent.samples() - sampled - 1
    return Window(
        api=(after[0] - before[0]) / elapsed,
        agent=(after[1] - before[1]) / elapsed,
        samples=sampled / (elapsed + SETTLE_SECONDS),
        bytes=seen.bytes / max(1, seen.answers) if seen else 0.0,
        slow=percentile(seen.seconds, 99) if seen and seen.seconds else 0.0,
        failures=seen.failures if seen else 0,
    )


def _cost_table(costs: Sequence[Cost]) -> Table:
    base = {state: median([one.api for one in found]) for state, _, n, found in costs if not n}
    rows = []
    for state, who, count, found in costs:
        api = median([one.api for one in found])
        row = [state, who, str(count), _share(api), _share(median([one.agent for one in found]))]
        if count:
            row[4:4] = [_share(api - base[state])]
            row += [
                f"{median([one.samples for one in found]):.1f}",
                f"{median([one.bytes for one in found]):,.0f}",
                milliseconds(median([one.slow for one in found])),
                str(sum(one.failures for one in found)),
            ]
        else:
            row[4:4] = ["-"]
            row += ["-", "-", "-", "-"]
        rows.append(tuple(row))
    columns = (
        *("engine", "asked", "pickers", "CPU of the API process", "of it for scrapes"),
        *("CPU of the agent", "samples a second", "bytes a scrape", "p99 of a scrape", "failures"),
    )
    notes = (
        f"Shares of a core, medians of {REPEATS} turns of {WINDOW_SECONDS:g} s. Each picker asks "
        f"every {PERIOD_SECONDS * 1000:g} ms over a connection of its own. Busy: 2 clients, each "
        f"a stream of {CLIENT_TOKENS} tokens of a LoRA every {CLIENT_SECONDS:g} s.",
    )
    return Table("The cost of scraping vLLM", columns, tuple(rows), notes)


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"
