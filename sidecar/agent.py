"""The composition root: builds everything, runs it in one task group, ends it in order.

Nothing that a document, RBAC, the disk or the engine does ends the agent: a task that meets a
defect is logged and started again. Only bad flags and signals end it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from adapters.base import EngineAdapter, EngineState, Kind
from sidecar import __version__, logs
from sidecar.artifacts.memory import MemoryFile
from sidecar.artifacts.preflight import Preflight
from sidecar.artifacts.store import Store
from sidecar.board import Board
from sidecar.core.accept import Accepted, restore
from sidecar.core.actions import Action
from sidecar.core.deadlines import Deadlines
from sidecar.core.desired import Entry
from sidecar.core.documents import Pod
from sidecar.core.gaps import ReplacementGaps
from sidecar.core.inventory import Revision
from sidecar.core.memory import Memory
from sidecar.core.outcome import Failed, Outcome
from sidecar.core.picker_page import LoraLabels
from sidecar.core.places import place_of
from sidecar.core.readiness import Gate
from sidecar.core.residency import LoraTracker
from sidecar.core.view import Policy, Prune
from sidecar.drives import DriveHooks, Drives
from sidecar.executor import Executor
from sidecar.flags import UsageError
from sidecar.keeper import Keeper
from sidecar.lookout import Lookout
from sidecar.opening import (
    accept_options,
    first_status,
    limits,
    open_adapter,
    open_clock,
    open_source,
    shown_urls,
    source_options,
    stop_on_signals,
)
from sidecar.patrol import LossPatrol, Moves, Patrol, RefreshPatrol
from sidecar.publisher import Identity, Publisher
from sidecar.reconciler import Hooks, Reconciler
from sidecar.scraper import Scraper
from sidecar.server import Server, Tls, bound_port, open_sockets
from sidecar.settings import Settings
from sidecar.sources.base import Source
from sidecar.telemetry import Telemetry
from sidecar.world import World

log = logging.getLogger("model_sidecar.agent")

RESTART_SECONDS = 1.0
"""Before a task that met a defect is started again."""
LOAD_END_SECONDS = 0.1
"""So long before its load ended, at most, a LoRA came into its slot."""
OPEN_SECONDS = 900.0
"""Within which the store is open: what an interrupted agent left is looked through first."""


async def run(settings: Settings) -> int:
    """Run the agent until it is asked to stop; return the exit code.

    Raises ``UsageError`` for flags that name what cannot be used.
    """
    logs.configure(
        form=settings.log_format,
        level=settings.log_level,
        pod=settings.pod_name,
        engine=settings.engine,
    )
    agent = Agent(settings, adapter=open_adapter(settings), source=open_source(settings))
    # Last of all: who connects is answered at once.
    try:
        tls = open_tls(settings)
        sockets = open_sockets(settings.listen)
    except (ValueError, OSError) as error:
        raise UsageError(f"--listen, --tls-cert-file, --tls-key-file: {error}") from error
    stop = stop_on_signals()
    log.info(
        "model-sidecar %s: %s at %s, documents from %s, serving on port %d",
        __version__,
        settings.engine,
        ", ".join(shown_urls(settings)),
        agent.source.describe(),
        bound_port(sockets),
    )
    await agent.run(stop, sockets, tls)
    log.info("stopped")
    return 0


class Agent:
    """All parts of one agent, from birth to death."""

    def __init__(self, settings: Settings, *, adapter: EngineAdapter, source: Source) -> None:
        self._settings = settings
        self._adapter = adapter
        self.source = source
        self._clock = open_clock()
        self._pod = Pod(name=settings.pod_name, uid=settings.pod_uid)
        self._options = accept_options(settings)
        self.board = Board(first_status(settings, source.describe()))
        self._deadlines = Deadlines(time.monotonic)
        self._telemetry = Telemetry(lambda: self.board.status)
        self._gaps = ReplacementGaps()
        self._tracker = LoraTracker(
            max_loras=settings.max_loras, max_cpu_loras=settings.max_cpu_loras
        )
        self._root, uid = Path(settings.store_dir).absolute(), settings.pod_uid or settings.pod_name
        self._store = Store(
            self._root,
            max_bytes=settings.store_max_bytes,
            pod_uid=uid,
            options=source_options(settings),
            fetch_concurrency=settings.fetch_concurrency,
            fetched=self._telemetry.fetched,
        )
        self._memory_file = MemoryFile(self._root, uid)
        self._preflight = Preflight()
        self._keeper = Keeper(
            self._store,
            self._memory_file,
            now=self._clock.now,
            retain_seconds=settings.retain_seconds,
        )
        self._telling: dict[str, Callable[[], Awaitable[None]]] = {}
        if settings.events or settings.condition:
            # As with --configmap, only those who ask for it pay for the Kubernetes client.
            from sidecar.cluster.telling import open_telling

            self._telling = open_telling(settings, self.board, self._clock.now)
        # It answers before anything is sampled; what it wakes is there before it samples.
        self._scraper = Scraper(
            self._adapter,
            self.board,
            self._telemetry,
            self._tracker,
            self._deadlines,
            interval_seconds=settings.scrape_interval_seconds,
            stale_after_seconds=settings.stale_after_seconds,
            labels=LoraLabels(settings.lora_labels),
            clock=self._clock.now,
            wall_clock=time.time,
            wake=lambda: self._reconciler.wake(),
        )

    async def _open(self) -> None:
        """Read what the store remembers, and put the parts together."""
        settings = self._settings
        await self._store.open()
        if self._store.problem:
            log.error("%s; nothing can be fetched until it can be written", self._store.problem)
        memory = await self._keeper.recall()
        restored = self._restore(memory)
        self._world = World(
            capabilities=self._adapter.capabilities,
            policy=Policy(
                prune=Prune(settings.prune),
                retain_seconds=settings.retain_seconds,
                store_root=str(self._root),
                replace_after_seconds=settings.spread_seconds * place_of(self._pod.identity),
            ),
            memory=memory,
        )
        self._publisher = self._make_publisher()
        self._reconciler = self._make_reconciler(restored)
        moves = Moves(
            self._store,
            progress=self._world.progress,
            moved=self._reconciler.moved,
            looked=self._world.looked,
        )
        self._refresh = RefreshPatrol(
            moves,
            desired=lambda: self._world.desired,
            pod=self._pod.identity,
            beat=lambda seconds: self._deadlines.beat("refresh", seconds),
            now=self._clock.now,
        )
        self._patrol = Patrol(
            self._store,
            moves,
            desired=lambda: self._world.desired,
            lost=self._reconciler.wake,
            beat=lambda seconds: self._deadlines.beat("patrol", seconds),
            now=self._clock.now,
            is_busy=self._reconciler.is_busy,
            interval_seconds=settings.resync_seconds,
        )
        self._losses = LossPatrol(
            self._store, residents=self._resident_paths, lost=self._reconciler.wake
        )

    async def run(self, stop: asyncio.Event, sockets: list[socket.socket], tls: Tls | None) -> None:
        """Work until ``stop``, then end in order."""
        server = Server(self.board, self._scraper, self._telemetry, self._deadlines, tls=tls)
        async with asyncio.TaskGroup() as group:
            # A slow disk keeps neither probes nor pickers waiting.
            serving = group.create_task(server.serve(sockets))
            self._deadlines.beat("open", OPEN_SECONDS)
            await self._open()
            self._deadlines.done("open")
            reading = group.create_task(
                _supervised("source", lambda: self.source.run(self._reconciler.offer))
            )
            deciding = group.create_task(_supervised("reconciler", self._reconciler.run))
            others = [
                group.create_task(_supervised("patrol", self._patrol.run)),
                group.create_task(_supervised("refresh", self._refresh.run)),
                group.create_task(_supervised("losses", self._losses.run)),
                group.create_task(_supervised("scraper", self._scraper.run)),
            ]
            telling = [
                group.create_task(_supervised(name, work)) for name, work in self._telling.items()
            ]
            await stop.wait()
            # 0. What the cluster was told of the pod holds while the agent alone restarts.
            for task in telling:
                task.cancel()
            # 1. The pod is no longer ready; 2. nothing new is begun; 3. what runs may end.
            self._publisher.stop()
            reading.cancel()
            self._reconciler.close()
            if not await self._reconciler.wait_idle(self._settings.shutdown_grace_seconds):
                log.warning("a running action was abandoned; the next start looks what it did")
            deciding.cancel()
            for task in others:
                task.cancel()
            await asyncio.wait([deciding, *others])
            # 4. Until here we were heard; now the doors close.
            server.close()
            await serving
        await self._adapter.aclose()
        await self._store.close()
        self._memory_file.close()
        self._preflight.close()

    async def _check(self, revision: Revision, entry: Entry, engine: EngineState) -> Revision:
        return await self._preflight.check(
            revision, entry, engine, limits(self._settings, engine.limits)
        )

    def _ended(self, action: Action, outcome: Outcome, seconds: float) -> None:
        word = str(outcome.reason) if isinstance(outcome, Failed) else "done"
        self._telemetry.action_done(type(action).__name__.lower(), word, seconds)
        now = time.monotonic()
        gap = self._gaps.ended(action, outcome, began=now - seconds, now=now)
        if gap is not None:
            self._telemetry.replaced(gap)

    def _resident_paths(self) -> list[str]:
        return [path for one in self._world.residents.values() for path in one.paths]

    def _heard_at(self) -> float:
        return self._clock.now() - self._clock.monotonic() + self._scraper.heard_at

    def _seen(self, state: EngineState) -> None:
        self._tracker.limits(
            max_loras=state.limits.max_loras, max_cpu_loras=state.limits.max_cpu_loras
        )
        # An answer that is newer than this look counts: without it, what was loaded meanwhile
        # would be taken for gone.
        residents = self._world.residents.values()
        self._tracker.residents(one.name for one in residents if one.kind is Kind.LORA)

    def _loaded(self, name: str, seconds: float) -> None:
        # The engine stamps the use of LoRAs by the same clock. It takes a LoRA into its slot at the
        # end of a load, and what came before may have been a wait.
        self._tracker.loaded(name, time.time() - min(seconds, LOAD_END_SECONDS))

    def _on_accepted(self) -> None:
        assert self._world.desired is not None
        self._gaps.keep(self._world.desired.entries)
        self._patrol.look_at_all()

    def _restarted(self) -> None:
        self._tracker.restarted()
        self._gaps.restarted()
        self._telemetry.engine_restarted()

    def _restore(self, memory: Memory) -> Accepted | None:
        if not memory.documents:
            return None
        return restore(memory.documents, self._pod, self._options, generation=memory.generation)

    def _make_publisher(self) -> Publisher:
        settings = self._settings
        return Publisher(
            board=self.board,
            world=self._world,
            identity=Identity(
                version=__version__,
                pod=settings.pod_name,
                engine=settings.engine,
                urls=shown_urls(settings),
            ),
            gate=Gate(settings.readiness),
            initial_timeout_seconds=settings.initial_timeout_seconds,
            in_slot=self._tracker.in_slot,
            slots=self._tracker.slots,
        )

    def _make_reconciler(self, restored: Accepted | None) -> Reconciler:
        settings = self._settings
        executor = Executor(adapter=self._adapter, files=self._store, check=self._check)

        def open_drives(changed: Callable[[], None], settled: Callable[[], None]) -> Drives:
            return Drives(
                executor=executor,
                world=self._world,
                inventory=self._store.inventory,
                fetch_concurrency=settings.fetch_concurrency,
                clock=self._clock,
                hooks=DriveHooks(
                    loaded=self._loaded,
                    forgotten=self._tracker.forgotten,
                    ended=self._ended,
                ),
                changed=changed,
                settled=settled,
            )

        return Reconciler(
            lookout=Lookout(
                self._adapter,
                self._world,
                now=self._clock.now,
                heard_at=self._heard_at,
                restarted=self._restarted,
                seen=self._seen,
            ),
            inventory=self._store.inventory,
            world=self._world,
            publisher=self._publisher,
            pod=self._pod,
            options=self._options,
            restored=restored,
            source=self.source.describe(),
            resync_seconds=settings.resync_seconds,
            hooks=Hooks(
                save=self._keeper.save,
                hold=lambda: self._keeper.hold(self._world.memory, self._world.progress),
                propagated=self._telemetry.propagated,
                beat=lambda seconds: self._deadlines.beat("reconciler", seconds),
                accepted=self._on_accepted,
            ),
            clock=self._clock,
            open_drives=open_drives,
        )


def open_tls(settings: Settings) -> Tls | None:
    """Load the certificate, if there is one. Raises ``OSError``."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Tls(settings.tls_cert_file, settings.tls_key_file)


async def _supervised(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a task for ever: a defect in it is logged, and it is started again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a defect of the agent: task %s is started again", name)
        await asyncio.sleep(RESTART_SECONDS)
