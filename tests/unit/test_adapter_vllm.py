"""The vLLM adapter: what its answers mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.base import (
    EngineBusy,
    EngineError,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineUnavailable,
    EngineUnsupported,
    Kind,
    Limits,
    Target,
)
from adapters.fake import FakeEngine, FakeServer, vllm_app
from adapters.fake.asgi import Reply, Request, make_app, reply_json, reply_text
from adapters.vllm import VllmAdapter
from tests.support.artifacts import write_fake_lora

LORA = Target(name="sql", kind=Kind.LORA)
BASE_CARD = {"id": "base", "root": "/models/base", "parent": None}


def error(status: int, kind: str, message: str) -> Reply:
    return reply_json({"error": {"message": message, "type": kind, "code": status}}, status)


class Script:
    """A server that answers as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, Callable[[], Reply]] = {}
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.silent: set[str] = set()
        self.on("/v1/models", reply_json({"data": [BASE_CARD]}))
        self.on("/metrics", reply_text("process_start_time_seconds 1000.5\n"))

    def on(self, path: str, reply: Reply) -> None:
        self.replies[path] = lambda: reply

    async def handle(self, request: Request) -> Reply:
        self.asked.append((request.path, request.json()))
        if request.path in self.silent:
            await asyncio.Event().wait()
        missing = reply_json({"detail": "Not Found"}, 404)
        return self.replies.get(request.path, lambda: missing)()

    def count(self, path: str) -> int:
        return [asked for asked, _ in self.asked].count(path)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(script: Script):
    async with FakeServer(make_app(script.handle)) as running:
        yield running


@pytest.fixture
async def adapter(server: FakeServer):
    opened = VllmAdapter.open(EngineOptions(url=server.url))
    yield opened
    await opened.aclose()


LOAD_ANSWERS = [
    (reply_json({"detail": "Not Found"}, 404), EngineUnsupported, "RUNTIME_LORA_UPDATING=1"),
    (reply_text("404 page not found", 404), EngineUnsupported, "--enable-lora"),
    (error(404, "NotFoundError", "No adapter found for <path>"), EngineRejected, "No adapter"),
    (error(400, "InvalidUserInput", "conflicts with a served base"), EngineRejected, "conflicts"),
    (error(422, "Bad Request", "body.lora_path"), EngineRejected, "lora_path"),
    (error(500, "InternalServerError", "LoRA rank 64 is greater"), EngineRejected, "rank 64"),
    (reply_json({"object": "error", "type": "X", "message": "old"}, 500), EngineRejected, "old"),
    (
        error(500, "InternalServerError", "EngineCore encountered an issue. See stack"),
        EngineUnavailable,
        "died",
    ),
    (error(500, "EngineDeadError", "gone"), EngineUnavailable, "died"),
    (reply_text("Internal Server Error", 500), EngineProtocolError, "Internal Server Error"),
    (reply_text("starting", 503), EngineUnavailable, "starting"),
    (reply_text("bad gateway", 502), EngineUnavailable, "bad gateway"),
    (error(429, "RateLimit", "slow down"), EngineBusy, "slow down"),
    (error(401, "Unauthorized", "no"), EngineRejected, "--engine-api-key-file"),
    (reply_text("", 302), EngineProtocolError, "302"),
]


@pytest.mark.parametrize(("reply", "expected", "words"), LOAD_ANSWERS)
async def test_what_the_answer_to_a_load_means(
    adapter: VllmAdapter,
    script: Script,
    reply: Reply,
    expected: type[EngineError],
    words: str,
):
    script.on("/v1/load_lora_adapter", reply)
    with pytest.raises(expected, match=words) as caught:
        await adapter.load(LORA, "/store/sql/1")
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("root", "refused"), [("/store/sql/1", None), ("/store/sql/0", "/store/sql/0"), (None, "None")]
)
async def test_already_loaded_is_success_only_from_the_same_path(
    adapter: VllmAdapter, script: Script, root: str | None, refused: str | None
):
    script.on(
        "/v1/load_lora_adapter",
        error(400, "InvalidUserInput", "The lora adapter 'sql' has already been loaded."),
    )
    card = {"id": "sql", "root": root, "parent": "base"}
    script.on("/v1/models", reply_json({"data": [BASE_CARD, card]}))
    if refused is None:
        await adapter.load(LORA, "/store/sql/1")
    else:
        with pytest.raises(EngineRejected, match=refused):
            await adapter.load(LORA, "/store/sql/1")


async def test_already_loaded_and_not_listed_is_rejected(adapter: VllmAdapter, script: Script):
    script.on("/v1/load_lora_adapter", error(400, "X", "has already been loaded"))
    with pytest.raises(EngineRejected, match="does not list"):
        await adapter.load(LORA, "/store/sql/1")


async def test_a_load_never_asks_for_a_change_in_place(adapter: VllmAdapter, script: Script):
    script.on("/v1/load_lora_adapter", reply_text("Success"))
    target = Target(name="sql", kind=Kind.LORA, parameters={"is_3d_lora_weight": True})
    await adapter.load(target, "/store/sql/1")
    body = script.asked[-1][1]
    assert body == {"lora_name": "sql", "lora_path": "/store/sql/1", "is_3d_lora_weight": True}


def flights(script: Script, *running: str) -> None:
    """Let the page of metrics name these LoRAs as running, one request after another."""
    told = iter(running)

    def reply() -> Reply:
        labels = f'max_lora="2",running_lora_adapters="{next(told, "")}",waiting_lora_adapters=""'
        return reply_text(f"vllm:lora_requests_info{{{labels}}} 1.5\n")

    script.replies["/metrics/"] = reply


@pytest.fixture
async def holding(adapter: VllmAdapter, script: Script):
    """The adapter, when vLLM lists more LoRAs than it has slots."""
    cards = [{"id": name, "root": f"/store/{name}", "parent": "base"} for name in ("sql", "b", "c")]
    script.on("/v1/models", reply_json({"data": [BASE_CARD, *cards]}))
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        script.on(path, reply_text("Success"))
    await adapter.observe()
    script.asked.clear()
    return adapter


async def test_a_name_is_loaded_again_when_its_old_requests_have_ended(
    holding: VllmAdapter, script: Script
):
    flights(script, "sql", "b,sql")
    await holding.load(LORA, "/store/sql/1")
    assert script.count("/metrics/") == 0
    await holding.unload(LORA)
    await holding.load(LORA, "/store/sql/2")
    asked = [path for path, _ in script.asked[2:]]
    assert asked[-1] == "/v1/load_lora_adapter"
    assert len(asked) > 4
    assert set(asked[:-1]) == {"/metrics/"}


async def test_a_page_that_cannot_be_read_keeps_no_name_away(holding: VllmAdapter, script: Script):
    script.on("/metrics", reply_text("broken", 500))
    await holding.unload(LORA)
    await holding.load(LORA, "/store/sql/2")
    assert script.asked[-1][0] == "/v1/load_lora_adapter"


@pytest.mark.parametrize(
    "parameters", [{"load_inplace": True}, {"is_3d_lora_weight": "yes"}, {"is_3d_lora_weight": 1}]
)
async def test_a_wrong_parameter_is_rejected_before_anything_is_sent(
    adapter: VllmAdapter, script: Script, parameters: dict[str, object]
):
    target = Target(name="sql", kind=Kind.LORA, parameters=parameters)
    with pytest.raises(EngineRejected, match=next(iter(parameters))):
        await adapter.load(target, "/store/sql/1")
    assert script.asked == []


async def test_unload_without_the_route_is_unsupported(adapter: VllmAdapter):
    with pytest.raises(EngineUnsupported, match="unload_lora_adapter"):
        await adapter.unload(LORA)


async def test_warming_is_one_token_from_one_token(adapter: VllmAdapter, script: Script):
    script.on("/v1/completions", reply_json({"choices": []}))
    await adapter.warm(LORA)
    path, body = script.asked[-1]
    assert (path, body["model"], body["prompt"], body["max_tokens"]) == (
        "/v1/completions",
        "sql",
        [1],
        1,
    )


async def test_warming_a_server_that_generates_nothing_is_unsupported(adapter: VllmAdapter):
    with pytest.raises(EngineUnsupported, match="/v1/completions"):
        await adapter.warm(LORA)


@pytest.mark.parametrize(
    "body",
    [[], {}, {"data": {}}, {"data": ["base"]}, {"data": [{"root": "/x"}]}, {"data": [{"id": 1}]}],
)
async def test_a_list_of_models_that_is_none_is_a_protocol_error(
    adapter: VllmAdapter, script: Script, body: object
):
    script.on("/v1/models", reply_json(body))
    with pytest.raises(EngineProtocolError, match="/v1/models"):
        await adapter.observe()


async def test_base_models_and_loras_are_told_apart_by_their_parent(
    adapter: VllmAdapter, script: Script
):
    cards = [
        BASE_CARD,
        {"id": "base-alias", "root": "/models/base", "parent": None},
        {"id": "sql", "root": "/store/sql/1", "parent": "base"},
    ]
    script.on("/v1/models", reply_json({"data": cards}))
    state = await adapter.observe()
    assert state.base_names == {"base", "base-alias"}
    assert (state.base_model, state.base_model_path) == ("base", "/models/base")
    assert [(one.name, one.paths) for one in state.residents] == [
        ("sql", frozenset({"/store/sql/1"}))
    ]
    assert state.started_at == 1000.5


async def test_paths_are_the_agents_own_whatever_the_engine_sees(
    server: FakeServer, script: Script
):
    options = EngineOptions(url=server.url, path_prefix=("/data", "/mnt/store"))
    adapter = VllmAdapter.open(options)
    card = {"id": "sql", "root": "/mnt/store/sql/1", "parent": "base"}
    script.on("/v1/models", reply_json({"data": [BASE_CARD, card]}))
    script.on("/v1/load_lora_adapter", reply_text("Success"))
    (resident,) = (await adapter.observe()).residents
    assert resident.paths == {"/data/sql/1"}
    await adapter.load(LORA, "/data/sql/2")
    # A source may have been told as the engine sees it.
    await adapter.load(LORA, "/mnt/store/sql/1")
    told = [payload["lora_path"] for _, payload in script.asked[-2:]]
    assert told == ["/mnt/store/sql/2", "/mnt/store/sql/1"]
    assert resident.known_as("/mnt/store/sql/1").paths == {"/mnt/store/sql/1"}
    assert resident.known_as("/data/sql/1").paths == {"/data/sql/1"}
    await adapter.aclose()


async def test_the_start_time_is_read_once_a_connection(adapter: VllmAdapter, script: Script):
    for _ in range(3):
        assert (await adapter.observe()).started_at == 1000.5
    assert script.count("/metrics") == 1
    assert script.count("/is_sleeping") == 1


async def test_a_new_process_is_noticed_by_its_new_connection(
    adapter: VllmAdapter, script: Script, server: FakeServer
):
    await adapter.observe()
    await server.stop()
    script.on("/metrics", reply_text("process_start_time_seconds 2000.25\n"))
    script.on("/is_sleeping", reply_json({"is_sleeping": True}))
    await server.start()
    state = await adapter.observe()
    assert (state.started_at, state.asleep) == (2000.25, True)


async def test_a_server_that_closes_every_connection_is_still_seen(script: Script):
    async def closing(scope, receive, send):
        async def send_and_close(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"connection", b"close"))
            await send(message)

        await make_app(script.handle)(scope, receive, send_and_close)

    async with FakeServer(closing) as server:
        adapter = VllmAdapter.open(EngineOptions(url=server.url))
        for _ in range(2):
            assert (await adapter.observe()).started_at == 1000.5
        assert script.count("/is_sleeping") == 1
        await adapter.aclose()


async def test_a_page_without_a_start_time_leaves_it_unknown(adapter: VllmAdapter, script: Script):
    page = 'vllm:lora_requests_info{max_lora="3",running_lora_adapters=""} 1.0\n'
    script.on("/metrics", reply_text(page))
    state = await adapter.observe()
    assert state.started_at is None
    assert state.limits == Limits(max_loras=3)


@pytest.mark.parametrize("lora_config", [None, {"max_loras": "many", "max_lora_rank": True}])
async def test_limits_that_are_no_numbers_are_unknown(
    adapter: VllmAdapter, script: Script, lora_config: object
):
    script.on("/server_info", reply_json({"vllm_config": {"lora_config": lora_config}}))
    assert (await adapter.observe()).limits == Limits()


async def test_limits_that_come_late_do_not_hide_the_engine(
    adapter: VllmAdapter, script: Script, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("adapters.vllm.LIMITS_SECONDS", 0.05)
    script.silent.add("/server_info")
    state = await adapter.observe()
    assert (state.base_model, state.limits) == ("base", Limits())
    script.silent.clear()
    script.on("/server_info", reply_json({"vllm_config": {"lora_config": {"max_loras": 2}}}))
    for _ in range(2):
        assert (await adapter.observe()).limits == Limits(max_loras=2)
    assert script.count("/server_info") == 2


async def test_an_asleep_engine_is_seen_asleep(adapter: VllmAdapter, script: Script):
    script.on("/is_sleeping", reply_json({"is_sleeping": True}))
    assert (await adapter.observe()).asleep is True
    script.on("/is_sleeping", reply_json({"is_sleeping": False}))
    assert (await adapter.observe()).asleep is False


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (reply_json({"is_sleeping": "yes"}), EngineProtocolError),
        (reply_json([]), EngineProtocolError),
        (error(500, "InternalServerError", "EngineCore encountered an issue"), EngineUnavailable),
    ],
)
async def test_a_sleep_state_that_cannot_be_read_is_no_state(
    adapter: VllmAdapter, script: Script, reply: Reply, expected: type[EngineError]
):
    script.on("/is_sleeping", reply)
    with pytest.raises(expected):
        await adapter.observe()


async def test_what_the_fake_says_of_a_dead_engine_is_unavailable(tmp_path: Path):
    """An evicted LoRA without its files costs the whole engine; the adapter says so."""
    engine = FakeEngine(max_cpu_loras=1)
    async with FakeServer(vllm_app(engine)) as server:
        adapter = VllmAdapter.open(EngineOptions(url=server.url))
        path = Path(write_fake_lora(tmp_path / "one"))
        await adapter.load(Target(name="one", kind=Kind.LORA), str(path))
        await adapter.load(Target(name="two", kind=Kind.LORA), write_fake_lora(tmp_path / "two"))
        (path / "adapter_config.json").unlink()
        with pytest.raises(EngineUnavailable, match="died"):
            await adapter.warm(Target(name="one", kind=Kind.LORA))
        assert engine.alive is False
        await adapter.aclose()


def test_the_page_of_the_real_engine_has_the_mapped_families():
    page = (Path(__file__).parents[1] / "data" / "vllm-0.32-metrics-lora.txt").read_text()
    figures = VllmAdapter.metric_map
    for series in (figures.queued[0], figures.running[0], figures.kv_usage[0]):
        assert f"\n{series.name}{{" in page
    assert figures.started_at is not None
    assert f"\n{figures.started_at.name} " in page
    info = figures.cache[0].info
    assert info is not None
    assert f"\n{info.name}{{" in page
