"""Replacing LoRAs while they run: no order of requests and loads ends an engine like vLLM's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.vllm_overlap import DRAIN_SECONDS, InFlight, Overlaps, outlast, read_in_flight

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


def test_a_name_that_still_runs_is_waited_for_no_longer_than_the_limit():
    overlaps = Overlaps()
    overlaps.unloaded("a", 100.0)
    runs = InFlight(lists=("a",), slots=2)
    overlaps.looked(runs, 100.0 + DRAIN_SECONDS)
    assert overlaps.matter("a")
    overlaps.looked(runs, 100.1 + DRAIN_SECONDS)
    assert not overlaps.matter("a")


def test_one_look_without_the_name_is_not_believed():
    overlaps, idle = Overlaps(), InFlight(lists=("b",), slots=2)
    overlaps.unloaded("a", 0.0)
    overlaps.looked(idle, 0.1)
    overlaps.looked(InFlight(lists=("a",), slots=2), 0.2)
    overlaps.looked(idle, 0.3)
    assert overlaps.matter("a")
    overlaps.looked(idle, 0.4)
    assert not overlaps.matter("a")


async def test_what_was_never_unloaded_is_loaded_without_a_look():
    async def look() -> InFlight:
        pytest.fail("nobody had to look")

    await outlast(Overlaps(), "a", {"b"}, look)


async def test_a_running_name_is_loaded_when_its_requests_have_ended():
    overlaps = Overlaps()
    seen: list[bool] = []
    overlaps.unloaded("a", 1e12)

    async def look() -> InFlight:
        seen.append(len(seen) < 3)
        return InFlight(lists=("a",) if seen[-1] else ("",), slots=2)

    await outlast(overlaps, "a", {"b", "c"}, look)
    assert seen == [True, True, True, False, False]


@dataclass
class Engine:
    """The part of vLLM that matters: ids in slots, and steps that run several LoRAs."""

    slots: int
    ids: dict[str, int] = field(default_factory=dict)
    active: OrderedDict[int, str] = field(default_factory=OrderedDict)
    running: list[list[int | str]] = field(default_factory=list)
    waiting: list[list[int | str]] = field(default_factory=list)
    last: int = 0

    def load(self, name: str) -> None:
        self.last += 1
        self.ids[name] = self.last
        self._activate(self.last, name)

    def ask(self, name: str, tokens: int) -> None:
        if name in self.ids:
            self.waiting.append([self.ids[name], name, tokens])

    def step(self) -> None:
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


def replace(engine: Engine, overlaps: Overlaps, name: str, *, waits: bool) -> None:
    """Unload and load as the adapter does; the engine goes on while it is waited for."""
    engine.ids.pop(name, None)
    overlaps.unloaded(name, 0.0)
    while waits and overlaps.matter(name):
        overlaps.looked(engine.look(), 0.0)
        if overlaps.fit(len({*engine.ids, name}), engine.slots):
            break
        engine.step()
    engine.load(name)
    overlaps.loaded(name)


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
