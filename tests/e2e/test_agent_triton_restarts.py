"""Deaths of a real Triton and of the agent beside it, and what ``/ready`` says all the while."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from lab import LabError
from tests.support.triton_pod import TritonPod

pytestmark = pytest.mark.triton


@pytest.fixture
def pod(tmp_path: Path):
    with TritonPod(tmp_path) as pod:
        yield pod


def is_truthful(status: dict[str, Any]) -> bool:
    """Never Ready with none of its models, in one and the same look."""
    serves = any(one["state"] == "resident" for one in status["targets"].values())
    return serves or not status["ready"] or status["engine"]["state"] != "up"


def test_a_triton_that_died_is_healed_by_itself(pod: TritonPod):
    pod.agent.write([pod.entry("a", "a", "alpha"), pod.entry("b", "b", "beta")])
    pod.agent.start()
    pod.agent.wait_converged()
    pod.triton.kill()
    pod.agent.wait_status(lambda one: one["engine"]["state"] == "down")
    pod.triton.start()
    seen = []

    def look() -> bool:
        seen.append(pod.agent.status())
        return bool(seen[-1]["ready"] and seen[-1]["converged"] and seen[-1]["engine"]["restarts"])

    pod.agent.wait_for("healed engine", look)
    assert [one for one in seen if not is_truthful(one)] == []
    assert (pod.infer("a"), pod.infer("b")) == ("alpha", "beta")
    assert seen[-1]["engine"]["restarts"] == 1


def test_after_a_restart_of_triton_the_last_one_that_loaded_comes_back(pod: TritonPod):
    pod.agent.write([pod.entry("chat", "v1", "one")])
    pod.agent.start()
    pod.agent.wait_converged()
    pod.agent.edit([pod.entry("chat", "v2", "two", broken=True)])
    pod.agent.wait_target("chat", lambda one: one["reason"] == "EngineRejected")
    pod.triton.kill()
    pod.triton.start()
    pod.wait_answer("chat", "one")
    pod.agent.wait_ready()
    assert pod.agent.target("chat")["reason"] == "EngineRejected"


def test_an_engine_that_is_away_for_long_unreadies_the_pod(pod: TritonPod):
    pod.agent.write([pod.entry("a", "a", "alpha")])
    pod.agent.start()
    pod.agent.wait_converged()
    pod.triton.stop()
    # A shorter absence does not: a flap costs the picker its prefix index.
    assert pod.watch_ready(2) == {True}
    pod.agent.wait_ready(False)
    assert "has not answered for" in pod.agent.status()["reasons"][0]
    assert pod.agent.get("/live").status == 200
    assert pod.agent.metrics().status == 503
    pod.triton.start()
    pod.agent.wait_ready()
    assert pod.infer("a") == "alpha"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_agent_that_restarts_reloads_nothing_and_stays_ready(pod: TritonPod, how: str):
    pod.agent.write([pod.entry("a", "a", "alpha"), pod.entry("b", "b", "beta", broken=True)])
    pod.agent.start()
    pod.agent.wait_ready()
    pod.agent.wait_target("b", lambda one: one["state"] == "failed")
    before = pod.agent.status()
    getattr(pod.agent, how)()
    assert pod.infer("a") == "alpha"
    pod.agent.start()
    pod.agent.wait_ready()
    pod.agent.wait_target("b", lambda one: one["state"] == "failed")
    assert pod.watch_ready(2) == {True}
    after = pod.agent.status()
    assert pod.loads("a") == 1
    assert after["targets"]["a"]["revision"] == before["targets"]["a"]["revision"]
    assert after["document"]["generation"] == before["document"]["generation"]
    assert after["engine"]["restarts"] == 0


def test_an_agent_killed_during_a_load_ends_what_it_began(pod: TritonPod):
    pod.agent.write([pod.entry("slow", "slow", "here", load_delay=2)])
    pod.agent.start()
    pod.agent.wait_for("load", lambda: pod.loads("slow") == 1)
    pod.agent.kill()
    pod.agent.start()
    pod.agent.wait_converged()
    assert pod.infer("slow") == "here"


def test_both_restarted_at_once_heal(pod: TritonPod):
    pod.agent.write([pod.entry("a", "a", "alpha")])
    pod.agent.start()
    pod.agent.wait_converged()
    pod.agent.kill()
    pod.triton.kill()
    pod.agent.start()
    assert pod.watch_ready(0.5) == {False}
    pod.triton.start()
    pod.agent.wait_ready()
    assert pod.infer("a") == "alpha"


def test_a_start_is_ready_with_its_models_and_not_before(pod: TritonPod):
    entries = [pod.entry("slow", "slow", "here", load_delay=2), pod.entry("fast", "fast", "there")]
    pod.agent.write(entries)
    pod.agent.start()
    seen = []

    def look() -> bool:
        seen.append(pod.agent.status())
        return bool(seen[-1]["ready"])

    pod.agent.wait_for("readiness", look)
    assert len(seen) > 5
    waiting = [one["reasons"] for one in seen[:-1]]
    assert "slow is not resident yet." in waiting[-1]
    assert (pod.infer("slow"), pod.infer("fast")) == ("here", "there")


def test_a_pod_of_which_no_model_loads_is_not_ready(pod: TritonPod):
    pod.agent.write([pod.entry("bad", "bad", "never", broken=True)])
    pod.agent.start()
    pod.agent.wait_target("bad", lambda one: one["state"] == "failed")
    assert pod.watch_ready(1.5) == {False}
    (reason,) = pod.agent.status()["reasons"]
    assert reason == "None of the document's models is resident, and the engine has no other."
    pod.agent.write([])
    pod.agent.wait_ready()


def answer_of(pod: TritonPod, name: str) -> str | None:
    """Ask a model; None where it is not there."""
    try:
        return pod.infer(name)
    except LabError:
        return None


def serves(pod: TritonPod, name: str) -> bool:
    """Tell whether the agent says that the model is resident."""
    return bool(pod.agent.status()["targets"].get(name, {}).get("state") == "resident")


def test_the_last_model_serves_until_the_next_one_does(pod: TritonPod):
    pod.agent.write([pod.entry("old", "old", "here")])
    pod.agent.start()
    pod.agent.wait_converged()
    pod.agent.edit([pod.entry("new", "new", "there", load_delay=2)])
    seen: list[dict[str, Any]] = []
    end = time.monotonic() + 20
    while not (seen and seen[-1]["converged"]) and time.monotonic() < end:
        seen.append(pod.agent.status())
        assert is_truthful(seen[-1])
        assert seen[-1]["ready"]
        answer = answer_of(pod, "old")
        assert answer == "here" or (answer is None and serves(pod, "new"))
    assert pod.infer("new") == "there"
    assert set(seen[-1]["targets"]) == {"new"}
    pod.agent.apply([])
    assert pod.agent.is_ready()
