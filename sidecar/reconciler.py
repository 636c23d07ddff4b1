"""The loop: wait for a wake -> observe -> plan -> start what is due -> publish.

Events only wake it; decisions come from everything known (``World``). What is due is carried out
by drives, beside the loop; when they end they wake it, and it looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from sidecar.core.accept import Accepted, AcceptOptions, accept
from sidecar.core.actions import Plan, is_departure
from sidecar.core.documents import Pod
from sidecar.core.inventory import Inventory
from sidecar.core.memory import Memory
from sidecar.core.plan import plan
from sidecar.core.report import Cycle
from sidecar.core.snapshot import Snapshot
from sidecar.core.status import Status
from sidecar.core.targets import brought
from sidecar.drives import Clock, Drives
from sidecar.lookout import DEFECT, Lookout
from sidecar.publisher import Publisher, Scene
from sidecar.world import World

log = logging.getLogger("model_sidecar.reconciler")

SETTLE_SECONDS = 0.05
"""While others are under way, what changed is published no sooner than this, many at a time."""
SETTLE_SHARE = 5
"""Nor sooner than after so many times what the last cycle took: it goes through every target, and
a thousand that are being loaded leave no time for it after each."""
DOWN_LOOK_SECONDS = 0.5
"""Between looks at an engine that does not answer."""
DEFECT_SECONDS = 1.0
"""Before the cycle after one that a defect ended."""
BEAT_SECONDS = 60.0
"""Beyond the resync interval: a cycle that takes longer than this counts as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the loop tells others, and what it needs of them."""

    save: Callable[[Memory], Awaitable[bool]]
    """Keep the memory on disk; tells whether it could, and never raises."""
    hold: Callable[[], Awaitable[None]]
    """Keep what the engine may read out of other agents' reach; never raises."""
    propagated: Callable[[float], None]
    """From a document's event to convergence, seconds."""
    beat: Callable[[float], None]
    """The loop is heard of again within so many seconds."""
    accepted: Callable[[], None]
    """A new generation: sources are worth a look."""


class Reconciler:
    """Makes the engine hold what the documents ask for, cycle by cycle."""

    def __init__(
        self,
        *,
        lookout: Lookout,
        inventory: Callable[[], Inventory],
        world: World,
        publisher: Publisher,
        pod: Pod,
        options: AcceptOptions,
        restored: Accepted | None,
        source: str,
        resync_seconds: float,
        hooks: Hooks,
        clock: Clock,
        open_drives: Callable[[Callable[[], None], Callable[[], None]], Drives],
    ) -> None:
        """``open_drives`` makes the drives, given what to call when one changed or all ended."""
        self._lookout = lookout
        self._inventory = inventory
        self._world = world
        self._publisher = publisher
        self._pod = pod
        self._options = options
        self._source = source
        self._resync_seconds = resync_seconds
        self._hooks = hooks
        self._clock = clock
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._drives = open_drives(self._touch, self._wake.set)
        self._snapshot: Snapshot | None = None
        self._accepted: Accepted | None = None
        self._restored = restored
        self._propagating: float | None = None
        self._defect = ""
        """What is wrong with the agent itself, for the status."""
        self._unread = ""
        """Why the newest document does not count, when that is our own fault."""
        self._plan = Plan()
        self._saved: Memory | None = None
        self._sentence = ""
        self._said = ""
        self._cycle_seconds = 0.0
        if restored is not None and restored.desired is not None:
            world.desired = restored.desired

    def offer(self, snapshot: Snapshot) -> None:
        """Take over one read of the documents; the next cycle decides on it."""
        self._snapshot = snapshot
        self._wake.set()

    def wake(self) -> None:
        """Look at everything again now."""
        self._wake.set()

    def moved(self, names: Iterable[str], *, is_sure: bool = True) -> None:
        """The sources of these targets hold something else now, or may do so."""
        now = self._clock.now()
        for name in names:
            self._world.moved(name, now=now, is_sure=is_sure)
        self._wake.set()

    async def run(self) -> None:
        """Reconcile until cancelled; running drives are cancelled with it."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    await self.reconcile_once(group)
                    self._defect = ""
                except Exception as error:
                    # What runs goes on: it is no fault of its own (P13).
                    log.exception("a defect of the agent; the cycle is done again")
                    self._defect = f"{DEFECT} ({type(error).__name__})"
                    self._publisher.doubt(self._defect)
                    await asyncio.sleep(DEFECT_SECONDS)
                else:
                    await self._wait_due()

    def close(self) -> None:
        """Look and publish on, but begin nothing more; see ``Drives.close``."""
        self._drives.close()

    def is_busy(self) -> bool:
        """Tell whether any action is under way."""
        return bool(self._drives)

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no action is under way; tell whether it came to that in time."""
        return await self._drives.wait_idle(timeout)

    async def reconcile_once(self, group: asyncio.TaskGroup) -> Cycle:
        """Do one cycle; return what it came to."""
        self._hooks.beat(self._resync_seconds + BEAT_SECONDS)
        self._wake.clear()
        began = self._clock.monotonic()
        if self._accept() and self._begin_edit(group):
            # The look follows at once, in a cycle of its own.
            self._wake.set()
        else:
            await self._lookout.look(self._publish)
            # What arrived during the look is decided on at once, not a cycle later.
            self._accept()
            self._plan = self._make_plan()
            self._drives.start(self._plan, group)
        now = self._clock.now()
        cycle = self._cycle(now)
        self._say(cycle)
        status = self._publish()
        if status.converged and self._propagating is not None:
            self._hooks.propagated(self._clock.monotonic() - self._propagating)
            self._propagating = None
        self._world.forget_strangers(self._drives.names)
        await self._save()
        self._cycle_seconds = self._clock.monotonic() - began
        return cycle

    def _make_plan(self) -> Plan:
        return plan(self._world.view(self._inventory(), self._clock.now()))

    def _begin_edit(self, group: asyncio.TaskGroup) -> bool:
        """Start what new documents ask for on the strength of the last look; tell if any was due.

        A look takes as long as all the rest from an edit to the engine's call. What is brought
        and loaded can do no harm; what leaves waits for the look.
        """
        if self._world.engine is None:
            return False
        self._plan = self._make_plan()
        coming = tuple(one for one in self._plan.actions if not is_departure(one))
        self._drives.start(replace(self._plan, actions=coming), group)
        return bool(coming)

    async def _wait_due(self) -> None:
        now = self._clock.now()
        pause = self._resync_seconds
        if not self._lookout.answering.answers:
            pause = min(pause, DOWN_LOOK_SECONDS)
        elif self._lookout.answering.lost:
            pause = min(pause, 1.0)
        for wait in self._plan.waits:
            if wait.until is not None:
                pause = min(pause, max(wait.until - now, 0.01))
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return

    def _accept(self) -> bool:
        """Take over what was offered; tell whether another state is desired now."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            return False
        # A source may learn only by reading where exactly it reads (a ConfigMap's namespace).
        self._source = snapshot.source
        previous = self._accepted or self._restored
        try:
            self._accepted = accept(previous, snapshot, self._pod, self._options)
        except Exception as error:
            log.exception("a defect of the agent; the document before is kept")
            self._unread = f"the document was not understood: {DEFECT} ({type(error).__name__})"
            return False
        self._unread = ""
        desired = self._accepted.desired
        known = self._world.desired.generation if self._world.desired is not None else 0
        if desired is None or (previous is not None and desired.generation == known):
            return False
        if self._propagating is None:
            self._propagating = snapshot.seen_at
        self._world.accept(desired, now=self._clock.now())
        self._drives.cancel_superseded()
        self._hooks.accepted()
        return True

    def _touch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            pause = max(SETTLE_SECONDS, SETTLE_SHARE * self._cycle_seconds)
            self._timer = loop.call_later(pause, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._drives.has_ended_steps:
            self._wake.set()
        else:
            self._publish()

    def _cycle(self, now: float) -> Cycle:
        desired = self._world.desired
        return Cycle(
            generation=self._world.memory.generation,
            steps=self._drives.take_steps(),
            waits=tuple(one for one in self._plan.waits if one.name not in self._drives.underway),
            running=tuple(one.action for one in self._drives.underway.values())
            or self._plan.actions,
            brought=brought(self._drives.underway.values()),
            targets=len(desired.entries) if desired is not None else 0,
            trouble=self._trouble(),
            now=now,
        )

    def _trouble(self) -> str:
        """Say why the engine or the documents are not followed now."""
        engine, accepted = self._world.engine, self._accepted
        parts = []
        if self._lookout.message:
            parts.append(f"the engine cannot be seen ({self._lookout.message})")
        elif engine is not None and engine.asleep:
            parts.append("the engine is asleep")
        if self._unread:
            parts.append(self._unread)
        elif accepted is not None and not accepted.valid and not accepted.absent:
            first = next((f" ({one.where}: {one.what})" for one in accepted.problems), "")
            parts.append(f"the document is not valid{first}")
        elif self._world.desired is None:
            parts.append("no document yet")
        return "; ".join(parts)

    def _say(self, cycle: Cycle) -> None:
        self._sentence = str(cycle)
        # With the time left until a retry, every second would have a sentence of its own; and with
        # the bytes of a fetch, every cycle.
        said = str(replace(cycle, now=0.0, brought=None))
        if said != self._said:
            self._said = said
            log.info(self._sentence, extra={"generation": cycle.generation})

    def _publish(self) -> Status:
        scene = Scene(
            accepted=self._accepted,
            source=self._source,
            answering=self._lookout.answering,
            engine_message=self._lookout.message,
            waits=self._plan.waits,
            underway=self._drives.underway,
            has_plan=bool(self._plan or self._drives or self._defect or self._unread),
            sentence=self._defect or self._sentence,
        )
        return self._publisher.publish(scene, self._inventory(), self._clock.now())

    async def _save(self) -> None:
        accepted = self._accepted
        memory = self._world.memory
        if accepted is not None and accepted.last_good != memory.documents:
            memory = replace(memory, documents=accepted.last_good)
            self._world.memory = memory
        if memory != self._saved and await self._hooks.save(memory):
            self._saved = memory
        await self._hooks.hold()
