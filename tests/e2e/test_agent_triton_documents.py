"""A real Triton under documents of Michelangelo, troubled documents, and what others put there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lab.triton import write_python_model
from lab.web import Answer, post
from tests.support.triton_pod import TritonPod

pytestmark = pytest.mark.triton

POD = "triton-chat-7d4f-abcde"
GRACE_SECONDS = 2.0
KEY = "model-list.json"


@pytest.fixture
def pod(tmp_path: Path):
    flags = [f"--unload-grace-seconds={GRACE_SECONDS}"]
    with TritonPod(tmp_path, flags=flags, pod_name=POD) as pod:
        yield pod


def write_list(pod: TritonPod, *entries: dict[str, str]) -> None:
    """Write a model list as the Michelangelo controllers do."""
    pod.agent.config.write({KEY: json.dumps(entries, indent=2)})


def wait_models(pod: TritonPod, *names: str) -> dict[str, Any]:
    """Wait until the agent converged with exactly these resident in Triton."""

    def look() -> dict[str, Any] | None:
        status = pod.agent.status()
        ready = {name for name, row in pod.index().items() if row.get("state") == "READY"}
        return status if status["converged"] and ready == set(names) else None

    return pod.agent.wait_for(f"models {', '.join(names) or '(none)'}", look)


def controllers_index(pod: TritonPod) -> dict[str, dict[str, str]]:
    """What a controller is told that asks us instead of Triton."""
    answer: Answer = post(f"{pod.agent.url}/v2/repository/index", {})
    assert answer.status == 200
    return {row["name"]: row for row in answer.json()}


# Michelangelo, generation 1


def test_a_server_without_a_model_list_is_ready(pod: TritonPod):
    pod.agent.start()
    pod.agent.wait_ready()
    write_list(pod)
    pod.agent.wait_status(lambda one: one["document"]["generation"] == 1)
    assert pod.agent.is_ready()
    assert controllers_index(pod) == {}


def test_a_rollout_of_generation_1(pod: TritonPod):
    """The next model is added, the route flips, the last one is removed."""
    april = {"name": "fraud-2026-04", "storage_path": pod.source("april", "april")}
    may = {"name": "fraud-2026-05", "storage_path": f"file://{pod.source('may', 'may')}/"}
    write_list(pod, april)
    pod.agent.start()
    wait_models(pod, "fraud-2026-04")
    assert pod.agent.is_ready()
    write_list(pod, april, may)
    wait_models(pod, "fraud-2026-04", "fraud-2026-05")
    assert (pod.infer("fraud-2026-04"), pod.infer("fraud-2026-05")) == ("april", "may")
    assert pod.agent.get("/v2/models/fraud-2026-05/ready").status == 200
    edited = time.monotonic()
    write_list(pod, may)
    dropped = pod.agent.wait_target("fraud-2026-04", lambda one: one["reason"] == "Dropped")
    assert dropped["state"] == "resident"
    assert pod.infer("fraud-2026-04") == "april"
    wait_models(pod, "fraud-2026-05")
    assert time.monotonic() - edited >= GRACE_SECONDS
    # The same name with another path is another revision.
    write_list(pod, may | {"storage_path": pod.source("june", "june")})
    pod.wait_answer("fraud-2026-05", "june")


def test_a_model_that_returns_within_the_grace_was_never_away(pod: TritonPod):
    one = {"name": "fraud", "storage_path": pod.source("one", "one")}
    other = {"name": "other", "storage_path": pod.source("other", "other")}
    write_list(pod, one, other)
    pod.agent.start()
    wait_models(pod, "fraud", "other")
    write_list(pod, other)
    pod.agent.wait_target("fraud", lambda one: one["reason"] == "Dropped")
    write_list(pod, one, other)
    wait_models(pod, "fraud", "other")
    # The unload that must not come would come by now.
    assert pod.watch_ready(GRACE_SECONDS + 0.5) == {True}
    wait_models(pod, "fraud", "other")
    assert pod.loads("fraud") == 1


def test_the_field_s_old_name_is_read(pod: TritonPod):
    write_list(pod, {"name": "fraud", "s3_path": pod.source("one", "one")})
    pod.agent.start()
    wait_models(pod, "fraud")


# Michelangelo, generation 2


def test_the_phases_of_generation_2(pod: TritonPod):
    def entry(name: str, phase: str, **more: str) -> dict[str, str]:
        source = pod.source(name, f"answer of {name}")
        return {
            "name": name,
            "storage_path": source,
            "deployment_name": "eu",
            "phase": phase,
        } | more

    here = entry("canary-here", "canary", canary_pod=POD)
    there = entry("canary-there", "canary", canary_pod="triton-chat-7d4f-fghij")
    staged, serving = entry("staged", "staged"), entry("serving", "serving")
    write_list(pod, here, there, staged, serving)
    pod.agent.start()
    status = wait_models(pod, "canary-here", "staged", "serving")
    assert status["document"]["elsewhere"] == ["canary-there"]
    # A canary of another pod is not even fetched.
    assert not list(pod.agent.store.rglob("canary-there*"))
    readiness = {name: one["readiness"] for name, one in status["targets"].items()}
    assert readiness == {"canary-here": "optional", "staged": "optional", "serving": "required"}
    states = {name: row["state"] for name, row in controllers_index(pod).items()}
    assert states == dict.fromkeys(["canary-here", "staged", "serving"], "READY")
    # From canary to staged to serving nothing is loaded again.
    write_list(pod, here | {"phase": "staged", "canary_pod": ""}, staged, serving)
    wait_models(pod, "canary-here", "staged", "serving")
    write_list(pod, here | {"phase": "serving", "canary_pod": ""}, staged, serving)
    wait_models(pod, "canary-here", "staged", "serving")
    assert pod.loads("canary-here") == 1
    assert pod.agent.is_ready()


def test_what_several_deployments_list_stays_until_the_last_one_lets_go(pod: TritonPod):
    source = pod.source("shared", "shared")
    eu = {"name": "shared", "storage_path": source, "deployment_name": "eu", "phase": "serving"}
    us = {"name": "shared", "storage_path": source, "deployment_name": "us", "phase": "staged"}
    own = {"name": "own", "storage_path": pod.source("own", "own"), "deployment_name": "eu"}
    write_list(pod, eu, us, own)
    pod.agent.start()
    wait_models(pod, "shared", "own")
    write_list(pod, us, own)
    pod.agent.wait_target("shared", lambda one: one["readiness"] == "optional")
    assert pod.watch_ready(GRACE_SECONDS + 0.5) == {True}
    assert pod.infer("shared") == "shared"
    write_list(pod, own)
    wait_models(pod, "own")
    assert pod.loads("shared") == 1


def test_a_controller_is_told_why_a_model_failed(pod: TritonPod):
    """It takes UNAVAILABLE for FAILED, where the reason is another one than "unloaded"."""
    good = {"name": "good", "storage_path": pod.source("good", "good")}
    bad = {"name": "bad", "storage_path": pod.source("bad", "never", broken=True)}
    gone = {"name": "gone", "storage_path": "/nowhere/at/all"}
    bucket = {"name": "bucket", "storage_path": "s3://models/bucket.tar"}
    write_list(pod, good)
    pod.agent.start()
    wait_models(pod, "good")
    write_list(pod, good, bad, gone, bucket)
    pod.agent.wait_target("bad", lambda one: one["state"] == "failed")
    pod.agent.wait_target("gone", lambda one: one["state"] == "failed")
    pod.agent.wait_target("bucket", lambda one: one["state"] == "failed")
    index = controllers_index(pod)
    assert {row["state"] for name, row in index.items() if name != "good"} == {"UNAVAILABLE"}
    assert index["good"]["state"] == "READY"
    assert "this model is broken on purpose" in index["bad"]["reason"]
    assert "/nowhere/at/all" in index["gone"]["reason"]
    assert "s3://" in index["bucket"]["reason"]
    assert pod.agent.get("/v2/models/bad/ready").status == 400
    assert pod.agent.get("/v2/models/good/ready").status == 200
    assert "this model is broken on purpose" in pod.index()["bad"]["reason"]
    # A rollback: the controller takes the failed ones back.
    write_list(pod, good)
    status = wait_models(pod, "good")
    assert set(status["targets"]) == {"good"}
    assert pod.agent.is_ready()


# Unknown is not empty


def test_no_trouble_of_the_document_unloads_anything(pod: TritonPod):
    good = {"name": "good", "storage_path": pod.source("good", "good")}
    write_list(pod, good)
    pod.agent.start()
    wait_models(pod, "good")
    config = pod.agent.config
    for trouble in (
        {KEY: "[{"},
        {KEY: '{"name": "good"}'},
        {KEY: "null"},
        {KEY: json.dumps([{"storage_path": good["storage_path"]}])},
        {},
        {"readme.txt": "there is no document here"},
    ):
        config.write(trouble)
        pod.agent.wait_status(lambda one: one["document"]["problems"], what=f"problem of {trouble}")
        write_list(pod, good)
        pod.agent.wait_status(lambda one: not one["document"]["problems"])
    config.write({KEY: "[{"})
    pod.agent.wait_status(lambda one: one["document"]["problems"])
    # Not by a restart of the agent either, with nothing but a broken document to read.
    pod.agent.restart()
    pod.agent.wait_ready()
    assert pod.watch_ready(GRACE_SECONDS + 0.5) == {True}
    assert pod.infer("good") == "good"
    assert pod.loads("good") == 1
    write_list(pod)
    wait_models(pod)
    assert pod.agent.is_ready()


# What others put there


def place_by_hand(pod: TritonPod, name: str) -> Path:
    """Put a real directory into the repository and load it, as somebody at a shell does."""
    directory = write_python_model(pod.repository / name, answer=f"{name} by hand")
    assert pod.control(name, "load") == 200
    return directory


def test_what_was_loaded_by_hand_is_left_alone(pod: TritonPod):
    directory = place_by_hand(pod, "theirs")
    write_list(pod, {"name": "ours", "storage_path": pod.source("ours", "ours")})
    pod.agent.start()
    status = wait_models(pod, "theirs", "ours")
    assert status["targets"]["theirs"]["desired"] is False
    write_list(pod)
    wait_models(pod, "theirs")
    # Nor is it replaced by an entry of that name: whose files these are is for a person to say.
    write_list(pod, {"name": "theirs", "storage_path": pod.source("x", "not this")})
    theirs = pod.agent.wait_target("theirs", lambda one: one["reason"])
    assert "is not a link of ours" in theirs["message"]
    assert pod.infer("theirs") == "theirs by hand"
    assert (directory / "1" / "model.py").is_file()
    assert not directory.is_symlink()


def test_prune_all_unloads_what_nobody_lists_and_deletes_no_file_of_theirs(tmp_path: Path):
    with TritonPod(tmp_path, flags=["--prune=all"]) as pod:
        directory = place_by_hand(pod, "theirs")
        pod.agent.write([pod.entry("ours", "ours", "ours")])
        pod.agent.start()
        wait_models(pod, "ours")
        assert (directory / "1" / "model.py").is_file()
        assert pod.agent.wait_converged()["targets"].keys() == {"ours"}
