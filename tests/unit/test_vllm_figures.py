"""vLLM's figures without the rest of its page, and what is done where it cannot leave that out."""

import asyncio
import threading
from pathlib import Path

import pytest

from adapters.base import EngineOptions, EngineUnavailable
from adapters.ranks import RankedFigures, join_ranks
from adapters.vllm import VLLM_METRICS, VllmAdapter
from adapters.vllm_figures import ATTEMPTS, LORA_BYTES
from sidecar.core.translate import translate
from tests.support.stub_http import Asked, StubHttp, Told

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics-lora.txt").read_bytes()


def narrowed(page: bytes, names: set[str]) -> bytes:
    """Leave only the families of these names, as prometheus_client does for ``name[]``."""
    kept = [
        line
        for line in page.decode().splitlines()
        if (line.split(" ")[2] if line.startswith("#") else line.split("{")[0].split(" ")[0])
        in names
    ]
    return ("\n".join(kept) + "\n").encode()


class Engine:
    """The recorded page; ``below`` answers what is asked below its path."""

    def __init__(self):
        self.page = PAGE
        self.refuses = False
        self.below = lambda names: Told(body=narrowed(self.page, names))

    def answer(self, asked: Asked) -> Told:
        if self.refuses:
            return Told(status=503)
        if asked.path == "/metrics":
            return Told(body=self.page)
        assert asked.path == "/metrics/"
        query = asked.target.partition("?")[2]
        return self.below({part.removeprefix("name[]=") for part in query.split("&")})


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def server(engine):
    with StubHttp(engine.answer) as running:
        yield running


@pytest.fixture
async def adapter(server):
    opened = VllmAdapter.open(EngineOptions(url=server.url))
    yield opened
    await opened.aclose()


def paths(server) -> list[str]:
    return [asked.path for asked in server.asked]


async def test_the_figures_come_alone_and_are_those_of_the_page(adapter, server):
    whole = await adapter.scrape()
    first = await adapter.scrape_figures()
    narrow = await adapter.scrape_figures()
    assert first == whole
    assert len(narrow[0]) < len(whole[0]) / 10
    assert translate(narrow, VLLM_METRICS, None, 1.0) == translate(whole, VLLM_METRICS, None, 1.0)
    assert paths(server) == ["/metrics", "/metrics/", "/metrics", "/metrics/"]


@pytest.mark.parametrize(
    "below",
    [
        lambda names: Told(status=404),
        lambda names: Told(status=307, headers={"Location": "/metrics"}),
        lambda names: Told(body=b""),
        lambda names: Told(body=b"<html>vllm:num_requests_waiting</html>\n"),
        lambda names: Told(body=narrowed(PAGE, names - {"process_start_time_seconds"})),
    ],
    ids=["not found", "redirect", "nothing", "another page", "one family too few"],
)
async def test_a_server_that_cannot_is_soon_asked_for_its_page_alone(
    adapter, engine, server, below
):
    engine.below = below
    for _ in range(ATTEMPTS + 3):
        assert await adapter.scrape_figures() == (PAGE,)
    assert paths(server).count("/metrics/") == ATTEMPTS


@pytest.fixture
def silence(engine):
    """The narrow page hangs until this is set."""
    over, told = threading.Event(), engine.below
    engine.below = lambda names: told(names) if over.wait(10) else Told(status=503)
    yield over
    over.set()


async def give_up(adapter):
    for _ in range(ATTEMPTS):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await adapter.scrape_figures()


async def test_figures_that_hang_do_not_keep_the_page_away(adapter, silence):
    await give_up(adapter)
    assert await adapter.scrape_figures() == (PAGE,)


async def test_figures_are_tried_again_when_what_was_in_their_way_may_be_gone(
    adapter, silence, monkeypatch
):
    monkeypatch.setattr("adapters.vllm_figures.REST_PAGES", 5)
    await give_up(adapter)
    silence.set()
    for _ in range(6):
        assert await adapter.scrape_figures() == (PAGE,)
    assert len((await adapter.scrape_figures())[0]) < len(PAGE) / 10


async def test_a_server_that_ignores_the_names_costs_one_page_a_scrape(adapter, engine, server):
    engine.below = lambda names: Told(body=PAGE)
    for _ in range(3):
        assert await adapter.scrape_figures() == (PAGE,)
    assert paths(server) == ["/metrics/", "/metrics", "/metrics/", "/metrics/"]


async def test_a_family_that_is_gone_is_looked_for_on_the_page(adapter, engine, server):
    await adapter.scrape_figures()
    # The engine was started again, and no LoRA had a request yet.
    names = "vllm:lora_requests_info{"
    kept = [line for line in PAGE.decode().splitlines() if not line.startswith(names)]
    engine.page = ("\n".join(kept) + "\n").encode()
    assert await adapter.scrape_figures() == (engine.page,)
    await adapter.scrape_figures()
    assert paths(server)[2:] == ["/metrics/", "/metrics", "/metrics/"]


async def test_families_that_come_between_two_requests_are_no_reason_to_give_up(adapter, engine):
    empty = b"process_start_time_seconds 1.0\n"
    engine.below = lambda names: Told(body=empty)
    await adapter.scrape_figures()
    engine.below = lambda names: Told(body=narrowed(PAGE, names))
    await adapter.scrape_figures()
    assert len((await adapter.scrape_figures())[0]) < len(PAGE) / 10


@pytest.mark.parametrize(
    ("url", "asked"),
    [("/metrics", ["/metrics/", "/metrics"]), ("/metrics?x=1", ["/metrics"])],
)
async def test_another_metrics_url_is_left_alone_unless_it_has_that_shape(server, url, asked):
    opened = VllmAdapter.open(EngineOptions(url=server.url, metrics_url=server.url + url))
    await opened.scrape_figures()
    assert paths(server) == asked
    await opened.aclose()


async def test_only_attempts_that_fail_one_after_another_count(adapter, engine, server):
    for _ in range(3):
        engine.below = lambda names: Told(body=b"")
        for _ in range(ATTEMPTS - 1):
            await adapter.scrape_figures()
        engine.below = lambda names: Told(body=narrowed(PAGE, names))
        await adapter.scrape_figures()
    assert len((await adapter.scrape_figures())[0]) < len(PAGE) / 10


async def test_where_neither_is_given_that_is_an_error(adapter, engine):
    await adapter.scrape_figures()
    engine.refuses = True
    with pytest.raises(EngineUnavailable):
        await adapter.scrape_figures()


LORA = "vllm:lora_requests_info"


def grown(lines: int) -> bytes:
    """The page after a while with many LoRAs."""
    more = (f'{LORA}{{running_lora_adapters="a{at},b{at}"}} {at + 1}\n' for at in range(lines))
    return PAGE + "".join(more).encode()


@pytest.fixture
def asked_names(engine):
    """The names of each request for figures."""
    names, told = [], engine.below

    def below(asked):
        names.append(asked)
        return told(asked)

    engine.below = below
    return names


async def test_a_large_lora_family_is_asked_for_less_often_the_larger_it_is(
    adapter, engine, server, asked_names
):
    shares = {}
    for lines in (500, 10_000):
        engine.page = grown(lines)
        for _ in range(4):
            await adapter.scrape_figures()
        asked_names.clear()
        got = [(await adapter.scrape_figures())[0] for _ in range(40)]
        assert [LORA in names for names in asked_names] == [LORA.encode() in page for page in got]
        shares[lines] = sum(len(page) for page in got if LORA.encode() in page) / len(got)
        assert any(LORA in names for names in asked_names)
        assert all("vllm:num_requests_waiting" in names for names in asked_names)
    assert all(0 < share <= LORA_BYTES for share in shares.values())
    assert paths(server).count("/metrics") == 1


async def test_a_small_lora_family_is_asked_for_each_time(adapter, asked_names):
    for _ in range(10):
        await adapter.scrape_figures()
    assert all(LORA in names for names in asked_names)


async def test_an_engine_without_lora_requests_yet_does_not_lose_its_short_pages(
    adapter, engine, server
):
    engine.page = grown(3000)
    for _ in range(3):
        await adapter.scrape_figures()
    kept = [line for line in PAGE.decode().splitlines() if not line.startswith(LORA + "{")]
    engine.page = ("\n".join(kept) + "\n").encode()
    for _ in range(6):
        (page,) = await adapter.scrape_figures()
        assert b"vllm:num_requests_waiting" in page
    assert paths(server).count("/metrics") == 2


async def test_short_pages_that_fail_are_given_up_like_others(adapter, engine, server):
    engine.page = grown(10_000)
    for _ in range(3):
        await adapter.scrape_figures()
    told = engine.below
    engine.below = lambda names: told(names) if LORA in names else Told(status=500)
    for _ in range(ATTEMPTS + 5):
        assert await adapter.scrape_figures() == (engine.page,)
    assert paths(server)[-5:] == ["/metrics"] * 5


async def test_ranks_give_the_figures_of_each(server):
    ranks = join_ranks(tuple(VllmAdapter.open(EngineOptions(url=server.url)) for _ in range(2)))
    assert isinstance(ranks, RankedFigures)
    await ranks.scrape_figures()
    pages = await ranks.scrape_figures()
    assert [len(page) < len(PAGE) / 10 for page in pages] == [True, True]
    await ranks.aclose()


async def test_an_engine_that_is_gone_is_unavailable():
    with StubHttp(Engine().answer) as server:
        opened = VllmAdapter.open(EngineOptions(url=server.url))
        await opened.scrape_figures()
        await opened.aclose()
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(opened.scrape_figures(), 5)
    await opened.aclose()
