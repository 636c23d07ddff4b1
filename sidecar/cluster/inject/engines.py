"""Which container is the engine, and what the agent has to know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sidecar.cluster.inject.asked import Asked
from sidecar.cluster.inject.facts import Facts
from sidecar.cluster.inject.invocation import (
    SGLANG,
    TRITON,
    VLLM,
    Invocation,
    find_invocation,
    image_engine,
)
from sidecar.cluster.inject.model import PREFIX, Json, NoEngineError, objects, refusal
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


def read_engine(spec: Json, asked: Asked) -> tuple[Json, Facts]:
    """Return the engine's container, and what its command line says.

    Raises ``InjectError``, ``NoEngineError`` where no container is known to be one.
    """
    index, container, invocation = _choose(spec, asked)
    where = f"{_WHERE}[{index}]"
    if not isinstance(container.get("name"), str):
        raise refusal(f"{where}.name", "the container has no name", "give it one")
    facts = Facts(invocation=invocation, container=container, where=where, given=asked.given)
    _READERS[engine_of(facts, asked)](facts)
    return container, facts


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


def _no_engine(containers: Sequence[tuple[int, Json]]) -> str:
    """An engine's image alone does not tell: benchmarks and downloads run in it, too."""
    for _, one in containers:
        if (engine := image_engine(one.get("image"))) is not None:
            return f"{one.get('name')!r} has an image of {engine}, and is not seen to start it"
    return "no container is seen to start an engine"


def _choose(spec: Json, asked: Asked) -> tuple[int, Json, Invocation | None]:
    containers = list(enumerate(objects(spec.get("containers"), _WHERE)))
    found = {
        index: find_invocation(one, f"{_WHERE}[{index}]")
        for index, one in containers
        if not asked.container or one.get("name") == asked.container
    }
    if asked.container:
        if not found:
            names = ", ".join(str(one.get("name")) for _, one in containers)
            raise refusal(
                _WHERE, f"there is no container {asked.container!r}", f"there are {names}"
            )
    else:
        found = {index: one for index, one in found.items() if one is not None}
        if asked.engine:
            found = {
                index: one for index, one in found.items() if one and one.engine == asked.engine
            }
            if not found and len(containers) == 1:
                found = {0: None}
    if not found:
        hint = f"say which is one: {PREFIX}container: NAME and {PREFIX}engine: vllm"
        if asked.engine:
            raise refusal(_WHERE, f"no container is seen to start {asked.engine}", hint)
        raise NoEngineError([Problem(where=_WHERE, what=_no_engine(containers), hint=hint)])
    if len(found) > 1:
        names = ", ".join(str(dict(containers)[index].get("name")) for index in found)
        raise refusal(
            _WHERE, f"{names} are engines", f"say which the agent is for: {PREFIX}container: NAME"
        )
    index, invocation = next(iter(found.items()))
    if asked.engine and invocation is not None and invocation.engine != asked.engine:
        invocation = None
    return index, dict(containers)[index], invocation
