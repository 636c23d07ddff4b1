"""Engines, as the agent sees them. Knows nothing of Kubernetes, documents or stores.

The table below names the engines that ship with the agent; a third party adds its own with an
entry point of group ``model_sidecar.adapters`` (name -> a class with ``open(options)``). A class
is imported only when its engine is asked for: what an engine's client costs, only its users pay.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from adapters.base import EngineAdapter, EngineFactory, EngineOptions

ENTRY_POINT_GROUP = "model_sidecar.adapters"

ENGINES = {
    "vllm": "adapters.vllm:VllmAdapter",
    "triton": "adapters.triton:TritonAdapter",
    "sglang": "adapters.sglang:SglangAdapter",
    "fake": "adapters.fake:FakeAdapter",
}


def engine_names() -> tuple[str, ...]:
    """Return every engine that can be asked for: ours first, then installed third parties."""
    others = sorted({point.name for point in _entry_points()} - set(ENGINES))
    return (*ENGINES, *others)


def find_engine(name: str) -> EngineFactory:
    """Import the factory of one engine.

    Raises ``LookupError`` for a name that neither we nor an installed package knows.
    """
    if name in ENGINES:
        module, _, attribute = ENGINES[name].partition(":")
        return cast("EngineFactory", getattr(import_module(module), attribute))
    for point in _entry_points():
        if point.name == name:
            return cast("EngineFactory", point.load())
    raise LookupError(f"no engine {name!r}; known engines: {', '.join(engine_names())}")


def open_engine(name: str, options: tuple[EngineOptions, ...]) -> EngineAdapter:
    """Open an adapter for one engine; several options are the ranks of that one engine."""
    factory = find_engine(name)
    if len(options) == 1:
        return factory.open(options[0])
    from adapters.ranks import join_ranks

    return join_ranks(tuple(factory.open(one) for one in options))


@cache
def _entry_points() -> EntryPoints:
    # It reads the metadata of every installed package, 8 ms, and injection checks flags once for
    # each pod. Its import reads mail headers and archives: 50 ms.
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINT_GROUP)
