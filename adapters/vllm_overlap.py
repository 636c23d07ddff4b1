"""When two revisions of a LoRA may run side by side in one vLLM, and when that would end it.

Requests that run keep their revision when its name is unloaded, and the next revision of the name
is another LoRA to vLLM, with an id of its own. But what a step brings into slots is a set in which
requests are equal by name (0.32: ``lora/request.py``, ``v1/worker/gpu_input_batch.py``): of two
revisions in one step it keeps one. The other one stays in its slot until other LoRAs push it out,
the least recently used first; the next step that needs it raises a KeyError, and the engine ends.

So a name is loaded again at once only where nothing can push anything out: one slot never runs two
LoRAs, and with a slot for every LoRA held and for every old revision that may still run, whatever
is pushed out is nobody's. Everywhere else the requests of the old revision have to end first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

DRAIN_SECONDS = 30.0
"""An old revision that runs for longer is waited for no more: its name would be gone for too
long."""
LOOK_SECONDS = 0.05
"""Between two looks at what runs."""
IDLE_LOOKS = 2
"""Looks in a row that must not show a name: what vLLM has just accepted is not on its page yet."""

FAMILY = "vllm:lora_requests_info"
_LINE = re.compile(rb"^vllm:lora_requests_info\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_NAMES = ("running_lora_adapters", "waiting_lora_adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """The LoRAs that have requests, running or waiting."""

    lists: tuple[str, ...] = ()
    """As vLLM joins them, with commas."""
    slots: int | None = None
    """None: no LoRA had a request yet."""

    def has(self, name: str) -> bool:
        """Tell whether this one has a request."""
        return any(f",{name}," in f",{joined}," for joined in self.lists)


def read_in_flight(page: bytes) -> InFlight:
    """Read it off vLLM's page: of each engine's lines, the one that was set last is true."""
    newest: dict[str, tuple[float, dict[str, str]]] = {}
    for said, value in _LINE.findall(page):
        labels = {
            label: text.replace('\\"', '"').replace("\\\\", "\\")
            for label, text in _LABEL.findall(said.decode(errors="replace"))
        }
        engine, at = labels.get("engine", ""), float(value)
        if engine not in newest or at > newest[engine][0]:
            newest[engine] = (at, labels)
    told = [labels for _, labels in newest.values()]
    slots = [int(labels["max_lora"]) for labels in told if labels.get("max_lora", "").isdecimal()]
    return InFlight(
        lists=tuple(labels.get(label, "") for labels in told for label in _NAMES),
        slots=min(slots, default=None),
    )


@dataclass(slots=True)
class _Old:
    """What was unloaded under one name, and may have requests."""

    unloaded_at: float
    is_paired: bool = False
    """Two revisions of the name may run side by side."""
    idle_looks: int = 0


class Overlaps:
    """The old revisions of one vLLM. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._old: dict[str, _Old] = {}
        self._gone = 0
        """Revisions that may have been used since two of a name began to run side by side, and are
        listed no more."""

    def unloaded(self, name: str, now: float) -> None:
        """Take note of a name that is, or may be, unloaded from now on."""
        self._gone += 1
        before = self._old.get(name)
        # The one before it may still run beside this one.
        paired = before is not None and before.is_paired
        self._old[name] = _Old(unloaded_at=now, is_paired=paired)

    def loaded(self, name: str) -> None:
        """Take note of a revision that is there under this name."""
        if (old := self._old.get(name)) is not None:
            old.is_paired = True

    def looked(self, flight: InFlight, now: float) -> None:
        """Take note of what has requests, and forget what has none or is waited for no more."""
        for name, old in list(self._old.items()):
            old.idle_looks = 0 if flight.has(name) else old.idle_looks + 1
            if old.idle_looks >= IDLE_LOOKS or now - old.unloaded_at > DRAIN_SECONDS:
                del self._old[name]
        if not self._is_any_paired:
            self._gone = len(self._old)

    @property
    def _is_any_paired(self) -> bool:
        return any(old.is_paired for old in self._old.values())

    def matter(self, name: str) -> bool:
        """Tell whether two revisions may run side by side once this name is loaded."""
        return name in self._old or self._is_any_paired

    def fit(self, held: int, slots: int | None) -> bool:
        """Tell whether nothing that runs can be pushed out, with so many names held."""
        return slots == 1 or (slots is not None and held + self._gone <= slots)


async def outlast(
    overlaps: Overlaps,
    name: str,
    held: Collection[str],
    look: Callable[[], Awaitable[InFlight]],
) -> None:
    """Wait until loading this name endangers nothing that runs, ``DRAIN_SECONDS`` at most.

    ``held``: the LoRAs that vLLM lists, with or without this one. Raises what ``look`` raises.
    """
    while overlaps.matter(name):
        flight = await look()
        overlaps.looked(flight, asyncio.get_running_loop().time())
        if not overlaps.matter(name) or overlaps.fit(len({*held, name}), flight.slots):
            return
        await asyncio.sleep(LOOK_SECONDS)  # noqa: TID251 - vLLM tells nobody when they end
