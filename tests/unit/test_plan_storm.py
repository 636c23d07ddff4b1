"""Everything that can happen to an agent, in any order: hypothesis looks for a broken promise."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.core.desired import DropOut
from sidecar.core.view import Policy
from tests.support.simulated import STORE, TRITON, VLLM, document, entry
from tests.support.world import Mode, Trial

ENGINES = {"vllm": (VLLM, 1), "vllm-ranks": (VLLM, 2), "triton": (TRITON, 1)}
FOREIGN = "/elsewhere/stranger"
NAMES = ("a", "b", "c")


class Storm(RuleBasedStateMachine):
    """Everything that can happen, in any order; no promise breaks, and calm always converges."""

    trial: Trial

    @initialize(engine=st.sampled_from(sorted(ENGINES)), capacity=st.sampled_from([None, None, 4]))
    def begin(self, engine, capacity):
        capabilities, ranks = ENGINES[engine]
        policy = Policy(store_root=STORE, retain_seconds=100.0)
        self.trial = Trial(capabilities, ranks=ranks, capacity=capacity, policy=policy)
        self.trial.disk.sources = {f"s3://{name}": "v1" for name in NAMES}
        for rank in self.trial.engine.serving:
            rank["stranger"] = FOREIGN
        self.trial.strangers = frozenset({"stranger"})
        self.trial.accept(document())
        self.trial.look()

    @rule(
        listed=st.sets(st.sampled_from(NAMES)),
        other=st.none()
        | st.tuples(st.sampled_from(NAMES), st.sampled_from(["undecided", "absent"])),
        incomplete=st.sampled_from([False, False, True]),
        parameter=st.sampled_from([None, 1]),
        drop_out=st.sampled_from([DropOut.UNLOAD, DropOut.UNLOAD, DropOut.KEEP]),
        pinned=st.booleans(),
        warmup=st.booleans(),
        grace=st.sampled_from([0.0, 30.0]),
    )
    def write_a_document(
        self, listed, other, incomplete, parameter, drop_out, pinned, warmup, grace
    ):
        if other is not None:
            listed = listed - {other[0]}
        entries = [
            entry(
                name,
                parameters={"p": parameter} if parameter else None,
                drop_out=drop_out,
                pinned=pinned,
                warmup=warmup,
                unload_grace_seconds=grace,
            )
            for name in sorted(listed)
        ]
        words = {other[1]: [other[0]]} if other is not None else {}
        self.trial.accept(document(*entries, incomplete=incomplete, drop_out=drop_out, **words))

    @rule(name=st.sampled_from(NAMES), number=st.sampled_from(["v1", "v2", "v3"]))
    def move_a_source(self, name, number):
        self.trial.disk.sources[f"s3://{name}"] = number
        self.trial.world.moved(name)

    @rule(
        number=st.integers(0, 5),
        mode=st.sampled_from([Mode.DONE, Mode.DONE, Mode.DONE, *Mode]),
    )
    def take_a_step(self, number, mode):
        # As drives do: the first step of one target, or one eviction, planned just now.
        ahead = self.trial.plan().actions
        firsts = list({one.name: one for one in reversed(ahead)}.values())
        if firsts:
            self.trial.apply(firsts[number % len(firsts)], mode)
        self.trial.world.forget_strangers(())

    @rule(refused=st.booleans())
    def look(self, refused):
        self.trial.look(refused=refused)

    @rule()
    def fail_to_look(self):
        self.trial.world.lost_sight()

    @rule(seconds=st.sampled_from([1.0, 40.0, 400.0]))
    def let_time_pass(self, seconds):
        self.trial.now += seconds

    @rule()
    def restart_the_engine(self):
        self.trial.restart_engine()

    @rule()
    def restart_the_agent(self):
        self.trial.restart_agent()

    @precondition(lambda self: self.trial.capabilities.sleeps)
    @rule(numb=st.sampled_from([None, *NAMES]))
    def sleep_and_wake(self, numb):
        self.trial.engine.asleep = not self.trial.engine.asleep
        if numb in self.trial.engine.names():
            self.trial.engine.numb.add(numb)

    @rule(name=st.sampled_from(NAMES))
    def lose_files(self, name):
        for path in [path for path in self.trial.disk.whole if f"/{name}/" in path]:
            del self.trial.disk.whole[path]

    @rule(name=st.sampled_from(NAMES))
    def let_somebody_unload(self, name):
        self.trial.engine.unload(name, self.trial.now)

    @invariant()
    def no_promise_is_broken(self):
        assert not self.trial.broken

    def teardown(self):
        self.trial.engine.asleep = False
        self.trial.settle()
        assert not self.trial.broken
        assert not self.trial.held_as_desired()


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
