"""The one HTTP client: deadlines, limits, and errors that tell no secret."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import aiohttp
import httpcore
import pytest

from adapters.base import (
    EngineBusy,
    EngineError,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from adapters.fake import FakeServer
from adapters.fake.asgi import Reply, Request, make_app, reply_json, reply_text
from adapters.http import (
    HTTP_ERRORS,
    MAX_WORDS,
    Answer,
    EngineHttp,
    ErrorTable,
    check_status,
    cut,
    map_engine_errors,
)
from adapters.triton_client import TRITON_ERRORS

SECRET = "sk-very-secret"


def exceptions_of(module: object) -> list[type[Exception]]:
    found = [one for _, one in inspect.getmembers(module, inspect.isclass)]
    return sorted(
        (one for one in found if issubclass(one, Exception)), key=lambda one: one.__name__
    )


# Parts of aiohttp's server and of its multipart and WebSocket parsers, which no call of ours uses.
UNUSED = {
    "BadContentDispositionHeader",
    "BadContentDispositionParam",
    "EofStream",
    "WebSocketError",
    "WSMessageTypeError",
}


@pytest.mark.parametrize(
    ("table", "foreign"),
    [(HTTP_ERRORS, one) for one in exceptions_of(httpcore)]
    + [(TRITON_ERRORS, one) for one in exceptions_of(aiohttp) if one.__name__ not in UNUSED],
)
def test_every_exception_of_the_clients_is_mapped(table: ErrorTable, foreign: type[Exception]):
    error = foreign.__new__(foreign)
    error.args = ("words",)
    matching = [ours for known, ours in table if isinstance(error, known)]
    assert matching, f"{foreign.__name__} would reach the agent as it is"
    if issubclass(foreign, (httpcore.ReadTimeout, aiohttp.SocketTimeoutError)):
        assert matching[0] is EngineTimeout
    if issubclass(foreign, (httpcore.ConnectError, httpcore.ConnectTimeout, aiohttp.ClientOSError)):
        assert matching[0] is EngineUnavailable


def test_our_own_errors_pass_unchanged():
    error = EngineBusy("later")
    with pytest.raises(EngineBusy) as caught, map_engine_errors("vLLM"):
        raise error
    assert caught.value is error


def test_a_programming_error_is_not_disguised():
    with pytest.raises(KeyError), map_engine_errors("vLLM"):
        raise KeyError("bug")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, EngineRejected),
        (403, EngineRejected),
        (404, EngineProtocolError),
        (429, EngineBusy),
        (500, EngineProtocolError),
        (502, EngineUnavailable),
        (503, EngineUnavailable),
        (504, EngineUnavailable),
        (302, EngineProtocolError),
    ],
)
def test_a_status_means_the_same_for_every_engine(status: int, expected: type[EngineError]):
    answer = Answer(status, b"words of the engine", object())
    with pytest.raises(expected, match=str(status)) as caught:
        check_status("vLLM", "GET /x", answer)
    assert type(caught.value) is expected


def test_foreign_words_are_one_short_line():
    assert cut("a\n b\t c") == "a b c"
    assert len(cut("x" * 1000)) == MAX_WORDS


async def echo(request: Request) -> Reply:
    if request.path == "/slow":
        await asyncio.Event().wait()
    if request.path == "/large":
        return reply_text("x" * 5000)
    if request.path == "/html":
        return reply_text("<html>" + "y" * 5000)
    return reply_json({"path": request.path})


@pytest.fixture
async def server():
    async with FakeServer(make_app(echo)) as running:
        yield running


@pytest.fixture
async def client(server: FakeServer):
    http = EngineHttp("vLLM", EngineOptions(url=server.url))
    yield http
    await http.aclose()


async def test_a_passed_deadline_says_what_was_asked_and_how_long(client: EngineHttp):
    with pytest.raises(EngineTimeout, match=r"vLLM did not answer GET /slow within 0\.05 s"):
        await client.get("/slow", timeout=0.05)


async def test_a_body_above_the_limit_is_not_read(client: EngineHttp):
    assert len((await client.get("/large", timeout=5, max_bytes=5000)).body) == 5000
    with pytest.raises(EngineProtocolError, match="more than 4999 bytes"):
        await client.get("/large", timeout=5, max_bytes=4999)


async def test_an_answer_that_is_not_json_is_a_protocol_error_cut_short(client: EngineHttp):
    answer = await client.get("/html", timeout=5)
    with pytest.raises(EngineProtocolError, match="not JSON") as caught:
        answer.json()
    assert len(str(caught.value)) < MAX_WORDS + 100


async def test_nobody_listening_is_unavailable(client: EngineHttp, server: FakeServer):
    await server.stop()
    with pytest.raises(EngineUnavailable):
        await client.get("/", timeout=5)


async def test_the_connection_tells_one_process_from_the_next(
    client: EngineHttp, server: FakeServer
):
    first = await client.get("/a", timeout=5)
    second = await client.get("/b", timeout=5)
    assert first.connection is second.connection
    await server.stop()
    await server.start()
    third = await client.get("/c", timeout=5)
    assert third.connection is not first.connection


async def test_proxies_of_the_environment_are_ignored(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    http = EngineHttp("vLLM", EngineOptions(url=server.url))
    assert (await http.get("/", timeout=5)).status == 200
    await http.aclose()


class Seen:
    """What the headers of requests were."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope, receive, send) -> None:
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        await make_app(echo)(scope, receive, send)


async def test_the_key_is_read_again_for_each_request(tmp_path: Path):
    seen, key = Seen(), tmp_path / "key"
    key.write_text("first\n")
    async with FakeServer(seen) as server:
        http = EngineHttp("vLLM", EngineOptions(url=server.url, api_key_file=str(key)))
        await http.get("/", timeout=5)
        key.write_text("second\n")
        await http.post("/", {}, timeout=5)
        await http.aclose()
    assert [one["authorization"] for one in seen.headers] == ["Bearer first", "Bearer second"]
    assert {one["accept-encoding"] for one in seen.headers} == {"identity"}


async def test_the_key_goes_to_the_engine_only(tmp_path: Path, server: FakeServer):
    seen, key = Seen(), tmp_path / "key"
    key.write_text(SECRET)
    async with FakeServer(seen) as other:
        http = EngineHttp("vLLM", EngineOptions(url=server.url, api_key_file=str(key)))
        await http.get(f"{other.url}/metrics", timeout=5)
        await http.aclose()
    assert "authorization" not in seen.headers[0]


@pytest.mark.parametrize("content", [b"", b"  \n", b"two\nlines", b"a\x00b", b"\xff\xfe", None])
async def test_a_key_file_without_a_key_is_said_without_its_content(
    content: bytes | None, tmp_path: Path, server: FakeServer
):
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content + (SECRET.encode() if b"\n" in content.strip() else b""))
    http = EngineHttp("vLLM", EngineOptions(url=server.url, api_key_file=str(key)))
    with pytest.raises(EngineUnavailable, match="API key file") as caught:
        await http.get("/", timeout=5)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    await http.aclose()


async def test_a_ca_file_that_is_none_is_said(tmp_path: Path):
    options = EngineOptions(url="https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem"))
    http = EngineHttp("vLLM", options)
    with pytest.raises(EngineUnavailable, match=r"CA file .*none\.pem is unusable"):
        await http.get("/", timeout=5)
