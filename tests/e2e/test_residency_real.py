"""How often the agent is right about which LoRAs are in the GPU slots of a real vLLM.

The truth is read in the engine's worker, by a plugin (`lab/probe.py`). A pair is a moment and a
LoRA that the engine holds; it is right when the agent says "in a slot" of a LoRA that is in one, or
says it not of one that is in none. The workload overflows both of the engine's caches; the document
changes and the agent is restarted while it runs.

The same measure is taken of simpler models, fed with exactly what the agent heard.
"""

from __future__ import annotations

import random
import time

import pytest

from lab.probe import Probe
from lab.tiny_model import write_base_model, write_lora
from lab.vllm import Vllm
from tests.support.residency_score import (
    ActivityOnly,
    FirstInFirstOut,
    Truth,
    Watcher,
    delays,
    describe_delays,
    lru,
    replayed,
    residents_at,
    score,
)
from tests.support.residency_workload import Crowd, Relay, Shape

pytestmark = pytest.mark.vllm

SLOTS, MEMORY, HELD, NAMES = 3, 7, 10, 12
SECONDS = 60.0
SHORT_SECONDS = 36.0
"""Where nothing but the order of the models is asserted."""
SEED = 20
REVISIONS = 3
RIGHT = 0.95


class Engine:
    """A vLLM with a probe, and the LoRAs to load into it."""

    def __init__(self, work):
        self.probe = Probe(work / "slots.jsonl")
        self.server = Vllm(
            work / "server",
            write_base_model(work / "base"),
            max_loras=SLOTS,
            max_cpu_loras=MEMORY,
            extra_env=self.probe.env(),
        )
        self.names = [f"lora-{number:02}" for number in range(NAMES)]
        self.sources = {
            (name, revision): write_lora(work / f"{name}.{revision}", seed=100 * revision + number)
            for number, name in enumerate(self.names)
            for revision in range(REVISIONS)
        }


class Document:
    """What the agent is asked to hold; each ``edit`` adds, removes or replaces one LoRA."""

    def __init__(self, engine, agent):
        self._engine, self._agent = engine, agent
        self._chance = random.Random(f"{SEED}/edits")
        self.held = dict.fromkeys(engine.names[:HELD], 0)

    def write(self):
        sources = self._engine.sources
        self._agent.write(
            [{"name": name, "source": str(sources[name, n])} for name, n in self.held.items()]
        )

    def edit(self):
        chance, absent = self._chance, sorted(set(self._engine.names) - set(self.held))
        kind = chance.choice(["add", "remove", "replace", "replace"])
        name = chance.choice(sorted(self.held))
        if kind == "remove" and len(self.held) >= HELD:
            del self.held[name]
        elif kind == "add" and absent:
            self.held[chance.choice(absent)] = chance.randrange(REVISIONS)
        else:
            self.held[name] = (self.held[name] + 1) % REVISIONS
        self.write()

    def pause(self):
        return self._chance.uniform(3, 6)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("residency"))
    with engine.server:
        yield engine


@pytest.fixture
def relay(engine):
    with Relay(engine.server.url) as relay:
        yield relay
    for name in engine.names:
        engine.server.unload_lora(name)


def work_through(engine, agent, document, shape, seconds):
    """Run the workload, with edits and one restart of the agent; return what was seen of it."""
    with Watcher(agent) as watcher:
        crowd = Crowd(engine.server.url, lambda: list(document.held), shape, SEED)
        began = time.monotonic()
        with crowd:
            turns = int(seconds / 4.5)
            for turn in range(turns):
                time.sleep(document.pause())
                if turn == turns // 2:
                    agent.restart()
                else:
                    document.edit()
    return began, crowd, watcher.moments


@pytest.mark.parametrize(
    ("interval", "single", "bar"),
    [
        pytest.param(0.1, 0.0, RIGHT, id="sampled every 0.1 s"),
        pytest.param(0.5, 0.0, 0.0, id="sampled every 0.5 s"),
        # The limit of what can be known: vLLM never shows a request of one token.
        pytest.param(0.1, 0.15, 0.0, id="with requests of one token"),
    ],
)
def test_the_page_is_right_about_the_slots(
    interval, single, bar, engine, relay, start_agent, capsys, record_property
):
    flags = [f"--scrape-interval-seconds={interval}", f"--max-loras={SLOTS}"]
    agent = start_agent("vllm", [relay.url], flags=flags)
    document = Document(engine, agent)
    document.write()
    agent.wait_converged(1)
    seconds = SECONDS if bar else SHORT_SECONDS
    began, crowd, moments = work_through(engine, agent, document, Shape(single=single), seconds)
    truth = Truth(engine.probe.states())

    def scored(samples):
        return score((one for one in samples if one[0] > began), truth, crowd.is_busy)

    page = scored((m.at, m.at, m.page, m.residents) for m in moments if m.page is not None)
    status = scored((m.at, m.at, m.status, m.residents) for m in moments if m.status is not None)
    models = {
        "LRU by time of use": lru(SLOTS),
        "first in, first out": FirstInFirstOut(SLOTS),
        "activity only": ActivityOnly(),
    }
    ours, fifo, activity = (
        scored(
            (one.began, one.ended, one.belief, residents_at(moments, one.began))
            for one in replayed(model, relay.calls)
        )["all"]
        for model in models.values()
    )
    shown, missed = delays(moments, truth, began)
    lines = [
        f"sampled every {interval:g} s, {100 * single:.0f} % of {crowd.answered} requests are of "
        f"one token; {len(moments)} moments, {sum(m.page is None for m in moments)} without a page",
        *(f"page, {kind:4}: {one}" for kind, one in page.items()),
        f"status:     {status['all']}",
        "when the engine was sampled:",
        *(f"{name:19}: {one}" for name, one in zip(models, (ours, fifo, activity), strict=True)),
        describe_delays(shown, missed),
    ]
    record_property("residency", "\n".join(lines))
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert crowd.errors == []
    assert crowd.answered > seconds / 2
    assert len(shown) > seconds / 2
    assert page["all"].share > bar
    assert ours.share > bar
    assert ours.share > fifo.share > activity.share
    assert activity.share < RIGHT
