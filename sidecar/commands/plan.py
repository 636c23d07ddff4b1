"""``plan``: what the agent would do and why. Nothing is written, loaded or asked to change."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.base import EngineAdapter, EngineError, EngineState, Limits
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.layout import Held
from sidecar.artifacts.memory import MemoryFile
from sidecar.artifacts.preflight import Preflight
from sidecar.commands.forecast import Forecast, Forecaster
from sidecar.commands.foresight import Foresight
from sidecar.commands.output import write_json, write_line
from sidecar.commands.plan_words import Scene, as_json, as_lines, exit_code
from sidecar.core.accept import Accepted, accept, restore
from sidecar.core.documents import Pod
from sidecar.core.inventory import Inventory
from sidecar.core.memory import Memory, anew, from_json
from sidecar.core.snapshot import Snapshot
from sidecar.core.view import Policy, Prune
from sidecar.errors import ArtifactError
from sidecar.flags import environment_name
from sidecar.opening import (
    accept_options,
    limits,
    open_adapter,
    open_source,
    shown_urls,
    source_options,
)
from sidecar.settings import Settings, check_for_run, from_flags
from sidecar.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What the store holds and what its agent remembers."""

    held: Mapping[str, tuple[Held, ...]]
    memory: Memory
    troubles: tuple[str, ...] = ()


def main(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the plan; return 0 converged, 2 changes, 1 error. Raises ``UsageError``."""
    settings = from_flags(arguments, environment)
    check_for_run(settings)
    settings = replace(settings, store_dir=os.path.abspath(settings.store_dir))
    looks = bool(arguments.engine_url or environment.get(environment_name("engine_url")))
    now = time.time()  # noqa: TID251 - a command is its own composition root
    scene, forecast = asyncio.run(foresee(settings, looks=looks, now=now))
    if arguments.json:
        write_json(as_json(scene, forecast))
    else:
        for line in as_lines(scene, forecast):
            write_line(line)
    return exit_code(scene, forecast)


async def foresee(settings: Settings, *, looks: bool, now: float) -> tuple[Scene, Forecast]:
    """Read everything once and play the plan through; ``looks``: at the engine, too."""
    source, root = open_source(settings), Path(settings.store_dir)
    adapter, preflight = open_adapter(settings), Preflight()
    try:
        remembered = await _remember(root, settings.pod_uid or settings.pod_name, now)
        snapshot = await source.read_once()
        accepted = _accept(settings, remembered.memory, snapshot)
        engine, trouble = await _look(adapter) if looks else (EngineState(), "")
        world = _world(settings, root, adapter, remembered.memory, accepted, engine, now)
        inventory = Inventory(
            revisions={
                name: tuple(one.revision for one in held) for name, held in remembered.held.items()
            },
            max_bytes=settings.store_max_bytes,
        )
        forecast = await Forecaster(
            world=world,
            foresight=Foresight(root, remembered.held, source_options(settings)),
            preflight=preflight,
            kinds=adapter.capabilities.kinds,
            inventory=inventory,
            limits=limits(settings, engine.limits if engine is not None else Limits()),
            now=now,
            evicts=looks,
            engine=engine if looks else None,
        ).run()
    finally:
        preflight.close()
        with suppress(EngineError):
            await adapter.aclose()
    scene = Scene(
        source=snapshot.source,
        accepted=accepted,
        engine_name=settings.engine,
        urls=shown_urls(settings),
        engine=engine if looks else None,
        looked=looks,
        engine_trouble=trouble,
        store=str(root),
        inventory=inventory,
        troubles=remembered.troubles,
        now=now,
    )
    return scene, forecast


async def _remember(root: Path, pod: str, now: float) -> Remembered:
    troubles: list[str] = []
    held: Mapping[str, tuple[Held, ...]] = {}
    try:
        held = await asyncio.to_thread(Disk(root, pod).read_all)
    except ArtifactError as error:
        troubles.append(str(error))
    file = MemoryFile(root, pod)
    try:
        recalled = await file.load()
    finally:
        file.close()
    memory = anew((one.revision.path for several in held.values() for one in several), now)
    if recalled.problem:
        troubles.append(recalled.problem)
    elif recalled.mapping is not None:
        try:
            memory = from_json(recalled.mapping)
        except ValueError as error:
            troubles.append(str(error))
    return Remembered(held=held, memory=memory, troubles=tuple(troubles))


async def _look(adapter: EngineAdapter) -> tuple[EngineState | None, str]:
    try:
        return await adapter.observe(), ""
    except EngineError as error:
        return None, str(error)


def _accept(settings: Settings, memory: Memory, snapshot: Snapshot) -> Accepted:
    pod = Pod(name=settings.pod_name, uid=settings.pod_uid)
    options = accept_options(settings)
    before = None
    if memory.documents:
        before = restore(memory.documents, pod, options, generation=memory.generation)
    return accept(before, snapshot, pod, options)


def _world(
    settings: Settings,
    root: Path,
    adapter: EngineAdapter,
    memory: Memory,
    accepted: Accepted,
    engine: EngineState | None,
    now: float,
) -> World:
    policy = Policy(
        prune=Prune(settings.prune),
        retain_seconds=settings.retain_seconds,
        store_root=str(root),
    )
    world = World(capabilities=adapter.capabilities, policy=policy, memory=memory)
    if accepted.desired is not None:
        world.accept(accepted.desired, now=now)
    if engine is not None:
        world.saw(engine, world.begin_look(), refused=False, now=now)
    return world
