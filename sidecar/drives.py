"""One task a target: takes its steps one after another, planned anew after each.

A long load holds up nobody else, and what a step found (a fetch, a refusal) decides the next one
at once. Fetches, checks and engine calls have limits of their own, so that a fetch never waits
for the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial

from adapters.base import Kind
from sidecar.artifacts.locations import is_remote
from sidecar.core.actions import Action, Check, Evict, Fetch, Load, Plan, Unload, Wait, Warm
from sidecar.core.backoff import Basis, Severity
from sidecar.core.inventory import Inventory
from sidecar.core.outcome import Done, Failed, Outcome, is_unknown
from sidecar.core.plan import plan_name
from sidecar.core.progress import asks
from sidecar.core.redact import redact_source
from sidecar.core.removal import plan_evictions
from sidecar.core.report import Step, describe_action
from sidecar.core.status import Reason
from sidecar.core.targets import Underway
from sidecar.executor import Executor, Progressed
from sidecar.known import Finder, Known
from sidecar.world import World

log = logging.getLogger("model_sidecar.drives")

ENGINE_CONCURRENCY = 4
"""Engine calls at once: as many as Triton loads models by itself; vLLM takes one after another."""
CHECK_CONCURRENCY = 4
STALL_SECONDS = 300.0
"""A fetch that reports nothing for so long gives its place to others. Writing a large artifact out
to a slow disk takes minutes of silence; a source that answers again is found by the next try."""
TELL_SECONDS = 0.3
"""Between two times that the progress of fetches is told: people and pipelines read it."""
DEFECT_SECONDS = 1.0
"""Before a target whose drive met a defect is driven again."""
MAX_STEPS = 12
"""Steps of one drive; a target that needs more goes on at the next cycle."""
EVICTIONS = "/evictions"
"""The drive of evictions; no target can have a name with a slash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time and chance, as the composition root gives them."""

    now: Callable[[], float]
    """Unix seconds that never go back."""
    monotonic: Callable[[], float]
    chance: Callable[[], float]
    """A number from [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveHooks:
    """What drives tell others."""

    loaded: Callable[[str, float], None]
    """A LoRA was loaded or warmed up, by a call that began so many seconds ago."""
    forgotten: Callable[[str], None]
    ended: Callable[[Action, Outcome, float], None]
    """An action ended, after so many seconds."""


class Drives:
    """Starts drives, and knows what is under way and what ended."""

    def __init__(
        self,
        *,
        executor: Executor,
        world: World,
        inventory: Callable[[], Inventory],
        fetch_concurrency: int,
        clock: Clock,
        hooks: DriveHooks,
        changed: Callable[[], None],
        settled: Callable[[], None],
    ) -> None:
        """``changed``: a step began or ended; ``settled``: no drive is left."""
        self._executor = executor
        self._world = world
        self._inventory = inventory
        self._clock = clock
        self._hooks = hooks
        self._changed = changed
        self._settled = settled
        # Apart, so that a server that is slow keeps nobody from what lies on a disk.
        self._fetching = {far: asyncio.Semaphore(fetch_concurrency) for far in (False, True)}
        self._finder = Finder(executor, places=fetch_concurrency)
        self._checking = asyncio.Semaphore(CHECK_CONCURRENCY)
        self._engine_calls = asyncio.Semaphore(ENGINE_CONCURRENCY)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._steps: list[Step] = []
        self._closing = False
        self._owed: set[str] = set()
        """Unloaded for a replacement that is not loaded yet."""
        self._told_at = -TELL_SECONDS
        self.underway: dict[str, Underway] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    @property
    def names(self) -> Iterable[str]:
        """Targets that are being driven."""
        return self._tasks.keys()

    @property
    def has_ended_steps(self) -> bool:
        """Tell whether ``take_steps`` would return any."""
        return bool(self._steps)

    def take_steps(self) -> tuple[Step, ...]:
        """Return the steps that ended since the last call."""
        steps, self._steps = tuple(self._steps), []
        return steps

    def start(self, plan: Plan, group: asyncio.TaskGroup) -> None:
        """Start a drive for each target of the plan that has none; none after ``close``."""
        if self._closing:
            return
        evictions = [action for action in plan.actions if isinstance(action, Evict)]
        names = [action.name for action in plan.actions if not isinstance(action, Evict)]
        idle = [name for name in dict.fromkeys(names) if name not in self._tasks]
        fetches = {one.name: one for one in plan.actions if isinstance(one, Fetch)}
        known = self._finder.start([fetches[name] for name in idle if name in fetches], group)
        for name in idle:
            self._launch(name, partial(self._drive, name, known.get(name)), group)
        if evictions and EVICTIONS not in self._tasks:
            self._launch(EVICTIONS, partial(self._evict, len(evictions)), group)

    def cancel_superseded(self) -> None:
        """Stop fetching what the documents no longer ask for."""
        desired = self._world.desired
        for name, underway in self.underway.items():
            action = underway.action
            if not isinstance(action, Fetch) or desired is None:
                continue
            entry = desired.entries.get(name)
            if entry is None or asks(entry) != asks(action.entry):
                task = self._tasks.get(name)
                if task is not None:
                    task.cancel()

    def close(self) -> None:
        """Begin nothing more, but the load of what was unloaded for it."""
        self._closing = True

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no action is under way; tell whether it came to that in time."""
        if not self._tasks:
            return True
        _, pending = await asyncio.wait(tuple(self._tasks.values()), timeout=timeout)
        return not pending

    def _launch(
        self, key: str, drive: Callable[[], Coroutine[None, None, None]], group: asyncio.TaskGroup
    ) -> None:
        async def guarded() -> None:
            try:
                await drive()
            except Exception:
                # Nothing that one target does may end the agent (P13).
                log.exception("a defect of the agent; target %s is tried again", key)
                # Else it would be met again at once: no attempt was noted that could pause.
                if not self._closing:
                    await asyncio.sleep(DEFECT_SECONDS)

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop(key, None)
            self.underway.pop(key, None)
            self._owed.discard(key)
            self._changed()
            if not self._tasks:
                self._settled()

        task = self._tasks[key] = group.create_task(guarded())
        # Not in the task: one that is cancelled before its first step runs none of its code.
        task.add_done_callback(ended)

    async def _drive(self, name: str, known: Known | None) -> None:
        for _ in range(MAX_STEPS):
            step = self._next_step(name)
            if step is None:
                return
            if known is not None and step == known.fetch:
                await self._take_known(known)
                known = None
                continue
            room = self._room_for(step)
            async with room:
                # The world moved on while the place was waited for, so the step is planned again;
                # and the place is kept from an unload to its load: the name is gone meanwhile.
                for _ in range(MAX_STEPS):
                    step = self._next_step(name)
                    if step is None or self._room_for(step) is not room:
                        break
                    if not await self._take(step):
                        return

    async def _take_known(self, known: Known) -> None:
        """Take over what a fetch would find, if it is still the one to do."""
        basis, began = self._world.basis, self._clock.monotonic()
        found = await asyncio.shield(known.found)
        action = known.fetch
        if action.name in found and self._next_step(action.name) == action:
            outcome = Done(revision=found[action.name])
            self._take_over(action, outcome, basis, self._clock.monotonic() - began)

    async def _evict(self, number: int) -> None:
        for _ in range(number):
            # Planned anew each time: a document may ask for the next one's files by now.
            view = self._world.view(self._inventory(), self._clock.now())
            action = next(plan_evictions(view), None)
            if action is None or self._closing:
                return
            await self._take(action)

    def _next_step(self, name: str) -> Action | None:
        steps = plan_name(self._world.view(self._inventory(), self._clock.now()), name)
        step = next((step for step in steps if not isinstance(step, Wait)), None)
        if self._closing and not (isinstance(step, Load) and name in self._owed):
            return None
        return step

    def _room_for(self, step: Action) -> asyncio.Semaphore:
        if isinstance(step, Fetch):
            return self._fetching[is_remote(step.entry.source)]
        return self._checking if isinstance(step, Check) else self._engine_calls

    async def _run(self, action: Action, progressed: Progressed) -> Outcome:
        try:
            if isinstance(action, Fetch):
                return await self._fetch(action, progressed)
            return await self._executor.run(action, self._world.engine, progressed)
        except Exception as error:
            # A defect of ours ends neither the agent (P13) nor the pauses between attempts.
            log.exception("a defect of the agent, in: %s", describe_action(action))
            message = f"a defect of the agent ({type(error).__name__}); its log says more"
            return Failed(reason=Reason.INTERNAL_ERROR, message=message, severity=Severity.PROTOCOL)

    async def _fetch(self, action: Fetch, progressed: Progressed) -> Outcome:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(STALL_SECONDS)
        is_over = False

        def heard(done: int, total: int | None) -> None:
            if not is_over and not limit.expired():
                limit.reschedule(loop.time() + STALL_SECONDS)
            progressed(done, total)

        try:
            async with limit:
                return await self._executor.run(action, self._world.engine, heard)
        except TimeoutError:
            if not limit.expired():
                raise
            return Failed(
                reason=Reason.FETCH_FAILED,
                message=f"{redact_source(action.entry.source)}: nothing was heard of the fetch for "
                f"{STALL_SECONDS:.0f} s; does the source hang?",
                severity=Severity.TRANSIENT,
            )
        finally:
            is_over = True

    async def _take(self, action: Action) -> bool:
        """Run one action and take over its outcome; False when a look must come first (P7)."""
        key = EVICTIONS if isinstance(action, Evict) else action.name
        basis, began = self._world.basis, self._clock.monotonic()

        under = self.underway[key] = Underway(action=action)

        def progressed(done: int, total: int | None) -> None:
            nonlocal under
            # A thread that was left behind may report long after the action ended.
            if self.underway.get(key) is under:
                under = self.underway[key] = under.heard(done, total, self._clock.now())
                self._tell_progress()

        self._changed()
        outcome = await self._run(action, progressed)
        seconds = self._clock.monotonic() - began
        self._take_over(action, outcome, basis, seconds)
        if isinstance(outcome, Failed):
            log.warning(
                "could not %s: %s",
                describe_action(action),
                outcome.message,
                extra={"target": action.name, "reason": str(outcome.reason)},
            )
            return not is_unknown(action, outcome)
        if isinstance(action, Load):
            self._owed.discard(action.name)
        if isinstance(action, Load | Warm):
            if action.target.kind is Kind.LORA:
                self._hooks.loaded(action.name, seconds)
        elif isinstance(action, Unload):
            if action.replacing:
                self._owed.add(action.name)
            self._hooks.forgotten(action.name)
        return True

    def _tell_progress(self) -> None:
        now = self._clock.monotonic()
        if now >= self._told_at + TELL_SECONDS:
            self._told_at = now
            self._changed()

    def _take_over(self, action: Action, outcome: Outcome, basis: Basis, seconds: float) -> None:
        now, jitter = self._clock.now(), self._clock.chance()
        self._world.apply(action, outcome, basis=basis, now=now, jitter=jitter)
        self._steps.append(Step(action=action, outcome=outcome, seconds=seconds))
        self._hooks.ended(action, outcome, seconds)
