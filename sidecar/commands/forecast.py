"""Plays a plan through without carrying it out: every step is assumed to do what it shall.

Fetches are replaced by a look at the source, checks are done where the files lie now; engine calls
are taken to succeed. What a step leads to is then planned like in the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import assert_never

from adapters.base import EngineState, Kind, Limits
from sidecar.artifacts.preflight import Preflight
from sidecar.commands.foresight import Foresight, Sight, is_checkable
from sidecar.core.actions import Action, Check, Evict, Fetch, Load, Unload, Wait, Warm
from sidecar.core.backoff import Severity
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.outcome import Done, Failed, Outcome
from sidecar.core.plan import plan, plan_name
from sidecar.core.status import Reason
from sidecar.errors import ArtifactError
from sidecar.world import World

MAX_STEPS = 12
"""Of one target in one round, as in a drive of the agent."""
MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """One step that the agent would take."""

    action: Action
    sight: Sight | None = None
    """What a fetch would find; None where that is not known."""
    failure: Failed | None = None
    """Why it would fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Everything that the agent would do, as far as can be told."""

    steps: tuple[Foreseen, ...] = ()
    waits: tuple[Wait, ...] = ()
    open_ends: frozenset[str] = frozenset()
    """Targets whose steps after the fetch cannot be told."""


@dataclass(slots=True)
class Forecaster:
    """Plays the plans of one world, which it changes."""

    world: World
    foresight: Foresight
    preflight: Preflight
    kinds: frozenset[Kind]
    inventory: Inventory
    limits: Limits
    now: float
    evicts: bool
    """False: nothing is known of what the engine may read."""
    engine: EngineState | None
    """For checks; None: nothing is known of it."""
    _steps: list[Foreseen] = field(default_factory=list)
    _sights: dict[str, Sight] = field(default_factory=dict)
    _open_ends: set[str] = field(default_factory=set)

    async def run(self) -> Forecast:
        """Return the steps in order, and who waits at the end."""
        waits: tuple[Wait, ...] = ()
        for _ in range(MAX_ROUNDS):
            planned = plan(self.world.view(self.inventory, self.now))
            waits = planned.waits
            steps = [one for one in planned.actions if not isinstance(one, Evict)]
            names = [name for name in dict.fromkeys(one.name for one in steps)]
            names = [name for name in names if name not in self._open_ends]
            evictions = [one for one in planned.actions if isinstance(one, Evict) and self.evicts]
            if not names and not evictions:
                break
            for name in names:
                await self._drive(name)
            if not names:
                await self._evict(evictions)
        return Forecast(steps=tuple(self._steps), waits=waits, open_ends=frozenset(self._open_ends))

    async def _drive(self, name: str) -> None:
        for _ in range(MAX_STEPS):
            steps = plan_name(self.world.view(self.inventory, self.now), name)
            step = next((one for one in steps if not isinstance(one, Wait)), None)
            if step is None or not await self._take(step):
                return

    async def _evict(self, evictions: Iterable[Evict]) -> None:
        for action in evictions:
            await self._take(action)

    async def _take(self, action: Action) -> bool:
        """Assume one step and write it down; False where nothing more can be told."""
        basis = self.world.basis
        outcome = await self._outcome(action)
        sight = self._sights.get(action.name)
        failure = outcome if isinstance(outcome, Failed) else None
        if self._is_news(action, sight, failure):
            shown = sight if isinstance(action, Fetch) else None
            self._steps.append(Foreseen(action=action, sight=shown, failure=failure))
        if outcome is None:
            self._open_ends.add(action.name)
            return False
        self.world.apply(action, outcome, basis=basis, now=self.now, jitter=0.0)
        return True

    def _is_news(self, action: Action, sight: Sight | None, failure: Failed | None) -> bool:
        if failure is not None:
            return True
        if isinstance(action, Fetch):
            return sight is None or sight.is_new or action.restore is not None
        if isinstance(action, Warm):
            # A resident is proven again by every agent that starts, which changes nothing.
            return any(
                isinstance(one.action, Load) and one.action.name == action.name
                for one in self._steps
            )
        return True

    async def _outcome(self, action: Action) -> Outcome | None:
        try:
            match action:
                case Fetch():
                    return await self._fetch(action)
                case Check():
                    return Done(revision=await self._check(action))
                case Evict(revision=revision):
                    self._forget(revision)
                case Load() | Unload() | Warm():
                    pass
                case _:
                    assert_never(action)
        except ArtifactError as error:
            severity = Severity.TRANSIENT if error.retryable else Severity.REJECTED
            return Failed(reason=Reason(error.reason), message=str(error), severity=severity)
        return Done()

    async def _fetch(self, action: Fetch) -> Done | None:
        self._sights.pop(action.name, None)
        likely = next(iter(self.kinds)) if len(self.kinds) == 1 else None
        sight = await asyncio.to_thread(self.foresight.find, action.entry, likely)
        if sight is None:
            return None
        self._sights[action.name] = sight
        revision = sight.revision
        if revision.verified and self.inventory.find(revision.name, revision.revision) is None:
            held = self.inventory.revisions.get(revision.name, ())
            self._keep(revision.name, (*held, revision))
        return Done(revision=revision)

    async def _check(self, action: Check) -> Revision:
        sight = self._sights.get(action.name)
        revision = action.revision
        if sight is None or not await asyncio.to_thread(is_checkable, sight):
            return revision
        lies = replace(revision, path=str(sight.directory))
        checked = await self.preflight.check(lies, action.entry, self.engine, self.limits)
        return replace(checked, path=revision.path)

    def _forget(self, revision: Revision) -> None:
        held = self.inventory.revisions.get(revision.name, ())
        self._keep(revision.name, tuple(one for one in held if one.path != revision.path))

    def _keep(self, name: str, revisions: tuple[Revision, ...]) -> None:
        self.inventory = replace(
            self.inventory, revisions={**self.inventory.revisions, name: revisions}
        )
