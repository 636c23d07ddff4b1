"""Whatever an engine's page says, the picker's page keeps its rules, or is not served as fresh; and
the page for Prometheus can be parsed."""

import asyncio
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import Capabilities, Kind, MetricMap
from adapters.fake.adapter import FAKE_METRICS
from adapters.sglang_metrics import SGLANG_METRICS
from adapters.triton_metrics import TRITON_METRICS
from adapters.vllm import VLLM_METRICS
from sidecar.board import Board
from sidecar.core.deadlines import Deadlines
from sidecar.core.exposition import merge_pages
from sidecar.core.picker_page import LoraLabels
from sidecar.core.residency import LoraTracker
from sidecar.core.status import DocumentStatus, State, TargetStatus
from sidecar.core.translate import SampleError, translate
from sidecar.scraper import Scraper
from sidecar.telemetry import Telemetry
from tests.support import picker_oracle as oracle
from tests.support.picker_strategies import (
    STATUS,
    agent_pages,
    clocks,
    engine_pages,
    pages,
    statuses,
)

MAPS = {
    "vllm": VLLM_METRICS,
    "triton": TRITON_METRICS,
    "sglang": SGLANG_METRICS,
    "fake": FAKE_METRICS,
}


class Engine:
    """An engine that says ``page``, once for each rank."""

    capabilities = Capabilities(
        kinds=frozenset({Kind.LORA}), serves_alone=True, replaces_in_place=False, reports_paths=True
    )

    def __init__(self, metric_map: MetricMap) -> None:
        self.metric_map = metric_map
        self.pages: tuple[bytes, ...] = ()
        self.scrapes = 0

    async def scrape(self):
        self.scrapes += 1
        return self.pages

    async def observe(self):
        raise AssertionError("a scraper only scrapes")

    async def load(self, target, path):
        raise AssertionError("a scraper only scrapes")

    async def unload(self, target):
        raise AssertionError("a scraper only scrapes")

    async def warm(self, target):
        raise AssertionError("a scraper only scrapes")

    async def aclose(self):
        raise AssertionError("a scraper only scrapes")


async def scraped(engine, boards, clock, mode, slots, scrapes):
    """Publish each status and scrape each page, one after the other; return what is served."""
    board = Board(boards[0])
    tracker = LoraTracker(max_loras=slots)
    scraper = Scraper(
        engine,
        board,
        Telemetry(lambda: board.status),
        tracker,
        Deadlines(asyncio.get_running_loop().time),
        interval_seconds=0.1,
        stale_after_seconds=60.0,
        labels=mode,
        clock=clock,
        wall_clock=clock,
        wake=lambda: None,
    )
    answers = []
    for status, texts in zip(boards, scrapes, strict=True):
        board.publish(status)
        tracker.residents(one.name for one in status.targets.values() if one.kind is Kind.LORA)
        engine.pages = texts
        await scraper.sample_once()
        answers.append(scraper.ask() or await scraper.wait_page())
    return answers


@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=40)
@given(data=st.data())
def test_any_engine_page_gives_a_good_page_or_none(name, data):
    engine = Engine(MAPS[name])
    turns = data.draw(st.integers(1, 3))
    ranks = st.lists(engine_pages(engine.metric_map), max_size=2).map(tuple)
    scrapes = data.draw(st.lists(ranks, min_size=turns, max_size=turns))
    boards = data.draw(st.lists(statuses(), min_size=turns, max_size=turns))
    times = data.draw(st.lists(clocks(), min_size=1, max_size=4))
    ticks = count()

    answers = asyncio.run(
        scraped(
            engine,
            boards,
            lambda: times[next(ticks) % len(times)],
            data.draw(st.sampled_from(LoraLabels)),
            data.draw(st.none() | st.integers(0, 4)),
            scrapes,
        )
    )
    known = [is_understood(pages, engine.metric_map) for pages in scrapes]
    # Figures are served until they are stale, also after a page that was not understood.
    assert [one.fresh for one in answers] == [any(known[: at + 1]) for at in range(turns)]
    oracle.check_pages(one.body for one in answers if one.fresh)


def is_understood(pages, metric_map):
    try:
        translate(pages, metric_map, None, 0.0)
    except SampleError:
        return False
    return True


def target(name):
    return TargetStatus(
        name=name,
        kind=Kind.LORA,
        source="s3://bucket/",
        desired=True,
        readiness="initial",
        state=State.RESIDENT,
    )


def status_of(*targets):
    return replace(
        STATUS, document=DocumentStatus(generation=1), targets={one.name: one for one in targets}
    )


WELL = (
    b"# TYPE vllm:num_requests_waiting gauge\n"
    b'vllm:num_requests_waiting{engine="0"} 3\nvllm:num_requests_waiting{engine="1"} 4\n'
    b"vllm:num_requests_running NaN\nvllm:num_requests_running 1_0\nvllm:kv_cache_usage_perc 1.7\n"
    b'vllm:cache_config_info{block_size="None",num_gpu_blocks="0x10"} 1\n'
)


BELOW = (
    b"vllm:num_requests_waiting -3\nvllm:num_requests_running -1\nvllm:kv_cache_usage_perc -0.5\n"
    b'vllm:lora_requests_info{max_lora="99999999999999999999"} 1\n'
    b'vllm:cache_config_info{block_size="-16",num_gpu_blocks="4096"} -1\n'
)


def test_what_is_out_of_range_is_not_there():
    engine = Engine(VLLM_METRICS)
    scrapes = [(BELOW,)]
    (answer,) = asyncio.run(
        scraped(engine, [status_of()], lambda: 5.0, LoraLabels.AUTO, None, scrapes)
    )
    read = oracle.check_page(answer.body)
    assert (read.queued, read.running, read.kv_usage) == (0, 0, 0.0)
    assert (read.max_lora, read.block_size, read.num_blocks) == (0, 0, 0)


@settings(max_examples=25)
@given(status=statuses())
def test_what_the_engine_gets_wrong_does_not_come_through(status):
    engine = Engine(VLLM_METRICS)
    (answer,) = asyncio.run(
        scraped(engine, [status], lambda: 5.0, LoraLabels.AUTO, 2, [(WELL, WELL)])
    )
    read = oracle.check_page(answer.body)
    assert (read.queued, read.running, read.kv_usage) == (14, 0, 1.0)
    assert (read.block_size, read.num_blocks) == (0, 0)
    assert oracle.scalar(oracle.parse(answer.body), "vllm:lora_requests_info") == 5.0


def test_a_clock_that_goes_back_does_not_take_the_lora_value_with_it():
    times = [9.0, 5.0, 7.0, 11.0]
    names = ["sql", "chat", "", "ocr"]
    boards = [status_of(target(name)) if name else status_of() for name in names]
    engine = Engine(VLLM_METRICS)
    answers = asyncio.run(
        scraped(
            engine,
            boards,
            lambda: times[engine.scrapes - 1],
            LoraLabels.AUTO,
            2,
            [(WELL,)] * 4,
        )
    )
    oracle.check_pages(one.body for one in answers)
    values = [oracle.scalar(oracle.parse(one.body), "vllm:lora_requests_info") for one in answers]
    assert values == [9.0, 9.0, 9.0, 11.0]


@pytest.mark.parametrize(
    "line",
    [
        b"x 1_0",
        b"x 1e400",
        b"x +NaN",
        b"x 0x1p4",
        b"x 1 99999999999999999999",
        b'x{a="1",a="2"} 1',
        b'x{__name__="y"} 1',
        b'x{a="\xff"} 1',
        b"# HELP x \\t",
        b"h_count -1",
        b'h_bucket{le="one"} 1',
        b's{quantile="one"} 1',
        b"# TYPE h_count counter\nh_count 1",
    ],
)
def test_a_line_that_readers_refuse_is_left_out_of_the_page_for_prometheus(line):
    around = b"# TYPE h histogram\n# TYPE s summary\n%b\ny 1\n"
    with pytest.raises(oracle.PageRefused):
        oracle.parse(around % line)
    families = oracle.parse(merge_pages([], [around % line]))
    assert families.keys() - {"h", "s"} == {"y"}


def test_a_name_between_a_family_and_its_type_gets_no_block_of_its_own():
    merged = merge_pages([], [b"# HELP h of it\nh_count 1\n# TYPE h histogram\nh_sum -2\n"])
    assert merged == b"# HELP h of it\n# TYPE h histogram\nh_sum -2\n"


def test_an_engine_that_tells_its_ranks_apart_is_left_to_it():
    merged = merge_pages([], [b'x{engine_rank="7"} 1\ny 1\n', b"y 2\n"])
    assert b'\nx{engine_rank="7"} 1\n' in merged
    assert b'\ny{engine_rank="0"} 1\ny{engine_rank="1"} 2\n' in merged


@settings(max_examples=100)
@given(engine=st.lists(engine_pages(VLLM_METRICS) | pages(), max_size=3), ours=agent_pages())
def test_the_page_for_prometheus_can_always_be_parsed(engine, ours):
    whole = oracle.parse(merge_pages([ours], engine))
    for name, family in oracle.parse(ours).items():
        assert whole[name].samples == family.samples
