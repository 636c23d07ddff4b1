"""The agent beside a real Triton: what a document asks for is what answers, and what fails says so.

Restarts are in ``test_agent_triton_restarts``, documents of other formats and troubled ones in
``test_agent_triton_documents``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.clients import BusyClients
from tests.support.triton_pod import TritonPod

pytestmark = pytest.mark.triton

BROKEN = "this model is broken on purpose"


@pytest.fixture
def pod(tmp_path: Path):
    with TritonPod(tmp_path) as pod:
        yield pod


def test_a_model_that_is_added_answers(pod: TritonPod):
    pod.agent.write([])
    pod.agent.start()
    status = pod.agent.wait_converged()
    assert status["ready"] is True
    status = pod.agent.apply([pod.entry("chat", "v1", "one")])
    assert pod.infer("chat") == "one"
    assert status["targets"]["chat"]["state"] == "resident"
    assert status["targets"]["chat"]["path"].startswith(str(pod.agent.store))
    page = pod.agent.metrics()
    assert page.status == 200
    assert "\nmodel_sidecar_ready 1\n" in page.text


def test_a_model_that_fails_to_load_hurts_itself_alone(pod: TritonPod):
    entries = [pod.entry("bad", "bad", "never", broken=True), pod.entry("good", "good", "fine")]
    pod.agent.write(entries)
    pod.agent.start()
    pod.agent.wait_ready()
    bad = pod.agent.wait_target("bad", lambda one: one["state"] == "failed")
    assert bad["reason"] == "EngineRejected"
    assert BROKEN in bad["message"]
    assert pod.infer("good") == "fine"
    row = pod.index()["bad"]
    assert row["state"] == "UNAVAILABLE"
    assert BROKEN in row["reason"]
    # A rejection is tried again after 300 s, less or more by a tenth.
    assert 200 < bad["retry_at"] - bad["since"] < 331
    tried = pod.loads("bad")
    assert pod.watch_ready(2.5) == {True}
    assert pod.loads("bad") == tried == 1


def test_a_failure_that_comes_later_does_not_unready_the_pod(pod: TritonPod):
    good, later = pod.entry("good", "good", "fine"), pod.entry("later", "later", "welcome")
    bad = pod.entry("bad", "bad", "never", broken=True)
    pod.agent.write([good])
    pod.agent.start()
    pod.agent.wait_ready()
    pod.agent.edit([bad, {"name": "gone", "source": "/nowhere"}, good, later])
    assert pod.watch_ready(2) == {True}
    pod.wait_answer("later", "welcome")
    status = pod.agent.wait_status(lambda one: one["targets"]["bad"]["state"] == "failed")
    assert status["ready"] is True
    assert status["targets"]["gone"]["reason"] == "NotFound"
    assert [one.split(" ")[0] for one in status["reasons"]] == ["bad", "gone"]
    # Mended in the same place, without an edit: other bytes are worth a try at once.
    pod.source("bad", "mended")
    pod.wait_answer("bad", "mended")


def test_what_failed_and_left_the_document_is_no_failure_any_more(pod: TritonPod):
    good = pod.entry("good", "good", "fine")
    pod.agent.write([pod.entry("bad", "bad", "never", broken=True), good])
    pod.agent.start()
    pod.agent.wait_target("bad", lambda one: one["state"] == "failed")
    pod.agent.apply([good])
    assert "state" not in pod.index().get("bad", {})


def test_new_bytes_and_rollbacks_answer_without_one_failed_request(pod: TritonPod):
    one, two = pod.entry("chat", "v1", "one"), pod.entry("chat", "v2", "two")
    pod.agent.write([one])
    pod.agent.start()
    pod.agent.wait_converged()
    with BusyClients(4, lambda: pod.infer("chat")) as clients:
        for entry, answer in ((two, "two"), (one, "one"), (two, "two")):
            status = pod.agent.apply([entry])
            assert {pod.infer("chat") for _ in range(5)} == {answer}
    assert clients.failures == []
    # Nobody was answered by an old revision after a newer one.
    assert clients.turns() == [["one", "two", "one", "two"]] * 4
    assert clients.requests > 100
    # A rollback goes back to what is still on disk.
    assert status["store"]["revisions"] == 2


def test_bytes_that_change_behind_one_path_answer_too(pod: TritonPod):
    pod.agent.write([pod.entry("chat", "v1", "one")])
    pod.agent.start()
    pod.agent.wait_converged()
    with BusyClients(2, lambda: pod.infer("chat")) as clients:
        pod.source("v1", "two")
        pod.wait_answer("chat", "two")
        pod.source("v1", "one")
        pod.wait_answer("chat", "one")
    assert clients.failures == []


def test_a_failed_replacement_leaves_the_old_one_serving_and_is_reported(pod: TritonPod):
    entry = pod.entry("chat", "v1", "one")
    pod.agent.write([entry])
    pod.agent.start()
    pod.agent.wait_converged()
    with BusyClients(2, lambda: pod.infer("chat")) as clients:
        pod.agent.edit([pod.entry("chat", "v2", "two", broken=True)])
        chat = pod.agent.wait_target("chat", lambda one: one["reason"])
    assert clients.failures == []
    assert clients.turns() == [["one"], ["one"]]
    assert (chat["state"], chat["reason"]) == ("resident", "EngineRejected")
    assert BROKEN in chat["message"]
    assert pod.index()["chat"]["state"] == "READY"
    status = pod.agent.wait_status(lambda one: BROKEN in one["cycle"])
    assert status["converged"] is False
    assert pod.agent.is_ready()
    (row,) = pod.agent.get("/v2/repository/index").json()
    assert (row["state"], BROKEN in row["reason"]) == ("READY", True)
    status = pod.agent.apply([entry])
    assert status["targets"]["chat"]["reason"] == ""
    assert pod.infer("chat") == "one"


def test_the_document_s_config_takes_the_place_of_the_one_on_disk(pod: TritonPod):
    entry = pod.entry("chat", "v1", "one")
    config = {
        "backend": "python",
        "max_batch_size": 0,
        "input": [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [{"name": "ANSWER", "data_type": "TYPE_STRING", "dims": [1]}],
        "instance_group": [{"kind": "KIND_CPU", "count": 2}],
    }

    def instances():
        return pod.config("chat")["instance_group"][0]["count"]

    pod.agent.write([entry | {"parameters": {"config": config}}])
    pod.agent.start()
    pod.agent.wait_converged()
    assert (instances(), pod.infer("chat")) == (2, "one")
    # The same bytes with another configuration are another load.
    pod.agent.apply([entry])
    assert (instances(), pod.infer("chat")) == (1, "one")


def test_an_ensemble_comes_after_its_parts(pod: TritonPod):
    first, last = pod.entry("first", "first", "a"), pod.entry("last", "last", "b")
    ensemble = pod.ensemble("both", "both", ["first", "last"])
    pod.agent.write([ensemble])
    pod.agent.start()
    both = pod.agent.wait_target("both", lambda one: one["reason"] == "WaitingForParts")
    assert both["message"] == "its parts must be resident first: first, last"
    pod.agent.apply([ensemble, last, first])
    assert pod.infer("both") == "b"
    assert pod.loads("both") == 1
    # A part that is replaced answers inside the ensemble, too.
    pod.agent.apply([ensemble, pod.entry("last", "last-2", "c"), first])
    assert (pod.infer("last"), pod.infer("both")) == ("c", "c")
    pod.agent.apply([])
    assert all(row.get("state") != "READY" for row in pod.index().values())
