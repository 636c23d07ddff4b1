"""The real ``World`` between a simulated store and engine, with a watch on the promises.

``Trial`` is driven by the real ``plan``, one action at a time, and writes down each promise of the
design that an action breaks. Time is a number that only the test moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from typing import Any

from adapters.base import Capabilities
from sidecar.core.actions import Action, Check, Evict, Fetch, Load, Plan, Unload, Wait, Warm
from sidecar.core.backoff import Severity
from sidecar.core.desired import Desired, Entry
from sidecar.core.inventory import Revision
from sidecar.core.memory import Memory, from_json, to_json
from sidecar.core.outcome import Done, Failed, Outcome
from sidecar.core.plan import plan, plan_name
from sidecar.core.progress import asks
from sidecar.core.status import Reason
from sidecar.core.view import Policy, Prune, View
from sidecar.world import World
from tests.support.simulated import (
    BUSY,
    REJECTED,
    START,
    STORE,
    TIMEOUT,
    VLLM,
    Disk,
    Engine,
    failure,
    kind_of,
    revision,
)


class Mode(Enum):
    """How one action goes."""

    DONE = "done"
    TRANSIENT = "transient"
    REJECTED = "rejected"
    LOST = "timeout, and it took effect"
    DROPPED = "timeout, and it did not take effect"


MAX_ROUNDS = 60


class Trial:
    """The real world between a simulated store and engine."""

    def __init__(
        self,
        capabilities: Capabilities = VLLM,
        *,
        ranks: int = 1,
        capacity: int | None = None,
        policy: Policy | None = None,
        memory: Memory | None = None,
        tells_start: bool | None = None,
    ) -> None:
        self.capabilities = capabilities
        self.policy = policy or Policy(store_root=STORE)
        self.disk = Disk(kind=kind_of(capabilities))
        self.engine = Engine(
            capabilities,
            self.disk,
            ranks=ranks,
            capacity=capacity,
            started_at=START if tells_start or capabilities.reports_paths else None,
        )
        self.now = START + 1000.0
        self.documents: Desired | None = None
        self.strangers: frozenset[str] = frozenset()
        """Names that the engine was started with."""
        self.broken: list[str] = []
        """Promises that an action broke."""
        self.changes: dict[str, tuple[float, float]] = {}
        """Names for which other bytes are asked for than were fetched -> the first and the last
        change, as far as the agent can know of them."""
        self.world = World(capabilities=capabilities, policy=self.policy, memory=memory or Memory())

    # What happens around the agent.

    def accept(self, desired: Desired) -> None:
        """Let a new document be accepted."""
        known = self.world.desired
        self.documents = replace(desired, generation=self.world.memory.generation + 1)
        self.strangers -= desired.entries.keys()
        self.world.accept(self.documents, now=self.now)
        for name, one in desired.entries.items():
            before = known.entries.get(name) if known is not None else None
            if known is not None and (before is None or asks(before) != asks(one)):
                self._change(name)
            progress = self.world.progress[name]
            if progress.answers(one) and not progress.moved:
                self.changes.pop(name, None)

    def move(self, name: str) -> None:
        """Let the source of a name be seen to change."""
        progress, one = self.world.progress.get(name), self.asked(name)
        # What was not fetched yet, or has begun to be, is fetched as it is by then.
        if progress is not None and (one is None or progress.answers(one)) and not progress.moved:
            self._change(name)
        self.world.moved(name, now=self.now)

    def asked(self, name: str) -> Entry | None:
        """Return what the document says of a name."""
        return self.documents.entries.get(name) if self.documents is not None else None

    def _change(self, name: str) -> None:
        first, _ = self.changes.get(name, (self.now, self.now))
        self.changes[name] = (first, self.now)

    def restart_agent(self) -> None:
        """Lose everything that is not in the memory's JSON, the engine or the store."""
        memory = from_json(json.loads(json.dumps(to_json(self.world.memory))))
        self.changes.clear()
        self.world = World(capabilities=self.capabilities, policy=self.policy, memory=memory)
        if self.documents is not None:
            self.world.desired = self.documents

    def restart_engine(self) -> None:
        """Let the engine lose what it holds."""
        self.now += 5.0
        self.engine.restart(self.now)
        self.strangers = frozenset()

    def look(self, *, refused: bool = False) -> bool:
        """Look at the engine; tell whether it counts as restarted."""
        mark = self.world.begin_look()
        state = self.engine.observe()
        return self.world.saw(state, mark, refused=refused, now=self.now)

    def view(self) -> View:
        """Return what the next plan is made of."""
        return self.world.view(self.disk.inventory(), self.now)

    def plan(self) -> Plan:
        """Plan now."""
        ahead = plan(self.view())
        for wait in ahead.waits:
            if wait.reason is Reason.SPREAD:
                self._watch_turn(wait)
        return ahead

    def actions(self) -> tuple[Any, ...]:
        """Return the actions of a plan made now; a test knows of what kind they are."""
        return self.plan().actions

    def steps(self, name: str) -> tuple[Any, ...]:
        """Plan one name now."""
        return plan_name(self.view(), name)

    # What the agent does.

    def apply(self, action: Action, mode: Mode = Mode.DONE) -> Outcome:
        """Carry out one action as ``mode`` says, and take over its outcome."""
        self._watch(action)
        basis = self.world.basis
        if mode is Mode.TRANSIENT:
            outcome: Outcome = BUSY if isinstance(action, Load | Unload | Warm) else failure()
        elif mode is Mode.REJECTED:
            outcome = REJECTED
        elif mode is Mode.DROPPED:
            outcome = TIMEOUT
        else:
            outcome = self._carry_out(action)
            outcome = TIMEOUT if mode is Mode.LOST else outcome
        self.world.apply(action, outcome, basis=basis, now=self.now, jitter=0.5)
        if self.engine.loaded_over:
            self.broken.append(f"P4: loaded over {self.engine.loaded_over.pop()}")
        return outcome

    def apply_all(self, actions: Iterable[Action], mode: Mode = Mode.DONE) -> None:
        """Carry out a plan in order; a target's later steps wait for a failed one."""
        stopped: set[str] = set()
        for action in actions:
            if action.name in stopped and not isinstance(action, Evict):
                continue
            if isinstance(self.apply(action, mode), Failed):
                stopped.add(action.name)

    def _carry_out(self, action: Action) -> Outcome:
        match action:
            case Fetch():
                return self.disk.fetch(action, self.now)
            case Check(revision=one):
                return Done(revision=one) if one.path in self.disk.whole else failure()
            case Load():
                return self.engine.load(action, self.now)
            case Warm(name=name):
                return REJECTED if name in self.engine.numb else Done()
            case Unload(name=name):
                return self.engine.unload(name, self.now)
            case Evict(revision=one):
                self.disk.whole.pop(one.path, None)
                return Done()

    def settle(self, *, rounds: int = MAX_ROUNDS) -> int:
        """Look, plan and apply until nothing is left to do; return how many rounds it took."""
        for number in range(rounds):
            self.look()
            ahead = self.plan()
            if ahead:
                self.apply_all(ahead.actions)
            else:
                due = [wait.until for wait in ahead.waits if wait.until is not None]
                if not due:
                    return number
                self.now = max(self.now, min(due))
            self.world.forget_strangers(())
        raise AssertionError(f"no end after {rounds} rounds: {self.plan()}")

    # The promises.

    def _watch(self, action: Action) -> None:
        match action:
            case Load() | Unload() | Warm():
                self._watch_engine_call(action)
            case Evict(revision=one):
                self._watch_eviction(one)
            case Fetch(restore=None):
                self._watch_fetch(action)
            case _:
                pass
        if isinstance(action, Unload):
            self._watch_unload(action)

    def _watch_engine_call(self, action: Load | Unload | Warm) -> None:
        if self.world.engine is None:
            self.broken.append(f"P1: {action} of an engine that cannot be seen")
        if self.engine.asleep and self.world.engine is not None and self.world.engine.asleep:
            self.broken.append(f"asleep: {action}")
        if action.name in self.view().unsure:
            self.broken.append(f"P7: {action} before a look")

    def _watch_unload(self, action: Unload) -> None:
        documents, name = self.documents, action.name
        assert documents is not None
        listed = name in documents.entries
        unknown = name in documents.undecided or (documents.incomplete and not listed)
        if unknown and name not in documents.absent:
            self.broken.append(f"P1: unload of {name}, of which nothing is known")
        stranger = name in self.strangers and not listed and name not in documents.absent
        if stranger and self.policy.prune is not Prune.ALL:
            self.broken.append(f"P2: unload of {name}, which the engine was started with")
        if action.replacing and self.capabilities.replaces_in_place:
            self.broken.append(f"P4: a gap for {name}, where none is needed")
        if not self.capabilities.serves_alone and not listed and documents.entries:
            others = (self.engine.names() - {name}) & documents.entries.keys()
            if not others and name in self.engine.names() and self._can_come():
                self.broken.append(f"P9: unload of {name} leaves nothing to serve")

    def _can_come(self) -> bool:
        """Tell whether some listed target could be loaded before anything has to go."""
        documents = self.documents
        assert documents is not None
        if self.engine.capacity is not None and len(self.engine.names()) >= self.engine.capacity:
            return False
        for one in documents.entries.values():
            failures = self.world.progress[one.name].failures
            if all(each.severity is Severity.TRANSIENT for each in failures):
                return True
        return False

    def _watch_turn(self, wait: Wait) -> None:
        change = self.changes.get(wait.name)
        seconds = self.policy.replace_after_seconds
        if change is None or wait.until is None or wait.until > change[1] + seconds:
            self.broken.append(f"spread: {wait} is later than this pod's turn")

    def _watch_fetch(self, action: Fetch) -> None:
        """A replacement begins at this pod's turn; once begun it may be tried again at any time."""
        name = action.name
        change = self.changes.pop(name, None)
        if change is None or self.now >= change[0] + self.policy.replace_after_seconds:
            return
        paths = {rank[name] for rank in self.engine.serving if name in rank}
        number = self.disk.sources.get(action.entry.source)
        found = revision(name, str(number), kind=self.disk.kind).path
        whole = all(path in self.disk.whole or not path.startswith(STORE) for path in paths)
        held = self.world.memory.held.get(name)
        if held is not None and held.path.startswith(STORE) and held.path not in self.disk.whole:
            whole = False
        ours = held is not None and self.disk.whole.get(held.path)
        back = ours and ours.source == action.entry.source
        if paths and whole and paths != {found} and not back and not self._is_broken(name):
            self.broken.append(f"spread: {name} is replaced before this pod's turn")

    def _is_broken(self, name: str) -> bool:
        progress = self.world.progress.get(name)
        return name in self.engine.numb or (progress is not None and progress.broken)

    def _watch_eviction(self, one: Revision) -> None:
        documents = self.documents
        assert documents is not None
        unloaded_at = self.engine.may_read.get(one.path, START - 1e6)
        if unloaded_at is None:
            self.broken.append(f"P5: evicts {one.path}, which is resident")
        elif self.now < unloaded_at + self.policy.retain_seconds:
            self.broken.append(f"P5: evicts {one.path}, unloaded {self.now - unloaded_at} s ago")
        if one.name in documents.undecided or documents.incomplete:
            self.broken.append(f"P5: evicts {one.path}, of which nothing is known")
        asked = documents.entries.get(one.name)
        if asked is not None and (
            asked.pinned or self.disk.sources.get(asked.source) == one.revision
        ):
            self.broken.append(f"P5: evicts {one.path}, which is desired")

    def held_as_desired(self) -> list[str]:
        """Return how the engine differs from the document; empty when it does not."""
        documents = self.documents
        wrong = []
        for name, one in documents.entries.items() if documents is not None else ():
            number = self.disk.sources.get(one.source)
            path = revision(name, str(number), kind=self.disk.kind).path
            held = [rank.get(name) for rank in self.engine.serving]
            if set(held) != {path}:
                wrong.append(f"{name} is held from {held}, not {path}")
        return wrong


def every_prefix(actions: tuple[Action, ...]) -> Iterable[tuple[Action, ...]]:
    """Return each beginning of a plan, the empty and the whole one too."""
    return (actions[:length] for length in range(len(actions) + 1))
