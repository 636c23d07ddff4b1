"""The requests of a run: when each is due and which LoRA it is for, the same ones for a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a run, within which the requests keep their law."""

    name: str
    seconds: float
    load: float
    """Share of the measured capacity."""
    zipf: float = 1.0
    """Weight of the n-th in popularity: ``n ** -zipf``."""
    is_changed: bool = False
    """Whether other LoRAs are the popular ones than before."""
    lone: float = 0.0
    """Share of the requests for the LoRA that only one pod holds."""


LIGHT, MEDIUM = 0.2, 0.45
LEAD = Phase(name="lead", seconds=1.0, load=MEDIUM)
"""Fills the slots; nothing of it is counted."""
SHARED = (
    Phase(name="light", seconds=4.5, load=LIGHT),
    Phase(name="medium", seconds=5.0, load=MEDIUM),
    Phase(name="change", seconds=3.5, load=MEDIUM, zipf=2.0, is_changed=True),
)
LONE = Phase(name="lone", seconds=2.5, load=MEDIUM, is_changed=True, lone=0.4)
PHASES = (LEAD, *SHARED, LONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A request that is to be sent."""

    at: float
    """Seconds from the start of the run."""
    phase: str
    lora: str
    number: int


def schedule(
    phases: Sequence[Phase],
    loras: Sequence[str],
    lone: str,
    *,
    capacity: float,
    scale: float = 1.0,
    seed: str,
) -> Iterator[Due]:
    """Yield requests as they come to an open system: at random, whether or not others are answered.

    ``loras`` are most popular first, ``capacity`` is in requests a second, and ``scale`` stretches
    every phase.
    """
    chance = random.Random(seed)
    changed = list(loras)
    chance.shuffle(changed)
    begin, number = 0.0, 0
    for phase in phases:
        ranked = changed if phase.is_changed else loras
        weights = [rank**-phase.zipf for rank in range(1, len(ranked) + 1)]
        end, at = begin + phase.seconds * scale, begin
        while (at := at + chance.expovariate(phase.load * capacity)) < end:
            is_lone = chance.random() < phase.lone
            lora = lone if is_lone else chance.choices(ranked, weights)[0]
            yield Due(at=at, phase=phase.name, lora=lora, number=number)
            number += 1
        begin = end
