"""The steps a plan is made of, as values."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.base import Target
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.progress import Attempt
from sidecar.core.status import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Bring what the entry's source holds into the store."""

    name: str
    entry: Entry
    restore: Revision | None = None
    """A revision whose files vanished under the engine: put back first of all."""
    moves: int = 0
    """Changes of the source that it answers; one that comes later needs another fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Read a revision before the engine does."""

    name: str
    entry: Entry
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Make the engine hold a revision."""

    name: str
    target: Target
    revision: Revision
    fallback: bool = False
    """It is the revision that served before: the desired one failed, or is not here yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Send a tiny request before the target counts as serving."""

    name: str
    target: Target
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """Make the engine forget a target."""

    name: str
    target: Target
    replacing: bool = False
    """Another revision is loaded under the name next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Delete a revision from disk."""

    name: str
    revision: Revision


Action = Fetch | Check | Load | Warm | Unload | Evict


def is_departure(action: Action) -> bool:
    """Tell whether an action only takes something away."""
    return isinstance(action, Evict) or (isinstance(action, Unload) and not action.replacing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a target that is not as desired has no step now."""

    name: str
    reason: Reason
    message: str
    until: float | None = None
    """Unix seconds; None: until something changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in order, and the targets that wait."""

    actions: tuple[Action, ...] = ()
    waits: tuple[Wait, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.actions)


def waits_for_look(name: str) -> Wait:
    """Return the wait that a call of unknown outcome means (P7)."""
    return Wait(
        name=name,
        reason=Reason.ENGINE_TIMEOUT,
        message="the outcome of the last call is unknown; looking first",
    )


def waits_for(name: str, attempt: Attempt) -> Wait:
    """Return the wait that a failed attempt means until it is due again."""
    return Wait(name=name, reason=attempt.reason, message=attempt.message, until=attempt.retry_at)


def waits_for_turn(name: str, due_at: float) -> Wait:
    """Return the wait of a pod whose turn to replace has not come."""
    return Wait(
        name=name,
        reason=Reason.SPREAD,
        message="another revision takes its place; the pods begin one after another "
        "(--spread-seconds)",
        until=due_at,
    )
