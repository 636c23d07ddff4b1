"""Reads what the probe plugin saw in the LoRA slots of a real vLLM (`lab/vllm_probe`).

```
probe = Probe(tmp_path / "slots.jsonl")
engine = Vllm(..., extra_env=probe.env())
```

All times are seconds of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PLUGIN = Path(__file__).parent / "vllm_probe"
FILE = "VLLM_SLOT_PROBE_FILE"

Held = tuple[int, str]
"""A LoRA as the engine holds it: its number and its name. Every load gets a new number; one that
was unloaded keeps its place, and its name, until it is the least recently used, and may be there
beside its replacement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotEvent:
    """One LoRA came into a GPU slot, or left it."""

    at: float
    name: str
    move: Literal["in", "out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """What the engine held from one moment on; everything is least recently used first."""

    at: float
    pid: int
    """The process that holds the slots: another one is another life of the engine."""
    slots: tuple[Held, ...]
    memory: tuple[Held, ...]
    """Host memory; everything in a slot is here too."""
    names: tuple[str, ...]
    """Of the slots, without what was loaded again under its name: no request can use it."""


class Probe:
    """The file of one engine, also across its restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._states: list[SlotState] = []
        self._newest: dict[tuple[int, str], int] = {}

    def env(self) -> dict[str, str]:
        """Environment of the engine that is to be watched."""
        return {"PYTHONPATH": str(PLUGIN), FILE: str(self.path)}

    def states(self) -> Sequence[SlotState]:
        """Everything that was written until now, oldest first."""
        self._read()
        return self._states

    def slots(self) -> tuple[str, ...]:
        """Names of the LoRAs that are in GPU slots now, least recently used first.

        One that was unloaded for good is named, too, as long as it keeps its slot.
        """
        self._read()
        return self._states[-1].names if self._states else ()

    def events(self) -> list[SlotEvent]:
        """Every change of a slot, oldest first; what leaves comes before what takes its place.

        The dummies of vLLM's warm-up are events too: they are called ``warmup_<number>``.
        """
        self._read()
        events: list[SlotEvent] = []
        held: frozenset[Held] = frozenset()
        for state in self._states:
            gone, come = held.difference(state.slots), frozenset(state.slots) - held
            events += [SlotEvent(at=state.at, name=name, move="out") for _, name in sorted(gone)]
            events += [SlotEvent(at=state.at, name=name, move="in") for _, name in sorted(come)]
            held = frozenset(state.slots)
        return events

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as handle:
            handle.seek(self._offset)
            new = handle.read()
        # The engine may be in the middle of a line.
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._states += [self._state(json.loads(line)) for line in whole.splitlines()]

    def _state(self, line: dict[str, Any]) -> SlotState:
        pid: int = line["pid"]
        slots = tuple((number, name) for number, name in line["slots"])
        for number, name in slots:
            self._newest[pid, name] = max(number, self._newest.get((pid, name), 0))
        return SlotState(
            at=line["at"],
            pid=pid,
            slots=slots,
            memory=tuple((number, name) for number, name in line["memory"]),
            names=tuple(name for number, name in slots if number == self._newest[pid, name]),
        )
