"""The picker page: how fast it is served, how large it is, and how seldom the engine is asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

from bench.documents import Mount, native, write_loras
from bench.processes import Agent, Engine, request
from bench.report import NotMeasuredError, Table, median

LORAS = 5
RUNS = 3
RUN_SECONDS = 5
CONNECTIONS = 10
PICKERS = 10
PICKER_SECONDS = 0.05
WATCH_SECONDS = 10.0
DEADLINE_SECONDS = 20.0


def run(work: Path) -> list[Table]:
    """Measure, and return the table."""
    loras = write_loras(work / "loras", LORAS)
    mount = Mount(work / "config")
    mount.write(native(loras))
    with (
        Engine(work) as engine,
        Agent(work, engine, [f"--config-dir={mount.path}"]) as agent,
    ):
        agent.wait_holds(LORAS, DEADLINE_SECONDS)
        size = len(request(agent.port, "/metrics"))
        asked, sampled = _ask_as_pickers(agent, engine)
        rates = _rates(agent, engine)
    rate = f"{median(rates):,.0f}" if rates else "not measured here (install wrk)"
    rows = (
        ("requests a second on one core, median", rate),
        (f"size of the page with {LORAS} LoRAs", f"{size:,} bytes"),
        (f"requests of {PICKERS} pickers in {WATCH_SECONDS:g} s", f"{asked:,}"),
        ("samples of the engine in that time: its figures do not change", f"{sampled}"),
    )
    notes = (
        f"wrk with {CONNECTIONS} connections on another core; {RUNS} runs of {RUN_SECONDS} s. "
        f"The pickers ask every {PICKER_SECONDS * 1000:g} ms; the shortest interval is 100 ms.",
    )
    return [Table("/metrics", ("figure", "value"), rows, notes)]


def _ask_as_pickers(agent: Agent, engine: Engine) -> tuple[int, int]:
    stop = threading.Event()
    counts = [0] * PICKERS

    def ask(number: int) -> None:
        while not stop.wait(PICKER_SECONDS):
            request(agent.port, "/metrics")
            counts[number] += 1

    pickers = [threading.Thread(target=ask, args=(number,)) for number in range(PICKERS)]
    for picker in pickers:
        picker.start()
    time.sleep(1.0)
    before, asked_before = engine.scrapes(), sum(counts)
    time.sleep(WATCH_SECONDS)
    sampled, asked = engine.scrapes() - before, sum(counts) - asked_before
    stop.set()
    for picker in pickers:
        picker.join()
    if not asked or not sampled:
        raise NotMeasuredError("no picker was answered")
    return asked, sampled


def _rates(agent: Agent, engine: Engine) -> list[float]:
    wrk, cores = shutil.which("wrk"), sorted(os.sched_getaffinity(0))
    if wrk is None or len(cores) < 2:
        return []
    agent.pin(cores[0])
    engine.pin(cores[1])
    command = [
        *("taskset", "-c", str(cores[1]), wrk, "-t1", f"-c{CONNECTIONS}", f"-d{RUN_SECONDS}s"),
        f"http://127.0.0.1:{agent.port}/metrics",
    ]
    rates = []
    for _ in range(RUNS):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
        # A machine too busy to sample the engine within a second is answered 503, and rightly.
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
        rate = (float(found[1]) if found else 0) - (int(refused[1]) if refused else 0) / RUN_SECONDS
        if rate <= 0:
            raise NotMeasuredError(done.stdout)
        rates.append(rate)
    return rates
