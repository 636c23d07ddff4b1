"""A LoRA of a real vLLM is replaced while requests for its old revision are still running.

vLLM 0.32 tells LoRAs apart by name where it brings those of a batch into slots: of two revisions of
one name that run side by side only one is kept there, and once the other one is pushed out, the
next step that needs it ends the whole engine.
"""

from __future__ import annotations

import pytest

from lab import LabError
from lab.clients import BusyClients
from lab.tiny_model import write_lora
from lab.vllm import complete
from tests.support.vllm_lab import PROMPTS, Streams, VllmLab

pytestmark = pytest.mark.vllm

SLOTS = 3
STREAM_TOKENS = 480
CHANGES = 6


def entry(name, source):
    return {"name": name, "source": str(source)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = VllmLab(tmp_path_factory.mktemp("overlap"), house=False, max_loras=SLOTS)
    with lab.server:
        yield lab


@pytest.fixture
def engine(lab):
    lab.clear()
    yield lab
    lab.clear()


@pytest.fixture
def agent(engine, start_agent):
    return start_agent("vllm", [engine.url], flags=["--resync-seconds=1"])


def test_a_stream_across_the_change_keeps_its_old_weights_to_the_end(engine, agent, tmp_path):
    """With a slot for every LoRA and for the old revision nothing is pushed out, and the new one
    is there at once."""
    sources = {seed: write_lora(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2)}
    whole, answers = {}, {seed: engine.reference(seed) for seed in sources}
    for seed in sources:
        with engine.loaded_fresh(seed) as name:
            whole[seed] = complete(engine.url, name, PROMPTS[0], STREAM_TOKENS)
    agent.apply([entry("sql", sources[1])])
    # On a busy machine a stream may end before the change: then the next change is looked at.
    for turn in range(CHANGES):
        old, new = 1 + turn % 2, 2 - turn % 2
        streams = Streams(engine.url)
        streams.begin("sql", PROMPTS[0], STREAM_TOKENS)
        agent.wait_for("token", lambda streams=streams: streams.texts[0])
        agent.apply([entry("sql", sources[new])])
        first = complete(engine.url, "sql", PROMPTS[0])
        spanned = streams.are_running()
        assert (first, complete(engine.url, "sql", PROMPTS[1])) == answers[new]
        streams.join()
        assert streams.texts == [whole[old]]
        if spanned:
            break
    assert spanned, f"no stream outlasted one of {CHANGES} changes"


def test_an_engine_with_fewer_slots_than_loras_outlives_a_change_under_requests(
    engine, agent, tmp_path
):
    sources = {seed: write_lora(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2)}
    others = [entry(f"x{n}", write_lora(tmp_path / f"x{n}", seed=10 + n)) for n in range(SLOTS)]
    with engine.loaded_fresh(1) as name:
        whole = complete(engine.url, name, PROMPTS[0], STREAM_TOKENS)
    agent.apply([entry("sql", sources[1]), *others])
    started_at = agent.status()["engine"]["started_at"]
    streams = Streams(engine.url)
    streams.begin("sql", PROMPTS[0], STREAM_TOKENS)
    agent.wait_for("token", lambda: streams.texts[0])

    def ask():
        """Each of the others, and then the one that is being replaced: it may be unknown."""
        texts = [complete(engine.url, one["name"], PROMPTS[0], 4) for one in others]
        try:
            complete(engine.url, "sql", PROMPTS[0], 4)
        except LabError as error:
            if "answered 404" not in str(error):
                raise
        return "".join(texts)

    with BusyClients(1, ask) as clients:
        agent.apply([entry("sql", sources[2]), *others])
        streams.join()
        before = clients.requests
        agent.wait_for("requests", lambda: clients.requests > before + 2)
    assert clients.failures == []
    assert streams.texts == [whole]
    assert engine.answers("sql") == engine.reference(2)
    assert agent.status()["engine"]["started_at"] == started_at
