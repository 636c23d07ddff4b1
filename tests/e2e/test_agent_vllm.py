"""The agent beside a real vLLM: whatever the ConfigMap says is what answers, or what is said."""

from __future__ import annotations

import re
import time
from collections import deque
from itertools import groupby

import pytest

from lab import LabError
from lab.clients import BusyClients
from lab.tiny_model import replace_by_pickle, truncate_safetensors, write_lora
from lab.vllm import complete
from lab.web import get
from tests.support import picker_oracle
from tests.support.picker_clients import Load
from tests.support.vllm_lab import HOUSE, MAX_LORAS, PROMPTS, replace_bytes

pytestmark = pytest.mark.vllm

STREAM_TOKENS = 480
BUSY_CLIENTS = 3
UPDATES = 10
WINDOW_SECONDS = 1.0


def entry(name, source, **more):
    return {"name": name, "source": str(source), **more}


@pytest.fixture
def agent(engine, start_agent):
    return start_agent("vllm", [engine.url], flags=["--resync-seconds=1"])


def warm_ups(agent):
    return agent.series("model_sidecar_actions_total", action="warm", outcome="done")


def test_an_edit_makes_a_lora_answer_and_another_edit_takes_it_away(engine, agent, tmp_path):
    agent.apply([entry("sql", write_lora(tmp_path / "sql", seed=1))])
    agent.wait_ready()
    assert engine.answers("sql") == engine.reference(1)
    agent.apply([])
    assert set(engine.models()) == {HOUSE}
    assert agent.is_ready()


def test_the_answers_of_another_path_are_those_of_the_new_weights_exactly(engine, agent, tmp_path):
    old, new = write_lora(tmp_path / "v1", seed=1), write_lora(tmp_path / "v2", seed=2)
    assert engine.reference(1) != engine.reference(2)
    agent.apply([entry("sql", old)])
    assert engine.answers("sql") == engine.reference(1)
    hits = engine.figure("vllm:prefix_cache_hits_total")
    assert engine.answers("sql") == engine.reference(1)
    # Otherwise nothing would be proven about prompts that were served before.
    assert engine.figure("vllm:prefix_cache_hits_total") > hits
    agent.apply([entry("sql", new)])
    assert engine.answers("sql") == engine.reference(2)
    agent.apply([entry("sql", old)])
    assert engine.answers("sql") == engine.reference(1)


def test_the_answers_of_changed_bytes_at_one_path_are_those_of_the_new_weights_exactly(
    engine, agent, tmp_path
):
    source = write_lora(tmp_path / "sql", seed=1)
    status = agent.apply([entry("sql", source)])
    for seed in (2, 1):
        before = status["targets"]["sql"]["revision"]
        assert engine.answers("sql") == engine.reference(3 - seed)
        replace_bytes(source, seed=seed)
        status = agent.wait_status(
            lambda status, before=before: (
                status["converged"] and status["targets"]["sql"]["revision"] != before
            ),
            what="new revision",
        )
        assert engine.answers("sql") == engine.reference(seed)


def test_the_gap_of_a_replacement_under_load_is_published(
    engine, agent, tmp_path, capsys, record_property
):
    sources = {seed: write_lora(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2)}
    answers = {}
    for seed in sources:
        with engine.loaded_fresh(seed) as name:
            answers[complete(engine.url, name, PROMPTS[0], 8)] = seed
    agent.apply([entry("sql", sources[1])])

    def ask():
        try:
            return complete(engine.url, "sql", PROMPTS[0], 8)
        except LabError:
            # Nobody who was told that there is no such model asks again without a pause.
            time.sleep(0.1)
            raise

    with BusyClients(BUSY_CLIENTS, ask) as clients:
        for turn in range(UPDATES):
            before = clients.requests
            agent.apply([entry("sql", sources[2 - turn % 2])])
            agent.wait_for("requests", lambda before=before: clients.requests > before + 5)
    number = agent.series("model_sidecar_replacement_gap_seconds_count")
    total = agent.series("model_sidecar_replacement_gap_seconds_sum")
    assert number == UPDATES
    figures = (
        f"{UPDATES} replacements under {BUSY_CLIENTS} busy clients: the name was unknown for "
        f"{1000 * total / number:.0f} ms on average; {len(clients.failures)} of "
        f"{clients.requests + len(clients.failures)} requests failed"
    )
    record_property("replacement_gap", figures)
    with capsys.disabled():
        print(f"\n{figures}")
    # While the name is unknown a request is told so; it never gets anything else than an answer
    # of the old weights or of the new ones.
    assert all("answered 404" in failure for failure in clients.failures), clients.failures
    assert {answer for mine in clients.answers for answer in mine} <= set(answers)


def test_a_failed_replacement_leaves_the_old_one_serving_and_is_reported(engine, agent, tmp_path):
    agent.apply([entry("sql", write_lora(tmp_path / "v1", seed=1))])
    agent.wait_ready()
    # vLLM refuses the module; nothing in the files or in the base model's configuration tells.
    unknown = write_lora(tmp_path / "v2", seed=2, target_modules=("q_proj", "nonsense"))
    neighbour = write_lora(tmp_path / "other", seed=3)
    agent.edit([entry("sql", unknown), entry("other", neighbour)])
    told = agent.wait_target("sql", lambda one: one["reason"] and one["state"] == "resident")
    assert told["reason"] == "EngineRejected"
    assert "expected target modules" in told["message"]
    assert told["retry_at"] > 0
    assert engine.answers("sql") == engine.reference(1)
    agent.wait_target("other", lambda one: one["state"] == "resident")
    assert engine.answers("other") == engine.reference(3)
    status = agent.status()
    assert status["ready"]
    assert not status["converged"]
    agent.apply([entry("sql", write_lora(tmp_path / "v3", seed=4)), entry("other", neighbour)])
    assert engine.answers("sql") == engine.reference(4)


def test_loras_that_do_not_fit_never_reach_the_engine(engine, agent, tmp_path):
    truncated = write_lora(tmp_path / "truncated", seed=1)
    truncate_safetensors(truncated)
    pickled = write_lora(tmp_path / "pickled", seed=1)
    replace_by_pickle(pickled)
    wrong = {
        "shapes": (write_lora(tmp_path / "shapes", seed=1, hidden=128), "inputs"),
        "foreign": (write_lora(tmp_path / "foreign", seed=1, base_model_name="other"), "made for"),
        "rank": (write_lora(tmp_path / "rank", seed=1, rank=64), "rank 64 is above"),
        "truncated": (truncated, "its header calls for"),
        "pickled": (pickled, "safetensors"),
        "empty": (write_lora(tmp_path / "empty", seed=1, layers=0), "no tensor"),
    }
    mark = engine.mark()
    agent.edit(
        [
            *(entry(name, source) for name, (source, _) in wrong.items()),
            entry("good", write_lora(tmp_path / "good", seed=1)),
        ]
    )
    agent.wait_target("good", lambda one: one["state"] == "resident")
    for name, (_, words) in wrong.items():
        told = agent.wait_target(name, lambda one: one["state"] == "failed")
        assert words in told["message"], told
        assert told["reason"] in ("InvalidArtifact", "IncompatibleArtifact", "UnsafeArtifact")
    agent.wait_ready()
    assert engine.loads(mark) == ["good"]
    assert engine.lora_calls(mark) == (1, 0)
    assert engine.answers("good") == engine.reference(1)


def test_a_lora_of_the_engine_s_own_start_survives_an_empty_document(engine, agent, tmp_path):
    agent.apply([entry("sql", write_lora(tmp_path / "sql", seed=1))])
    mark = engine.mark()
    agent.apply([])
    assert set(engine.models()) == {HOUSE}
    assert engine.lora_calls(mark) == (0, 1)
    assert agent.target(HOUSE)["desired"] is False


def test_prune_all_removes_it(engine, start_agent):
    agent = start_agent("vllm", [engine.url], flags=["--prune=all"])
    assert HOUSE in engine.models()
    agent.apply([])
    assert engine.models() == {}


def test_a_warm_up_is_one_tiny_request_before_the_lora_counts_as_serving(engine, agent, tmp_path):
    mark = engine.mark()
    agent.edit([entry("sql", write_lora(tmp_path / "sql", seed=1), warmup=True)])
    seen = []

    def look(one):
        seen.append((one["state"], warm_ups(agent)))
        return one["state"] == "resident"

    agent.wait_target("sql", look)
    agent.wait_ready()
    assert engine.calls("/v1/completions", mark) == [200]
    assert warm_ups(agent) == 1
    # The count is read after the state, so it may only be ahead of it.
    assert seen[-1] == ("resident", 1), seen


class TestPickerPage:
    """``/metrics`` beside a real engine, as pickers read it."""

    def test_loras_show_as_resident_before_their_first_request(self, engine, agent, tmp_path):
        names = {"untouched-1", "untouched-2"}
        documents = [
            entry(name, write_lora(tmp_path / name, seed=seed))
            for seed, name in enumerate(sorted(names))
        ]
        # A fresh development server takes seconds before it first tells its limits.
        agent.wait_for("limits", lambda: agent.status()["engine"].get("slots"))
        agent.apply(documents)
        reading = picker_oracle.read(agent.metrics().body)
        assert reading.errors == []
        assert reading.active == names
        assert reading.max_lora == MAX_LORAS
        # The engine itself would have let the picker know nothing of them.
        assert "untouched" not in get(f"{engine.url}/metrics").text
        config = engine.page()["vllm:cache_config_info"].samples[0][0]
        assert reading.block_size == int(config["block_size"])
        assert reading.num_blocks == int(config["num_gpu_blocks"])
        assert picker_oracle.read_legacy(agent.metrics().body).active == names

    def test_queue_running_and_kv_are_the_engine_s(self, engine, agent, tmp_path):
        agent.apply([entry("sql", write_lora(tmp_path / "sql", seed=1))])
        # Ours may be as old as the interval, so it stands beside what the engine said lately.
        recent: deque[tuple[float, picker_oracle.Reading]] = deque()

        def look():
            """Our page, when it says what the engine's own said a moment ago."""
            now = time.monotonic()
            recent.append((now, picker_oracle.read(get(f"{engine.url}/metrics").body)))
            while recent[0][0] < now - WINDOW_SECONDS:
                recent.popleft()
            said = [one for _, one in recent]
            ours = picker_oracle.read(agent.metrics().body)
            assert ours.errors == said[-1].errors == []
            same = (ours.queued, ours.running) in {(one.queued, one.running) for one in said}
            usages = [one.kv_usage or 0.0 for one in said]
            # Ours has six figures.
            framed = min(usages) * 0.99999 <= (ours.kv_usage or 0.0) <= max(usages) * 1.00001
            full = (ours.queued, ours.running) == (2, 8)
            return ours if same and framed and full else None

        with Load(engine.url, ["sql"], 10, tokens=STREAM_TOKENS):
            reading = agent.wait_for("moment at which both agree", look, 40.0)
        assert 0 < reading.kv_usage < 1
        agent.wait_for(
            "idle page",
            lambda: picker_oracle.read(agent.metrics().body).running == 0,
        )

    def test_the_page_for_prometheus_has_one_block_a_family(self, engine, agent, tmp_path):
        agent.apply([entry("sql", write_lora(tmp_path / "sql", seed=1))])
        engine.answers("sql")
        page = agent.metrics_all()
        families = picker_oracle.parse(page.encode())
        # Its own, the engine's, and what both have.
        assert families["model_sidecar_target_state"].samples
        assert families["vllm:prefix_cache_hits_total"].samples
        assert len(families["vllm:num_requests_waiting"].samples) == 1
        heads = [line.split()[1:3] for line in page.splitlines() if line.startswith("# ")]
        assert len(heads) == len({tuple(head) for head in heads})
        blocks = [name for name, _ in groupby(map(family_of(families), page.splitlines()))]
        assert len(blocks) == len(set(blocks))


def family_of(families):
    def find(line):
        if line.startswith("#"):
            return line.split()[2]
        name = re.split(r"[^a-zA-Z0-9_:]", line)[0]
        for suffix in ("_bucket", "_sum", "_count"):
            whole = name.removesuffix(suffix)
            if whole in families and families[whole].type in ("histogram", "summary"):
                return whole
        return name

    return find
