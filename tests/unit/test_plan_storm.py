"""Everything that can happen to an agent, in any order: hypothesis looks for a broken promise."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sidecar.core.desired import DropOut
from sidecar.core.view import Policy
from tests.support.simulated import STORE, TRITON, VLLM, document, entry
from tests.support.world import Mode, Trial

ENGINES = {"vllm": (VLLM, 1), "vllm-ranks": (VLLM, 2), "triton": (TRITON, 1)}
FOREIGN = "/elsewhere/stranger"
NAMES = ("a", "b", "c")
DISTURBANCES = (
    "source moved",
    "time passed",
    "engine restarted",
    "agent restarted",
    "look failed",
    "connection refused",
    "fell asleep or woke",
    "requests fail",
    "files vanished",
    "unloaded by somebody",
)


class Storm(RuleBasedStateMachine):
    """Everything that can happen, in any order; no promise breaks, and calm always converges."""

    trial: Trial

    @initialize(
        engine=st.sampled_from(sorted(ENGINES)),
        capacity=st.sampled_from([None, None, 4]),
        replace_after_seconds=st.sampled_from([0.0, 60.0]),
    )
    def begin(self, engine, capacity, replace_after_seconds):
        capabilities, ranks = ENGINES[engine]
        policy = Policy(
            store_root=STORE,
            retain_seconds=100.0,
            replace_after_seconds=replace_after_seconds,
        )
        self.trial = Trial(capabilities, ranks=ranks, capacity=capacity, policy=policy)
        self.trial.disk.sources = {
            f"s3://{name}{other}": "v1" for name in NAMES for other in ("", "/other")
        }
        for rank in self.trial.engine.serving:
            rank["stranger"] = FOREIGN
        self.trial.strangers = frozenset({"stranger"})
        self.trial.accept(document(*(entry(name) for name in NAMES[:2])))
        self.trial.look()

    @rule(
        listed=st.sampled_from(["abc", "ab", "bc", "c", ""]).map(set),
        other=st.none()
        | st.tuples(st.sampled_from(NAMES), st.sampled_from(["undecided", "absent"])),
        incomplete=st.sampled_from([False, False, True]),
        source=st.sampled_from(["", "", "/other"]),
        parameter=st.sampled_from([None, 1]),
        drop_out=st.sampled_from([DropOut.UNLOAD, DropOut.UNLOAD, DropOut.KEEP]),
        pinned=st.booleans(),
        warmup=st.booleans(),
        grace=st.sampled_from([0.0, 30.0]),
    )
    def write_a_document(
        self, listed, other, incomplete, source, parameter, drop_out, pinned, warmup, grace
    ):
        if other is not None:
            listed = listed - {other[0]}
        entries = [
            entry(
                name,
                f"s3://{name}{source}",
                parameters={"p": parameter} if parameter else None,
                drop_out=drop_out,
                pinned=pinned,
                warmup=warmup,
                unload_grace_seconds=grace,
            )
            for name in sorted(listed)
        ]
        where, what = other if other is not None else ("", "")
        self.trial.accept(
            document(
                *entries,
                incomplete=incomplete,
                drop_out=drop_out,
                undecided=[where] if what == "undecided" else [],
                absent=[where] if what == "absent" else [],
            )
        )

    @rule(
        steps=st.lists(
            st.tuples(st.integers(0, 5), st.sampled_from([Mode.DONE] * 8 + list(Mode))),
            min_size=1,
            max_size=6,
        ),
        looks=st.booleans(),
    )
    def take_steps(self, steps, looks):
        # As drives do: the first step of one target, or one eviction, planned just now.
        for number, mode in steps:
            if looks:
                self.trial.look()
            ahead = self.trial.actions()
            firsts = list({one.name: one for one in reversed(ahead)}.values())
            if firsts:
                self.trial.apply(firsts[number % len(firsts)], mode)
            self.trial.world.forget_strangers(())

    @rule(rounds=st.integers(1, 5))
    def have_a_calm_moment(self, rounds):
        for _ in range(rounds):
            self.trial.look()
            self.trial.apply_all(self.trial.actions())
            self.trial.world.forget_strangers(())

    @rule(
        what=st.sampled_from(DISTURBANCES),
        name=st.sampled_from(NAMES),
        number=st.sampled_from(["v1", "v2", "v3"]),
        seconds=st.sampled_from([1.0, 40.0, 400.0]),
    )
    def suffer(self, what, name, number, seconds):
        trial = self.trial
        match what:
            case "source moved":
                asked = trial.asked(name)
                trial.disk.sources[asked.source if asked else f"s3://{name}"] = number
                trial.move(name)
            case "time passed":
                trial.now += seconds
            case "engine restarted":
                trial.restart_engine()
            case "agent restarted":
                trial.restart_agent()
            case "look failed":
                trial.world.lost_sight()
            case "connection refused":
                trial.look(refused=True)
            case "fell asleep or woke":
                trial.engine.asleep = trial.capabilities.sleeps and not trial.engine.asleep
            case "requests fail":
                trial.engine.numb |= {name} & trial.engine.names()
            case "files vanished":
                for path in [path for path in trial.disk.whole if f"/{name}/" in path]:
                    del trial.disk.whole[path]
            case "unloaded by somebody":
                trial.engine.unload(name, trial.now)

    @invariant()
    def no_promise_is_broken(self):
        assert not self.trial.broken

    def teardown(self):
        self.trial.engine.asleep = False
        self.trial.engine.numb.clear()
        self.trial.settle()
        assert not self.trial.broken
        assert not self.trial.held_as_desired()


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=120,
    stateful_step_count=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
