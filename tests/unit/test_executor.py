"""One action, once: every error of the engine, the source and the disk has its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

import pytest

from adapters import base
from adapters.base import EngineAdapter, EngineError, EngineState, Kind, Target
from sidecar import errors
from sidecar.core.actions import Check, Evict, Fetch, Load, Unload, Warm
from sidecar.core.backoff import Severity
from sidecar.core.outcome import Done, Failed
from sidecar.core.status import Reason
from sidecar.errors import ArtifactError, DamagedSource, SourceMoved
from sidecar.executor import ENGINE_ERRORS, Executor, failure_of
from tests.support.simulated import entry, revision

E = TypeVar("E", bound=Exception)
A = entry("a")
V1 = revision("a")
TARGET = Target(name="a", kind=Kind.LORA)
ACTIONS: dict[str, Any] = {
    "fetch": Fetch(name="a", entry=A),
    "check": Check(name="a", entry=A, revision=V1),
    "load": Load(name="a", target=TARGET, revision=V1),
    "warm": Warm(name="a", target=TARGET, path=V1.path),
    "unload": Unload(name="a", target=TARGET),
    "evict": Evict(name="a", revision=V1),
}


def family(root: type[E]) -> Iterator[type[E]]:
    """Yield a class and all that derive from it."""
    yield root
    for one in root.__subclasses__():
        yield from family(one)


class Scripted:
    """An engine, a store and a check in one, which write down what they are asked or fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[object, ...]] = []

    def _answer(self, *asked):
        self.asked.append(asked)
        if self.error is not None:
            raise self.error

    async def load(self, target, path):
        self._answer("load", target.name, path)

    async def unload(self, target):
        self._answer("unload", target.name)

    async def warm(self, target):
        self._answer("warm", target.name)

    async def fetch(self, entry, *, restore, progress):
        progress(1, 2)
        self._answer("fetch", entry.name, restore)
        return V1

    async def fetch_known(self, entries):
        self._answer("fetch_known", [one.name for one in entries])
        return {"a": V1}

    async def evict(self, revision):
        self._answer("evict", revision.path)

    async def check(self, revision, entry, engine):
        self._answer("check", revision.path, entry.name, engine)
        return V1


def executor_of(scripted: Scripted) -> Executor:
    """Return an executor over one that can do what executors ask for, and no more."""
    adapter = cast(EngineAdapter, scripted)
    return Executor(adapter=adapter, files=scripted, check=scripted.check)


async def run(scripted: Scripted, action, engine: EngineState | None = None):
    """Carry out one action; return its outcome."""
    return await executor_of(scripted).run(action, engine, lambda *_: None)


@pytest.mark.parametrize("name", ACTIONS)
async def test_each_action_makes_one_call(name):
    scripted = Scripted()
    outcome = await run(scripted, ACTIONS[name])
    assert isinstance(outcome, Done)
    assert [asked[0] for asked in scripted.asked] == [name]
    assert (outcome.revision == V1) == (name in ("fetch", "check"))


async def test_a_check_knows_the_engine_as_last_seen():
    scripted, seen = Scripted(), EngineState(base_model="base")
    await run(scripted, ACTIONS["check"], seen)
    await run(scripted, ACTIONS["check"])
    assert [asked[3] for asked in scripted.asked] == [seen, EngineState()]


ENGINE_FAMILY = [one for one in family(EngineError) if one.__module__ == base.__name__]


def test_no_error_of_the_port_is_missing_in_the_table():
    assert set(ENGINE_FAMILY) - {EngineError} == set(ENGINE_ERRORS)


@pytest.mark.parametrize("error", ENGINE_FAMILY)
@pytest.mark.parametrize("name", ["load", "unload", "warm"])
async def test_engine_errors_become_outcomes(error, name):
    outcome = await run(Scripted(error("in plain words")), ACTIONS[name])
    expected = (Reason.ENGINE_PROTOCOL, Severity.PROTOCOL)
    reason, severity = ENGINE_ERRORS.get(error, expected)
    assert outcome == Failed(reason=reason, message="in plain words", severity=severity)


def test_what_is_not_worth_repeating_is_rejected():
    for error, (_, severity) in ENGINE_ERRORS.items():
        assert (severity is Severity.REJECTED) == (not error.retryable), error


def test_an_engines_own_error_counts_as_the_kind_it_is():
    class OutOfSlots(base.EngineRejected):
        pass

    assert failure_of(OutOfSlots("full")).severity is Severity.REJECTED


ARTIFACT_FAMILY = [one for one in family(ArtifactError) if one.__module__ == errors.__name__]


@pytest.mark.parametrize("error", ARTIFACT_FAMILY)
@pytest.mark.parametrize("name", ["fetch", "check", "evict"])
async def test_artifact_errors_become_outcomes(error, name):
    outcome = await run(Scripted(error("in plain words")), ACTIONS[name])
    severity = Severity.TRANSIENT if error.retryable else Severity.REJECTED
    assert outcome == Failed(
        reason=Reason(error.reason), message="in plain words", severity=severity
    )


def test_every_artifact_error_has_a_reason_of_its_own():
    # One that moved while it was read is fetched like any other that failed.
    apart = (ArtifactError, SourceMoved, DamagedSource)
    reasons = [one.reason for one in ARTIFACT_FAMILY if one not in apart]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/store/x"), "No space left on device: /store/x"),
        (OSError("odd"), "odd: the store"),
    ],
)
async def test_disk_errors_become_outcomes(error, message):
    outcome = await run(Scripted(error), ACTIONS["evict"])
    assert outcome == Failed(
        reason=Reason.FETCH_FAILED, message=message, severity=Severity.TRANSIENT
    )


async def test_what_is_known_of_many_fetches_is_asked_for_at_once():
    scripted = Scripted()
    assert await executor_of(scripted).find_known([ACTIONS["fetch"]]) == {"a": V1}
    assert scripted.asked == [("fetch_known", ["a"])]


@pytest.mark.parametrize("error", [errors.FetchFailed("no"), OSError("no")])
async def test_nothing_is_known_where_it_cannot_be_asked(error):
    scripted = Scripted(error)
    assert await executor_of(scripted).find_known([ACTIONS["fetch"]]) == {}


async def test_a_defect_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        await run(Scripted(ZeroDivisionError()), ACTIONS["load"])
