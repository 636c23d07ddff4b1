"""Replacing LoRAs while they run: no order of requests and loads ends an engine like vLLM's."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import EngineBusy, EngineError, EngineTimeout, EngineUnavailable
from adapters.vllm_overlap import (
    DRAIN_SECONDS,
    IDLE_SECONDS,
    LOOK_SECONDS,
    Gate,
    InFlight,
    Overlaps,
    read_in_flight,
)

NAMES = ("a", "b", "c", "d")


def page(*lines: tuple[str, str, float]) -> bytes:
    """Lines of running LoRAs, waiting LoRAs and their time."""
    return "".join(
        f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{running}",'
        f'waiting_lora_adapters="{waiting}"}} {at}\n'
        for running, waiting, at in lines
    ).encode()


def test_the_line_that_was_set_last_tells_what_is_in_flight():
    flight = read_in_flight(page(("a", "", 1.7e9), ("b", "c", 1.8e9), ("", "", 1.6e9)))
    assert [name for name in NAMES if flight.has(name)] == ["b", "c"]
    assert flight.slots == 4


def test_a_name_that_is_part_of_another_is_not_in_flight():
    flight = read_in_flight(page(("abc,d", "", 1.0)))
    assert [name for name in NAMES if flight.has(name)] == ["d"]
    assert flight.has("abc,d")


def test_each_engine_has_its_own_last_line():
    text = b"".join(
        b'vllm:lora_requests_info{engine="%d",max_lora="2",running_lora_adapters="%s"} %d\n' % line
        for line in ((0, b"a", 10), (0, b"", 11), (1, b"b", 5))
    )
    flight = read_in_flight(text)
    assert [name for name in NAMES if flight.has(name)] == ["b"]


def test_a_page_without_the_family_has_nothing_in_flight():
    assert read_in_flight(b"process_start_time_seconds 1\n") == InFlight()


RUNS, IDLE = InFlight(lists=("a",), slots=2), InFlight(lists=("b",), slots=2)


def test_a_name_that_still_runs_is_waited_for_no_longer_than_the_limit():
    overlaps = Overlaps()
    overlaps.unloaded("a", 100.0)
    overlaps.looked(RUNS, 100.0 + DRAIN_SECONDS)
    assert overlaps.matter("a")
    overlaps.looked(RUNS, 100.1 + DRAIN_SECONDS)
    assert not overlaps.matter("a")


def test_a_name_is_believed_idle_after_a_while_without_it():
    overlaps = Overlaps()
    overlaps.unloaded("a", 0.0)
    for at, flight in ((0.1, IDLE), (0.2, RUNS), (0.3, IDLE), (0.3, IDLE), (0.7, IDLE)):
        overlaps.looked(flight, at)
        assert overlaps.matter("a")
    overlaps.looked(IDLE, 0.3 + IDLE_SECONDS)
    assert not overlaps.matter("a")


def test_what_an_agent_before_this_one_unloaded_is_suspected():
    overlaps = Overlaps()
    overlaps.listed(frozenset({"b"}), 10.0)
    for name in ("a", "b"):
        overlaps.suspect(name, 11.0)
    assert [name for name in NAMES if overlaps.matter(name)] == ["a"]
    overlaps.suspect("c", 10.0 + DRAIN_SECONDS)
    assert not overlaps.matter("c")


def gate(*flights: InFlight | EngineError) -> tuple[Gate, list[float]]:
    """A gate whose looks find these, the last one for ever; and when they began."""
    looks: list[float] = []

    async def look() -> InFlight:
        found = flights[min(len(looks), len(flights) - 1)]
        looks.append(asyncio.get_running_loop().time())
        if isinstance(found, EngineError):
            raise found
        return found

    made = Gate(look)
    # As if the agent had been there for long.
    made.overlaps.listed(frozenset(), -DRAIN_SECONDS)
    return made, looks


async def test_what_was_never_unloaded_is_loaded_without_a_look():
    made, looks = gate(RUNS)
    await made.enter("a")
    assert looks == []


async def test_a_running_name_is_loaded_when_its_requests_have_ended():
    busy = InFlight(lists=("a,b",), slots=2)
    made, looks = gate(busy, busy, busy, IDLE)
    made.overlaps.listed(frozenset({"a", "b", "c"}), 0.0)
    made.overlaps.unloaded("a", asyncio.get_running_loop().time())
    await made.enter("a")
    assert len(looks) > 4
    assert looks[-1] - looks[3] >= IDLE_SECONDS


async def test_an_answer_that_does_not_come_ends_no_wait_and_a_refusal_does():
    made, looks = gate(EngineTimeout("slow"), EngineBusy("later"), IDLE)
    made.overlaps.listed(frozenset({"b", "c"}), 0.0)
    made.overlaps.unloaded("a", asyncio.get_running_loop().time())
    await made.enter("a")
    assert len(looks) > 3
    made, looks = gate(EngineUnavailable("refused"))
    made.overlaps.listed(frozenset({"b", "c"}), 0.0)
    made.overlaps.unloaded("a", asyncio.get_running_loop().time())
    await made.enter("a")
    assert len(looks) == 1


async def test_loads_that_wait_together_share_their_looks():
    made, looks = gate(InFlight(lists=("a,b,c",), slots=2), InFlight(lists=("",), slots=2))
    for name in ("a", "b", "c"):
        made.overlaps.unloaded(name, asyncio.get_running_loop().time())
    await asyncio.gather(*(made.enter(name) for name in ("a", "b", "c")))
    assert all(later - look >= LOOK_SECONDS for look, later in pairwise(looks))


async def test_loads_that_pass_together_count_one_another():
    """Four slots, two LoRAs: one is replaced while it runs, and two more come with it."""
    running = InFlight(lists=("a",), slots=4)
    made, _ = gate(running)
    made.overlaps.listed(frozenset({"a", "b"}), 0.0)
    made.overlaps.unloaded("a", asyncio.get_running_loop().time())
    loads = [asyncio.create_task(made.enter(name)) for name in ("a", "c", "d")]
    done, waiting = await asyncio.wait(loads, timeout=0.3)
    # Held a, b, c and the old a: nothing is left for d.
    assert (len(done), len(waiting)) == (2, 1)
    for load in waiting:
        load.cancel()


@dataclass
class Engine:
    """The part of vLLM that matters: ids in slots, and steps that run several LoRAs."""

    slots: int
    ids: dict[str, int] = field(default_factory=dict)
    active: OrderedDict[int, str] = field(default_factory=OrderedDict)
    running: list[list[int | str]] = field(default_factory=list)
    waiting: list[list[int | str]] = field(default_factory=list)
    last: int = 0
    now: float = 0.0

    def load(self, name: str) -> None:
        self.last += 1
        self.ids[name] = self.last
        self._activate(self.last, name)

    def ask(self, name: str, tokens: int) -> None:
        if name in self.ids:
            self.waiting.append([self.ids[name], name, tokens])

    def step(self) -> None:
        self.now += STEP_SECONDS
        for one in list(self.waiting):
            if len({request[0] for request in [*self.running, one]}) <= self.slots:
                self.waiting.remove(one)
                self.running.append(one)
        kept: dict[str, int] = {}
        for number, name, _ in self.running:
            kept.setdefault(str(name), int(number))
        for name, number in kept.items():
            self._activate(number, name)
        missing = [request for request in self.running if request[0] not in self.active]
        assert missing == [], "a step needs a LoRA that is in no slot"
        for request in self.running:
            request[2] = int(request[2]) - 1
        self.running = [request for request in self.running if int(request[2]) > 0]

    def look(self) -> InFlight:
        names = {str(request[1]) for request in [*self.running, *self.waiting]}
        return InFlight(lists=(",".join(sorted(names)),), slots=self.slots)

    def _activate(self, number: int, name: str) -> None:
        if number not in self.active and len(self.active) >= self.slots:
            self.active.popitem(last=False)
        self.active[number] = name
        self.active.move_to_end(number)


STEP_SECONDS = IDLE_SECONDS / 4


def replace(engine: Engine, overlaps: Overlaps, name: str, *, waits: bool) -> None:
    """Unload and load as the adapter does; the engine goes on while it is waited for."""
    engine.ids.pop(name, None)
    overlaps.unloaded(name, engine.now)
    while waits and overlaps.matter(name):
        overlaps.looked(engine.look(), engine.now)
        if not overlaps.matter(name) or overlaps.fit(name, engine.slots):
            break
        engine.step()
    overlaps.claim(name)
    engine.load(name)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(NAMES), st.integers(1, 12)),
        st.tuples(st.just("replace"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("step"), st.just(""), st.integers(1, 4)),
    ),
    max_size=60,
)


def run(slots: int, operations: Sequence[tuple[str, str, int]], *, waits: bool) -> None:
    engine, overlaps = Engine(slots), Overlaps()
    for name in NAMES:
        engine.load(name)
    overlaps.listed(frozenset(NAMES), -DRAIN_SECONDS)
    for kind, name, number in operations:
        if kind == "ask":
            engine.ask(name, number)
        elif kind == "replace":
            replace(engine, overlaps, name, waits=waits)
        else:
            for _ in range(number):
                engine.step()


@given(st.integers(1, 7), OPERATIONS)
def test_no_order_of_requests_and_replacements_ends_the_engine(slots, operations):
    run(slots, operations, waits=True)


def test_without_the_wait_the_engine_ends():
    story = [
        ("ask", "a", 12),
        ("step", "", 1),
        ("replace", "a", 0),
        ("ask", "b", 1),
        ("step", "", 2),
        ("ask", "a", 1),
        ("step", "", 1),
    ]
    run(2, story, waits=True)
    with pytest.raises(AssertionError, match="in no slot"):
        run(2, story, waits=False)
