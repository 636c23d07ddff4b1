"""Runs one action, once, and says what came of it. Errors become outcomes here and nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol, assert_never

from adapters.base import (
    EngineAdapter,
    EngineBusy,
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnavailable,
    EngineUnsupported,
)
from sidecar.core.actions import Action, Check, Evict, Fetch, Load, Unload, Warm
from sidecar.core.backoff import Severity
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.outcome import Done, Failed, Outcome
from sidecar.core.status import Reason
from sidecar.errors import ArtifactError

Progressed = Callable[[int, int | None], None]
"""Bytes fetched so far, and in all where that is known."""


class Files(Protocol):
    """What the executor asks of the store."""

    async def fetch(
        self, entry: Entry, *, restore: Revision | None, progress: Progressed
    ) -> Revision: ...

    async def fetch_known(self, entries: Iterable[Entry]) -> Mapping[str, Revision]: ...

    async def evict(self, revision: Revision) -> None: ...


Checker = Callable[[Revision, Entry, EngineState], Awaitable[Revision]]
"""Reads a revision before the engine does; raises ``ArtifactError``."""

ENGINE_ERRORS: dict[type[EngineError], tuple[Reason, Severity]] = {
    EngineUnavailable: (Reason.ENGINE_UNAVAILABLE, Severity.TRANSIENT),
    EngineTimeout: (Reason.ENGINE_TIMEOUT, Severity.TRANSIENT),
    EngineBusy: (Reason.ENGINE_UNAVAILABLE, Severity.TRANSIENT),
    EngineUnsupported: (Reason.ENGINE_UNSUPPORTED, Severity.REJECTED),
    EngineRejected: (Reason.ENGINE_REJECTED, Severity.REJECTED),
    EngineProtocolError: (Reason.ENGINE_PROTOCOL, Severity.PROTOCOL),
}
"""Most special first where one is a kind of another; a test proves that no class is missing."""


class Executor:
    """Turns actions into calls on the engine and the store."""

    def __init__(self, *, adapter: EngineAdapter, files: Files, check: Checker) -> None:
        self._adapter = adapter
        self._files = files
        self._check = check

    async def run(
        self, action: Action, engine: EngineState | None, progress: Progressed
    ) -> Outcome:
        """Carry out one action; never raises for what the engine, disk or source do."""
        try:
            return Done(revision=await self._do(action, engine, progress))
        except EngineError as error:
            return failure_of(error)
        except ArtifactError as error:
            severity = Severity.TRANSIENT if error.retryable else Severity.REJECTED
            return Failed(reason=Reason(error.reason), message=str(error), severity=severity)
        except OSError as error:
            return Failed(
                reason=Reason.FETCH_FAILED,
                message=f"{error.strerror or error}: {error.filename or 'the store'}",
                severity=Severity.TRANSIENT,
            )

    async def find_known(self, actions: Iterable[Fetch]) -> Mapping[str, Revision]:
        """Return, by name, what those fetches would find on disk; never raises, as ``run`` says why
        the others are not among it."""
        try:
            return await self._files.fetch_known([action.entry for action in actions])
        except (ArtifactError, OSError):
            return {}

    async def _do(
        self, action: Action, engine: EngineState | None, progress: Progressed
    ) -> Revision | None:
        match action:
            case Fetch(entry=entry, restore=restore):
                return await self._files.fetch(entry, restore=restore, progress=progress)
            case Check(revision=revision, entry=entry):
                return await self._check(revision, entry, engine or EngineState())
            case Load(target=target, revision=revision):
                await self._adapter.load(target, revision.path)
            case Warm(target=target):
                await self._adapter.warm(target)
            case Unload(target=target):
                await self._adapter.unload(target)
            case Evict(revision=revision):
                await self._files.evict(revision)
            case _:
                assert_never(action)
        return None


def failure_of(error: EngineError) -> Failed:
    """Return the outcome that an engine's error means."""
    for kind in type(error).__mro__:
        if kind in ENGINE_ERRORS:
            reason, severity = ENGINE_ERRORS[kind]
            return Failed(reason=reason, message=str(error), severity=severity)
    return Failed(reason=Reason.ENGINE_PROTOCOL, message=str(error), severity=Severity.PROTOCOL)
