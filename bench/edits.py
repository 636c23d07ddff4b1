"""From an edit to the engine call: how long one change of the document takes to reach the engine.

Each edit drops one of five LoRAs and adds another. Measured from the moment just before the edit
(the rename of `..data`, or the sending of the patch) to the arrival of the load call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import old_syncer
from bench.cluster import NAME, open_cluster
from bench.documents import KEY, Mount, lora_syncer, native, rotation, write_loras
from bench.processes import Agent, Engine
from bench.report import NOT_MEASURED, Table, median, milliseconds, percentile, ratio
from lab import LabError

EDITS = 200
SYNCER_EDITS = 20
"""Fewer, as each takes it about a second."""
WIDTH = 5
DEADLINE_SECONDS = 20.0
PAUSE_SECONDS = (0.03, 0.06)
"""Between edits, at random, so that they meet no beat of the agent's."""
SYNCER_PAUSE_SECONDS = (0.5, 1.5)

Write = Callable[[Sequence[Path]], int]
"""Makes these LoRAs the content, and returns when it did."""


def run(work: Path) -> list[Table]:
    """Measure, and return the table."""
    fresh = write_loras(work / "loras", EDITS + WIDTH)
    pool = fresh[: 2 * WIDTH]
    rows = [
        _mounted(work / "stored", pool, "mounted file, LoRA already in the store"),
        _mounted(work / "copied", fresh, "mounted file, LoRA copied into the store first"),
        _through_api(work / "api", pool, "API server, LoRA already in the store"),
    ]
    theirs = _old_syncer(work / "syncer", pool)
    columns = ("edit to engine call", "edits", "median", "p99", "slowest")
    ours = rows[0]
    table = [_row(what, values) for what, values in rows]
    table.append(_row(f"the retired lora-syncer, mounted file ({old_syncer.VERSION})", theirs))
    notes = []
    if theirs and ours[1]:
        factor = ratio(median(theirs), median(ours[1]))
        notes.append(f"The lora-syncer takes {factor} as long as the first row, by the medians.")
    return [Table("Edit to engine call", columns, tuple(table), tuple(notes))]


def _row(what: str, values: Sequence[float]) -> tuple[str, ...]:
    if not values:
        return (what, "-", NOT_MEASURED, "", "")
    figures = (median(values), percentile(values, 99), max(values))
    return (what, str(len(values)), *map(milliseconds, figures))


def _mounted(work: Path, pool: Sequence[Path], what: str) -> tuple[str, list[float]]:
    mount = Mount(work / "config")
    with (
        Engine(work) as engine,
        Agent(work, engine, [f"--config-dir={mount.path}"]) as agent,
    ):
        return what, _edit(engine, agent, pool, lambda loras: mount.write(native(loras)))


def _through_api(work: Path, pool: Sequence[Path], what: str) -> tuple[str, list[float]]:
    try:
        cluster = open_cluster(work)
    except LabError:
        return what, []
    with cluster:
        kubeconfig = cluster.allow_agent()
        cluster.patch({KEY: native(())})
        source = [f"--configmap={NAME}", f"--kubeconfig={kubeconfig}"]
        with Engine(work) as engine, Agent(work, engine, source) as agent:
            return what, _edit(
                engine, agent, pool, lambda loras: cluster.patch({KEY: native(loras)})
            )


def _edit(engine: Engine, agent: Agent, pool: Sequence[Path], write: Write) -> list[float]:
    """Make the edits one after another, each once the one before converged."""
    if len(pool) < EDITS:
        # Every LoRA of a small pool is brought into the store before its edits are measured.
        for start in range(0, len(pool), WIDTH):
            write(pool[start : start + WIDTH])
            agent.wait_holds(WIDTH, DEADLINE_SECONDS)
    write(pool[:WIDTH])
    agent.wait_holds(WIDTH, DEADLINE_SECONDS)
    taken = []
    for loras in rotation(pool, EDITS, WIDTH):
        engine.reset()
        time.sleep(random.uniform(*PAUSE_SECONDS))
        edited = write(loras)
        call = engine.wait_load(loras[-1].name, DEADLINE_SECONDS)
        taken.append((call["arrived"] - edited) / 1e9)
        agent.wait_holds(WIDTH, DEADLINE_SECONDS)
    return taken


def _old_syncer(work: Path, pool: Sequence[Path]) -> list[float]:
    place = old_syncer.find()
    if place is None:
        return []
    mount = Mount(work / "config", old_syncer.KEY)
    with Engine(work) as engine:
        mount.write(lora_syncer(engine.port, pool[:WIDTH]))
        with old_syncer.Syncer(work, place, mount.path):
            for path in pool[:WIDTH]:
                engine.wait_load(path.name, DEADLINE_SECONDS)
            taken = []
            before: Sequence[Path] = pool[:WIDTH]
            for loras in rotation(pool, SYNCER_EDITS, WIDTH):
                engine.reset()
                time.sleep(random.uniform(*SYNCER_PAUSE_SECONDS))
                gone = [path for path in before if path not in loras]
                edited = mount.write(lora_syncer(engine.port, loras, gone))
                call = engine.wait_load(loras[-1].name, DEADLINE_SECONDS)
                taken.append((call["arrived"] - edited) / 1e9)
                before = loras
            return taken
