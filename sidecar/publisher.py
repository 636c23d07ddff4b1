"""From what is known to what is published: decides readiness, hangs the status on the board."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.board import Board
from sidecar.core.accept import Accepted
from sidecar.core.actions import Wait
from sidecar.core.desired import Format
from sidecar.core.inventory import Inventory
from sidecar.core.readiness import Answering, DocumentFact, Facts, Gate, evaluate
from sidecar.core.status import (
    DocumentStatus,
    EngineCondition,
    EngineStatus,
    Status,
    StoreStatus,
    TargetStatus,
)
from sidecar.core.targets import Context, Underway, came, is_failing, target_statuses
from sidecar.core.view import View
from sidecar.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What never changes while the agent runs."""

    version: str
    pod: str
    engine: str
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the loop adds to the world for one publication."""

    accepted: Accepted | None
    source: str
    answering: Answering
    engine_message: str
    waits: Sequence[Wait]
    underway: Mapping[str, Underway]
    has_plan: bool
    sentence: str


class Publisher:
    """Owns the latch's evaluation and the board."""

    def __init__(
        self,
        *,
        board: Board,
        world: World,
        identity: Identity,
        gate: Gate,
        initial_timeout_seconds: float,
        in_slot: Callable[[], frozenset[str] | None],
        slots: Callable[[], int | None],
    ) -> None:
        self._board = board
        self._world = world
        self._identity = identity
        self._gate = gate
        self._initial_timeout_seconds = initial_timeout_seconds
        self._in_slot = in_slot
        self._slots = slots
        self._stopping = False

    def stop(self) -> None:
        """The pod is on its way out: never ready again."""
        self._stopping = True
        status = self._board.status
        self._board.publish(replace(status, ready=False, reasons=("The agent is shutting down.",)))

    def doubt(self, sentence: str) -> None:
        """A cycle failed: what was published last may hold no longer."""
        status = replace(self._board.status, converged=False, cycle=sentence)
        self._board.publish(status)

    def publish(self, scene: Scene, inventory: Inventory, now: float) -> Status:
        """Decide readiness and hang the status on the board; returns it."""
        world = self._world
        view = world.view(inventory, now)
        context = Context(
            view=view,
            waits={wait.name: wait for wait in scene.waits},
            underway=scene.underway,
            previous=self._board.status.targets,
            in_slot=self._in_slot(),
        )
        problems = scene.accepted.problems if scene.accepted is not None else ()
        targets = target_statuses(context, problems)
        ready, reasons = self._evaluate(context, scene, targets, now)
        converged = self._is_converged(scene)
        if converged:
            world.memory = replace(world.memory, observed_generation=world.memory.generation)
        status = Status(
            version=self._identity.version,
            pod=self._identity.pod,
            ready=ready and not self._stopping,
            converged=converged,
            reasons=("The agent is shutting down.",) if self._stopping else reasons,
            cycle=scene.sentence,
            document=self._document(scene),
            engine=self._engine(scene),
            store=StoreStatus(
                bytes=inventory.bytes,
                max_bytes=inventory.max_bytes,
                revisions=sum(1 for _ in inventory.all()),
            ),
            targets=targets,
        )
        self._board.publish(status)
        return status

    def _evaluate(
        self, context: Context, scene: Scene, targets: Mapping[str, TargetStatus], now: float
    ) -> tuple[bool, tuple[str, ...]]:
        world, view = self._world, context.view
        entries = view.desired.entries if view.desired is not None else {}
        engine = world.last_engine
        base = engine.base_names if engine is not None else frozenset()
        facts = Facts(
            gate=self._gate,
            incarnation=world.memory.incarnation if engine is not None else 0,
            answering=scene.answering,
            asleep=engine is not None and engine.asleep,
            document=_document_fact(scene.accepted),
            targets={
                name: (entry.readiness, came(context, entry)) for name, entry in entries.items()
            },
            failing=world.memory.failing,
            serves_alone=view.capabilities.serves_alone,
            resident_count=_resident_count(view, base),
            initial_timeout_seconds=self._initial_timeout_seconds,
        )
        verdict = evaluate(world.memory.latch, facts, now=now)
        memory = replace(world.memory, latch=verdict.latch)
        if verdict.latch.passed and scene.answering.answers:
            # Remembered while the engine lives, for the incarnation after it.
            failing = frozenset(name for name, one in targets.items() if is_failing(one))
            memory = replace(memory, failing=failing)
        world.memory = memory
        return verdict.ready, verdict.reasons

    def _is_converged(self, scene: Scene) -> bool:
        accepted, world = scene.accepted, self._world
        if accepted is None or world.engine is None or world.engine.asleep:
            return False
        if scene.has_plan or scene.waits or scene.underway:
            return False
        if world.desired is None:
            return accepted.valid and _document_fact(accepted) is DocumentFact.ABSENT
        return accepted.valid and not world.desired.undecided and not world.desired.incomplete

    def _document(self, scene: Scene) -> DocumentStatus:
        memory, desired, accepted = self._world.memory, self._world.desired, scene.accepted
        problems = accepted.problems if accepted is not None else ()
        return DocumentStatus(
            digest=desired.digest if desired is not None else "",
            generation=memory.generation,
            observed_generation=memory.observed_generation,
            formats=tuple(str(one) for one in desired.formats) if desired is not None else (),
            elsewhere=tuple(sorted(desired.elsewhere)) if desired is not None else (),
            source=scene.source,
            accepted_at=memory.accepted_at,
            valid=accepted is not None and accepted.valid,
            problems=tuple(
                {"where": one.where, "what": one.what, "hint": one.hint} for one in problems
            ),
        )

    def _engine(self, scene: Scene) -> EngineStatus:
        world = self._world
        state = world.engine or world.last_engine
        condition = EngineCondition.UNKNOWN
        if world.engine is not None:
            condition = EngineCondition.ASLEEP if world.engine.asleep else EngineCondition.UP
        elif scene.answering.since is not None:
            condition = EngineCondition.DOWN
        return EngineStatus(
            kind=self._identity.engine,
            urls=self._identity.urls,
            state=condition,
            started_at=state.started_at if state is not None else None,
            base_model=(state.base_model or "") if state is not None else "",
            base_names=tuple(sorted(state.base_names)) if state is not None else (),
            slots=self._slots(),
            message=scene.engine_message,
            restarts=max(0, world.memory.incarnation - 1),
        )


def _resident_count(view: View, base: frozenset[str]) -> int:
    return sum(
        1
        for name, one in view.residents.items()
        if name not in base and one.state.value == "resident"
    )


def _document_fact(accepted: Accepted | None) -> DocumentFact:
    if accepted is None:
        return DocumentFact.UNREAD
    if accepted.desired is not None:
        return DocumentFact.ACCEPTED
    if accepted.absent or Format.MICHELANGELO in accepted.formats_seen:
        return DocumentFact.ABSENT
    return DocumentFact.TROUBLE
