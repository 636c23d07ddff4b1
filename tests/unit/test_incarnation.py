"""One life of the engine process, and what documents and its ends mean for memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.base import EngineState, Kind, Residency
from sidecar.core.desired import DropOut
from sidecar.core.incarnation import follow, forget_gone, forget_retired, own
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.memory import Held, Latch, Memory, Owned
from tests.support.simulated import document, entry, lora

KNOWN = Memory(incarnation=4, started_at=100.0, latch=Latch(incarnation=4, passed=True))
MUTE = replace(KNOWN, started_at=None)


def state(*names: str, started_at: float | None = None) -> EngineState:
    """Return a look at an engine that holds these names; ``!`` marks one that failed."""
    residents = tuple(
        lora(name.strip("!"), "/p", Residency.FAILED if "!" in name else Residency.RESIDENT)
        for name in names
    )
    return EngineState(residents=residents, started_at=started_at)


@pytest.mark.parametrize(
    ("memory", "seen", "before", "refused", "restarted"),
    [
        (KNOWN, state(started_at=100.0), {"a"}, True, False),
        (KNOWN, state(started_at=100.04), {"a"}, False, False),
        (KNOWN, state("a", started_at=101.0), {"a"}, False, True),
        (MUTE, state("a"), {"a", "b"}, False, False),
        (MUTE, state(), {"a"}, False, True),
        (MUTE, state("c"), {"a"}, False, True),
        (MUTE, state("a!"), {"a"}, False, True),
        (MUTE, state("a"), {"a"}, True, False),
        (MUTE, state(), set(), False, False),
        (MUTE, state(), set(), True, True),
        (MUTE, state("a"), set(), True, True),
        (MUTE, state("a", started_at=50.0), {"a"}, False, False),
    ],
)
def test_signs_of_an_engine_restart(memory, seen, before, refused, restarted):
    after = follow(memory, seen, refused=refused, before=frozenset(before))
    assert after.incarnation == (5 if restarted else 4)
    assert after.latch.passed is not restarted


def test_the_first_look_begins_the_first_incarnation_and_keeps_what_was_retired():
    memory = Memory(retired={"/p": 1.0}, latch=Latch(first_answer_at=5.0))
    after = follow(memory, state(started_at=7.0), refused=False, before=frozenset())
    assert (after.incarnation, after.started_at, after.latch.incarnation) == (1, 7.0, 1)
    assert after.retired == {"/p": 1.0}


def test_a_new_engine_reads_nothing_of_what_the_old_one_had():
    memory = replace(KNOWN, retired={"/p": 1.0})
    after = follow(memory, state(started_at=200.0), refused=False, before=frozenset())
    assert not after.retired
    assert after.latch == Latch(incarnation=5, document_seen=True)


def test_a_start_time_is_learned_later_and_kept_when_it_is_not_told():
    learned = follow(MUTE, state("a", started_at=50.0), refused=False, before=frozenset("a"))
    assert learned.started_at == 50.0
    kept = follow(learned, state("a"), refused=False, before=frozenset("a"))
    assert (kept.started_at, kept.incarnation) == (50.0, 4)


def test_listed_names_are_ours_and_leave_when_they_are_listed_no_more():
    first = own(Memory(), document(entry("a"), entry("b", drop_out=DropOut.KEEP)), now=1.0)
    assert first.owned == {"a": Owned(), "b": Owned(drop_out=DropOut.KEEP)}
    gone = own(first, document(generation=2), now=2.0)
    assert [one.dropped_at for one in gone.owned.values()] == [2.0, 2.0]
    later = own(gone, document(generation=3), now=3.0)
    assert [one.dropped_at for one in later.owned.values()] == [2.0, 2.0]
    back = own(later, document(entry("a"), generation=4), now=4.0)
    assert back.owned["a"].dropped_at is None


@pytest.mark.parametrize("words", [{"undecided": ["a"]}, {"incomplete": True}])
def test_a_name_of_which_nothing_is_known_has_not_left(words):
    memory = own(Memory(), document(entry("a", unload_grace_seconds=150.0)), now=1.0)
    after = own(memory, document(generation=2, **words), now=2.0)
    assert after.owned == memory.owned


def test_what_left_document_and_engine_is_forgotten_and_its_files_retired():
    memory = Memory(
        owned={"gone": Owned(dropped_at=1.0), "here": Owned(dropped_at=1.0), "kept": Owned()},
        held={name: Held(path=f"/{name}") for name in ("gone", "here", "kept", "stranger")},
        retired={"/gone": 3.0},
    )
    after = forget_gone(memory, {"here"}, {"kept"}, now=9.0)
    assert set(after.owned) == set(after.held) == {"here", "kept"}
    assert after.retired == {"/gone": 3.0, "/stranger": 9.0}


def test_nothing_gone_is_nothing_changed():
    memory = Memory(owned={"a": Owned()}, held={"a": Held(path="/a")})
    assert forget_gone(memory, set(), {"a"}, now=9.0) is memory


def test_what_retired_long_ago_is_forgotten_unless_it_lies_in_the_store():
    here = Revision(name="a", kind=Kind.LORA, revision="r", path="/store/here")
    inventory = Inventory(revisions={"a": (here,)})
    memory = Memory(retired={"/store/here": 1.0, "/passthrough": 1.0, "/young": 5.0})
    after = forget_retired(memory, inventory, before=5.0)
    assert after.retired == {"/store/here": 1.0, "/young": 5.0}
    assert forget_retired(after, inventory, before=5.0) is after
