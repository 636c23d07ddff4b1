"""The real reconciler, drives and publisher over a simulated engine and store; a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

from adapters.base import (
    Capabilities,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnavailable,
    MetricMap,
    Target,
)
from sidecar.board import Board
from sidecar.core.accept import Accepted, AcceptOptions, restore
from sidecar.core.actions import Action, Fetch, Load
from sidecar.core.desired import Entry
from sidecar.core.documents import Pod
from sidecar.core.inventory import Revision
from sidecar.core.memory import Memory
from sidecar.core.outcome import Done, Outcome
from sidecar.core.readiness import Gate
from sidecar.core.snapshot import Presence, Snapshot
from sidecar.core.status import DocumentStatus, EngineStatus, Status, StoreStatus
from sidecar.core.view import Policy
from sidecar.drives import Clock, DriveHooks, Drives
from sidecar.errors import NotFound
from sidecar.executor import Executor, Progressed
from sidecar.lookout import Lookout
from sidecar.publisher import Identity, Publisher
from sidecar.reconciler import Hooks, Reconciler
from sidecar.world import World
from tests.support.simulated import START, STORE, Disk, Engine, kind_of

Calls = list[tuple[str, str]]


class Scripted:
    """An engine and a store whose calls can be held up, or made to fail, by name."""

    metric_map = MetricMap()

    def __init__(self, engine: Engine, disk: Disk, calls: Calls) -> None:
        self.engine = engine
        self.disk = disk
        self.calls = calls
        self.held: dict[tuple[str, str], asyncio.Event] = {}
        """(verb, name) -> released by the test."""
        self.errors: dict[tuple[str, str], Exception] = {}
        self.down: Exception | None = None
        self.silent: asyncio.Event | None = None
        """Looks wait for it, ``patience`` seconds at most."""
        self.patience = 5.0
        self.reports: dict[str, Progressed] = {}
        """By name, how its last fetch reports progress."""
        self.looks = 0
        self.cancelled: list[tuple[str, str]] = []

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    def hold(self, verb: str, name: str) -> asyncio.Event:
        """Hold up calls until the event is set."""
        return self.held.setdefault((verb, name), asyncio.Event())

    async def _enter(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))
        if (gate := self.held.get((verb, name))) is not None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append((verb, name))
                raise
        if (error := self.errors.get((verb, name))) is not None:
            raise error
        if self.down is not None and verb != "fetch":
            raise self.down

    async def observe(self) -> EngineState:
        self.looks += 1
        if self.silent is not None:
            try:
                async with asyncio.timeout(self.patience):
                    await self.silent.wait()
            except TimeoutError:
                raise EngineTimeout("the engine did not answer a look at it") from None
        if self.down is not None:
            raise self.down
        return self.engine.observe()

    async def load(self, target: Target, path: str) -> None:
        await self._enter("load", target.name)
        (one,) = (each for each in self.disk.whole.values() if each.path == path)
        action = Load(name=target.name, target=target, revision=one)
        if not isinstance(self.engine.load(action, 0.0), Done):
            raise EngineRejected(f"it refuses {target.name}")

    async def unload(self, target: Target) -> None:
        await self._enter("unload", target.name)
        self.engine.unload(target.name, 0.0)

    async def warm(self, target: Target) -> None:
        await self._enter("warm", target.name)

    async def scrape(self) -> tuple[bytes, ...]:
        return ()

    async def aclose(self) -> None:
        return None

    async def fetch(
        self, entry: Entry, *, restore: Revision | None, progress: Progressed
    ) -> Revision:
        self.reports[entry.name] = progress
        progress(50, 100)
        await self._enter("fetch", entry.name)
        outcome = self.disk.fetch(Fetch(name=entry.name, entry=entry, restore=restore), 0.0)
        if not isinstance(outcome, Done) or outcome.revision is None:
            raise NotFound(f"{entry.source} is not there")
        return outcome.revision

    async def fetch_known(self, entries: Iterable[Entry]) -> Mapping[str, Revision]:
        await self._enter("fetch_known", "")
        inventory = self.disk.inventory()
        found = {
            entry.name: inventory.find(entry.name, self.disk.sources.get(entry.source, ""))
            for entry in entries
        }
        return {name: one for name, one in found.items() if one is not None}

    async def evict(self, revision: Revision) -> None:
        await self._enter("evict", revision.name)
        self.disk.whole.pop(revision.path, None)

    async def check(self, revision: Revision, entry: Entry, engine: EngineState) -> Revision:
        await self._enter("check", revision.name)
        return revision


class Loop:
    """One agent without its sockets and files."""

    def __init__(
        self,
        capabilities: Capabilities,
        *,
        memory: Memory | None = None,
        disk: Disk | None = None,
        engine: Engine | None = None,
        policy: Policy | None = None,
        fetch_concurrency: int = 4,
    ) -> None:
        self.disk = disk or Disk(kind=kind_of(capabilities))
        self.engine = engine or Engine(capabilities, self.disk)
        self.calls: Calls = []
        self.scripted = Scripted(self.engine, self.disk, self.calls)
        self.saved: list[Memory] = []
        self.propagated: list[float] = []
        self.restarts = 0
        self.heard_at = float("-inf")
        """When the engine last answered anything but a look, in the clock's unix seconds."""
        self.ended: list[tuple[Action, Outcome]] = []
        self.forgotten: list[str] = []
        self.loaded: list[str] = []
        memory = memory or Memory()
        self.pod = Pod(name="pod-0", uid="uid-0")
        self.options = AcceptOptions()
        self.world = World(
            capabilities=capabilities,
            policy=policy or Policy(store_root=STORE),
            memory=memory,
        )
        self.board = Board(
            Status(
                version="0",
                pod="pod-0",
                ready=False,
                converged=False,
                reasons=(),
                cycle="",
                document=DocumentStatus(),
                engine=EngineStatus(kind="scripted", urls=()),
                store=StoreStatus(),
            )
        )
        self.publisher = Publisher(
            board=self.board,
            world=self.world,
            identity=Identity(version="0", pod="pod-0", engine="scripted", urls=()),
            gate=Gate.INITIAL,
            initial_timeout_seconds=600.0,
            in_slot=lambda: None,
            slots=lambda: None,
        )
        self.clock = Clock(now=self._now, monotonic=self._time, chance=lambda: 0.5)
        self._fetch_concurrency = fetch_concurrency
        self.reconciler = Reconciler(
            lookout=Lookout(
                self.scripted,
                self.world,
                now=self._now,
                heard_at=lambda: self.heard_at,
                restarted=self._restarted,
                seen=lambda state: None,
            ),
            inventory=self.disk.inventory,
            world=self.world,
            publisher=self.publisher,
            pod=self.pod,
            options=self.options,
            restored=self._restored(memory),
            source="dir /config",
            resync_seconds=5.0,
            hooks=Hooks(
                save=self._save,
                hold=self._hold,
                propagated=self.propagated.append,
                beat=lambda seconds: None,
                accepted=lambda: None,
            ),
            clock=self.clock,
            open_drives=self._open_drives,
        )

    def _time(self) -> float:
        return asyncio.get_running_loop().time()

    def _now(self) -> float:
        return START + self._time()

    def _restored(self, memory: Memory) -> Accepted | None:
        if not memory.documents:
            return None
        return restore(memory.documents, self.pod, self.options, generation=memory.generation)

    async def _save(self, memory: Memory) -> bool:
        self.saved.append(memory)
        return True

    async def _hold(self) -> None:
        return None

    def _restarted(self) -> None:
        self.restarts += 1

    def _open_drives(self, changed: Callable[[], None], settled: Callable[[], None]) -> Drives:
        self.drives = Drives(
            executor=Executor(
                adapter=self.scripted, files=self.scripted, check=self.scripted.check
            ),
            world=self.world,
            inventory=self.disk.inventory,
            fetch_concurrency=self._fetch_concurrency,
            clock=self.clock,
            hooks=DriveHooks(
                loaded=lambda name, seconds: self.loaded.append(name),
                forgotten=self.forgotten.append,
                ended=lambda action, outcome, seconds: self.ended.append((action, outcome)),
            ),
            changed=changed,
            settled=settled,
        )
        return self.drives

    def offer(self, text: str | None, presence: Presence = Presence.PRESENT) -> None:
        """Let one read of ``models.yaml`` arrive; None where there is none."""
        files = {} if text is None else {"models.yaml": text}
        snapshot = Snapshot(
            presence=presence, source="dir /config", files=files, seen_at=self._time()
        )
        self.reconciler.offer(snapshot)

    def ask(self, *names: str, number: str = "v1") -> None:
        """Offer a native document of these names, whose sources hold a revision."""
        self.disk.sources |= {f"s3://{name}/{number}": number for name in names}
        lines = "".join(f"- {{name: {name}, source: 's3://{name}/{number}'}}\n" for name in names)
        self.offer(f"models:\n{lines}" if names else "models: []\n")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Loop]:
        """Run the reconciler; fails when it ended by itself."""
        task = asyncio.create_task(self.reconciler.run())
        try:
            yield self
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def unready_within(self, seconds: float) -> bool:
        """Let the fake clock run on; tell whether the pod was not ready meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.board.status.ready:
                    await self.board.wait_changed(seconds)
        return not self.board.status.ready

    async def wait(self, condition: Callable[[Status], bool], timeout: float = 60.0) -> Status:
        """Wait until the published status is so; ``timeout`` in seconds of the fake clock."""
        deadline = self._time() + timeout
        while not condition(self.board.status):
            left = deadline - self._time()
            if left <= 0 or not await self.board.wait_changed(left):
                raise AssertionError(f"not within {timeout} s: {self.board.status}")
        return self.board.status

    async def converge(self, timeout: float = 60.0) -> Status:
        """Wait until the newest document holds."""
        return await self.wait(
            lambda one: (
                one.converged and one.document.generation == self.world.memory.generation > 0
            ),
            timeout,
        )

    def loads(self, name: str) -> int:
        """Count the loads of one name."""
        return self.calls.count(("load", name))


DOWN = EngineUnavailable("connection refused")
LATE = EngineTimeout("no answer within 5 s")
