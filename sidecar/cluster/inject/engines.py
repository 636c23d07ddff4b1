"""Which container is the engine, and what the agent has to know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.cluster.inject.asked import Asked, Named
from sidecar.cluster.inject.facts import SAY_FLAGS, Facts
from sidecar.cluster.inject.invocation import (
    SGLANG,
    TRITON,
    VLLM,
    Invocation,
    UnclearError,
    UnreadableError,
    find_invocation,
    image_engine,
)
from sidecar.cluster.inject.model import PREFIX, Json, JsonView, NoEngineError, objects, refusal
from sidecar.cluster.inject.sglang import read_sglang
from sidecar.cluster.inject.triton import read_triton
from sidecar.cluster.inject.vllm import read_vllm
from sidecar.core.desired import Problem

_READERS: dict[str, Callable[[Facts], None]] = {
    VLLM: read_vllm,
    SGLANG: read_sglang,
    TRITON: read_triton,
}
_WHERE = "spec.containers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A pod's engine."""

    container: Json
    where: str
    invocation: Invocation | None
    """None where its command line is not known."""


def read_engine(choice: Choice, asked: Asked) -> Facts:
    """Return what the engine's command line says, and what is wrong with it.

    Raises ``InjectError`` where it cannot be read at all.
    """
    where, container = choice.where, choice.container
    if not isinstance(container.get("name"), str):
        raise refusal(f"{where}.name", "the container has no name", "give it one")
    facts = Facts(invocation=choice.invocation, container=container, where=where, given=asked.given)
    _READERS[engine_of(facts, asked)](facts)
    if facts.invocation and facts.invocation.unknown and "engine_url" not in facts.given:
        words = ", ".join(facts.invocation.unknown)
        facts.refuse(
            f"{words}: what stands there when the engine starts is not said in the manifest",
            f"write it out, or say --engine-url=http://127.0.0.1:PORT {SAY_FLAGS}",
        )
    return facts


def engine_of(facts: Facts, asked: Asked) -> str:
    """Return its kind: as the annotation says, else as it is started, else by its image."""
    if asked.engine:
        return asked.engine
    if facts.invocation is not None:
        return facts.invocation.engine
    found = image_engine(facts.container.get("image"))
    if found is None:
        raise refusal(
            facts.where, "which engine it is cannot be seen", f"say it: {PREFIX}engine: vllm"
        )
    return found


def _no_engine(containers: Sequence[tuple[int, Json]]) -> tuple[str, bool]:
    """An engine's image alone does not tell: benchmarks and downloads run in it, too."""
    for _, one in containers:
        if (engine := image_engine(one.get("image"))) is not None:
            what = f"{one.get('name')!r} has an image of {engine}, and is not seen to start it"
            return what, True
    return "no container is seen to start an engine", False


def find_engine(spec: JsonView, named: Named) -> Choice:
    """Return the engine among a pod's containers.

    Raises ``NoEngineError`` where no container is seen to be one and none is named, and
    ``InjectError`` where it cannot be told which or how.
    """
    containers = list(enumerate(objects(spec.get("containers"), _WHERE)))
    found = _found(containers, named)
    hint = f"say which is one: {PREFIX}container: NAME and {PREFIX}engine: vllm"
    if not found and named.engine:
        raise refusal(_WHERE, f"no container is seen to start {named.engine}", hint)
    if not found:
        what, image = _no_engine(containers)
        raise NoEngineError([Problem(where=_WHERE, what=what, hint=hint)], image=image)
    if len(found) > 1:
        names = ", ".join(str(dict(containers)[index].get("name")) for index in found)
        raise refusal(
            _WHERE, f"{names} are engines", f"say which the agent is for: {PREFIX}container: NAME"
        )
    index, invocation = next(iter(found.items()))
    if named.engine and invocation is not None and invocation.engine != named.engine:
        invocation = None
    return Choice(
        container=dict(containers)[index], where=f"{_WHERE}[{index}]", invocation=invocation
    )


def _found(containers: Sequence[tuple[int, Json]], named: Named) -> dict[int, Invocation | None]:
    if named.container:
        found = {
            index: _invocation(index, one, named, is_named=True)
            for index, one in containers
            if one.get("name") == named.container
        }
        if not found:
            names = ", ".join(str(one.get("name")) for _, one in containers)
            raise refusal(
                _WHERE, f"there is no container {named.container!r}", f"there are {names}"
            )
        return found
    is_named = bool(named.engine) and len(containers) == 1
    seen = {index: _invocation(index, one, named, is_named=is_named) for index, one in containers}
    if is_named:
        return seen
    return {
        index: one
        for index, one in seen.items()
        if one is not None and named.engine in ("", one.engine)
    }


def _invocation(index: int, container: Json, named: Named, *, is_named: bool) -> Invocation | None:
    """Return how a container starts an engine; None where that is not seen, or cannot be told of
    a container that was said to be one, and which."""
    try:
        return find_invocation(container, f"{_WHERE}[{index}]")
    except UnreadableError:
        if not is_named and image_engine(container.get("image")) is None:
            return None
        if is_named and named.engine:
            return None
        raise
    except UnclearError:
        if is_named and named.engine:
            return None
        raise
