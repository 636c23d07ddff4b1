"""Which LoRAs are believed to be in a GPU slot: the engine's two caches, replayed.

An engine keeps LoRAs in two caches: host memory, and within it the GPU slots. What every step of
vLLM uses becomes the most recently used of both, so a cache of n places holds the n LoRAs that
were used last (read in vLLM 0.32: ``lora/worker_manager.py``, ``add_adapter``). It does not say
what they hold, but when each LoRA was last used is known: our loads (a load is a use), and the
times at which LoRAs had requests, which its metrics keep.

What cannot be known: which of two LoRAs that ended in the same step gives way first (vLLM walks a
Python set), and requests of a single token, which are over before its metrics show them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

NEVER = float("-inf")
_USED = attrgetter("used")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One LoRA as the engine holds it; times are unix seconds, as the engine counts them."""

    name: str
    since: float
    """When it was loaded; ``NEVER`` where nobody saw it."""
    used: float
    """The last use that is known; ``NEVER`` where none is."""
    gone: bool = False
    """Unloaded. That forgets the name, but the weights keep their places until they are the least
    recently used, and a stream that began before it uses them further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReplay:
    """Both caches as believed. Every method returns another value, the same one if nothing
    changed. Times may come in any order."""

    max_loras: int | None = None
    """GPU slots. None: unknown, and everything that was loaded counts as in a slot, for nothing
    is known to have given way."""
    max_cpu_loras: int | None = None
    """Places in host memory. None: as many as there are slots, which is the engines' default."""
    held: tuple[Held, ...] = ()
    """Host memory, least recently used first."""

    @property
    def in_slot(self) -> tuple[str, ...]:
        """The LoRAs believed to be in a GPU slot, least recently used first."""
        first = 0 if self.max_loras is None else max(0, len(self.held) - self.max_loras)
        return tuple(one.name for one in self.held[first:] if not one.gone)

    @property
    def in_cpu(self) -> tuple[str, ...]:
        """The LoRAs believed to be in host memory, those in a slot among them."""
        return tuple(one.name for one in self.held if not one.gone)

    def loaded(self, name: str, at: float) -> SlotReplay:
        """A load of ``name`` that began at ``at`` ended well, or a warm-up of ours did."""
        known = self._live(name)
        if known is None:
            return self._put(Held(name=name, since=at, used=at))
        return self._put(replace(known, used=max(known.used, at)))

    def active(self, names: Collection[str], at: float) -> SlotReplay:
        """These had requests at ``at``. More than there are slots cannot all run: those believed
        in a slot did, and as many of the others as there are places left, in order of name."""
        running = [name for name in self.in_slot if name in names]
        others = sorted(name for name in names if name not in running)
        if self.max_loras is not None:
            others = others[: max(0, self.max_loras - len(running))]
        used = [self._meant(name, at) for name in (*running, *others)]
        # At the same time counts as later: what is told later was later.
        later = [replace(one, used=at) for one in used if one.used <= at]
        return self._put(*later) if later else self

    def not_after(self, now: float) -> SlotReplay:
        """What is believed to be of a later time counts as of ``now``, in its order."""
        if not self.held or self.held[-1].used <= now:
            return self
        return replace(
            self,
            held=tuple(
                replace(one, since=min(one.since, now), used=min(one.used, now))
                for one in self.held
            ),
        )

    def forgotten(self, name: str) -> SlotReplay:
        """The engine was told to forget ``name``: its weights stay until others push them out."""
        known = self._live(name)
        if known is None:
            return self
        if self._memory_places() is None:
            # Where nothing ever has to give way, it would stay for good.
            return replace(self, held=tuple(one for one in self.held if one is not known))
        gone = replace(known, gone=True)
        return replace(self, held=tuple(gone if one is known else one for one in self.held))

    def resident(self, names: Iterable[str]) -> SlotReplay:
        """The engine's account, in the order in which it loaded them: what it does not list is
        forgotten; that of which nothing is known is older than everything else."""
        listed = tuple(names)
        seen, account = frozenset(listed), self
        for name in self.in_cpu:
            if name not in seen:
                account = account.forgotten(name)
        known = frozenset(account.in_cpu)
        unknown = [name for name in listed if name not in known]
        account = account._put(*(Held(name=name, since=NEVER, used=NEVER) for name in unknown))
        return account._loaded_as_listed(listed)

    def restarted(self) -> SlotReplay:
        """Another incarnation: both caches are empty."""
        return SlotReplay(max_loras=self.max_loras, max_cpu_loras=self.max_cpu_loras)

    def resized(self, max_loras: int | None, max_cpu_loras: int | None) -> SlotReplay:
        """The engine said how many it can hold; None leaves what was known."""
        resized = replace(
            self,
            max_loras=self.max_loras if max_loras is None else max_loras,
            max_cpu_loras=self.max_cpu_loras if max_cpu_loras is None else max_cpu_loras,
        )
        return self if resized == self else resized._put()

    def _loaded_as_listed(self, listed: tuple[str, ...]) -> SlotReplay:
        """Loads that overlap are made and answered in an order of the engine's own, which shows
        in its list: what was not used since gets its time by that."""
        unused = {
            one.name: one for one in self.held if one.since == one.used > NEVER and not one.gone
        }
        names = [name for name in listed if name in unused]
        times = sorted(unused[name].since for name in names)
        right = {
            name: replace(unused[name], since=at, used=at)
            for name, at in zip(names, times, strict=True)
        }
        held = tuple(
            right.get(one.name, one) if one is unused.get(one.name) else one for one in self.held
        )
        if held == self.held:
            return self
        return replace(self, held=tuple(sorted(held, key=lambda one: one.used)))

    def _live(self, name: str) -> Held | None:
        return next((one for one in self.held if one.name == name and not one.gone), None)

    def _meant(self, name: str, at: float) -> Held:
        """The weights that answered as ``name`` at ``at``; new ones where none are known that
        were loaded by then."""
        then = [one for one in self.held if one.name == name and one.since <= at]
        if then:
            return max(then, key=lambda one: (one.since, not one.gone))
        gone = any(one.name == name for one in self.held)
        return Held(name=name, since=NEVER, used=NEVER, gone=gone)

    def _put(self, *used: Held) -> SlotReplay:
        """Give these their places by last use; among uses of the same time the order given."""
        bearers = {(one.name, one.since, one.gone) for one in used}
        names = {one.name for one in used}
        held = [
            one
            for one in self.held
            if one.name not in names or (one.name, one.since, one.gone) not in bearers
        ]
        held.extend(used)
        held.sort(key=_USED)
        places = self._memory_places()
        if places is not None:
            del held[: max(0, len(held) - places)]
        put = tuple(held)
        return self if put == self.held else replace(self, held=put)

    def _memory_places(self) -> int | None:
        if self.max_cpu_loras is None or self.max_loras is None:
            return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras
        return max(self.max_cpu_loras, self.max_loras)


class LoraTracker:
    """The one place where the replay hangs: the reconciler tells it what it did and saw, the
    scraper what had requests."""

    def __init__(self, *, max_loras: int | None = None, max_cpu_loras: int | None = None) -> None:
        """Start with what the settings say of the engine's limits."""
        self._replay = SlotReplay(max_loras=max_loras, max_cpu_loras=max_cpu_loras)
        self._residents: frozenset[str] | None = None
        self._told = (max_loras, max_cpu_loras)

    @property
    def replay(self) -> SlotReplay:
        """The present belief; another object whenever it changed."""
        return self._replay

    def slots(self) -> int | None:
        """GPU slots, as the settings or the engine said."""
        return self._replay.max_loras

    def loaded(self, name: str, at: float) -> None:
        """A LoRA was loaded, or warmed up, by a call that began at ``at`` (unix seconds)."""
        if self._residents is not None and name not in self._residents:
            # What was still used under this name after its unloading is not what was loaded.
            self._replay = self._replay.forgotten(name)
            self._residents |= {name}
        self._replay = self._replay.loaded(name, at)

    def forgotten(self, name: str) -> None:
        """A LoRA was unloaded."""
        if self._residents is not None:
            self._residents -= {name}
        self._replay = self._replay.forgotten(name)

    def restarted(self) -> None:
        """The engine is another incarnation."""
        self._residents = None
        self._replay = self._replay.restarted()

    def residents(self, names: Iterable[str]) -> None:
        """One look at the engine listed these LoRAs, in its own order."""
        listed = tuple(names)
        replay = self._replay
        if self._residents is not None:
            # Somebody else loaded these since the last look; to the second it is not known when.
            newest = replay.held[-1].used if replay.held else NEVER
            for name in listed:
                if name not in self._residents:
                    replay = replay.loaded(name, newest)
        self._residents = frozenset(listed)
        self._replay = replay.resident(listed)

    def limits(self, *, max_loras: int | None, max_cpu_loras: int | None) -> None:
        """The engine said its limits; what the settings say wins."""
        slots, cpu = self._told
        self._replay = self._replay.resized(
            max_loras if slots is None else None, max_cpu_loras if cpu is None else None
        )

    def not_after(self, now: float) -> None:
        """The present time (unix seconds): after a clock was set back, what it showed before would
        be the most recently used until it shows that again."""
        self._replay = self._replay.not_after(now)

    def active(self, activity: Iterable[tuple[float, Collection[str]]]) -> None:
        """These sets of LoRAs had requests, each at its time (unix seconds, the engine's)."""
        for at, names in activity:
            self._replay = self._replay.active(names, at)

    def in_slot(self) -> frozenset[str] | None:
        """Name the LoRAs believed in a GPU slot; None while the slots are unknown."""
        if self._replay.max_loras is None:
            return None
        names = frozenset(self._replay.in_slot)
        return names if self._residents is None else names & self._residents
