"""Many new LoRAs at once: from one edit to the last of them loaded, and to convergence.

The engine takes one millisecond for each load.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import old_syncer
from bench.documents import Mount, lora_syncer, native, write_loras
from bench.processes import Agent, Engine
from bench.report import NOT_MEASURED, NotMeasuredError, Table, median, ratio, seconds

LOAD_SECONDS = 0.001
COUNTS = {200: 5, 1000: 3}
"""LoRAs at once, and how often that is measured."""
SYNCER_COUNT = 200
DEADLINE_SECONDS = 120.0
SYNCER_DEADLINE_SECONDS = 300.0

Figures = tuple[float, float]
"""Seconds to the end of the last load, and to convergence as the status tells it."""


def run(work: Path) -> list[Table]:
    """Measure, and return the table."""
    columns = ("new LoRAs", "files", "runs", "last load done", "converged", "slowest")
    rows = []
    stored: dict[int, float] = {}
    for count, runs in COUNTS.items():
        loras = write_loras(work / f"loras-{count}", count)
        in_store = _stored(work / f"stored-{count}", loras, runs)
        copied = [
            _copied(work / f"copied-{count}-{number}", loras, number) for number in range(runs)
        ]
        stored[count] = median([last for last, _ in in_store])
        rows.append(_row(count, "already in the store", in_store))
        rows.append(_row(count, "copied in: hashed, synced", copied))
    theirs = _old_syncer(work / "syncer", SYNCER_COUNT)
    notes: tuple[str, ...] = ()
    who = f"the retired lora-syncer ({old_syncer.VERSION})"
    if theirs is None:
        rows.append((str(SYNCER_COUNT), who, "-", NOT_MEASURED, "", ""))
    else:
        rows.append((str(SYNCER_COUNT), who, "1", seconds(theirs), "-", seconds(theirs)))
        factor = ratio(theirs, stored[SYNCER_COUNT])
        notes = (f"The lora-syncer takes {factor} as long as the agent does for as many.",)
    title = f"Many new LoRAs, an engine that takes {LOAD_SECONDS * 1000:g} ms for each load"
    return [Table(title, columns, tuple(rows), notes)]


def _row(count: int, files: str, figures: Sequence[Figures]) -> tuple[str, ...]:
    last = median([one[0] for one in figures])
    converged = median([one[1] for one in figures])
    slowest = max(one[1] for one in figures)
    return (str(count), files, str(len(figures)), *map(seconds, (last, converged, slowest)))


def _stored(work: Path, loras: Sequence[Path], runs: int) -> list[Figures]:
    """Measure LoRAs that were loaded and unloaded before, so that the store has them."""
    mount = Mount(work / "config")
    with (
        Engine(work, load_seconds=LOAD_SECONDS) as engine,
        Agent(work, engine, [f"--config-dir={mount.path}"]) as agent,
    ):
        figures = []
        for number in range(runs + 1):
            figures.append(_measure(engine, agent, mount, loras))
            if number < runs:
                mount.write(native(()))
                agent.wait_holds(0, DEADLINE_SECONDS)
        return figures[1:]


def _copied(work: Path, loras: Sequence[Path], number: int) -> Figures:
    """Measure LoRAs that an agent with an empty store never saw."""
    mount = Mount(work / "config")
    mount.write(native(()))
    with (
        Engine(work, load_seconds=LOAD_SECONDS) as engine,
        Agent(work, engine, [f"--config-dir={mount.path}"]) as agent,
    ):
        agent.wait_holds(0, DEADLINE_SECONDS)
        return _measure(engine, agent, mount, loras)


def _measure(engine: Engine, agent: Agent, mount: Mount, loras: Sequence[Path]) -> Figures:
    engine.reset()
    edited = mount.write(native(loras))
    converged = agent.wait_holds(len(loras), DEADLINE_SECONDS)
    return _last(engine, loras, edited), (converged - edited) / 1e9


def _last(engine: Engine, loras: Iterable[Path], edited: int) -> float:
    loads = engine.loads()
    missing = [path.name for path in loras if path.name not in loads]
    if missing:
        raise NotMeasuredError(f"never loaded: {', '.join(missing[:5])}")
    return float(max(call["ended"] for call in loads.values()) - edited) / 1e9


def _old_syncer(work: Path, count: int) -> float | None:
    place = old_syncer.find()
    if place is None:
        return None
    loras = write_loras(work / "loras", count)
    mount = Mount(work / "config", old_syncer.KEY)
    with Engine(work, load_seconds=LOAD_SECONDS) as engine:
        mount.write(lora_syncer(engine.port, loras[:1]))
        with old_syncer.Syncer(work, place, mount.path):
            engine.wait_load(loras[0].name, SYNCER_DEADLINE_SECONDS)
            edited = mount.write(lora_syncer(engine.port, loras))
            end = time.monotonic() + SYNCER_DEADLINE_SECONDS
            while len(engine.loads()) < count:
                if time.monotonic() > end:
                    raise NotMeasuredError("the lora-syncer did not come to an end")
                time.sleep(0.5)
            return _last(engine, loras, edited)
