"""The replay of the engine's two caches."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.residency import LoraTracker, SlotReplay

NAMES = st.sampled_from("abcdef")


def replay(slots=2, cpu=8, loads=""):
    state = SlotReplay(max_loras=slots, max_cpu_loras=cpu)
    for name in loads.split():
        state = state.loaded(name)
    return state


def test_a_load_takes_the_slot_of_the_least_recently_used():
    assert replay(loads="a b").in_slot == ("a", "b")
    assert replay(loads="a b c").in_slot == ("b", "c")
    assert replay(loads="a b c").in_cpu == ("a", "b", "c")


def test_activity_brings_a_lora_back_into_a_slot():
    assert replay(loads="a b c").active(["a"]).in_slot == ("c", "a")


def test_what_is_active_stays_when_others_come():
    state = replay(loads="a b").active(["a"])
    assert state.loaded("c").in_slot == ("a", "c")


def test_more_active_than_slots_leaves_those_that_are_in():
    state = replay(loads="a b").active(["d", "b", "c", "e"])
    assert state.in_slot == ("b", "c")


def test_leaving_host_memory_leaves_the_slot():
    state = replay(slots=2, cpu=2, loads="a b c")
    assert (state.in_slot, state.in_cpu) == (("b", "c"), ("b", "c"))


def test_host_memory_unsaid_is_as_large_as_the_slots():
    assert replay(slots=2, cpu=None, loads="a b c").in_cpu == ("b", "c")


def test_unloading_forgets_the_name_but_its_weights_keep_the_slot():
    state = replay(loads="a b").forgotten("b")
    assert state.in_slot == ("a",)
    assert state.in_cpu == ("a",)
    # b, loaded again, is another LoRA to the engine: the least recently used one, a, gives way.
    assert state.loaded("b").in_slot == ("b",)
    assert state.loaded("b").loaded("c").in_slot == ("b", "c")


def test_forgetting_what_is_nowhere_changes_nothing():
    state = replay(loads="a")
    assert state.forgotten("z") is state


def test_a_restart_empties_both_caches():
    state = replay(loads="a b").forgotten("a").restarted()
    assert (state.in_slot, state.in_cpu) == ((), ())
    assert state.max_loras == 2
    assert state.loaded("c").loaded("d").in_slot == ("c", "d")


def test_unknown_slots_hold_everything_that_was_loaded():
    assert replay(slots=None, cpu=None, loads="a b c d").in_slot == ("a", "b", "c", "d")


def test_slots_learnt_later_keep_the_most_recently_used():
    state = replay(slots=None, cpu=None, loads="a b c").resized(2, None)
    assert state.in_slot == ("b", "c")
    assert state.resized(None, None) == state


def test_residents_found_after_our_start_are_in_slots_when_all_fit():
    assert set(replay().resident(["a", "b"]).in_slot) == {"a", "b"}


def test_residents_found_after_our_start_are_not_guessed_at_when_they_do_not_fit():
    state = replay().resident(["a", "b", "c"])
    assert state.in_slot == ()
    assert state.active(["b"]).in_slot == ("b",)


def test_what_the_engine_no_longer_lists_is_forgotten():
    state = replay(loads="a b").resident(["b"])
    assert state.in_slot == ("b",)


class Reference:
    """The engine's two caches, as dictionaries in order of use."""

    def __init__(self, slots, cpu):
        self.slots, self.cpu = OrderedDict(), OrderedDict()
        self.max_slots, self.max_cpu = slots, max(cpu, slots)

    def use(self, name):
        if name not in self.cpu and len(self.cpu) >= self.max_cpu:
            gone, _ = self.cpu.popitem(last=False)
            self.slots.pop(gone, None)
        self.cpu[name] = True
        self.cpu.move_to_end(name)
        if name not in self.slots and len(self.slots) >= self.max_slots:
            self.slots.popitem(last=False)
        self.slots[name] = True
        self.slots.move_to_end(name)


@given(st.integers(1, 4), st.integers(1, 6), st.lists(NAMES, max_size=40), st.data())
def test_the_replay_does_what_the_engine_does(slots, cpu, uses, data):
    state, reference = SlotReplay(max_loras=slots, max_cpu_loras=cpu), Reference(slots, cpu)
    for name in uses:
        is_load = data.draw(st.booleans())
        state = state.loaded(name) if is_load else state.active([name])
        reference.use(name)
        assert state.in_slot == tuple(reference.slots)
        assert state.in_cpu == tuple(reference.cpu)


steps = st.one_of(
    st.tuples(st.sampled_from(["loaded", "forgotten"]), NAMES),
    st.tuples(st.sampled_from(["active", "resident"]), st.lists(NAMES, unique=True)),
    st.tuples(st.just("restarted")),
)


@given(st.none() | st.integers(0, 4), st.none() | st.integers(0, 6), st.lists(steps, max_size=30))
def test_no_history_breaks_the_bounds(slots, cpu, history):
    state = SlotReplay(max_loras=slots, max_cpu_loras=cpu)
    for name, *arguments in history:
        state = getattr(state, name)(*arguments)
        assert len(set(state.slots)) == len(state.slots)
        assert set(state.slots) <= set(state.memory)
        assert slots is None or len(state.in_slot) <= slots
        if name == "resident":
            assert set(state.in_slot) <= set(arguments[0])
        if name == "forgotten":
            assert arguments[0] not in state.in_cpu


def test_the_tracker_ignores_activity_of_strangers():
    tracker = LoraTracker(max_loras=2, max_cpu_loras=4)
    tracker.residents(["a", "b", "c"])
    tracker.active([("b",), ("gone",), ("c", "gone")])
    assert tracker.in_slot() == frozenset({"b", "c"})


def test_the_tracker_follows_loads_unloads_and_restarts():
    tracker = LoraTracker(max_loras=2)
    tracker.residents([])
    tracker.loaded("a")
    tracker.active([("a",)])
    assert tracker.in_slot() == frozenset({"a"})
    tracker.forgotten("a")
    tracker.active([("a",)])
    assert tracker.in_slot() == frozenset()
    tracker.restarted()
    tracker.active([("b",)])
    assert tracker.in_slot() == frozenset({"b"})


def test_the_tracker_says_unknown_until_somebody_says_the_slots():
    tracker = LoraTracker()
    tracker.loaded("a")
    assert (tracker.in_slot(), tracker.slots()) == (None, None)
    tracker.limits(max_loras=4, max_cpu_loras=None)
    assert (tracker.in_slot(), tracker.slots()) == (frozenset({"a"}), 4)


def test_the_settings_win_over_what_the_engine_says():
    tracker = LoraTracker(max_loras=2)
    tracker.limits(max_loras=8, max_cpu_loras=16)
    assert (tracker.replay.max_loras, tracker.replay.max_cpu_loras) == (2, 16)


@pytest.mark.parametrize("step", [lambda t: t.residents(["a"]), lambda t: t.active([])])
def test_a_step_that_changes_nothing_keeps_the_same_replay(step):
    tracker = LoraTracker(max_loras=2)
    tracker.loaded("a")
    before = tracker.replay
    step(tracker)
    assert tracker.replay is before
