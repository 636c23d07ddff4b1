"""The agent as a pod would run it: the Role that ``inject`` writes, a token that is rotated, and
an API server that goes through everything an API server goes through.

The engine counts every load and unload that it is asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import LabError
from lab.kube import Kube
from lab.tiny_model import write_lora
from sidecar.sources import kube as kube_module
from tests.support.agent import running_agent
from tests.support.cluster_audit import Audit
from tests.support.cluster_place import NAME, WAIT_SECONDS, Chat, ClusterPlace
from tests.support.cluster_tokens import MountedToken, is_refused, resigned
from tests.support.cluster_wire import LoopThread, Wire

pytestmark = pytest.mark.kube

Json = dict[str, Any]
NewChat = Callable[[str], Chat]


@pytest.fixture
def new_chat(audited_cluster: Kube, tmp_path: Path) -> Iterator[NewChat]:
    chats: list[Chat] = []
    with LoopThread() as thread:

        def make(namespace: str) -> Chat:
            place = ClusterPlace(audited_cluster, namespace)
            place.allow()
            chats.append(Chat(place, tmp_path / namespace, thread))
            return chats[-1]

        try:
            yield make
        finally:
            for chat in chats:
                chat.close()


def rules(place: ClusterPlace, kubeconfig: Path) -> list[Json]:
    """What the bearer of a kubeconfig may do in the namespace, by the API server's word."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": place.namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = place.kubectl(
        "create", "--raw", path, "-f", "-", input=json.dumps(review), kubeconfig=kubeconfig
    )
    found: list[Json] = json.loads(answer)["status"]["resourceRules"]
    return found


def may(place: ClusterPlace, verb: str, what: str) -> bool:
    try:
        answer = place.kubectl("auth", "can-i", verb, what, f"--as={place.user}")
    except LabError:
        # It answers no with an exit code.
        return False
    return answer.strip() == "yes"


def test_the_role_that_inject_writes_is_all_the_agent_may_and_all_it_asks_for(
    new_chat: NewChat, audit: Audit
):
    chat = new_chat("least")
    place = chat.place
    place.write(chat.lora("sql", 1))
    token, _ = place.grant()
    chat.token.rotate(token)
    chat.agent.start()
    chat.wait_held("sql")
    place.write(chat.lora("sql", 1), chat.lora("law", 2))
    chat.wait_held("sql", "law")
    kinds = [one["kind"] for one in yaml.safe_load_all(place.injected)]
    assert kinds == ["Deployment", "Role", "RoleBinding"]
    own = place.kube.work / "own.kubeconfig"
    with_rights = rules(place, place.kubeconfig(own, chat.token.file, place.kube.port))
    for verb, what in (
        *((verb, "configmaps") for verb in ("get", "list", "watch", "create")),
        *((verb, f"configmaps/{NAME}") for verb in ("update", "patch", "delete")),
        ("get", "configmaps/other"),
        ("get", "secrets"),
        ("list", "pods"),
        ("patch", "pods/status"),
        ("create", "events"),
    ):
        assert not may(place, verb, what), (verb, what)
    place.forbid()
    gained = [one for one in with_rights if one not in rules(place, own)]
    verbs = ["get", "list", "watch"]
    role = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": verbs}
    assert gained == [role]
    asked = {(one.verb, one.resource, one.name, one.code) for one in audit.answered(place.user)}
    agents = {one for one in asked if one[1] == "configmaps"}
    assert agents == {("list", "configmaps", NAME, 200), ("watch", "configmaps", NAME, 200)}
    # The others are the questions of this test.
    assert {one[1] for one in asked - agents} <= {"selfsubjectrulesreviews"}


def test_a_restarted_server_that_knows_neither_old_versions_nor_the_old_token_costs_nothing(
    new_chat: NewChat, audited_cluster: Kube
):
    chat = new_chat("restart")
    old, secret = chat.place.grant()
    chat.token.rotate(old)
    sql = chat.lora("sql", 1)
    chat.place.write(sql)
    chat.agent.start()
    chat.wait_held("sql")
    # As a kubelet does it: long before the old one ends, and unnoticed by an open watch.
    chat.token.rotate(chat.place.grant()[0])
    chat.place.revoke(secret)
    chat.wire.cut()
    chat.place.write(sql, chat.lora("law", 2))
    audited_cluster.kill_apiserver()
    audited_cluster.compact_etcd()
    audited_cluster.start_apiserver()
    assert is_refused(audited_cluster, old)
    assert chat.engine.held.keys() == {"sql"}
    assert chat.agent.is_ready()
    chat.wire.mend()
    assert chat.wait_held("sql", "law")["document"]["problems"] == []
    assert chat.agent.is_ready()
    assert chat.engine.calls == ["load sql", "load law"]


@pytest.mark.parametrize("trouble", ["expired", "forbidden"])
async def test_a_refused_agent_keeps_everything_says_why_and_follows_once_it_may(
    trouble: str, audited_cluster: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A trouble is told after ten seconds: the wait alone is shorter here, the trouble is real.
    monkeypatch.setattr(kube_module, "GRACE_SECONDS", 1.0)
    place = await asyncio.to_thread(ClusterPlace, audited_cluster, trouble)
    await asyncio.to_thread(place.allow)
    token = MountedToken(tmp_path / "token")
    token.rotate((await asyncio.to_thread(place.grant))[0])
    old, new = (lora(tmp_path, name, seed) for name, seed in (("sql", 1), ("law", 2)))
    await asyncio.to_thread(place.write, old)
    with LoopThread() as thread, Wire(thread, audited_cluster.port) as wire:
        kubeconfig = place.kubeconfig(tmp_path / "kubeconfig", token.file, wire.port)
        async with running_agent(
            tmp_path, config_dir=None, configmap=NAME, kubeconfig=str(kubeconfig)
        ) as running:
            await running.wait(lambda status: status.converged, WAIT_SECONDS)
            if trouble == "expired":
                good, _ = await asyncio.to_thread(place.grant)
                words = await asyncio.to_thread(expire, audited_cluster, token, good)
            else:
                await asyncio.to_thread(place.forbid)
                words = f"needs get, list, watch on configmaps/{NAME} in namespace {trouble}"
            # An open watch goes on, whatever became of the rights that it was opened with.
            assert running.status.converged
            await asyncio.to_thread(wire.cut)
            await asyncio.to_thread(wire.mend)
            told = await running.wait(
                lambda status: any(words in one["what"] for one in status.document.problems),
                WAIT_SECONDS,
            )
            await asyncio.to_thread(place.write, new)
            assert (told.ready, told.converged) == (True, False)
            assert (await running.get("/ready"))[0] == 200
            assert words in (await running.get("/status"))[1]
            assert running.engine.calls == ["load sql"]
            if trouble == "expired":
                token.rotate(good)
            else:
                await asyncio.to_thread(place.allow)
            await running.wait(
                lambda status: status.converged and status.document.generation == 2, WAIT_SECONDS
            )
            assert (await running.get("/ready"))[0] == 200
            assert sorted(running.engine.calls) == ["load law", "load sql", "unload sql"]


def lora(work: Path, name: str, seed: int) -> Json:
    return {"name": name, "source": str(write_lora(work / f"seed-{seed}", seed=seed))}


def expire(cluster: Kube, token: MountedToken, good: str) -> str:
    """Mount a token that the server refuses for its age alone; return how that is told."""
    assert not is_refused(cluster, resigned(cluster, good, ends_in=60.0))
    ended = resigned(cluster, good, ends_in=-1.0)
    assert is_refused(cluster, ended)
    token.rotate(ended)
    return "401"


async def test_versions_compacted_under_the_watch_are_listed_anew_and_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without its cache the server asks etcd, as it does for whatever the cache does not reach."""
    # A watch goes on for minutes before it begins anew from the version it has seen.
    monkeypatch.setattr(kube_module, "WATCH_SECONDS", 2.0)
    audit = Audit(tmp_path / "audit")
    arguments = ("--watch-cache=false", *audit.apiserver_args())
    kube = Kube(tmp_path / "kube", apiserver_args=arguments)
    try:
        await asyncio.to_thread(kube.start)
        place = await asyncio.to_thread(ClusterPlace, kube, "gone")
        await asyncio.to_thread(place.allow)
        await _compact_under_the_watch(place, tmp_path, caplog)
        asked = [one.verb for one in audit.received(place.user)]
    finally:
        kube.kill()
    assert asked.count("list") == 2


async def _compact_under_the_watch(
    place: ClusterPlace, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = work / "token"
    token.write_text((await asyncio.to_thread(place.grant))[0])
    kubeconfig = place.kubeconfig(work / "kubeconfig", token, place.kube.port)
    sql, law = lora(work, "sql", 1), lora(work, "law", 2)
    await asyncio.to_thread(place.write, sql)
    async with running_agent(
        work, config_dir=None, configmap=NAME, kubeconfig=str(kubeconfig)
    ) as running:
        await running.wait(lambda status: status.converged and status.ready)

        def compact() -> None:
            # Changes of other objects move etcd on; the watch hears nothing of them. The version
            # that a watch begins after may be compacted, so it takes two.
            for name in ("other", "another"):
                place.kubectl("create", "configmap", name)
            place.kube.compact_etcd()

        await asyncio.to_thread(compact)
        async with asyncio.timeout(30):
            while "too old" not in caplog.text:
                await running.agent.board.wait_changed(0.2)
        assert running.status.ready
        await asyncio.to_thread(place.write, sql, law)
        status = await running.wait(
            lambda status: status.converged and status.document.generation == 2, WAIT_SECONDS
        )
        assert (status.ready, status.document.problems) == (True, ())
        assert running.engine.calls == ["load sql", "load law"]
