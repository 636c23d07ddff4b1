"""The Triton adapter: links, stamps, and what the index means."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.base import (
    EngineBusy,
    EngineError,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    EngineUnsupported,
    Kind,
    Residency,
    Target,
)
from adapters.fake import FakeEngine, FakeServer, triton_app
from adapters.fake.asgi import Reply, Request, make_app, reply_json, reply_text
from adapters.repository import LinkRepository, newest_nanoseconds
from adapters.triton import TritonAdapter, parse_index
from tests.support.artifacts import write_fake_model

MODEL = Target(name="fraud", kind=Kind.MODEL)


@dataclasses.dataclass
class Rig:
    engine: FakeEngine
    adapter: TritonAdapter
    repository: Path
    store: Path

    def write(self, seed: int) -> str:
        return write_fake_model(self.store / f"revision-{seed}", seed=seed)

    def link(self, name: str = "fraud") -> str:
        return os.readlink(self.repository / name)


@pytest.fixture
async def rig(tmp_path: Path):
    engine, repository = FakeEngine(), tmp_path / "repository"
    repository.mkdir()
    async with FakeServer(triton_app(engine, repository)) as server:
        options = EngineOptions(
            url=server.url,
            metrics_url=f"{server.url}/metrics",
            repository_dir=str(repository),
            load_timeout_seconds=5.0,
        )
        adapter = TritonAdapter.open(options)
        yield Rig(engine, adapter, repository, tmp_path / "store")
        await adapter.aclose()


# The index


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], {}),
        ([{"name": "never-loaded"}], {}),
        ([{"name": "a", "state": "UNAVAILABLE", "reason": "unloaded"}], {}),
        ([{"name": "a", "state": "UNAVAILABLE"}], {}),
        ([{"name": "a", "state": "READY", "reason": ""}], {"a": (Residency.RESIDENT, "")}),
        ([{"name": "a", "state": "LOADING"}], {"a": (Residency.LOADING, "")}),
        ([{"name": "a", "state": "UNLOADING"}], {"a": (Residency.UNLOADING, "")}),
        (
            [{"name": "a", "state": "UNAVAILABLE", "reason": "no\nGPU"}],
            {"a": (Residency.FAILED, "no GPU")},
        ),
    ],
)
def test_what_one_entry_of_the_index_means(entries, expected):
    assert parse_index(entries) == expected


@given(st.permutations(["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]), st.integers(1, 4))
def test_of_several_versions_the_one_that_serves_tells(states: list[str], number: int):
    entries = [
        {"name": "a", "version": str(index), "state": state, "reason": "broken"}
        for index, state in enumerate(states[:number])
    ]
    found = parse_index(entries)["a"][0]
    order = ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    expected = min(states[:number], key=order.index)
    assert (
        found
        is {
            "READY": Residency.RESIDENT,
            "LOADING": Residency.LOADING,
            "UNLOADING": Residency.UNLOADING,
            "UNAVAILABLE": Residency.FAILED,
        }[expected]
    )


@pytest.mark.parametrize("answer", [{}, None, "x", [1], [{}], [{"name": 1}], [{"state": "READY"}]])
def test_an_index_that_is_none_is_a_protocol_error(answer: object):
    with pytest.raises(EngineProtocolError):
        parse_index(answer)


def test_a_state_that_nobody_documented_is_a_protocol_error():
    with pytest.raises(EngineProtocolError, match="DREAMING"):
        parse_index([{"name": "a", "state": "DREAMING"}])


async def test_a_model_that_failed_is_seen_with_its_reason(rig: Rig):
    write_fake_model(rig.repository / "other", seed=1)
    rig.engine.failed["other"] = "no GPU"
    (resident,) = (await rig.adapter.observe()).residents
    assert (resident.name, resident.state, resident.reason) == (
        "other",
        Residency.FAILED,
        "no GPU",
    )


# Loading and the link


async def test_a_loaded_revision_is_linked_and_its_path_is_told(rig: Rig):
    path = rig.write(1)
    await rig.adapter.load(MODEL, path)
    assert rig.link() == "../store/revision-1"
    (resident,) = (await rig.adapter.observe()).residents
    assert resident.paths == {path}
    assert sorted(os.listdir(rig.repository)) == ["fraud"]


async def test_a_rejected_revision_gives_its_place_back(rig: Rig):
    await rig.adapter.load(MODEL, rig.write(1))
    second = rig.write(2)
    rig.engine.faults.reject["fraud"] = "version 1: out of memory"
    with pytest.raises(EngineRejected, match="out of memory"):
        await rig.adapter.load(MODEL, second)
    assert rig.link() == "../store/revision-1"


async def test_a_rejection_stays_in_the_index_until_it_is_unloaded(rig: Rig):
    """Triton's index tells of directories only, and controllers read failures there."""
    rig.engine.faults.reject["fraud"] = "broken"
    for seed in (1, 2):
        with pytest.raises(EngineRejected):
            await rig.adapter.load(MODEL, rig.write(seed))
        assert rig.link() == f"../store/revision-{seed}"
        (resident,) = (await rig.adapter.observe()).residents
        assert resident.state is Residency.FAILED
        assert "broken" in resident.reason
    await rig.adapter.unload(MODEL)
    assert os.listdir(rig.repository) == []
    assert (await rig.adapter.observe()).residents == ()


async def test_after_a_timeout_the_new_link_stays(rig: Rig, tmp_path: Path):
    await rig.adapter.load(MODEL, rig.write(1))
    impatient = TritonAdapter.open(
        dataclasses.replace(rig.adapter._options, load_timeout_seconds=0.05)
    )
    rig.engine.hang()
    with pytest.raises(EngineTimeout, match=r"the loading of 'fraud' within 0\.05 s"):
        await impatient.load(MODEL, rig.write(2))
    assert rig.link() == "../store/revision-2"
    await impatient.aclose()
    rig.engine.release()


async def test_a_directory_of_somebody_else_is_never_replaced(rig: Rig):
    write_fake_model(rig.repository / "fraud", seed=7)
    with pytest.raises(EngineRejected, match="not a link of ours: move it away"):
        await rig.adapter.load(MODEL, rig.write(1))
    assert not (rig.repository / "fraud").is_symlink()
    assert rig.engine.calls == []
    await rig.adapter.unload(MODEL)
    assert (rig.repository / "fraud" / "1" / "model.py").is_file()


async def test_a_link_left_by_a_crash_is_overwritten(rig: Rig):
    (rig.repository / ".fraud.model-sidecar").symlink_to("/nowhere")
    await rig.adapter.load(MODEL, rig.write(1))
    assert sorted(os.listdir(rig.repository)) == ["fraud"]


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "a%20b", "", "é"])
async def test_a_name_that_triton_cannot_be_asked_for_is_rejected(rig: Rig, name: str):
    with pytest.raises(EngineRejected, match="cannot be asked for the name"):
        await rig.adapter.load(Target(name=name, kind=Kind.MODEL), rig.write(1))
    assert os.listdir(rig.repository) == []


async def test_without_a_repository_directory_nothing_can_be_loaded(rig: Rig):
    adapter = TritonAdapter.open(dataclasses.replace(rig.adapter._options, repository_dir=None))
    with pytest.raises(EngineUnsupported, match="--repository-dir"):
        await adapter.load(MODEL, rig.write(1))
    assert (await adapter.observe()).residents == ()
    await adapter.aclose()


async def test_a_repository_that_cannot_be_written_is_said(rig: Rig):
    options = dataclasses.replace(rig.adapter._options, repository_dir="/proc/none")
    adapter = TritonAdapter.open(options)
    with pytest.raises(EngineRejected, match="the model repository cannot be changed"):
        await adapter.load(MODEL, rig.write(1))
    await adapter.aclose()


# Unloading


async def test_the_link_goes_only_when_the_model_is_gone(rig: Rig):
    await rig.adapter.load(MODEL, rig.write(1))
    rig.engine.faults.unload_seconds = 0.2
    unloading = asyncio.create_task(rig.adapter.unload(MODEL))
    async with asyncio.timeout(5):
        while not rig.engine.is_unloading("fraud"):
            await asyncio.wait({unloading}, timeout=0.005)
        assert rig.link() == "../store/revision-1"
        await unloading
    assert os.listdir(rig.repository) == []


async def test_an_unload_that_takes_too_long_keeps_the_link(rig: Rig):
    await rig.adapter.load(MODEL, rig.write(1))
    rig.engine.faults.unload_seconds = 60.0
    impatient = TritonAdapter.open(
        dataclasses.replace(rig.adapter._options, load_timeout_seconds=0.1)
    )
    with pytest.raises(EngineTimeout, match="the unloading of 'fraud'"):
        await impatient.unload(MODEL)
    assert rig.link() == "../store/revision-1"
    (resident,) = (await impatient.observe()).residents
    assert resident.state is Residency.UNLOADING
    await impatient.aclose()


# What the answers mean


@pytest.mark.parametrize(
    ("reply", "expected", "words"),
    [
        (reply_json({"error": "version 1 is at UNAVAILABLE"}, 400), EngineRejected, "version 1"),
        (reply_json({"error": "failed to poll"}, 500), EngineRejected, "failed to poll"),
        (
            reply_json({"error": "load is not allowed if polling is enabled"}, 503),
            EngineUnsupported,
            "--model-control-mode=explicit",
        ),
        (reply_json({"error": "Not Found"}, 404), EngineUnsupported, "404"),
        (reply_json({"error": "starting"}, 503), EngineUnavailable, "starting"),
        (reply_text("bad gateway", 502), EngineUnavailable, "502"),
        (reply_json({"error": "slow down"}, 429), EngineBusy, "slow down"),
        (reply_json({"error": "who"}, 401), EngineRejected, "--engine-api-key-file"),
        (reply_json({"error": "teapot"}, 418), EngineProtocolError, "teapot"),
    ],
)
async def test_what_the_answer_to_a_load_means(
    tmp_path: Path, reply: Reply, expected: type[EngineError], words: str
):
    async def handle(request: Request) -> Reply:
        return reply

    repository = tmp_path / "repository"
    repository.mkdir()
    async with FakeServer(make_app(handle)) as server:
        adapter = TritonAdapter.open(EngineOptions(url=server.url, repository_dir=str(repository)))
        with pytest.raises(expected, match=words) as caught:
            await adapter.load(MODEL, write_fake_model(tmp_path / "store" / "1"))
        assert type(caught.value) is expected
        await adapter.aclose()
    kept = expected is EngineUnavailable
    assert os.listdir(repository) == (["fraud"] if kept else [])


async def test_an_index_of_no_json_is_a_protocol_error(tmp_path: Path):
    async def handle(request: Request) -> Reply:
        return reply_text("<html>" if request.method == "POST" else "")

    async with FakeServer(make_app(handle)) as server:
        adapter = TritonAdapter.open(EngineOptions(url=server.url))
        with pytest.raises(EngineProtocolError):
            await adapter.observe()
        await adapter.aclose()


async def test_a_server_that_is_not_live_is_unavailable(tmp_path: Path):
    async def handle(request: Request) -> Reply:
        return Reply(400)

    async with FakeServer(make_app(handle)) as server:
        adapter = TritonAdapter.open(EngineOptions(url=server.url))
        with pytest.raises(EngineUnavailable, match="not live"):
            await adapter.observe()
        await adapter.aclose()


@pytest.mark.parametrize("config", [{"max_batch_size": 4}, '{"max_batch_size": 4}'])
async def test_a_config_is_sent_as_json(tmp_path: Path, config: object):
    bodies = []

    async def handle(request: Request) -> Reply:
        bodies.append(request.json())
        return Reply(200)

    repository = tmp_path / "repository"
    repository.mkdir()
    async with FakeServer(make_app(handle)) as server:
        adapter = TritonAdapter.open(EngineOptions(url=server.url, repository_dir=str(repository)))
        target = Target(name="fraud", kind=Kind.MODEL, parameters={"config": config})
        await adapter.load(target, write_fake_model(tmp_path / "store" / "1"))
        await adapter.aclose()
    assert bodies == [{"parameters": {"config": '{"max_batch_size": 4}'}}]


@pytest.mark.parametrize("config", ["{not json", "[]", 4, {"a": {1, 2}}])
async def test_a_config_that_is_none_is_rejected_before_anything_changes(rig: Rig, config: object):
    target = Target(name="fraud", kind=Kind.MODEL, parameters={"config": config})
    with pytest.raises(EngineRejected, match="'config'"):
        await rig.adapter.load(target, rig.write(1))
    assert os.listdir(rig.repository) == []


async def test_the_page_is_asked_for_at_tritons_own_port():
    adapter = TritonAdapter.open(EngineOptions(url="http://127.0.0.1:1"))
    assert adapter._metrics_url == "http://127.0.0.1:8002/metrics"
    other = TritonAdapter.open(EngineOptions(url="https://[::1]:8000/prefix"))
    assert other._metrics_url == "http://[::1]:8002/metrics"
    named = TritonAdapter.open(EngineOptions(url="http://x", metrics_url="http://y/m"))
    assert named._metrics_url == "http://y/m"


def test_the_page_of_the_real_engine_has_the_mapped_families():
    page = (Path(__file__).parents[1] / "data" / "triton-2.51-metrics.txt").read_text()
    figures = TritonAdapter.metric_map
    assert f"\n{figures.queued[-1].name}{{" in page
    assert figures.running_time is not None
    for series in figures.running_time.microseconds:
        assert f"\n{series.name}{{" in page
    for family in figures.present:
        assert f"\n{family} " in page


# The repository on disk


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    skews=st.lists(st.integers(-(10**10), 10**10), min_size=3, max_size=3),
)
def test_what_is_published_is_newer_than_anything_before(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], skews: list[int]
):
    """Whatever times the files carry, and however often a revision comes back."""
    work = tmp_path_factory.mktemp("stamps")
    (work / "repository").mkdir()
    paths = [Path(write_fake_model(work / "store" / str(seed), seed=seed)) for seed in range(3)]
    for path, skew in zip(paths, skews, strict=True):
        base = path.stat().st_mtime_ns
        for file in (path, path / "1", path / "1" / "model.py", path / "config.pbtxt"):
            os.utime(file, ns=(base + skew, base + skew))
    newest = 0
    for number in order:
        # A new one each time, as after a restart of the agent.
        LinkRepository(str(work / "repository")).publish("m", str(paths[number]), "")
        files = [paths[number], paths[number] / "1", paths[number] / "1" / "model.py"]
        assert min(os.stat(file).st_mtime_ns for file in files) > newest
        newest = newest_nanoseconds(work / "repository" / "m")


@pytest.mark.parametrize(
    ("repository", "path", "prefix", "text"),
    [
        ("pod/repository", "pod/store/1", None, "../store/1"),
        ("pod/repository", "pod/repository/.store/1", None, ".store/1"),
        ("pod/repository", "elsewhere/1", None, "{work}/elsewhere/1"),
        ("pod/repository", "pod/store/1", ("{work}/pod", "/models"), "../store/1"),
        ("pod/repository", "pod/store/1", ("{work}/pod/store", "/mnt"), "/mnt/1"),
        ("pod/repository", "elsewhere/1", ("{work}/elsewhere", "/mnt"), "/mnt/1"),
        ("pod/in/repository", "pod/in/store/1", ("{work}/pod/in", "{work}/pod"), "../store/1"),
    ],
)
async def test_a_link_resolves_where_the_engine_is(
    tmp_path: Path,
    repository: str,
    path: str,
    prefix: tuple[str, str] | None,
    text: str,
):
    async def handle(request: Request) -> Reply:
        if request.path == "/v2/repository/index":
            return reply_json([{"name": "fraud", "version": "1", "state": "READY"}])
        return Reply(200)

    directory, revision = tmp_path / repository, tmp_path / path
    await asyncio.to_thread(directory.mkdir, parents=True)
    write_fake_model(revision)
    ours_theirs = None
    if prefix is not None:
        ours_theirs = (prefix[0].format(work=tmp_path), prefix[1].format(work=tmp_path))
    async with FakeServer(make_app(handle)) as server:
        adapter = TritonAdapter.open(
            EngineOptions(url=server.url, repository_dir=str(directory), path_prefix=ours_theirs)
        )
        await adapter.load(MODEL, str(revision))
        assert os.readlink(directory / "fraud") == text.format(work=tmp_path)
        (resident,) = (await adapter.observe()).residents
        assert resident.known_as(str(revision)).paths == {str(revision)}
        await adapter.aclose()


def test_times_that_do_not_stick_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = LinkRepository(str(tmp_path))
    monkeypatch.setattr(os, "utime", lambda path, ns: None)
    path = write_fake_model(tmp_path / "store" / "1")
    repository._newest = 2**62
    with pytest.raises(OSError, match="do not stick"):
        repository.publish("m", path, "")
