"""One ConfigMap of a real API server, read by a ServiceAccount that may do nothing else."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from random import Random

import pytest
from kubernetes.aio.config import incluster_config

from sidecar.core.snapshot import Presence
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeDenied, KubeGone
from sidecar.sources import kube as kube_module
from sidecar.sources.configmap import parse_event, split_lines
from sidecar.sources.kube import KubeSource
from tests.support.kube_api import write_kubeconfig
from tests.support.kube_place import AGENT, NAME, Place
from tests.support.snapshots import running

pytestmark = pytest.mark.kube

ONE = {"models.yaml": "one"}
TWO = {"models.yaml": "two"}
THREE = {"models.yaml": "three"}
SECONDS = 60.0


@pytest.fixture
def place(cluster, request):
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    return Place(cluster, name)


async def in_thread(function, *arguments, **more):
    return await asyncio.to_thread(function, *arguments, **more)


async def test_an_edit_is_seen_with_the_least_rights(place):
    place.write(ONE)
    async with running(place.source()) as published:
        first = await published.wait_files(ONE, SECONDS)
        await in_thread(place.write, TWO, binaryData={"text.yaml": "endlaQ=="})
        await published.wait_files(TWO | {"text.yaml": "zwei"}, SECONDS)
    assert first.source == f"configmap {place.namespace}/models"
    assert [one.presence for one in published.all] == [Presence.PRESENT] * 2


async def test_the_rights_end_at_this_one_configmap(place):
    async with open_client(place.kubeconfig) as client:
        with pytest.raises(KubeDenied):
            await client.get_json(
                f"/api/v1/namespaces/{place.namespace}/configmaps", {}, timeout=SECONDS
            )
    other = KubeSource("other", None, kubeconfig=place.kubeconfig, random=Random(1))
    refusal = await other.read_once()
    assert refusal.presence is Presence.UNREADABLE
    assert f"needs get, list, watch on configmaps/other in namespace {place.namespace}" in (
        refusal.reason
    )


async def test_a_configmap_is_made_deleted_and_made_again(place):
    async with running(place.source()) as published:
        await published.wait_for(lambda one: one.presence is Presence.ABSENT, SECONDS)
        await in_thread(place.write, ONE)
        await published.wait_files(ONE, SECONDS)
        await in_thread(place.delete)
        await published.wait_for(lambda one: one.presence is Presence.ABSENT, SECONDS)
        await in_thread(place.write, TWO)
        await published.wait_files(TWO, SECONDS)
    assert len(published.all) == 4


async def test_a_megabyte_of_escapes_is_read(place):
    # Each of these characters takes six bytes in the JSON of the API server.
    large = {"models.yaml": "<&>" * 300_000}
    place.kubectl("create", "configmap", NAME)
    path = place.cluster.work / "large"
    path.write_text(json.dumps({"data": large}))
    async with running(place.source()) as published:
        await published.wait_for(lambda one: one.presence is Presence.PRESENT, SECONDS)
        await in_thread(place.kubectl, "patch", "configmap", NAME, f"--patch-file={path}")
        await published.wait_files(large, SECONDS)
    assert (await place.source().read_once()).files == large


async def test_an_api_server_that_crashes_is_waited_for(place, monkeypatch):
    monkeypatch.setattr(kube_module, "GRACE_SECONDS", 1.0)
    place.write(ONE)
    async with running(place.source()) as published:
        await published.wait_files(ONE, SECONDS)
        await in_thread(place.cluster.kill_apiserver)
        away = await published.wait_for(lambda one: one.presence is Presence.UNREADABLE, SECONDS)
        await in_thread(place.cluster.start_apiserver)
        await published.wait_files(ONE, SECONDS)
        await in_thread(place.write, TWO)
        await published.wait_files(TWO, SECONDS)
    assert "cannot connect to 127.0.0.1" in away.reason


async def test_a_blip_of_the_api_server_is_no_trouble_of_the_document(place):
    place.write(ONE)
    async with running(place.source()) as published:
        await published.wait_files(ONE, SECONDS)
        await in_thread(place.cluster.stop_apiserver)
        await in_thread(place.cluster.start_apiserver)
        await in_thread(place.write, TWO)
        await published.wait_files(TWO, SECONDS)
    assert [dict(one.files) for one in published.all] == [ONE, TWO]


async def test_a_compacted_version_is_gone(place):
    place.write(ONE)
    old = place.kubectl("get", "configmap", NAME, "-o", "jsonpath={.metadata.resourceVersion}")
    place.write(TWO)
    place.cluster.stop_apiserver()
    place.cluster.compact_etcd()
    place.cluster.start_apiserver()
    with pytest.raises(KubeGone):
        await watch_from(place, old)


async def watch_from(place: Place, version: str) -> None:
    query = {"fieldSelector": f"metadata.name={NAME}", "watch": "true", "resourceVersion": version}
    path = f"/api/v1/namespaces/{place.namespace}/configmaps"
    async with (
        open_client(place.kubeconfig) as client,
        client.open_stream(path, query, timeout=SECONDS) as chunks,
        aclosing(split_lines(chunks)) as lines,
    ):
        async for line in lines:
            parse_event(line)


async def test_a_watch_ends_on_time_and_goes_on_without_a_new_list(place, monkeypatch):
    lists, watches, watches_changed = [], [], asyncio.Event()
    original_list, original_watch = KubeSource._list, KubeSource._watch

    async def counted_list(self, *arguments):
        lists.append(arguments)
        return await original_list(self, *arguments)

    async def counted_watch(self, *arguments):
        watches.append(arguments)
        watches_changed.set()
        return await original_watch(self, *arguments)

    monkeypatch.setattr(KubeSource, "_list", counted_list)
    monkeypatch.setattr(KubeSource, "_watch", counted_watch)
    monkeypatch.setattr(kube_module, "WATCH_SECONDS", 1.0)
    place.write(ONE)
    async with running(place.source()) as published:
        await published.wait_files(ONE, SECONDS)
        for files in (TWO, THREE, ONE):
            await in_thread(place.write, files)
            await published.wait_files(files, SECONDS)
            turns = len(watches)
            async with asyncio.timeout(SECONDS):
                while len(watches) == turns:
                    await watches_changed.wait()
                    watches_changed.clear()
    assert len(lists) == 1


async def test_rights_that_are_taken_are_named_and_rights_given_back_are_used(place, monkeypatch):
    monkeypatch.setattr(kube_module, "WATCH_SECONDS", 2.0)
    monkeypatch.setattr(kube_module, "GRACE_SECONDS", 1.0)
    place.write(ONE)
    async with running(place.source()) as published:
        await published.wait_files(ONE, SECONDS)
        await in_thread(place.forbid)
        refusal = await published.wait_for(lambda one: one.presence is Presence.UNREADABLE, SECONDS)
        await in_thread(place.write, TWO)
        await in_thread(place.allow)
        await published.wait_files(TWO, SECONDS)
    assert "403" in refusal.reason
    assert f"configmaps/models in namespace {place.namespace}" in refusal.reason


async def test_a_rotated_token_is_used_by_the_next_watch(place, tmp_path, monkeypatch):
    monkeypatch.setattr(kube_module, "GRACE_SECONDS", 0.0)
    cluster = place.cluster
    token = tmp_path / "token"
    token.write_text("not-a-token")
    kubeconfig = write_kubeconfig(
        tmp_path / "kubeconfig", cluster.url, {"tokenFile": "token"}, place.namespace
    )
    config = json.loads(kubeconfig.read_text())
    config["clusters"][0]["cluster"]["certificate-authority"] = str(cluster.ca_file)
    kubeconfig.write_text(json.dumps(config))
    place.write(ONE)
    source = KubeSource(NAME, None, kubeconfig=kubeconfig, random=Random(1))
    async with running(source) as published:
        refusal = await published.wait_for(lambda _: True, SECONDS)
        token.write_text(cluster.token(place.namespace, AGENT) + "\n")
        await published.wait_files(ONE, SECONDS)
    assert "401" in refusal.reason
    assert "not-a-token" not in refusal.reason


async def test_in_a_pod_the_service_account_is_enough(place, tmp_path, monkeypatch):
    cluster = place.cluster
    (tmp_path / "token").write_text(cluster.token(place.namespace, AGENT))
    (tmp_path / "namespace").write_text(place.namespace)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(cluster.ca_file))
    place.write(ONE)
    source = KubeSource(NAME, None, kubeconfig=None, random=Random(1))
    snapshot = await source.read_once()
    assert snapshot.files == ONE
    assert snapshot.source == f"configmap {place.namespace}/models"
    (tmp_path / "token").unlink()
    missing = await source.read_once()
    assert missing.presence is Presence.UNREADABLE
    assert "Service token file does not exist" in missing.reason


async def test_a_server_with_another_certificate_is_not_trusted(place, tmp_path):
    config = json.loads(place.kubeconfig.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    source = KubeSource(NAME, None, kubeconfig=kubeconfig, random=Random(1))
    snapshot = await source.read_once()
    assert snapshot.presence is Presence.UNREADABLE
    assert f"the certificate of 127.0.0.1:{place.cluster.port} is not trusted" in snapshot.reason
