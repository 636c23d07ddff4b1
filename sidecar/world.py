"""What the agent knows at this moment: the one mutable value between looks, answers and plans.

Every field is replaced by facts (a look at the engine, an answer, a document), never by hopes. An
answer that is newer than a look wins over it: a look begun before a load ended cannot know of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from adapters.base import Capabilities, EngineState, Residency, Resident
from sidecar.core import incarnation
from sidecar.core.actions import Action, Evict, Load, Unload
from sidecar.core.backoff import Basis
from sidecar.core.denials import Claim, blame, confirmed, forgive, judge
from sidecar.core.desired import Desired, Entry
from sidecar.core.inventory import Inventory
from sidecar.core.memory import Memory
from sidecar.core.outcome import Done, Effect, Failed, Outcome, after, is_unknown
from sidecar.core.progress import Attempt, Progress, Stage, asks, edited, failed, for_entry, moved
from sidecar.core.view import Policy, View, parameters_key

FORGET_SECONDS = 3600.0
"""How long what was retired is remembered beyond its retention, if it is not in the store."""


class World:
    """Desired and observed state, progress and memory, and how facts change them."""

    def __init__(self, *, capabilities: Capabilities, policy: Policy, memory: Memory) -> None:
        self._capabilities = capabilities
        self._policy = policy
        self.memory = memory
        self.desired: Desired | None = None
        self.engine: EngineState | None = None
        self.last_engine: EngineState | None = None
        """The last successful look, which outlives a failed one for reports only."""
        self.residents: dict[str, Resident] = {}
        self.progress: dict[str, Progress] = {}
        self._freed = 0
        self._evicted = 0
        self._sequence = 0
        self._answered: dict[str, int] = {}
        """Names whose residency an answer changed -> when, in marks."""
        self._unsure: dict[str, int] = {}
        """Names with a call whose outcome is unknown -> since when, in marks."""
        self._evictions: dict[str, Attempt] = {}
        self._claims: dict[str, Claim] = {}

    @property
    def basis(self) -> Basis:
        """What an attempt made now would be made against."""
        return Basis(
            generation=self.memory.generation,
            incarnation=self.memory.incarnation,
            freed=self._freed,
            evicted=self._evicted,
        )

    def view(self, inventory: Inventory, now: float) -> View:
        """Return everything a plan depends on. Valid until the next await."""
        kept_until = now - self._policy.retain_seconds - FORGET_SECONDS
        self.memory = incarnation.forget_retired(self.memory, inventory, before=kept_until)
        return View(
            desired=self.desired,
            engine=self.engine,
            inventory=inventory,
            progress=self.progress,
            memory=self.memory,
            capabilities=self._capabilities,
            policy=self._policy,
            basis=self.basis,
            now=now,
            residents=self.residents,
            unsure=self._unsure,
            evictions=self._evictions,
        )

    def accept(self, desired: Desired, *, now: float) -> None:
        """Take over what newly accepted documents ask for."""
        before, self.desired = self.desired, desired
        self.memory = replace(incarnation.own(self.memory, desired, now=now), accepted_at=now)
        wait_seconds = self._policy.replace_after_seconds
        for name, entry in desired.entries.items():
            progress = for_entry(self.progress.get(name), entry)
            # Nobody edited anything where it is not known what was asked for before.
            if before is not None and _is_edited(before, entry):
                progress = edited(progress, entry, now=now, wait_seconds=wait_seconds)
            self.progress[name] = progress

    def begin_look(self) -> int:
        """Return the mark that ``saw`` needs to tell older facts from newer ones."""
        self._sequence += 1
        return self._sequence

    def saw(self, state: EngineState, mark: int, *, refused: bool, now: float) -> bool:
        """Take over one successful look; return whether it is another engine incarnation."""
        self._answered = {name: at for name, at in self._answered.items() if at > mark}
        before = self.memory.incarnation
        self.memory = incarnation.follow(
            self.memory, state, refused=refused, before=self._cannot_have_left()
        )
        restarted = before != 0 and self.memory.incarnation != before
        woke = self.last_engine is not None and self.last_engine.asleep and not state.asleep
        seen = {one.name: one for one in state.residents}
        for name in self._answered:
            seen.pop(name, None)
            if (ours := self.residents.get(name)) is not None:
                seen[name] = ours
        self._unsure = {name: at for name, at in self._unsure.items() if at > mark}
        self.residents = seen
        for name in seen:
            self._recognise(name)
        self.engine = self.last_engine = state
        if restarted and state.started_at is not None:
            # What a new process does not hold, it never said that it did.
            self._claims.clear()
        self._judge(state, now)
        listed = self.desired.entries if self.desired is not None else {}
        self.memory = incarnation.forget_gone(self.memory, seen, listed, now=now)
        if woke:
            self._suspect(seen)
        return restarted

    def _recognise(self, name: str) -> None:
        """Call the paths of a resident what the agent was told to call them."""
        resident = self.residents.get(name)
        if resident is None or not resident.aliases:
            return
        held, progress = self.memory.held.get(name), self.progress.get(name)
        told = [held.path] if held is not None else []
        if progress is not None and progress.revision is not None:
            told.append(progress.revision.path)
        self.residents[name] = resident.known_as(*told)

    def _judge(self, state: EngineState, now: float) -> None:
        for name, claim in list(self._claims.items()):
            if name in self._answered or name in self._unsure:
                continue
            judged = judge(claim, state, self.residents.get(name), basis=self.basis, now=now)
            progress = self.progress.get(name, Progress())
            if judged is None:
                del self._claims[name]
                self.progress[name] = forgive(progress, claim)
            elif judged is not claim:
                self._claims[name] = judged
                self.progress[name] = blame(progress, judged) if judged.attempt else progress

    def _cannot_have_left(self) -> frozenset[str]:
        """Return the residents that a look must find, unless the engine was restarted."""
        if self.last_engine is None:
            return frozenset(self.memory.held)
        return frozenset(
            name
            for name, one in self.residents.items()
            if one.state in (Residency.RESIDENT, Residency.PARTIAL)
            and name not in self._answered
            and name not in self._unsure
        )

    def lost_sight(self) -> None:
        """The look failed: what the engine holds is unknown, and nothing is concluded from it."""
        self.engine = None

    def _suspect(self, names: Iterable[str]) -> None:
        for name in names:
            if (progress := self.progress.get(name)) is not None:
                self.progress[name] = replace(progress, suspect=True)

    def moved(self, name: str, *, now: float, is_sure: bool = True) -> None:
        """The source of ``name`` was seen to change; unless ``is_sure``, it may have.

        What is not sure is found out at once, as most often nothing is replaced.
        """
        if (progress := self.progress.get(name)) is None:
            return
        entry = self.desired.entries.get(name) if self.desired is not None else None
        wait_seconds = self._policy.replace_after_seconds if is_sure else 0.0
        self.progress[name] = moved(progress, entry, now=now, wait_seconds=wait_seconds)

    def looked(self, name: str, trouble: str) -> None:
        """The source of ``name`` was looked at for changes; ``trouble`` says why in vain."""
        progress = self.progress.get(name)
        if progress is not None and progress.unseen != trouble:
            self.progress[name] = replace(progress, unseen=trouble)

    def apply(
        self, action: Action, outcome: Outcome, *, basis: Basis, now: float, jitter: float
    ) -> None:
        """Take over the outcome of one action, which began when ``basis`` was the basis."""
        name = action.name
        if isinstance(action, Evict) and isinstance(outcome, Failed):
            self._keep_failed_eviction(action, outcome, basis=basis, now=now, jitter=jitter)
            return
        effect = after(
            Effect(
                progress=self.progress.get(name, Progress()),
                memory=self.memory,
                resident=self.residents.get(name),
            ),
            action,
            outcome,
            basis=basis,
            now=now,
            jitter=jitter,
        )
        if isinstance(action, Evict):
            self._evictions.pop(action.revision.path, None)
        elif is_unknown(action, outcome) or self._needs_look(action, outcome):
            self._sequence += 1
            self._unsure[name] = self._sequence
        if effect.resident is not self.residents.get(name):
            self._sequence += 1
            self._answered[name] = self._sequence
            self.residents.pop(name, None)
            if effect.resident is not None:
                self.residents[name] = effect.resident
        self.progress[name] = effect.progress
        self.memory = effect.memory
        self._recognise(name)
        if isinstance(outcome, Done) and isinstance(action, Load):
            claim = Claim(
                path=action.revision.path,
                parameters=parameters_key(action.target.parameters),
                fallback=action.fallback,
            )
            self._claims[name] = confirmed(self._claims.get(name), claim)
        elif isinstance(action, Unload) and not action.replacing:
            self._claims.pop(name, None)
        self._freed += effect.freed
        self._evicted += effect.evicted

    def _needs_look(self, action: Action, outcome: Outcome) -> bool:
        """Tell whether only a look can say what a refused load left behind.

        Some ranks may have taken it; and where a path is but a claim (a link), a look during the
        load saw the claim of the revision that was then refused.
        """
        if not isinstance(action, Load) or not isinstance(outcome, Failed):
            return False
        ranks = self.last_engine.ranks if self.last_engine is not None else 1
        return ranks > 1 or not self._capabilities.reports_paths

    def _keep_failed_eviction(
        self, action: Evict, outcome: Failed, *, basis: Basis, now: float, jitter: float
    ) -> None:
        # Kept apart from progress: files that cannot be deleted are no trouble of the target's.
        path = action.revision.path
        self._evictions[path] = failed(
            self._evictions.get(path),
            stage=Stage.EVICT,
            reason=outcome.reason,
            message=outcome.message,
            severity=outcome.severity,
            basis=basis,
            now=now,
            jitter=jitter,
        )

    def forget_strangers(self, in_flight: Iterable[str]) -> None:
        """Drop the progress of names that nobody asks for and nobody holds."""
        kept = set(self.residents) | set(in_flight)
        if self.desired is not None:
            kept |= set(self.desired.entries) | self.desired.undecided
        for name in [name for name in self.progress if name not in kept]:
            del self.progress[name]
            self._claims.pop(name, None)


def _is_edited(before: Desired, entry: Entry) -> bool:
    known = before.entries.get(entry.name)
    return known is None or asks(known) != asks(entry)
