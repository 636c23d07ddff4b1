"""What is really in the LoRA slots of a vLLM, written to a file: a general plugin of vLLM 0.32.

It stands on PYTHONPATH of the engine under test, never in the project's own environment, and
changes nothing of what the engine does: after each call of the worker's LoRA manager that may move
something it looks at the manager, without touching its caches, and appends one line of JSON when
something moved. `lab/probe.py` reads the lines.

"In a slot" is what the manager's `lora_index_to_id` says, the table by which the kernels find the
weights of a request.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TextIO

FILE = "VLLM_SLOT_PROBE_FILE"
MOVING = (
    "create_lora_manager",
    "add_adapter",
    "add_dummy_lora",
    "remove_adapter",
    "remove_all_adapters",
)
BATCH = "_apply_adapters"
"""Called at every step, with the LoRAs of its batch: it touches each of them in both caches."""


class Cache(Protocol):
    """vLLM's LRU cache."""

    order: Iterable[int]
    """Its keys, least recently used first; reading them is not a use."""


class Manager(Protocol):
    """vLLM's manager of slots and host memory."""

    lora_index_to_id: Sequence[int | None]
    _active_adapters: Cache
    _registered_adapters: Cache


class Writer:
    """Appends the state of one manager, whenever it changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._names: dict[int, str] = {}
        self._held: tuple[object, ...] = ()
        self._order: tuple[object, ...] = ()

    def note(self, arguments: Iterable[object]) -> None:
        """Remember the names of the requests among ``arguments``."""
        for one in arguments:
            number, name = getattr(one, "lora_int_id", None), getattr(one, "lora_name", None)
            if isinstance(number, int) and isinstance(name, str):
                self._names[number] = name

    def look(self, manager: Manager, *, at_order: bool) -> None:
        """Write a line when a LoRA came or went or, ``at_order``, when their order changed.

        Within a step the order changes with every LoRA of the batch; only its end is of interest.
        """
        used = tuple(manager._active_adapters.order)
        memory = tuple(manager._registered_adapters.order)
        held = (tuple(manager.lora_index_to_id), frozenset(memory))
        if held == self._held and not (at_order and (used, memory) != self._order):
            return
        self._held, self._order = held, (used, memory)
        self._write(
            {
                "at": time.monotonic(),
                "pid": os.getpid(),
                "slots": [self._named(one) for one in used if one in manager.lora_index_to_id],
                "memory": [self._named(one) for one in memory],
            }
        )

    def _write(self, line: dict[str, object]) -> None:
        if self._file is None:
            # Line by line: the reader looks while the engine runs.
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")

    def _named(self, number: int) -> tuple[int, str]:
        return number, self._names.get(number, "")


def _watched(
    method: Callable[..., object], writer: Writer, *, at_order: bool
) -> Callable[..., object]:
    @functools.wraps(method)
    def call(self: object, *arguments: object, **more: object) -> object:
        writer.note((*arguments, *more.values()))
        try:
            return method(self, *arguments, **more)
        finally:
            manager = getattr(self, "_adapter_manager", None)
            if manager is not None:
                writer.look(manager, at_order=at_order)

    return call


def register() -> None:
    """Watch the worker's manager; vLLM calls this once in each of its processes."""
    path = os.environ.get(FILE)
    if not path:
        return
    manager = importlib.import_module("vllm.lora.worker_manager").LRUCacheWorkerLoRAManager
    writer = Writer(Path(path))
    for name in (*MOVING, BATCH):
        method = getattr(manager, name)
        setattr(manager, name, _watched(method, writer, at_order=name == BATCH))
