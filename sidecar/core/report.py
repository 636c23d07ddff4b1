"""One sentence a cycle, and one line an action: what people read in logs and plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from sidecar.core.actions import Action, Check, Evict, Fetch, Load, Unload, Wait, Warm
from sidecar.core.outcome import Failed, Outcome
from sidecar.core.redact import redact_source
from sidecar.core.sizes import share
from sidecar.core.status import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One action that ended."""

    action: Action
    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One turn of the loop, for people: ``str(cycle)`` is its sentence."""

    generation: int
    steps: tuple[Step, ...] = ()
    waits: tuple[Wait, ...] = ()
    running: tuple[Action, ...] = ()
    brought: tuple[int, int | None] | None = None
    """Bytes of what is being fetched, so far and in all; None: nothing is, or it is not told."""
    targets: int = 0
    trouble: str = ""
    """Why the engine or the document cannot be seen."""
    now: float = 0.0

    def __str__(self) -> str:
        parts = []
        if self.steps:
            parts.append(describe_steps(self.steps))
        if self.running:
            parts.append(describe_running(self.running) + self._progress())
        if self.waits:
            parts.append(describe_waits(self.waits, self.targets, self.now))
        if self.trouble:
            parts.append(self.trouble)
        if not parts:
            parts.append(f"converged, {_count(self.targets, 'target')}")
        return f"generation {self.generation}: " + "; ".join(parts)

    def _progress(self) -> str:
        return f" ({share(*self.brought)})" if self.brought is not None else ""


VERBS: dict[type[Action], tuple[str, str]] = {
    Fetch: ("fetched", "fetching"),
    Check: ("checked", "checking"),
    Load: ("loaded", "loading"),
    Warm: ("warmed up", "warming up"),
    Unload: ("unloaded", "unloading"),
    Evict: ("evicted", "evicting"),
}


PLANNED_WAITS = frozenset({Reason.SPREAD, Reason.DROPPED})
"""Nothing failed."""


def describe_action(action: Action) -> str:
    """Say what an action would do, and why: the ``plan`` command's lines."""
    name = action.name
    match action:
        case Fetch(entry=entry, restore=restore):
            why = "its files vanished" if restore else "to see what it holds"
            return f"fetch {name} from {redact_source(entry.source)} ({why})"
        case Check(revision=revision):
            return f"check {revision.kind} {name} revision {revision.revision}"
        case Load(target=target, revision=revision, fallback=fallback):
            why = " (it served before)" if fallback else ""
            return f"load {target.kind} {name} revision {revision.revision}{why}"
        case Warm(target=target):
            return f"warm up {target.kind} {name} with one tiny request"
        case Unload(target=target, replacing=replacing):
            why = "another revision takes its name" if replacing else "no document lists it"
            return f"unload {target.kind} {name} ({why})"
        case Evict(revision=revision):
            return f"evict {name} revision {revision.revision} from disk"
        case _:
            assert_never(action)


def describe_steps(steps: Sequence[Step]) -> str:
    """Say what ended, briefly: one thing by name, many by count."""
    done: dict[type[Action], list[Step]] = {}
    succeeded = [step for step in steps if not isinstance(step.outcome, Failed)]
    # What led to a load is told by the load.
    loaded = {step.action.name for step in succeeded if isinstance(step.action, Load)}
    for step in succeeded:
        if not (isinstance(step.action, Fetch | Check) and step.action.name in loaded):
            done.setdefault(type(step.action), []).append(step)
    parts = []
    for kind, group in done.items():
        verb = VERBS[kind][0]
        if len(group) == 1:
            parts.append(f"{verb} {_named(group[0].action)} in {_duration(group[0].seconds)}")
        else:
            parts.append(f"{verb} {_count(len(group), 'target')}")
    failures = [step for step in steps if isinstance(step.outcome, Failed)]
    if failures:
        parts.append(f"{_count(len(failures), 'step')} failed")
    return ", ".join(parts)


def describe_running(running: Sequence[Action]) -> str:
    """Say what is under way."""
    if len(running) == 1:
        return f"{VERBS[type(running[0])][1]} {_named(running[0])}"
    return f"{_count(len(running), 'target')} under way"


def describe_waits(waits: Sequence[Wait], targets: int, now: float) -> str:
    """Say who waits, and why the first of them does."""
    first = waits[0]
    word = "due" if first.reason in PLANNED_WAITS else "retry"
    when = "" if first.until is None else f", {word} in {max(0.0, first.until - now):.0f} s"
    verb = "waits" if len(waits) == 1 else "wait"
    total = max(targets, len(waits))
    return f"{len(waits)} of {total} {verb} ({first.name}: {first.message}{when})"


def _named(action: Action) -> str:
    if isinstance(action, Load | Unload | Warm):
        return f"{action.target.kind} {action.name}"
    return action.name


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
