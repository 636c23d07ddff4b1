"""The SGLang adapter: what its answers mean, and how it replaces under load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

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
    Limits,
    Target,
)
from adapters.fake import FakeEngine, FakeServer, sglang_app
from adapters.fake.asgi import Reply, Request, make_app, reply_json, reply_text
from adapters.sglang import SglangAdapter
from sidecar.core.translate import translate
from tests.support.artifacts import write_fake_lora

LORA = Target(name="sql", kind=Kind.LORA)
BASE_CARD = {"id": "base", "root": "base", "parent": None}
LOADS = 'sglang_num_waiting_reqs{dp_rank="0"} 3\nsglang_num_running_reqs{dp_rank="0"} 2\n'
METRICS = 'sglang:num_queue_reqs{tp_rank="0"} 30.0\nsglang:page_size{tp_rank="0"} 16.0\n'


def said(words: str) -> Reply:
    return reply_json({"success": False, "error_message": words, "loaded_adapters": {}}, 400)


DONE = reply_json({"success": True, "error_message": "", "loaded_adapters": {}})
SWAP = [("load", "/store/sql/2"), ("unload", None), ("load", "/store/sql/2")]
HELD = said("Failed to load LoRA adapter sql because it is already loaded")


class Script:
    """A server that answers as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, Callable[[], Reply]] = {}
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.silent: set[str] = set()
        self.held: str | None = None
        self.news = asyncio.Condition()
        self.replies["/v1/models"] = self._models

    def on(self, path: str, *replies: Reply) -> None:
        """Answer with these, one after another, and then always with the last."""
        left = list(replies)
        self.replies[path] = lambda: left.pop(0) if len(left) > 1 else left[0]

    def _models(self) -> Reply:
        cards = [BASE_CARD]
        if self.held is not None:
            cards.append({"id": "sql", "root": self.held, "parent": "base"})
        return reply_json({"data": cards})

    async def handle(self, request: Request) -> Reply:
        self.asked.append((request.path, request.json()))
        async with self.news:
            self.news.notify_all()
        if request.path in self.silent:
            await asyncio.Event().wait()
        missing = reply_json({"detail": "Not Found"}, 404)
        return self.replies.get(request.path, lambda: missing)()

    async def wait_asked(self, path: str) -> None:
        """Wait until the path was asked for."""
        async with self.news:
            await self.news.wait_for(lambda: path in [asked for asked, _ in self.asked])

    def posted(self) -> list[tuple[str, object]]:
        """Every load and unload in order, with its path."""
        return [
            (path.strip("/").partition("_")[0], body.get("lora_path"))
            for path, body in self.asked
            if path.endswith("_lora_adapter")
        ]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(script: Script):
    async with FakeServer(make_app(script.handle)) as running:
        yield running


@pytest.fixture
async def adapter(server: FakeServer):
    opened = SglangAdapter.open(EngineOptions(url=server.url))
    yield opened
    await opened.aclose()


LOAD_ANSWERS = [
    (
        said("LoRA is not enabled. Please set `--enable-lora` to enable LoRA."),
        EngineUnsupported,
        "--max-lora-rank",
    ),
    (said("LoRA adapter sql with rank 64 is incompatible with"), EngineRejected, "rank 64"),
    (said("[Errno 2] No such file or directory: '/x'"), EngineRejected, "No such file"),
    (said("It is not allowed to pin all slots"), EngineRejected, "pin all slots"),
    (reply_json({"object": "error", "message": "missing"}, 400), EngineRejected, "missing"),
    (reply_json({"error": {"message": "odd"}}, 400), EngineRejected, "odd"),
    (reply_json([1], 400), EngineProtocolError, "400"),
    (reply_text("no", 400), EngineProtocolError, "no"),
    (reply_json({"detail": "Not Found"}, 404), EngineUnsupported, "404"),
    (reply_text("Internal Server Error", 500), EngineProtocolError, "500"),
    (reply_json({"error": "Unauthorized"}, 401), EngineRejected, "--engine-api-key-file"),
    (reply_text("starting", 503), EngineUnavailable, "starting"),
]


@pytest.mark.parametrize(("reply", "expected", "words"), LOAD_ANSWERS)
async def test_what_the_answer_to_a_load_means(
    adapter: SglangAdapter,
    script: Script,
    reply: Reply,
    expected: type[EngineError],
    words: str,
):
    script.on("/load_lora_adapter", reply)
    with pytest.raises(expected, match=words) as caught:
        await adapter.load(LORA, "/store/sql/1")
    assert type(caught.value) is expected


async def test_replicas_behind_one_server_cannot_load(tmp_path: Path):
    async with FakeServer(sglang_app(FakeEngine(), replicas=2)) as server:
        adapter = SglangAdapter.open(EngineOptions(url=server.url))
        await adapter.observe()
        for attempt in (adapter.load(LORA, str(tmp_path)), adapter.unload(LORA)):
            with pytest.raises(EngineUnsupported, match="--dp-size 2"):
                await attempt
        await adapter.aclose()


async def test_a_server_without_loras_cannot_load(tmp_path: Path):
    async with FakeServer(sglang_app(FakeEngine(), enable_lora=False)) as server:
        adapter = SglangAdapter.open(EngineOptions(url=server.url))
        for attempt in (adapter.load(LORA, str(tmp_path)), adapter.unload(LORA)):
            with pytest.raises(EngineUnsupported, match="--enable-lora"):
                await attempt
        await adapter.aclose()


async def test_a_load_takes_the_place_of_what_is_held(adapter: SglangAdapter, script: Script):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", DONE)
    script.on("/load_lora_adapter", HELD, DONE)
    await adapter.load(LORA, "/store/sql/2")
    assert sorted(script.posted()) == sorted(SWAP)


async def test_a_load_that_came_behind_the_unload_already_is_the_load(
    adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", DONE)
    script.on("/load_lora_adapter", DONE, HELD)
    await adapter.load(LORA, "/store/sql/2")
    assert sorted(script.posted()) == sorted(SWAP)


async def test_what_a_refused_load_took_the_place_of_is_loaded_again(
    adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", DONE)
    script.on("/load_lora_adapter", HELD, said("bad rank"), DONE)
    with pytest.raises(EngineRejected, match="bad rank"):
        await adapter.load(LORA, "/store/sql/2")
    assert script.posted()[3:] == [("load", "/store/sql/1")]


async def test_what_is_loaded_again_is_pinned_as_it_was(adapter: SglangAdapter, script: Script):
    pinned = Target(name="sql", kind=Kind.LORA, parameters={"pinned": True})
    script.on("/load_lora_adapter", DONE, HELD, said("bad rank"), DONE, HELD, said("no"), DONE)
    script.on("/unload_lora_adapter", DONE)
    await adapter.load(pinned, "/store/sql/1")
    former = script.asked[-1]
    script.held = "/store/sql/1"
    with pytest.raises(EngineRejected, match="bad rank"):
        await adapter.load(LORA, "/store/sql/2")
    assert script.asked[-1] == former
    # Of what somebody else loaded, the path is all that is known.
    script.held = "/elsewhere/sql"
    with pytest.raises(EngineRejected, match="no"):
        await adapter.load(LORA, "/store/sql/2")
    body = script.asked[-1][1]
    assert body == {"lora_name": "sql", "lora_path": "/elsewhere/sql"}


async def test_a_former_revision_that_cannot_come_back_is_told(
    adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", DONE)
    script.on("/load_lora_adapter", HELD, said("bad rank"), said("no such directory"))
    with pytest.raises(EngineRejected, match="no such directory") as caught:
        await adapter.load(LORA, "/store/sql/2")
    assert "bad rank; and its former revision is gone" in str(caught.value)


async def test_a_request_that_brought_the_former_revision_back_first_is_no_failure(
    adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", DONE)
    script.on("/load_lora_adapter", HELD, said("bad rank"), HELD)
    with pytest.raises(EngineRejected) as caught:
        await adapter.load(LORA, "/store/sql/2")
    assert str(caught.value) == "SGLang refused: bad rank"


async def test_a_load_that_requests_outrun_is_tried_again_and_then_busy(
    adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", DONE)
    script.on("/load_lora_adapter", HELD, HELD, HELD, DONE)
    await adapter.load(LORA, "/store/sql/2")
    assert sorted(script.posted()) == sorted(SWAP * 2)
    script.on("/load_lora_adapter", HELD)
    with pytest.raises(EngineBusy, match="former revision"):
        await adapter.load(LORA, "/store/sql/3")


async def test_an_unload_that_was_cut_short_is_ended_before_the_load(
    adapter: SglangAdapter, script: Script
):
    words = "LoRA adapter 'sql' has an incomplete unload. Retry the unload before loading it again."
    script.on("/load_lora_adapter", said(words), DONE)
    script.on("/unload_lora_adapter", DONE)
    await adapter.load(LORA, "/store/sql/1")
    assert [call for call, _ in script.posted()] == ["load", "unload", "load"]


async def test_an_unload_that_fails_is_the_reason_for_a_load_that_fails(
    adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.on("/unload_lora_adapter", said("rank 1 lost it"))
    script.on("/load_lora_adapter", HELD)
    with pytest.raises(EngineRejected, match="rank 1 lost it"):
        await adapter.load(LORA, "/store/sql/2")


async def test_an_engine_that_dies_at_a_replacement_is_unavailable(
    server: FakeServer, adapter: SglangAdapter, script: Script
):
    script.held = "/store/sql/1"
    script.silent |= {"/load_lora_adapter", "/unload_lora_adapter"}
    replacement = asyncio.ensure_future(adapter.load(LORA, "/store/sql/2"))
    async with asyncio.timeout(5):
        await script.wait_asked("/unload_lora_adapter")
    server.cut()
    with pytest.raises(EngineUnavailable):
        await replacement


async def test_what_an_earlier_call_loaded_meanwhile_is_loaded(
    adapter: SglangAdapter, script: Script
):
    def load() -> Reply:
        script.held = "/store/sql/1"
        return HELD

    script.replies["/load_lora_adapter"] = load
    await adapter.load(LORA, "/store/sql/1")
    assert script.posted() == [("load", "/store/sql/1")]


async def test_a_replacement_waits_no_longer_than_it_may(server: FakeServer, script: Script):
    script.held = "/store/sql/1"
    script.on("/load_lora_adapter", HELD)
    script.silent.add("/unload_lora_adapter")
    adapter = SglangAdapter.open(EngineOptions(url=server.url, load_timeout_seconds=0.2))
    with pytest.raises(EngineTimeout):
        await adapter.load(LORA, "/store/sql/2")
    await adapter.aclose()


async def test_no_request_fails_while_a_busy_lora_is_replaced(tmp_path: Path):
    """Running requests are waited for, and those that come meanwhile get the new revision."""
    engine = FakeEngine()
    first, second = (write_fake_lora(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    async with FakeServer(sglang_app(engine)) as server:
        adapter = SglangAdapter.open(EngineOptions(url=server.url))
        await adapter.load(LORA, first)
        engine.faults.unload_seconds = 0.05
        answers: list[tuple[int, str]] = []
        replaced = asyncio.Event()

        async def ask(client: httpx.AsyncClient) -> str:
            body = {"model": "base:sql", "prompt": "hello"}
            answer = await client.post("/v1/completions", json=body)
            answers.append((answer.status_code, answer.text))
            return answer.text

        async def keep_asking(client: httpx.AsyncClient) -> None:
            while not replaced.is_set():
                await ask(client)

        async with (
            httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
            asyncio.TaskGroup() as clients,
        ):
            old = await ask(client)
            for _ in range(4):
                clients.create_task(keep_asking(client))
            for path in (second, first, second):
                await adapter.load(LORA, path)
                (resident,) = (await adapter.observe()).residents
                assert resident.paths == {path}
                assert (await ask(client) == old) is (path == first)
            replaced.set()
        assert {status for status, _ in answers} == {200}
        assert len(answers) > 20
        await adapter.aclose()


async def test_a_base_models_name_is_refused_before_anything_is_sent(
    adapter: SglangAdapter, script: Script
):
    with pytest.raises(EngineRejected, match="base model named 'base'"):
        await adapter.load(Target(name="base", kind=Kind.LORA), "/store/base/1")
    assert script.posted() == []


@pytest.mark.parametrize("parameters", [{"pinned": "yes"}, {"pinned": 1}, {"lora_id": "x"}])
async def test_a_wrong_parameter_is_rejected_before_anything_is_sent(
    adapter: SglangAdapter, script: Script, parameters: dict[str, object]
):
    target = Target(name="sql", kind=Kind.LORA, parameters=parameters)
    with pytest.raises(EngineRejected, match=next(iter(parameters))):
        await adapter.load(target, "/store/sql/1")
    assert script.asked == []


async def test_a_pinned_lora_is_loaded_so(adapter: SglangAdapter, script: Script):
    script.on("/load_lora_adapter", DONE)
    await adapter.load(
        Target(name="sql", kind=Kind.LORA, parameters={"pinned": True}), "/store/sql/1"
    )
    body = script.asked[-1][1]
    assert body == {"lora_name": "sql", "lora_path": "/store/sql/1", "pinned": True}


async def test_unloading_an_unknown_name_is_no_error(adapter: SglangAdapter, script: Script):
    script.on("/unload_lora_adapter", said("LoRA with name sql does not exist. Loaded LoRAs: []"))
    await adapter.unload(LORA)
    script.on("/unload_lora_adapter", said("rank 1 lost it"))
    with pytest.raises(EngineRejected, match="rank 1 lost it"):
        await adapter.unload(LORA)


async def test_warming_names_the_lora_by_its_field(adapter: SglangAdapter, script: Script):
    """The name of a model alone would be answered by the base model."""
    script.on("/generate", reply_json({"text": ""}))
    await adapter.warm(LORA)
    path, body = script.asked[-1]
    assert (path, body["lora_path"], body["input_ids"]) == ("/generate", "sql", [1])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (reply_json({"error": {"message": "never been loaded"}}, 400), EngineRejected),
        (reply_json({"detail": "Not Found"}, 404), EngineUnsupported),
        (reply_text("Internal Server Error", 500), EngineProtocolError),
    ],
)
async def test_what_a_failed_warming_means(
    adapter: SglangAdapter, script: Script, reply: Reply, expected: type[EngineError]
):
    script.on("/generate", reply)
    with pytest.raises(expected) as caught:
        await adapter.warm(LORA)
    assert type(caught.value) is expected


async def test_base_model_and_loras_are_told_apart_and_paths_are_the_agents_own(
    server: FakeServer, script: Script
):
    script.held = "/mnt/store/sql/1"
    script.on("/server_info", reply_json({"model_path": "/mnt/store/base"}))
    options = EngineOptions(url=server.url, path_prefix=("/data", "/mnt/store"))
    adapter = SglangAdapter.open(options)
    state = await adapter.observe()
    assert (set(state.base_names), state.base_model) == ({"base"}, "base")
    assert state.base_model_path == "/data/base"
    assert [(one.name, set(one.paths)) for one in state.residents] == [("sql", {"/data/sql/1"})]
    assert (state.started_at, state.asleep) == (None, False)
    await adapter.aclose()


@pytest.mark.parametrize(
    "body", [[], {}, {"data": {}}, {"data": ["base"]}, {"data": [{"root": "/x"}]}]
)
async def test_a_list_of_models_that_is_none_is_a_protocol_error(
    adapter: SglangAdapter, script: Script, body: object
):
    script.on("/v1/models", reply_json(body))
    with pytest.raises(EngineProtocolError, match="/v1/models"):
        await adapter.observe()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, None), (404, None), (503, EngineUnavailable), (500, EngineProtocolError)],
)
async def test_a_server_that_says_it_is_not_ready_is_not_seen(
    adapter: SglangAdapter, script: Script, status: int, expected: type[EngineError] | None
):
    script.on("/ready", reply_text("", status))
    if expected is None:
        assert (await adapter.observe()).base_model == "base"
    else:
        with pytest.raises(expected):
            await adapter.observe()


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_limits_are_read_once_a_connection_by_either_name(
    adapter: SglangAdapter, script: Script, path: str
):
    info = {"max_loras_per_batch": 8, "max_loaded_loras": 20, "max_lora_rank": 64}
    script.on(path, reply_json(info))
    for _ in range(3):
        # What is in the slots is told nowhere, so that their number would mislead.
        limits = (await adapter.observe()).limits
        assert limits == Limits(max_residents=20, max_lora_rank=64)
    assert [asked for asked, _ in script.asked].count(path) == 1


@pytest.mark.parametrize("body", [[], {"max_loaded_loras": None, "max_lora_rank": True}])
async def test_limits_that_are_no_numbers_are_unknown(
    adapter: SglangAdapter, script: Script, body: object
):
    script.on("/server_info", reply_json(body))
    assert (await adapter.observe()).limits == Limits()


async def test_a_server_that_tells_no_limits_is_seen(adapter: SglangAdapter, script: Script):
    for _ in range(2):
        assert (await adapter.observe()).limits == Limits()
    assert [asked for asked, _ in script.asked].count("/server_info") == 1


async def test_limits_that_come_late_do_not_hide_the_engine(
    adapter: SglangAdapter, script: Script, monkeypatch: pytest.MonkeyPatch
):
    # The time alone is shorter than in service; the server is silent in earnest.
    monkeypatch.setattr("adapters.sglang.INFO_SECONDS", 0.05)
    script.silent.add("/server_info")
    state = await adapter.observe()
    assert (state.base_model, state.limits) == ("base", Limits())
    script.silent.clear()
    script.on("/server_info", reply_json({"max_loaded_loras": 2}))
    assert (await adapter.observe()).limits == Limits(max_residents=2)


@pytest.mark.parametrize("answer", [None, reply_json({}, 500), reply_text("no JSON")])
async def test_limits_once_told_hold_while_it_is_too_busy_to_tell_them_again(
    adapter: SglangAdapter, script: Script, monkeypatch: pytest.MonkeyPatch, answer: Reply | None
):
    # The time alone is shorter than in service; the server is silent in earnest.
    monkeypatch.setattr("adapters.sglang.INFO_SECONDS", 0.05)
    script.on("/server_info", reply_json({"max_loaded_loras": 2}))
    assert (await adapter.observe()).limits == Limits(max_residents=2)
    await adapter.aclose()
    if answer is None:
        script.silent.add("/server_info")
    else:
        script.on("/server_info", answer)
    assert (await adapter.observe()).limits == Limits(max_residents=2)
    script.on("/ready", reply_json({}, 503))
    with pytest.raises(EngineUnavailable):
        await adapter.observe()
    script.on("/ready", reply_json({}))
    assert (await adapter.observe()).limits == Limits()


async def test_loads_without_a_figure_leave_no_old_figures_of_the_metrics(
    adapter: SglangAdapter, script: Script
):
    script.on("/v1/loads", reply_text("\n"))
    pages = [reply_text(f"sglang:num_queue_reqs {queued}\n") for queued in (1.0, 2.0, 3.0)]
    script.on("/metrics", *pages)
    queued = [
        translate(await adapter.scrape_figures(), adapter.metric_map, None, now=0.0).queued
        for _ in range(3)
    ]
    assert queued == [1.0, 2.0, 3.0]


async def test_pages_that_end_in_the_middle_of_a_line_stay_apart(
    adapter: SglangAdapter, script: Script
):
    script.on("/v1/loads", reply_text(LOADS.rstrip()))
    script.on("/metrics", reply_text(METRICS))
    sample = translate(await adapter.scrape(), adapter.metric_map, None, now=0.0)
    assert (sample.running, sample.block_size) == (2.0, 16)


async def test_a_refusal_is_understood_however_long_the_name(
    adapter: SglangAdapter, script: Script
):
    name = "n" * 253
    refused = said(f"Failed to unload LoRA adapter {name}: LoRA {name} does not exist")
    script.on("/unload_lora_adapter", refused)
    await adapter.unload(Target(name=name, kind=Kind.LORA))


async def test_fresh_loads_win_over_the_page_of_metrics(adapter: SglangAdapter, script: Script):
    script.on("/v1/loads", reply_text(LOADS))
    script.on("/metrics", reply_text(METRICS))
    sample = translate(await adapter.scrape(), adapter.metric_map, None, now=0.0)
    assert (sample.queued, sample.running) == (3.0, 2.0)


async def test_the_page_of_metrics_is_not_asked_for_at_each_look_at_the_figures(
    adapter: SglangAdapter, script: Script
):
    script.on("/v1/loads", reply_text(LOADS))
    script.on("/metrics", reply_text(METRICS))
    pages = {(await adapter.scrape_figures())[0] for _ in range(5)}
    asked = [path for path, _ in script.asked]
    assert (asked.count("/v1/loads"), asked.count("/metrics")) == (5, 1)
    assert pages == {f"{LOADS}\n{METRICS}".encode()}
    script.on("/metrics", reply_text("sglang:page_size 64.0\n"))
    await adapter.scrape()
    (page,) = await adapter.scrape_figures()
    assert page == f"{LOADS}\nsglang:page_size 64.0\n".encode()


async def test_the_page_of_metrics_is_asked_for_again_when_it_is_old(
    adapter: SglangAdapter, script: Script, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("adapters.sglang.METRICS_SECONDS", 0.0)
    script.on("/v1/loads", reply_text(LOADS))
    script.on("/metrics", reply_text(METRICS), reply_text("sglang:page_size 64.0\n"))
    sizes = [
        translate(await adapter.scrape_figures(), adapter.metric_map, None, now=0.0).block_size
        for _ in range(2)
    ]
    assert sizes == [16, 64]


@pytest.mark.parametrize(("missing", "queued"), [("/v1/loads", 30.0), ("/metrics", 3.0)])
async def test_either_page_is_enough(
    adapter: SglangAdapter, script: Script, missing: str, queued: float
):
    script.on("/v1/loads", reply_text(LOADS))
    script.on("/metrics", reply_text(METRICS))
    del script.replies[missing]
    for _ in range(2):
        sample = translate(await adapter.scrape_figures(), adapter.metric_map, None, now=0.0)
        assert sample.queued == queued


async def test_a_server_without_either_page_says_how_to_start_it(adapter: SglangAdapter):
    with pytest.raises(EngineUnsupported, match="--enable-metrics"):
        await adapter.scrape()


async def test_a_page_that_fails_is_no_page(adapter: SglangAdapter, script: Script):
    script.on("/v1/loads", reply_text("", 503))
    with pytest.raises(EngineUnavailable):
        await adapter.scrape()


async def test_more_loras_than_it_may_hold_take_each_others_place(tmp_path: Path):
    engine = FakeEngine(max_cpu_loras=2)
    async with FakeServer(sglang_app(engine)) as server:
        adapter = SglangAdapter.open(EngineOptions(url=server.url))
        for name in ("one", "two", "three"):
            await adapter.load(Target(name=name, kind=Kind.LORA), write_fake_lora(tmp_path / name))
        state = await adapter.observe()
        assert {one.name for one in state.residents} == {"two", "three"}
        assert state.limits.max_residents == 2
        # Unlike vLLM, it keeps the weights in host memory: files that vanish harm no one.
        for file in (tmp_path / "two").iterdir():
            file.unlink()
        await adapter.warm(Target(name="two", kind=Kind.LORA))
        with pytest.raises(EngineRejected, match="never been loaded"):
            await adapter.warm(Target(name="four", kind=Kind.LORA))
        await adapter.aclose()


async def test_a_paused_server_is_not_seen():
    engine = FakeEngine()
    engine.faults.asleep = True
    async with FakeServer(sglang_app(engine)) as server:
        adapter = SglangAdapter.open(EngineOptions(url=server.url))
        with pytest.raises(EngineUnavailable, match="paused"):
            await adapter.observe()
        await adapter.aclose()
