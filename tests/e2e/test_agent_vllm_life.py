"""The agent beside a real vLLM: what dies, sleeps or loses its files comes back by itself."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from lab.tiny_model import write_lora
from lab.vllm import complete
from tests.support import picker_oracle
from tests.support.vllm_lab import HOUSE, MAX_CPU_LORAS, MAX_LORA_RANK, MAX_LORAS, VllmLab

pytestmark = pytest.mark.vllm

START_SECONDS = 240.0
SEEDS = {"one": 1, "two": 2, "three": 3}


def write_entries(directory, seeds):
    return [
        {"name": name, "source": str(write_lora(directory / name, seed=seed))}
        for name, seed in seeds.items()
    ]


def say(capsys, record_property, name, words):
    record_property(name, words)
    with capsys.disabled():
        print(f"\n{words}")


@pytest.fixture
def agent(engine, start_agent):
    return start_agent("vllm", [engine.url], flags=["--resync-seconds=1"])


def test_an_engine_that_was_killed_gets_every_lora_back(
    engine, agent, tmp_path, capsys, record_property
):
    agent.apply(write_entries(tmp_path, SEEDS))
    agent.wait_ready()
    expected = {name: engine.reference(seed) for name, seed in SEEDS.items()}
    engine.server.kill()
    killed = time.monotonic()
    agent.wait_ready(False, 15.0)
    unready = time.monotonic() - killed
    assert agent.status()["engine"]["state"] == "down"
    assert agent.metrics().status == 503
    mark = engine.mark()
    engine.server.start()
    healthy = time.monotonic()
    agent.wait_ready(True, 30.0)
    say(
        capsys,
        record_property,
        "engine_restart",
        f"engine killed: not ready after {unready:.1f} s; started again: ready "
        f"{time.monotonic() - healthy:.1f} s after its health, {len(SEEDS)} LoRAs loaded again",
    )
    agent.wait_converged()
    assert {name: engine.answers(name) for name in SEEDS} == expected
    assert sorted(engine.loads(mark)) == sorted([HOUSE, *SEEDS])
    assert engine.lora_calls(mark) == (len(SEEDS), 0)
    assert agent.series("model_sidecar_engine_restarts_total") == 1


def test_an_agent_that_was_killed_is_ready_at_once_and_touches_no_resident(
    engine, agent, tmp_path, capsys, record_property
):
    status = agent.apply(write_entries(tmp_path, SEEDS))
    agent.wait_ready()
    mark = engine.mark()
    agent.kill()
    killed = time.monotonic()
    agent.start()
    heard = time.monotonic()
    agent.wait_ready(True, 5.0)
    say(
        capsys,
        record_property,
        "agent_restart",
        f"agent killed: heard of again after {heard - killed:.1f} s, ready "
        f"{time.monotonic() - heard:.2f} s later",
    )
    again = agent.wait_converged(status["document"]["generation"])
    assert again["document"]["digest"] == status["document"]["digest"]
    revisions = {name: one["revision"] for name, one in again["targets"].items()}
    assert revisions == {name: one["revision"] for name, one in status["targets"].items()}
    assert engine.lora_calls(mark) == (0, 0)


def test_deleted_files_of_residents_are_back_before_the_engine_misses_them(
    engine, agent, tmp_path, capsys, record_property
):
    seeds = {f"lora-{seed}": seed for seed in range(1, MAX_CPU_LORAS + 3)}
    status = agent.apply(write_entries(tmp_path, seeds))
    expected = {name: engine.reference(seed) for name, seed in seeds.items()}
    mark = engine.mark()
    directories = [Path(status["targets"][name]["path"]) for name in seeds]
    sizes = {file: file.stat().st_size for directory in directories for file in directory.iterdir()}
    assert any(file.name == "adapter_model.safetensors" for file in sizes)
    for directory in directories:
        shutil.rmtree(directory)
    deleted = time.monotonic()
    agent.wait_for(
        "return of every file",
        lambda: all(file.exists() and file.stat().st_size == size for file, size in sizes.items()),
        10.0,
    )
    say(
        capsys,
        record_property,
        "files_back",
        f"files of {len(seeds)} residents deleted: all back after "
        f"{1000 * (time.monotonic() - deleted):.0f} ms",
    )
    # With fewer places than LoRAs, the engine reads most of them from their files again.
    for _ in range(2):
        assert {name: engine.answers(name) for name in seeds} == expected
    assert engine.is_up()
    # They were put back where they were: nothing had to be loaded again.
    assert engine.lora_calls(mark) == (0, 0)
    agent.wait_converged()


def test_an_engine_asleep_is_not_ready_and_gets_no_loads(engine, agent, tmp_path):
    entries = write_entries(tmp_path, SEEDS)
    first, last = entries[:2], entries[2]
    agent.apply(first)
    agent.wait_ready()
    engine.sleep()
    agent.wait_ready(False, 10.0)
    status = agent.status()
    assert status["engine"]["state"] == "asleep"
    assert "asleep" in " ".join(status["reasons"])
    assert {status["targets"][name]["state"] for name in ("one", "two")} == {"asleep"}
    mark = engine.mark()
    agent.edit([*first, last])
    # Its files come in meanwhile; the engine is left alone, also by the next looks.
    agent.wait_target("three", lambda one: one["state"] == "staged")
    looks = len(engine.calls("/is_sleeping", mark))
    agent.wait_for("look", lambda: len(engine.calls("/is_sleeping", mark)) > looks + 2)
    assert engine.lora_calls(mark) == (0, 0)
    assert engine.calls("/v1/completions", mark) == []
    mark = engine.mark()
    engine.wake()
    agent.wait_converged()
    agent.wait_ready()
    # Each resident was verified by a tiny request; the new one was loaded, and needed none.
    assert engine.calls("/v1/completions", mark) == [200, 200]
    assert engine.loads(mark) == ["three"]
    assert engine.lora_calls(mark) == (1, 0)
    assert agent.series("model_sidecar_actions_total", action="warm", outcome="done") == 2
    assert engine.answers("three") == engine.reference(3)


def test_an_engine_that_takes_no_loras_is_reported_in_plain_words(start_agent, tmp_path):
    lab = VllmLab(tmp_path / "vllm", house=False, dev_mode=False, loras=False)
    lab.server.start(START_SECONDS)
    try:
        agent = start_agent("vllm", [lab.url])
        agent.edit(write_entries(tmp_path, {"sql": 1}))
        told = agent.wait_target("sql", lambda one: one["state"] == "failed")
        assert told["reason"] == "EngineUnsupported"
        assert told["message"] == (
            "vLLM answers 404 for /v1/load_lora_adapter: start it with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
        )
        # The base model answers, and the pod serves it.
        agent.wait_ready()
        assert complete(lab.url, "base")
        assert agent.status()["engine"]["base_model"] == "base"
    finally:
        lab.server.kill()


class TestRanks:
    """Two servers behind two URLs, as one engine."""

    @pytest.fixture
    def second(self, tmp_path):
        """Another server; in production none of them is a development server."""
        lab = VllmLab(tmp_path / "second", dev_mode=False)
        lab.server.start(START_SECONDS)
        try:
            yield lab
        finally:
            lab.server.kill()

    def test_both_hold_the_same_and_one_that_was_killed_is_filled_again(
        self, engine, second, start_agent, tmp_path
    ):
        agent = start_agent(
            "vllm",
            [engine.url, second.url],
            flags=["--resync-seconds=1", f"--max-lora-rank={MAX_LORA_RANK}"],
        )
        entries = write_entries(tmp_path, SEEDS)
        high = {"name": "high", "source": str(write_lora(tmp_path / "high", seed=9, rank=64))}
        marks = engine.mark(), second.mark()
        agent.edit([*entries, high])
        for name in SEEDS:
            agent.wait_target(name, lambda one: one["state"] == "resident")
        told = agent.wait_target("high", lambda one: one["state"] == "failed")
        assert "rank 64 is above the engine's limit" in told["message"]
        agent.apply(entries)
        agent.wait_ready()
        held = engine.models()
        assert held.keys() == {HOUSE, *SEEDS}
        assert {**second.models(), HOUSE: ""} == {**held, HOUSE: ""}
        for lab, mark in zip((engine, second), marks, strict=True):
            assert lab.lora_calls(mark) == (len(SEEDS), 0)
            for name, seed in SEEDS.items():
                assert lab.answers(name) == engine.reference(seed)
        reading = picker_oracle.read(agent.metrics().body)
        assert reading.errors == []
        assert reading.max_lora == MAX_LORAS
        self._heal(agent, engine, second)
        agent.apply(entries[:1])
        assert engine.models().keys() == second.models().keys() == {HOUSE, "one"}

    def _heal(self, agent, engine, second):
        second.server.kill()
        agent.wait_ready(False, 15.0)
        mark = engine.mark()
        again = second.mark()
        second.server.start(START_SECONDS)
        agent.wait_ready(True, 30.0)
        agent.wait_converged()
        assert second.models().keys() == {HOUSE, *SEEDS}
        assert engine.lora_calls(mark) == (0, 0)
        assert second.lora_calls(again) == (len(SEEDS), 0)
        for name, seed in SEEDS.items():
            assert second.answers(name) == engine.reference(seed)
