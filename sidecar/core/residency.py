"""Which LoRAs are believed to be in a GPU slot: the engine's two caches, replayed.

An engine keeps LoRAs in two caches, each giving way by least recent use: host memory, and within it
the GPU slots. It does not say what they hold, but what moves them is seen: our loads (a load puts
a LoRA into both) and which LoRAs have requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

_GHOST = "\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReplay:
    """Both caches as believed, least recently used first. Every method returns another value."""

    max_loras: int | None = None
    """GPU slots. None: unknown, and everything that was loaded counts as in a slot, for nothing
    is known to have given way."""
    max_cpu_loras: int | None = None
    """Places in host memory. None: as many as there are slots, which is the engines' default."""
    slots: tuple[str, ...] = ()
    """Names and ghosts. Unloading forgets a name, but its weights keep their place in both caches
    until they are the least recently used: a ghost, which no request can use."""
    memory: tuple[str, ...] = ()
    """The same for host memory; everything that is in a slot is here too."""
    ghosts: int = 0
    """How many there have been, which tells them apart."""

    @property
    def in_slot(self) -> tuple[str, ...]:
        """The LoRAs believed to be in a GPU slot."""
        return tuple(name for name in self.slots if not name.startswith(_GHOST))

    @property
    def in_cpu(self) -> tuple[str, ...]:
        """The LoRAs believed to be in host memory, those in a slot among them."""
        return tuple(name for name in self.memory if not name.startswith(_GHOST))

    def loaded(self, name: str) -> SlotReplay:
        """A load ended well: ``name`` is the most recently used of both caches."""
        return self._used((name,))

    def active(self, names: Collection[str]) -> SlotReplay:
        """These have requests. More than there are slots cannot all run: those believed in a slot
        stay, and as many of the others as there are places left come in, in order of name."""
        known = [name for name in self.slots if name in names]
        others = sorted(name for name in names if name not in self.slots)
        if self.max_loras is not None:
            others = others[: max(0, self.max_loras - len(known))]
        return self._used((*known, *others))

    def forgotten(self, name: str) -> SlotReplay:
        """The engine was told to forget ``name``: its weights become a ghost."""
        if name not in self.memory:
            return self
        if self.max_loras is None:
            # Where everything counts as in a slot, nothing ever has to give way.
            return replace(
                self,
                slots=tuple(one for one in self.slots if one != name),
                memory=tuple(one for one in self.memory if one != name),
            )
        ghost = f"{_GHOST}{self.ghosts}"
        return replace(
            self,
            slots=tuple(ghost if one == name else one for one in self.slots),
            memory=tuple(ghost if one == name else one for one in self.memory),
            ghosts=self.ghosts + 1,
        )

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
        return resized._used(())

    def resident(self, names: Iterable[str]) -> SlotReplay:
        """The engine's account: what it does not list is forgotten.

        Names of which no load was seen (the agent started after them) come in when there are
        places for all, for then nothing has given way; otherwise nothing is claimed of them
        before they are active.
        """
        listed = tuple(names)
        kept, seen = self, frozenset(listed)
        for name in self.in_cpu:
            if name not in seen:
                kept = kept.forgotten(name)
        unseen = tuple(name for name in listed if name not in kept.slots)
        if kept.max_loras is not None and len(kept.slots) + len(unseen) > kept.max_loras:
            return kept
        known = replace(
            kept,
            slots=unseen + kept.slots,
            memory=tuple(name for name in unseen if name not in kept.memory) + kept.memory,
        )
        return known._used(())

    def _used(self, names: tuple[str, ...]) -> SlotReplay:
        memory = _newest(self.memory, names, self._memory_places())
        # What leaves host memory leaves its slot with it.
        held = tuple(name for name in self.slots if name in memory)
        came = tuple(name for name in names if name in memory)
        return replace(self, slots=_newest(held, came, self.max_loras), memory=memory)

    def _memory_places(self) -> int | None:
        if self.max_cpu_loras is None or self.max_loras is None:
            return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras
        return max(self.max_cpu_loras, self.max_loras)


def _newest(held: tuple[str, ...], used: tuple[str, ...], places: int | None) -> tuple[str, ...]:
    if any(name in held for name in used):
        held = tuple(name for name in held if name not in used)
    order = held + used
    return order if places is None else order[max(0, len(order) - places) :]


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

    def loaded(self, name: str) -> None:
        """A LoRA was loaded, or warmed up."""
        if self._residents is not None:
            self._residents |= {name}
        self._become(self._replay.loaded(name))

    def forgotten(self, name: str) -> None:
        """A LoRA was unloaded."""
        if self._residents is not None:
            self._residents -= {name}
        self._become(self._replay.forgotten(name))

    def restarted(self) -> None:
        """The engine is another incarnation."""
        self._residents = None
        self._become(self._replay.restarted())

    def residents(self, names: Iterable[str]) -> None:
        """One look at the engine listed these LoRAs, in its own order."""
        listed = tuple(names)
        self._residents = frozenset(listed)
        self._become(self._replay.resident(listed))

    def limits(self, *, max_loras: int | None, max_cpu_loras: int | None) -> None:
        """The engine said its limits; what the settings say wins."""
        slots, cpu = self._told
        self._become(
            self._replay.resized(
                max_loras if slots is None else None, max_cpu_loras if cpu is None else None
            )
        )

    def active(self, activity: Iterable[Collection[str]]) -> None:
        """These sets of LoRAs had requests, oldest first; strangers to the engine do not count."""
        replay = self._replay
        for names in activity:
            known = [name for name in names if self._residents is None or name in self._residents]
            if known:
                replay = replay.active(known)
        self._become(replay)

    def in_slot(self) -> frozenset[str] | None:
        """Name the LoRAs believed in a GPU slot; None while the slots are unknown."""
        return frozenset(self._replay.in_slot) if self._replay.max_loras is not None else None

    def _become(self, replay: SlotReplay) -> None:
        if replay != self._replay:
            self._replay = replay
