"""The six operations on a ConfigMap: idempotent, and no update of anybody is lost."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest

from sidecar.cluster.modelconfig import (
    MichelangeloModel,
    ModelConfig,
    ModelConfigError,
    NativeModel,
    michelangelo_name,
)
from sidecar.cluster.retries import (
    ATTEMPTS,
    DEADLINE_SECONDS,
    UNAVAILABLE_ATTEMPTS,
    persist,
)
from sidecar.core.accept import AcceptOptions, Pod, accept
from sidecar.core.desired import Format
from sidecar.core.snapshot import Presence, Snapshot
from sidecar.errors import DocumentError
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeConflict, KubeDenied, KubeInvalid, KubeUnavailable
from tests.support.configmap_api import serve_configmaps
from tests.support.kube_api import refused, write_kubeconfig

KEY = "models.yaml"
ONE = "models:\n- name: one\n  source: /one\n"


class Impatient(Random):
    """No pause at all."""

    def random(self):
        return 0.0


class Even(Random):
    """Always half of the longest pause."""

    def random(self):
        return 0.5


@pytest.fixture
def opened(tmp_path):
    """Open an API with ConfigMaps, and one of them through it."""

    @asynccontextmanager
    async def opened(name="models", **more):
        async with serve_configmaps() as api:
            kubeconfig = write_kubeconfig(tmp_path / "config", api.url, {})
            async with open_client(kubeconfig) as client:
                yield api, ModelConfig(client, None, name, random=Impatient(), **more)

    return opened


def model(name, source="/new"):
    return NativeModel(name=name, source=source)


def names(api, name="models"):
    return [line.split()[-1] for line in api.data(name)[KEY].splitlines() if "name:" in line]


async def test_create_makes_a_configmap_without_a_document(opened):
    async with opened() as (api, config):
        assert not await config.exists()
        assert (await config.create(labels={"team": "a"}, annotations={"why": "x"})).changed
        assert await config.exists()
        metadata = api.stored["models"]["metadata"]
        assert metadata["labels"] == {
            "app.kubernetes.io/component": "model-config",
            "model-sidecar.io/documents": "true",
            "team": "a",
        }
        assert metadata["annotations"] == {"why": "x"}
        assert "data" not in api.stored["models"]


async def test_create_leaves_one_that_is_there_as_it_is(opened):
    async with opened() as (api, config):
        api.put("models", {"other": "text"})
        before = api.stored["models"]
        assert not (await config.create()).changed
        assert api.stored["models"] is before


async def test_michelangelos_configmap_has_its_name_and_labels(opened):
    name = michelangelo_name("fraud-server")
    assert name == "fraud-server-model-config"
    async with opened(name, format=Format.MICHELANGELO) as (api, config):
        await config.create()
        assert api.stored[name]["metadata"]["labels"] == {
            "app.kubernetes.io/component": "model-config",
            "app.kubernetes.io/part-of": "michelangelo",
            "michelangelo.ai/inference-server": "fraud-server",
        }


@pytest.mark.parametrize("name", ["models", "-model-config"[1:]])
async def test_michelangelos_configmap_cannot_have_another_name(opened, name):
    async with opened(name, format=Format.MICHELANGELO) as (api, config):
        with pytest.raises(ModelConfigError, match="write SERVER-model-config"):
            await config.create()
        assert api.requests == []


async def test_every_other_thing_in_the_configmap_survives_an_edit(opened):
    binary = {"blob": base64.b64encode(b"\xff").decode()}
    metadata = {
        "labels": {"l": "1"},
        "annotations": {"a": "2"},
        "ownerReferences": [{"name": "o"}],
        "finalizers": ["f"],
    }
    async with opened() as (api, config):
        api.put("models", {KEY: ONE, "notes": "n"}, binaryData=binary, metadata=metadata)
        before = json.loads(json.dumps(api.stored["models"]))
        assert (await config.add(model("two"))).changed
        after = api.stored["models"]
        assert after["data"]["notes"] == "n"
        assert after["binaryData"] == binary
        for one in metadata:
            assert after["metadata"][one] == before["metadata"][one]
        assert names(api) == ["one", "two"]


async def test_what_is_so_already_is_not_written(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        assert not (await config.add(model("one", "/one"))).changed
        assert not (await config.remove("two")).changed
        assert api.writes == []


async def test_update_of_a_faster_writer_is_kept(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE, "other": "1"})
        api.before_write = [
            lambda: api.edit("models", KEY, ONE + "- name: theirs\n  source: /t\n"),
            lambda: api.edit("models", "other", "2"),
        ]
        assert (await config.add(model("ours"))).changed
        assert names(api) == ["one", "theirs", "ours"]
        assert api.data("models")["other"] == "2"
        assert api.writes == ["PUT"] * 3


async def test_removal_by_another_writer_is_kept(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.before_write = [lambda: api.edit("models", KEY, "models: []\n")]
        await config.add(model("ours"))
        assert names(api) == ["ours"]


async def test_conflicts_without_end_are_given_up_and_nothing_is_written(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.before_write = [lambda: api.edit("models", "tick", "t")] * (2 * ATTEMPTS)
        with pytest.raises(KubeConflict, match=f"before each of {ATTEMPTS} attempts"):
            await config.add(model("ours"))
        assert len(api.writes) == ATTEMPTS
        assert names(api) == ["one"]


async def test_answer_that_never_came_is_looked_for_before_anything_is_done_again(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.lost = ["PUT"]
        written = await config.add(model("ours"))
        assert written.changed
        assert written.digest is not None
        assert api.writes == ["PUT"]
        assert names(api) == ["one", "ours"]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_api_server_in_trouble_is_asked_again(opened, status):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.faults = {"PUT": [refused(status)], "GET": [refused(status)]}
        assert (await config.add(model("ours"))).changed
        assert names(api) == ["one", "ours"]


async def test_api_server_that_stays_in_trouble_is_given_up(opened):
    async with opened() as (api, config):
        api.faults = {"GET": [refused(503)] * (2 * ATTEMPTS)}
        with pytest.raises(KubeUnavailable, match="503"):
            await config.exists()
        assert len(api.requests) == UNAVAILABLE_ATTEMPTS


@pytest.mark.parametrize(("status", "error"), [(403, KubeDenied), (422, KubeInvalid)])
async def test_refusal_is_told_at_once(opened, status, error):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.faults = {"PUT": [refused(status)]}
        with pytest.raises(error):
            await config.add(model("ours"))
        assert api.writes == ["PUT"]


@pytest.mark.parametrize("text", ["models:\n- [\n", "models: 3\n", ""])
async def test_broken_document_is_never_written_over(opened, text):
    async with opened() as (api, config):
        api.put("models", {KEY: text})
        for operation in (config.add(model("a")), config.remove("a")):
            with pytest.raises(DocumentError) as caught:
                await operation
            assert caught.value.where.startswith(KEY)
        assert api.writes == []


async def test_document_in_binary_data_is_not_hidden_by_another_one(opened):
    async with opened() as (api, config):
        api.put("models", binaryData={KEY: base64.b64encode(ONE.encode()).decode()})
        with pytest.raises(DocumentError, match="binaryData"):
            await config.add(model("a"))
        assert (await config.list()).documents[KEY].names == {"one"}


async def test_without_a_configmap_nothing_is_added_and_nothing_needs_removing(opened):
    async with opened() as (api, config):
        with pytest.raises(ModelConfigError, match="does not exist; create it first"):
            await config.add(model("a"))
        with pytest.raises(ModelConfigError, match="does not exist"):
            await config.list()
        assert not (await config.remove("a")).changed
        assert not (await config.delete()).changed
        assert api.writes == []


async def test_create_whose_answer_was_lost_was_us(opened):
    async with opened() as (api, config):
        api.lost = ["POST"]
        assert (await config.create()).changed
        assert api.writes == ["POST", "POST"]


async def test_delete_deletes_what_was_looked_at(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.before_write = [lambda: api.edit("models", KEY, "models: []\n")]
        assert (await config.delete()).changed
        assert api.writes == ["DELETE", "DELETE"]
        assert api.stored == {}


async def test_delete_whose_answer_was_lost_was_us(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE})
        api.lost = ["DELETE"]
        assert (await config.delete()).changed


async def test_delete_of_a_configmap_that_is_no_model_config_is_refused(opened):
    async with opened("kube-root-ca.crt") as (api, config):
        api.put("kube-root-ca.crt", {"ca.crt": "..."})
        with pytest.raises(ModelConfigError, match="it is no model config"):
            await config.delete()
        assert "kube-root-ca.crt" in api.stored


@pytest.mark.parametrize(
    "content",
    [
        {"data": {KEY: "[broken"}},
        {"data": {"any.yaml": "vLLMLoRAConfig: {}"}},
        {"metadata": {"labels": {"app.kubernetes.io/component": "model-config"}}},
    ],
)
async def test_delete_knows_a_model_config(opened, content):
    async with opened() as (api, config):
        api.put("models", **content)
        assert (await config.delete()).changed


async def test_format_is_told_by_the_configmap(opened):
    theirs = MichelangeloModel(name="m", source="s3://b/m/")
    async with opened("x-model-config") as (api, config):
        api.put("x-model-config", metadata={"labels": {"michelangelo.ai/inference-server": "x"}})
        assert await config.find_format() is Format.MICHELANGELO
        assert (await config.add(theirs)).key == "model-list.json"
        with pytest.raises(ModelConfigError, match="an entry of format native does not fit"):
            await config.add(model("a"))
        assert (await config.remove("m")).changed
        assert api.data("x-model-config") == {"model-list.json": "[]"}


async def test_one_configmap_can_hold_both_where_the_format_is_said(opened):
    async with opened(format=Format.NATIVE) as (api, config):
        api.put("models", {"model-list.json": '[{"name": "m", "storage_path": "s3://b/m/"}]'})
        await config.add(model("a"))
        assert set(api.data("models")) == {"model-list.json", KEY}
        either = ModelConfig(config._client, "chat", "models")
        with pytest.raises(ModelConfigError, match="name the one that is meant"):
            await either.remove("a")
        assert (await either.add(model("b"))).key == KEY
        assert set((await config.list()).documents) == {KEY}


async def test_key_of_another_name_is_edited_where_it_is_named(opened):
    async with opened(key="fleet.yaml") as (api, config):
        api.put("models", {"fleet.yaml": ONE, "model-list.json": "[]"})
        written = await config.add(model("two"))
        assert written.key == "fleet.yaml"
        assert set((await config.list()).documents) == {"fleet.yaml"}


async def test_digest_is_the_one_that_agents_report(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE, "model-list.json": "[]", "notes.txt": "n"})
        written = await config.add(model("two"))
        files = api.data("models")
        snapshot = Snapshot(presence=Presence.PRESENT, source="x", files=files)
        desired = accept(None, snapshot, Pod(name="p"), AcceptOptions()).desired
        assert desired is not None
        assert written.digest == desired.digest
        assert (await config.list()).digest == desired.digest


async def test_list_tells_entries_and_problems_of_every_document(opened):
    async with opened() as (api, config):
        api.put("models", {KEY: ONE + "- name: two\n", "model-list.json": "{"})
        listing = await config.list()
        assert listing.documents[KEY].names == {"one", "two"}
        assert not listing.valid
        assert [one.where.split()[0] for one in listing.problems] == [
            "model-list.json",
            "models.yaml:",
        ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "../secrets/x"},
        {"name": "Models"},
        {"namespace": "a/b"},
        {"format": Format.KSERVE},
        {"format": Format.MICHELANGELO, "key": "models.yaml"},
    ],
)
async def test_impossible_arguments_are_refused_before_any_request(opened, arguments):
    async with opened() as (api, config):
        given = {"namespace": None, "name": "models", **arguments}
        with pytest.raises(ValueError, match=r"cannot be the name|are read|the key of"):
            ModelConfig(config._client, given.pop("namespace"), given.pop("name"), **given)
        assert api.requests == []


@pytest.mark.looptime
async def test_operation_without_end_is_given_up_at_its_deadline():
    ends = asyncio.get_running_loop().time() + DEADLINE_SECONDS

    async def hang():
        await asyncio.Event().wait()

    with pytest.raises(KubeUnavailable, match="not done within 60 s"):
        await persist(hang, "it", Random(1))
    assert asyncio.get_running_loop().time() == pytest.approx(ends, abs=0.1)


@pytest.mark.looptime
async def test_pauses_grow_and_are_spread():
    loop = asyncio.get_running_loop()
    times = []

    async def fail():
        times.append(loop.time())
        raise KubeConflict("faster")

    with pytest.raises(KubeConflict):
        await persist(fail, "it", Even())
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[:7] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5], abs=0.01)
    assert max(pauses) == pytest.approx(2.5, abs=0.01)
