"""The replay of the engine's two caches."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.residency import NEVER, LoraTracker, SlotReplay

NAMES = st.sampled_from("abcdef")


def replay(slots=2, cpu=8, loads=""):
    """Loaded one after another, at 1, 2, 3 ..."""
    state = SlotReplay(max_loras=slots, max_cpu_loras=cpu)
    for at, name in enumerate(loads.split(), start=1):
        state = state.loaded(name, at)
    return state


def test_a_load_takes_the_slot_of_the_least_recently_used():
    assert replay(loads="a b").in_slot == ("a", "b")
    assert replay(loads="a b c").in_slot == ("b", "c")
    assert replay(loads="a b c").in_cpu == ("a", "b", "c")


def test_activity_brings_a_lora_back_into_a_slot():
    assert replay(loads="a b c").active(["a"], 10).in_slot == ("c", "a")


def test_what_is_active_stays_when_others_come():
    state = replay(loads="a b").active(["a"], 10)
    assert state.loaded("c", 11).in_slot == ("a", "c")


def test_what_is_heard_late_takes_its_place_in_time():
    # The page that tells of b's requests is read after the load of d, which came after them.
    state = replay(loads="a b c").loaded("d", 20)
    assert state.active(["b"], 10).in_slot == ("b", "d")
    assert state.active(["b"], 2.5).in_slot == ("c", "d")
    assert state.active(["b"], 30).in_slot == ("d", "b")


def test_loads_that_overlap_count_in_the_order_in_which_they_began():
    state = replay().loaded("b", 2).loaded("a", 1)
    assert state.loaded("c", 3).in_slot == ("b", "c")


def test_loads_that_overlap_were_made_in_the_order_of_the_engines_list():
    state = replay(loads="a b c").active(["a"], 2.5)
    assert state.in_slot == ("a", "c")
    listed = state.resident(["c", "a", "b"])
    assert listed.in_slot == ("a", "b")
    assert listed.resident(["c", "a", "b"]) is listed
    # What was used since has a time that is better known.
    assert listed.active(["c"], 4).resident(["b", "c", "a"]).in_slot == ("b", "c")


def test_an_unloaded_name_has_no_part_in_the_order_of_the_list():
    state = replay(slots=3, loads="a b").forgotten("a").loaded("a", 3)
    assert state.resident(["b", "a"]) is state
    # Somebody else has loaded a again: it is not the one that was loaded before b.
    again = replay(loads="a b").forgotten("a").resident(["b", "a"])
    assert again.loaded("c", 3).in_slot == ("b", "c")


def test_what_nobody_saw_loaded_has_no_part_in_the_order_of_the_list():
    assert replay().resident(["a"]).loaded("b", 5).resident(["b", "a"]).in_slot == ("a", "b")


def test_more_active_than_slots_leaves_those_that_are_in():
    state = replay(loads="a e").active(["d", "b", "c", "e"], 10)
    assert state.in_slot == ("e", "b")


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
    assert state.loaded("b", 3).in_slot == ("b",)
    assert state.loaded("b", 3).loaded("c", 4).in_slot == ("b", "c")


def test_a_stream_that_goes_on_after_the_unloading_uses_the_old_weights():
    state = replay(loads="a b c").forgotten("c").active(["c"], 10)
    assert state.active(["a"], 11).in_slot == ("a",)
    assert state.active(["a"], 9).in_slot == ("a",)


def test_requests_of_before_a_replacement_are_not_the_new_ones():
    state = replay(slots=3, loads="a b").forgotten("a").loaded("a", 10)
    # The old a was used after b, the new one has been loaded since: b is the oldest.
    heard = state.active(["a"], 5)
    assert set(heard.in_slot) == {"a", "b"}
    assert set(heard.loaded("c", 11).in_slot) == {"a", "c"}
    assert set(state.loaded("c", 11).in_slot) == {"a", "b", "c"}


def test_requests_of_before_any_known_load_of_their_name_are_of_weights_that_are_gone():
    state = replay(slots=3, loads="x a b").forgotten("a").loaded("a", 10)
    assert set(state.in_slot) == {"a", "b"}
    # Seven more loads have pushed the first a out of what is known; it was used after them.
    for at, name in enumerate("cdefghi", start=11):
        state = state.loaded(name, at)
    state = state.forgotten("a").loaded("a", 30)
    assert set(state.in_slot) == {"h", "i", "a"}
    assert set(state.active(["a"], 20).in_slot) == {"i", "a"}
    assert replay(loads="a b").active(["a"], 0.5).in_slot == ("a", "b")


def test_forgetting_what_is_nowhere_changes_nothing():
    state = replay(loads="a")
    assert state.forgotten("z") is state


def test_a_warm_up_is_a_use_of_what_is_loaded():
    assert replay(loads="a b").loaded("a", 3).loaded("c", 4).in_slot == ("a", "c")


def test_a_restart_empties_both_caches():
    state = replay(loads="a b").forgotten("a").restarted()
    assert (state.in_slot, state.in_cpu) == ((), ())
    assert state.max_loras == 2
    assert state.loaded("c", 3).loaded("d", 4).in_slot == ("c", "d")


def test_unknown_slots_hold_everything_that_was_loaded():
    state = replay(slots=None, cpu=None, loads="a b c d")
    assert state.in_slot == ("a", "b", "c", "d")
    assert [one.name for one in state.forgotten("b").held] == ["a", "c", "d"]


def test_what_left_host_memory_is_in_no_slot_however_many_there_are():
    state = replay(slots=None, cpu=2, loads="a b").forgotten("b")
    assert state.loaded("c", 3).in_slot == ("c",)


def test_slots_learnt_later_keep_the_most_recently_used():
    state = replay(slots=None, cpu=None, loads="a b c").resized(2, None)
    assert state.in_slot == ("b", "c")
    assert state.resized(None, None) is state


def test_residents_found_after_our_start_were_loaded_in_the_order_of_the_list():
    assert replay().resident(["a", "b"]).in_slot == ("a", "b")
    assert replay().resident(["a", "b", "c"]).in_slot == ("b", "c")


def test_what_is_known_of_a_resident_counts_more_than_its_place_in_the_list():
    state = replay().active(["a"], 10).resident(["a", "b", "c"])
    assert state.in_slot == ("c", "a")
    assert state.active(["b"], 5).in_slot == ("b", "a")


def test_what_the_engine_no_longer_lists_is_forgotten():
    state = replay(loads="a b").resident(["b"])
    assert state.in_slot == ("b",)


class Reference:
    """The engine's two caches as vLLM keeps them, in order of use: numbers of LoRAs."""

    def __init__(self, slots, cpu):
        self.slots, self.cpu = OrderedDict(), OrderedDict()
        self.max_slots, self.max_cpu = slots, max(cpu, slots)
        self.numbers, self.count = {}, 0

    def load(self, name):
        self.count += 1
        self.numbers[name] = self.count
        self.use(name)

    def unload(self, name):
        self.numbers.pop(name, None)

    def use(self, name):
        number = self.numbers[name]
        if number not in self.cpu and len(self.cpu) >= self.max_cpu:
            gone, _ = self.cpu.popitem(last=False)
            self.slots.pop(gone, None)
        self.cpu[number] = True
        self.cpu.move_to_end(number)
        if number not in self.slots and len(self.slots) >= self.max_slots:
            self.slots.popitem(last=False)
        self.slots[number] = True
        self.slots.move_to_end(number)

    def names(self, cache):
        return tuple(
            name for number in cache for name, known in self.numbers.items() if known == number
        )


history = st.lists(st.tuples(st.sampled_from(["load", "use", "unload"]), NAMES), max_size=40)


def heard(state, last):
    """What a page tells: of each LoRA the last time only."""
    for name, (at, _) in sorted(last.items(), key=lambda item: item[1]):
        state = state.active([name], at)
    return state


@given(st.integers(1, 4), st.integers(1, 6), history, st.data())
def test_the_replay_does_what_the_engine_does(slots, cpu, moves, data):
    """In whatever order the agent hears of it: of its own calls at once, of requests by a page."""
    state, reference = SlotReplay(max_loras=slots, max_cpu_loras=cpu), Reference(slots, cpu)
    last: dict[str, tuple[float, str]] = {}
    for at, (move, name) in enumerate(moves, start=1):
        if move == "unload":
            reference.unload(name)
            state = state.forgotten(name)
        elif move == "load" or name not in reference.numbers:
            reference.unload(name)
            reference.load(name)
            state = state.forgotten(name).loaded(name, at)
        else:
            number = reference.numbers[name]
            # One page cannot tell of requests before and after a replacement of the same name.
            if name in last and last[name][1] != number:
                state, last = heard(state, last), {}
            reference.use(name)
            last[name] = (at, number)
        if data.draw(st.booleans()):
            state, last = heard(state, last), {}
            # Strangers are believed in, too: whoever asks knows what is resident.
            known = reference.numbers
            in_slot = tuple(name for name in state.in_slot if name in known)
            assert in_slot == reference.names(reference.slots)
            in_cpu = tuple(name for name in state.in_cpu if name in known)
            assert in_cpu == reference.names(reference.cpu)


TIMES = st.floats(0, 100)
steps = st.one_of(
    st.tuples(st.just("loaded"), NAMES, TIMES),
    st.tuples(st.just("forgotten"), NAMES),
    st.tuples(st.just("active"), st.lists(NAMES, unique=True), TIMES),
    st.tuples(st.just("resident"), st.lists(NAMES, unique=True)),
    st.tuples(st.just("restarted")),
)


@given(st.none() | st.integers(0, 4), st.none() | st.integers(0, 6), st.lists(steps, max_size=30))
def test_no_history_breaks_the_bounds(slots, cpu, history):
    state = SlotReplay(max_loras=slots, max_cpu_loras=cpu)
    for name, *arguments in history:
        state = getattr(state, name)(*arguments)
        assert len(set(state.in_cpu)) == len(state.in_cpu)
        assert set(state.in_slot) <= set(state.in_cpu)
        assert slots is None or len(state.in_slot) <= slots
        if name == "resident":
            assert set(state.in_cpu) <= set(arguments[0])
        if name == "forgotten":
            assert arguments[0] not in state.in_cpu


def test_a_stranger_with_requests_takes_a_slot_and_is_not_named():
    tracker = LoraTracker(max_loras=2, max_cpu_loras=4)
    tracker.residents(["a", "b", "c"])
    tracker.active([(1.0, ("b",)), (2.0, ("gone",)), (3.0, ("c",))])
    assert tracker.in_slot() == frozenset({"c"})
    tracker.active([(4.0, ("b",))])
    assert tracker.in_slot() == frozenset({"b", "c"})


@given(
    history,
    st.lists(st.tuples(NAMES, st.floats(0, 1e6)), max_size=20),
    st.floats(0, 1e6),
    NAMES,
)
def test_what_is_used_now_is_in_a_slot_whatever_later_times_were_believed(moves, uses, now, name):
    tracker = LoraTracker(max_loras=1, max_cpu_loras=4)
    tracker.residents("abcdef")
    for at, (move, other) in enumerate(moves):
        if move == "load":
            tracker.loaded(other, at * 1e5)
        elif move == "unload":
            tracker.forgotten(other)
    tracker.active((at, (other,)) for other, at in uses)
    before = tracker.replay
    tracker.not_after(now)
    assert [one.name for one in tracker.replay.held] == [one.name for one in before.held]
    assert all(one.since <= one.used <= now for one in tracker.replay.held)
    tracker.loaded(name, now)
    tracker.active([(now, (name,))])
    assert tracker.in_slot() == frozenset({name})


@given(st.lists(st.sets(NAMES, min_size=1, max_size=2), max_size=20), st.floats(0, 100))
def test_what_is_told_as_of_one_time_keeps_the_order_in_which_it_is_told(sets, now):
    at_once, apart = LoraTracker(max_loras=2), LoraTracker(max_loras=2)
    at_once.active((now, names) for names in sets)
    apart.active((now + at, names) for at, names in enumerate(sets))
    assert at_once.replay.in_slot == apart.replay.in_slot


def test_times_that_are_past_change_nothing():
    state = replay(loads="a b c")
    assert state.not_after(3) is state
    assert replay().not_after(0).held == ()


def test_what_is_still_used_after_its_unloading_is_not_what_is_loaded_then():
    tracker = LoraTracker(max_loras=2, max_cpu_loras=2)
    tracker.residents(["a", "b", "c"])
    tracker.forgotten("a")
    tracker.active([(1.0, ("b",)), (2.0, ("c",)), (3.0, ("a",))])
    assert tracker.in_slot() == frozenset({"c"})
    tracker.loaded("a", 4.0)
    assert tracker.in_slot() == frozenset({"a"})


def test_what_somebody_else_loaded_has_come_since_the_last_look():
    tracker = LoraTracker(max_loras=2, max_cpu_loras=4)
    tracker.residents(["a", "b"])
    tracker.active([(1.0, ("a",)), (2.0, ("b",))])
    tracker.residents(["a", "b", "c"])
    assert tracker.in_slot() == frozenset({"b", "c"})
    tracker.residents(["a", "b", "c"])
    tracker.active([(3.0, ("a",))])
    assert tracker.in_slot() == frozenset({"a", "c"})


def test_what_we_unloaded_and_somebody_else_loaded_has_come_since_the_last_look():
    tracker = LoraTracker(max_loras=1, max_cpu_loras=4)
    tracker.residents(["a", "b"])
    tracker.active([(1.0, ("a",)), (2.0, ("b",))])
    tracker.forgotten("a")
    tracker.residents(["b", "a"])
    assert tracker.in_slot() == frozenset({"a"})


def test_the_first_load_of_somebody_else_is_seen():
    tracker = LoraTracker(max_loras=2)
    tracker.residents([])
    tracker.residents(["a"])
    assert tracker.in_slot() == frozenset({"a"})


def test_the_tracker_follows_loads_unloads_and_restarts():
    tracker = LoraTracker(max_loras=2)
    tracker.residents([])
    tracker.loaded("a", 1.0)
    tracker.active([(2.0, ("a",))])
    assert tracker.in_slot() == frozenset({"a"})
    tracker.forgotten("a")
    tracker.active([(3.0, ("a",))])
    assert tracker.in_slot() == frozenset()
    tracker.restarted()
    tracker.active([(4.0, ("b",))])
    assert tracker.in_slot() == frozenset({"b"})


def test_what_is_unloaded_before_the_first_look_is_forgotten():
    tracker = LoraTracker(max_loras=2)
    tracker.loaded("a", 1.0)
    tracker.forgotten("a")
    assert tracker.in_slot() == frozenset()


def test_the_tracker_says_unknown_until_somebody_says_the_slots():
    tracker = LoraTracker()
    tracker.loaded("a", 1.0)
    assert (tracker.in_slot(), tracker.slots()) == (None, None)
    tracker.limits(max_loras=4, max_cpu_loras=None)
    assert (tracker.in_slot(), tracker.slots()) == (frozenset({"a"}), 4)


def test_the_settings_win_over_what_the_engine_says():
    tracker = LoraTracker(max_loras=2)
    tracker.limits(max_loras=8, max_cpu_loras=16)
    assert (tracker.replay.max_loras, tracker.replay.max_cpu_loras) == (2, 16)


@pytest.mark.parametrize(
    "step",
    [
        lambda t: t.residents(["a"]),
        lambda t: t.active([]),
        lambda t: t.active([(1.0, ("a",))]),
        lambda t: t.limits(max_loras=2, max_cpu_loras=None),
    ],
)
def test_a_step_that_changes_nothing_keeps_the_same_replay(step):
    tracker = LoraTracker(max_loras=2)
    tracker.loaded("a", 1.0)
    before = tracker.replay
    step(tracker)
    assert tracker.replay is before


def test_of_what_nobody_saw_nothing_is_older():
    assert all(one.used == NEVER for one in replay().resident(["a", "b"]).held)
