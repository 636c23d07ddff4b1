"""Many pods at a glance: who is asked how, who is unknown and why, and what a wait waits for."""

from __future__ import annotations

import json
import re
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli import main
from sidecar.cluster.fleet import (
    ASK_AT_ONCE,
    PAGE_PODS,
    Fleet,
    FleetTimeout,
    look,
    wait_converged,
)
from sidecar.cluster.fleet_facts import AGENT_CONTAINER, AGENT_PORT
from sidecar.cluster.inject.agent import PORT_NAME
from sidecar.cluster.inject.model import CONTAINER
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeDenied
from tests.support.scripted_api import (
    Call,
    ScriptedApi,
    agent_status,
    pod,
    scripted_api,
    target,
)

LIST = "/api/v1/namespaces/chat/pods"
PROXY = re.compile(rf"{LIST}/(https:)?(?P<name>[^:]+):(?P<port>\d+)/proxy/status")
INJECTED = {"name": "model-sidecar", "ports": [{"name": "sidecar", "containerPort": 9200}]}


class Cluster:
    """Pods and what their agents say; both may change while somebody waits."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.says: dict[str, object] = {}
        """By pod; what has no entry cannot be reached."""
        self.on_list: Callable[[int], None] = lambda turn: None
        self.lists = 0

    def add(self, name: str, says: object = None, **more: Any) -> None:
        self.pods.append(pod(name, **more))
        if says is not None:
            self.says[name] = says

    def reply(self, call: Call) -> object:
        if call.path == LIST:
            start = int(call.query.get("continue", 0))
            if not start:
                self.lists += 1
                self.on_list(self.lists)
            end = start + int(call.query["limit"])
            more = {"continue": str(end)} if end < len(self.pods) else {}
            return {"metadata": more, "items": self.pods[start:end]}
        found = PROXY.fullmatch(call.path)
        assert found, call.path
        said = self.says.get(found["name"], 503)
        return said() if callable(said) else said


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def api(tmp_path: Path, cluster: Cluster):
    with scripted_api(tmp_path, cluster.reply) as api:
        yield api


async def ask(api: ScriptedApi, **more: Any) -> Fleet:
    async with open_client(api.kubeconfig) as client:
        return await look(client, namespace="chat", selector="app=chat", port=9110, **more)


async def wait(api: ScriptedApi, digest: str | None = None, seconds: float = 20.0) -> Fleet:
    async with open_client(api.kubeconfig) as client:
        return await wait_converged(
            client,
            namespace="chat",
            selector="app=chat",
            port=9110,
            digest=digest,
            deadline_seconds=seconds,
        )


def status(api: ScriptedApi, capsys: pytest.CaptureFixture[str], *argv: str):
    code = main(["status", "-l", "app=chat", f"--kubeconfig={api.kubeconfig}", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


async def test_every_pod_is_asked_through_the_proxy_where_its_container_says(api, cluster):
    https = {"readinessProbe": {"httpGet": {"scheme": "HTTPS"}}}
    cluster.add("plain", agent_status())
    cluster.add("injected", agent_status(), spec={"initContainers": [INJECTED]})
    cluster.add("tls", agent_status(), spec={"containers": [INJECTED | https]})
    fleet = await ask(api)
    assert [one.name for one in fleet.pods] == ["injected", "plain", "tls"]
    assert all(one.answer is not None and one.answer.ready for one in fleet.pods)
    asked = {call.path.removeprefix(LIST) for call in api.calls}
    assert asked == {
        "",
        "/plain:9110/proxy/status",
        "/injected:9200/proxy/status",
        "/https:tls:9200/proxy/status",
    }
    assert api.calls[0].query["labelSelector"] == "app=chat"
    await ask(api, https=True)
    assert f"{LIST}/https:plain:9110/proxy/status" in {call.path for call in api.calls}


def test_injection_gives_the_names_that_are_looked_for():
    assert (AGENT_CONTAINER, AGENT_PORT) == (CONTAINER, PORT_NAME)


async def test_who_does_not_answer_is_unknown_with_the_reason(api, cluster):
    cluster.add("away", 503)
    cluster.add("done", phase="Succeeded")
    cluster.add("new", phase="Pending", address="")
    cluster.add("other", b"hello")
    cluster.add("stranger", {"hello": "there"})
    cluster.add("odd", agent_status() | {"targets": {"x": 1}})
    cluster.add("wrong-path", 404)
    cluster.add("well", agent_status())
    fleet = await ask(api)
    assert {one.name: one.trouble for one in fleet.pods} == {
        "away": "the API server answered 503 because",
        "done": "it has ended: Succeeded",
        "new": "it has no address yet: Pending",
        "other": "what listens on port 9110 is no agent",
        "stranger": "what listens on port 9110 is no agent",
        "odd": "what listens on port 9110 is no agent",
        "wrong-path": "what listens on port 9110 is no agent",
        "well": "",
    }
    assert [one.name for one in fleet.pods if one.answer is not None] == ["well"]


async def test_200_pods_are_asked_few_at_a_time_and_cost_little(api, cluster):
    busy, most, lock = 0, 0, threading.Lock()
    full, beyond = threading.Event(), threading.Event()

    def answer() -> object:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
            last = busy == ASK_AT_ONCE
            if busy > ASK_AT_ONCE:
                beyond.set()
        # The first ones wait until as many are asked as ever will be at once, and none beyond.
        if last and not full.is_set():
            beyond.wait(0.3)
            full.set()
        assert full.wait(10)
        with lock:
            busy -= 1
        return agent_status(*(target(f"lora-{i}", message="m" * 2000) for i in range(20)))

    for number in range(200):
        cluster.add(f"chat-{number:03}", answer)
    tracemalloc.start()
    try:
        fleet = await ask(api)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(fleet.pods) == 200
    assert all(one.answer is not None and len(one.answer.targets) == 20 for one in fleet.pods)
    assert most == ASK_AT_ONCE
    pages = [call for call in api.calls if call.path == LIST]
    assert [call.query.get("continue") for call in pages] == [None, str(PAGE_PODS)]
    # 8 MB of JSON came; what the pods say alike is held once.
    assert held < 4e6


async def test_a_page_that_came_too_late_begins_the_list_anew(api, cluster, tmp_path):
    cluster.add("a", agent_status())
    gone = iter([410, 410])

    def reply(call: Call) -> object:
        return next(gone, None) or cluster.reply(call)

    (tmp_path / "other").mkdir()
    with scripted_api(tmp_path / "other", reply) as late:
        assert [one.name for one in (await ask(late)).pods] == ["a"]


async def test_a_wait_ends_when_every_running_pod_converged(api, cluster):
    cluster.add("a", agent_status())
    cluster.add("b", agent_status(target("sql", "loading"), converged=False))
    cluster.add("ended", phase="Failed")
    cluster.add("pending", phase="Pending", address="")
    cluster.add("leaving", 503, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})

    def converge(turn: int) -> None:
        if turn == 2:
            cluster.says["b"] = agent_status(target("sql"))

    cluster.on_list = converge
    fleet = await wait(api)
    assert cluster.lists == 2
    answers = {one.name: one.answer for one in fleet.pods}
    assert answers["b"] is not None
    assert answers["b"].converged


async def test_who_converged_is_asked_again_only_at_the_end(api, cluster):
    cluster.add("a", agent_status())
    cluster.add("b", agent_status(converged=False))

    def converge(turn: int) -> None:
        if turn == 3:
            cluster.says["b"] = agent_status()

    cluster.on_list = converge
    await wait(api)
    asked = [found["name"] for call in api.calls if (found := PROXY.fullmatch(call.path))]
    assert sorted(asked[:2]) == ["a", "b"]
    assert asked[2:4] == ["b", "b"]
    assert sorted(asked[4:]) == ["a", "b"]


async def test_a_pod_that_falls_behind_while_others_are_waited_for_is_noticed(api, cluster):
    cluster.add("a", agent_status())
    cluster.add("b", agent_status(converged=False))

    def change(turn: int) -> None:
        if turn == 2:
            cluster.says |= {"a": agent_status(converged=False), "b": agent_status()}

    cluster.on_list = change
    with pytest.raises(FleetTimeout, match="1 of 2 running pods did not converge; a: "):
        await wait(api, seconds=2)


async def test_another_pod_of_the_same_name_is_asked_anew(api, cluster):
    cluster.add("chat-0", agent_status())
    cluster.add("chat-1", agent_status(converged=False))

    def replace(turn: int) -> None:
        if turn == 2:
            cluster.pods[0]["metadata"]["uid"] = "another"
            cluster.says["chat-0"] = 503

    cluster.on_list = replace
    with pytest.raises(FleetTimeout, match=r"2 of 2 .*; chat-0: unknown: .* answered 503"):
        await wait(api, seconds=2)


async def test_a_wait_for_a_document_is_not_content_with_another(api, cluster):
    cluster.add("a", agent_status(digest="new"))
    cluster.add("b", agent_status(digest="old"))
    cluster.add("c", agent_status(digest=""))
    with pytest.raises(FleetTimeout) as raised:
        await wait(api, digest="new", seconds=1)
    assert "b: has document old, not new; c: has no document, not new" in str(raised.value)
    assert [one.name for one in raised.value.fleet.pods] == ["a", "b", "c"]
    cluster.says |= {"b": agent_status(digest="new"), "c": agent_status(digest="new")}
    assert len((await wait(api, digest="new")).pods) == 3


async def test_pods_of_one_template_converge_on_one_document(api, cluster):
    labels = {"pod-template-hash": "1"}
    cluster.add("a", agent_status(digest="one"), labels=labels)
    cluster.add("b", agent_status(digest="two"), labels=labels)
    with pytest.raises(FleetTimeout, match="pods like it hold different documents: one, two"):
        await wait(api, seconds=1)
    cluster.pods[1] = pod("b", labels={"pod-template-hash": "2"})
    assert len((await wait(api)).pods) == 2


async def test_pods_without_a_template_converge_on_one_document_a_place(api, cluster):
    cluster.add("a", agent_status(digest="one"))
    cluster.add("b", agent_status(digest="two"))
    with pytest.raises(FleetTimeout, match="pods like it hold different documents: one, two"):
        await wait(api, seconds=1)
    cluster.says["b"] = agent_status(digest="two", source="configmap chat/others")
    assert len((await wait(api)).pods) == 2


async def test_without_a_running_pod_nothing_has_converged(api, cluster):
    cluster.add("a", phase="Pending", address="")
    with pytest.raises(FleetTimeout, match="no pod runs; pods that match app=chat: 1"):
        await wait(api, seconds=1)


async def test_a_wait_outlives_an_api_server_that_is_away(tmp_path, cluster):
    cluster.add("a", agent_status())
    trouble = iter([503, 503])

    def reply(call: Call) -> object:
        return next(trouble, None) or cluster.reply(call)

    with scripted_api(tmp_path, reply) as api:
        assert len((await wait(api)).pods) == 1


async def test_a_wait_that_may_not_list_ends_at_once(tmp_path):
    with scripted_api(tmp_path, lambda call: 403) as api:
        with pytest.raises(KubeDenied):
            await wait(api)
        assert len(api.calls) == 1


async def test_an_api_server_that_stays_away_is_told_at_the_end(tmp_path):
    words = "within 1 s: the API server answered 500"
    with scripted_api(tmp_path, lambda call: 500) as api, pytest.raises(FleetTimeout, match=words):
        await wait(api, seconds=1)


def test_the_table_has_a_row_a_pod(api, cluster, capsys):
    failed = target("sql", "failed", reason="NotFound", message="no such object")
    cluster.add("a", agent_status(target("sql", revision="abcdef0123456789")))
    cluster.add("b", agent_status(failed, converged=False, reasons=["sql is required."]))
    cluster.add("c", phase="Pending", address="")
    code, out, _ = status(api, capsys)
    assert code == 0
    head, _, headings, *table = out.splitlines()
    assert head == (
        "3 pods of app=chat in chat: 2 running, 1 ready, 1 converged, 1 unknown, 1 document"
    )
    assert headings.split() == ["POD", "READY", "CONVERGED", "DOCUMENT", "AGE", "AGENT", "REASON"]
    assert [row.split()[:4] for row in table] == [
        ["a", "yes", "yes", "d1"],
        ["b", "no", "no", "d1"],
        ["c", "unknown", "unknown", "unknown"],
    ]
    assert table[1].endswith("sql is required.; sql (NotFound: no such object)")
    assert table[2].endswith("it has no address yet: Pending")
    _, out, _ = status(api, capsys, "--targets")
    _, _, headings, *table = out.splitlines()
    assert headings.split()[6:] == ["sql", "REASON"]
    assert "resident abcdef012345" in table[0]
    assert "failed NotFound" in table[1]


def test_json_has_every_pod_and_targets_on_request(api, cluster, capsys):
    cluster.add("a", agent_status(target("sql")))
    cluster.add("b", phase="Failed")
    _, out, _ = status(api, capsys, "--json")
    said = json.loads(out)
    assert said["converged"] is True
    first, second = said["pods"]
    assert (first["digest"], first["converged"], first["ready"]) == ("d1", True, True)
    assert "targets" not in first
    assert second["unknown"] == "it has ended: Failed"
    _, out, _ = status(api, capsys, "--json", "--targets")
    assert json.loads(out)["pods"][0]["targets"]["sql"]["state"] == "resident"


def test_a_command_that_waits_in_vain_shows_the_fleet_and_says_why(api, cluster, capsys):
    cluster.add("a", agent_status(target("sql", "loading"), converged=False))
    code, out, err = status(api, capsys, "--wait", "converged", "--timeout", "1")
    assert code == 1
    assert out.splitlines()[3].startswith("a")
    assert err == (
        "model-sidecar status: not converged within 1 s: 1 of 1 running pods did not converge; "
        "a: sql (loading)\n"
    )
    cluster.says["a"] = agent_status()
    assert status(api, capsys, "--wait", "converged", "--timeout", "5")[0] == 0


def test_nobody_found_or_heard_is_a_failure(api, cluster, capsys):
    code, out, err = status(api, capsys, "-n", "chat")
    assert (code, out) == (1, "")
    assert err == "model-sidecar status: no pod matches app=chat in namespace chat\n"
    cluster.add("a", 503)
    code, out, err = status(api, capsys)
    assert code == 1
    assert "unknown" in out
    assert err == "model-sidecar status: no agent answered\n"


def test_missing_rights_and_configuration_are_said_without_a_traceback(tmp_path, capsys):
    with scripted_api(tmp_path, lambda call: 403) as api:
        code, _, err = status(api, capsys)
    assert code == 1
    assert "needs list on pods and get on pods/proxy" in err
    assert main(["status", "-l", "a=b", f"--kubeconfig={tmp_path}/none"]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["-l", "app=chat", "--url", "http://127.0.0.1:1"],
        ["-n", "chat"],
        ["--targets"],
        ["--port", "9110"],
        ["-l", "app=chat", "--port", "0"],
        ["-l", "app=chat", "--port", "x"],
    ],
)
def test_flags_that_do_not_fit_together_are_bad_usage(argv):
    with pytest.raises(SystemExit) as ended:
        main(["status", *argv])
    assert ended.value.code == 64
