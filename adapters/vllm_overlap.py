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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from adapters.base import EngineBusy, EngineError, EngineTimeout

DRAIN_SECONDS = 30.0
"""An old revision that runs for longer is waited for no more: its name would be gone for too
long."""
LOOK_SECONDS = 0.05
"""Between two looks at what runs, at least,"""
LOOK_SHARE = 0.1
"""and so long that no more than this part of vLLM's time goes into answering them."""
IDLE_SECONDS = 0.5
"""For so long a name must not be seen: what vLLM has just accepted is on its page a step later."""

FAMILY = "vllm:lora_requests_info"
_LINE = re.compile(rb"^vllm:lora_requests_info\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ENGINE = re.compile(rb'engine="([^"]*)"')
_NAMES = ("running_lora_adapters", "waiting_lora_adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """The LoRAs that have requests, running or waiting."""

    lists: tuple[str, ...] = ()
    """As vLLM joins them, with commas; none where no LoRA had a request yet."""
    slots: int | None = None
    """None: unknown."""

    def has(self, name: str) -> bool:
        """Tell whether this one has a request."""
        return any(f",{name}," in f",{joined}," for joined in self.lists)


def read_in_flight(page: bytes) -> InFlight:
    """Read it off vLLM's page: of each engine's lines, the one that was set last is true."""
    newest: dict[bytes, tuple[float, bytes]] = {}
    for said, value in _LINE.findall(page):
        found = _ENGINE.search(said)
        engine, at = found[1] if found else b"", float(value)
        if engine not in newest or at > newest[engine][0]:
            newest[engine] = (at, said)
    told = [_labels(said) for _, said in newest.values()]
    slots = [int(labels["max_lora"]) for labels in told if labels.get("max_lora", "").isdecimal()]
    return InFlight(
        lists=tuple(labels.get(label, "") for labels in told for label in _NAMES),
        slots=min(slots, default=None),
    )


def _labels(said: bytes) -> dict[str, str]:
    return {
        label: text.replace('\\"', '"').replace("\\\\", "\\")
        for label, text in _LABEL.findall(said.decode(errors="replace"))
    }


@dataclass(slots=True)
class _Old:
    """What was unloaded under one name, and may have requests."""

    unloaded_at: float
    is_paired: bool = False
    """Two revisions of the name may run side by side."""
    idle_since: float | None = None


class Overlaps:
    """The revisions that one vLLM holds, and the old ones that may still run. Times are seconds on
    the caller's clock."""

    def __init__(self) -> None:
        self._listed: frozenset[str] = frozenset()
        self._claimed: set[str] = set()
        """Loaded, or being loaded, since that list was asked for."""
        self._old: dict[str, _Old] = {}
        self._gone = 0
        """Revisions that may have been used since two of a name began to run side by side, and are
        listed no more."""
        self._began_at: float | None = None

    def listed(self, names: frozenset[str], now: float) -> None:
        """Take note of a look at what vLLM holds, which may be older than the latest claims."""
        if self._began_at is None:
            self._began_at = now
        self._listed = names

    def unloaded(self, name: str, now: float) -> None:
        """Take note of a name that is, or may be, unloaded from now on."""
        self._gone += 1
        before = self._old.get(name)
        # The one before it may still run beside this one.
        paired = before is not None and before.is_paired
        self._old[name] = _Old(unloaded_at=now, is_paired=paired)
        self._listed -= {name}
        self._claimed.discard(name)

    def suspect(self, name: str, now: float) -> None:
        """Take a name that is not held for one unloaded by an agent before this one, if that may
        have been lately."""
        lately = self._began_at is not None and now - self._began_at < DRAIN_SECONDS
        if lately and name not in self._old and name not in self._listed | self._claimed:
            self._gone += 1
            self._old[name] = _Old(unloaded_at=now)

    def claim(self, name: str) -> None:
        """Take note of a revision that is being loaded under this name."""
        self._claimed.add(name)
        if (old := self._old.get(name)) is not None:
            old.is_paired = True

    def refused(self, name: str) -> None:
        """Take note of a revision that was not loaded after all."""
        self._claimed.discard(name)

    def looked(self, flight: InFlight, now: float) -> None:
        """Take note of what has requests, and forget what has none or is waited for no more."""
        for name, old in list(self._old.items()):
            if flight.has(name):
                old.idle_since = None
            elif old.idle_since is None:
                old.idle_since = now
            idle = old.idle_since is not None and now - old.idle_since >= IDLE_SECONDS
            if idle or not flight.lists or now - old.unloaded_at > DRAIN_SECONDS:
                del self._old[name]
        if not self._is_any_paired:
            self._gone = len(self._old)

    @property
    def _is_any_paired(self) -> bool:
        return any(old.is_paired for old in self._old.values())

    def matter(self, name: str) -> bool:
        """Tell whether two revisions may run side by side once this name is loaded."""
        return name in self._old or self._is_any_paired

    def fit(self, name: str, slots: int | None) -> bool:
        """Tell whether nothing that runs can be pushed out once this name is loaded."""
        held = len(self._listed | self._claimed | {name})
        return slots == 1 or (slots is not None and held + self._gone <= slots)


class Gate:
    """Lets loads pass when they endanger nothing that runs; asks vLLM for all of them together."""

    def __init__(self, look: Callable[[], Awaitable[InFlight]]) -> None:
        """``look`` reads vLLM's page; an ``EngineTimeout`` or ``EngineBusy`` of it is no answer,
        any other error ends the wait: what cannot be asked is not waited for."""
        self.overlaps = Overlaps()
        self._look = look
        self._flight = InFlight()
        self._next_at = float("-inf")
        self._turn = asyncio.Lock()

    async def enter(self, name: str) -> None:
        """Wait until this name may be loaded, ``DRAIN_SECONDS`` at most, and claim it."""
        loop, overlaps = asyncio.get_running_loop(), self.overlaps
        overlaps.suspect(name, loop.time())
        end = loop.time() + DRAIN_SECONDS
        with suppress(EngineError):
            while overlaps.matter(name) and loop.time() < end:
                async with self._turn:
                    await self._look_again()
                if not overlaps.matter(name) or overlaps.fit(name, self._flight.slots):
                    break
                await asyncio.sleep(LOOK_SECONDS)  # noqa: TID251 - vLLM tells nobody when they end
        overlaps.claim(name)

    async def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if began < self._next_at:
            return
        with suppress(EngineTimeout, EngineBusy):
            self._flight = await self._look()
            self.overlaps.looked(self._flight, loop.time())
        self._next_at = loop.time() + max(LOOK_SECONDS, (loop.time() - began) / LOOK_SHARE)
