"""Sampling on demand, and what is served meanwhile. Time is the event loop's, and faked."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from adapters.base import (
    Capabilities,
    EngineBusy,
    EngineProtocolError,
    EngineTimeout,
    EngineUnavailable,
    Kind,
    MetricMap,
    Series,
)
from sidecar.board import Board
from sidecar.core.deadlines import Deadlines
from sidecar.core.picker_page import LoraLabels
from sidecar.core.residency import LoraTracker
from sidecar.core.status import (
    DocumentStatus,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
)
from sidecar.scraper import Scraper
from sidecar.telemetry import Telemetry
from tests.support import picker_oracle as oracle

pytestmark = pytest.mark.looptime


class Engine:
    """An engine that answers ``page`` after ``delay``, or raises ``failure``."""

    capabilities = Capabilities(
        kinds=frozenset({Kind.LORA}), serves_alone=True, replaces_in_place=False, reports_paths=True
    )
    metric_map = MetricMap(
        queued=(Series(name="vllm:num_requests_waiting"),),
        lora_activity=Series(name="vllm:lora_requests_info"),
        started_at=Series(name="process_start_time_seconds"),
    )

    def __init__(self):
        self.page = b"vllm:num_requests_waiting 1\n"
        self.delay = 0.01
        self.failure = None
        self.moves = False
        self.scrapes = 0
        self.at_once = 0
        self.most_at_once = 0

    async def scrape(self):
        self.scrapes += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await wait(self.delay)
        finally:
            self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        if self.moves:
            return (self.page + b"vllm:num_requests_waiting %d\n" % self.scrapes,)
        return (self.page,)

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


class NarrowEngine(Engine):
    """One whose figures can be had without the rest of its page."""

    def __init__(self):
        super().__init__()
        self.narrow = 0

    async def scrape(self):
        pages = await super().scrape()
        return tuple(page + b"# TYPE rest gauge\nrest 7\n" for page in pages)

    async def scrape_figures(self):
        self.narrow += 1
        return await super().scrape()


class Ranks(Engine):
    """Two ranks: the first answers at once, the other after ``delay``."""

    def __init__(self):
        super().__init__()
        self.answered_at = 0.0

    async def scrape(self):
        answered_at, pages = now(), await super().scrape()
        self.answered_at = answered_at
        return pages * 2


class Bench:
    """A scraper at work, and everything around it."""

    def __init__(self, labels=LoraLabels.AUTO, engine=None):
        self.engine = engine or Engine()
        self.board = Board(status("sql"))
        self.tracker = LoraTracker(max_loras=2)
        self.telemetry = Telemetry(lambda: self.board.status)
        self.unix_time = self.wall_time = 1_763_600_000.0
        self.wakes = 0
        self.deadlines = Deadlines(now)
        self.scraper = Scraper(
            self.engine,
            self.board,
            self.telemetry,
            self.tracker,
            self.deadlines,
            interval_seconds=0.1,
            stale_after_seconds=1.0,
            labels=labels,
            clock=lambda: self.unix_time,
            wall_clock=lambda: self.wall_time,
            wake=self._wake,
        )

    def _wake(self):
        self.wakes += 1

    async def get(self):
        return self.scraper.ask() or await self.scraper.wait_page()

    async def keep_asking(self, seconds, every=0.05):
        until = now() + seconds
        answers = []
        while now() < until:
            answers.append((await self.get()).fresh)
            await wait(every)
        return answers


def now():
    return asyncio.get_running_loop().time()


async def wait(seconds):
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


def status(*names, ready=True, restarts=0):
    return Status(
        version="1",
        pod="p",
        ready=ready,
        converged=True,
        reasons=(),
        cycle="",
        document=DocumentStatus(generation=1),
        engine=EngineStatus(kind="vllm", urls=(), restarts=restarts),
        store=StoreStatus(),
        targets={
            name: TargetStatus(
                name=name,
                kind=Kind.LORA,
                source="",
                desired=True,
                readiness="initial",
                state=State.RESIDENT,
            )
            for name in names
        },
    )


@contextlib.asynccontextmanager
async def running(**arguments):
    bench = Bench(**arguments)
    task = asyncio.ensure_future(bench.scraper.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.wait([task])


def samples(bench, outcome):
    family = oracle.parse(bench.telemetry.render_own())["model_sidecar_engine_samples_total"]
    return sum(value for labels, value, _ in family.samples if labels["outcome"] == outcome)


async def test_nobody_asks_nothing_is_sampled():
    async with running() as bench:
        await wait(60.0)
        assert bench.engine.scrapes == 0


async def test_the_first_request_waits_for_one_sample():
    async with running() as bench:
        started = now()
        page = await bench.get()
        assert now() - started == pytest.approx(0.01, abs=0.005)
        assert page.fresh
        assert oracle.read(page.body).queued == 1
        assert bench.engine.scrapes == 1


async def test_it_waits_no_longer_than_300_ms():
    async with running() as bench:
        bench.engine.delay = 0.8
        started = now()
        page = await bench.get()
        assert now() - started == pytest.approx(0.3, abs=0.01)
        assert not page.fresh
        assert b"not been sampled yet" in page.body
        await wait(0.6)
        assert bench.scraper.ask().fresh


async def test_many_pickers_cost_one_sample_an_interval_while_figures_move():
    async with running() as bench:
        bench.engine.moves, bench.engine.delay = True, 0.002
        await asyncio.gather(*(bench.keep_asking(2.0, every=0.013) for _ in range(10)))
        assert 18 <= bench.engine.scrapes <= 21
        assert bench.engine.most_at_once == 1


@pytest.mark.parametrize("pickers", [1, 10])
async def test_a_steady_engine_is_asked_seldom_and_its_page_stays_fresh(pickers):
    async with running() as bench:
        crowd = await asyncio.gather(*(bench.keep_asking(10.0) for _ in range(pickers)))
        assert all(all(answers) for answers in crowd)
        assert 19 <= bench.engine.scrapes <= 23


async def test_a_change_ends_the_slowness_at_once():
    async with running() as bench:
        bench.engine.delay = 0.002
        await bench.keep_asking(5.0)
        before = bench.engine.scrapes
        bench.engine.moves = True
        await bench.keep_asking(1.0)
        assert 9 <= bench.engine.scrapes - before <= 11


async def test_a_dear_engine_is_asked_less_often_though_its_figures_move():
    async with running() as bench:
        bench.engine.moves, bench.engine.delay = True, 0.016
        await bench.keep_asking(4.0)
        assert 9 <= bench.engine.scrapes <= 11


async def test_what_the_engine_itself_shows_of_its_loras_hastens_nothing():
    async with running() as bench:
        bench.engine.delay = 0.016
        for at in range(1, 40):
            bench.engine.page = (
                b'vllm:num_requests_waiting 1\nvllm:lora_requests_info{max_lora="2",'
                b'running_lora_adapters="%c",waiting_lora_adapters=""} %d\n' % (97 + at % 3, at)
            )
            await bench.keep_asking(0.1)
        assert 9 <= bench.engine.scrapes <= 13


@pytest.mark.parametrize("period", [0.7, 2.0, 5.0, 15.0])
async def test_a_slow_reader_costs_one_sample_a_question_and_gets_what_is_true(period):
    async with running() as bench:
        for queued in range(6):
            bench.engine.page = b"vllm:num_requests_waiting %d\n" % queued
            started = now()
            assert oracle.read((await bench.get()).body).queued == queued
            assert now() - started < 0.02
            await wait(period)
        assert bench.engine.scrapes == 6


async def test_a_reader_gets_no_more_samples_than_it_asks_for():
    async with running() as bench:
        bench.engine.moves = True
        assert all(await bench.keep_asking(9.0, every=0.3))
        assert bench.engine.scrapes <= 30


async def test_waiting_for_newer_figures_does_not_make_those_at_hand_stale():
    async with running() as bench:
        await bench.get()
        bench.engine.delay = 0.8
        await wait(0.9)
        started = now()
        assert (await bench.get()).fresh
        assert now() - started < 0.1


async def test_an_engine_that_hangs_does_not_keep_its_pickers_waiting():
    async with running() as bench:
        bench.engine.delay = 1e6
        await bench.keep_asking(2.0)
        started = now()
        assert not any(await bench.keep_asking(3.0))
        assert now() - started < 3.1


async def test_after_a_failure_the_engine_is_asked_again_soon_and_figures_are_back():
    async with running() as bench:
        bench.engine.failure = EngineUnavailable("gone")
        await bench.keep_asking(3.0)
        assert 28 <= bench.engine.scrapes <= 31
        bench.engine.failure = None
        await bench.keep_asking(0.15)
        assert (await bench.get()).fresh


async def steady(bench):
    """Ask until the scraper is at its slowest, just after a sample."""
    bench.engine.delay = 0.002
    await bench.keep_asking(3.0)
    before = bench.engine.scrapes
    while bench.engine.scrapes == before:
        await bench.keep_asking(0.005, every=0.005)


@pytest.mark.parametrize(
    "happens",
    [
        lambda bench: bench.tracker.loaded("chat", 2.0),
        lambda bench: bench.tracker.residents(["other"]),
        lambda bench: bench.board.publish(status("sql", "chat")),
        lambda bench: bench.board.publish(status("sql", restarts=1)),
    ],
    ids=["a load", "other residents", "a new model", "a restart"],
)
async def test_what_the_agent_did_or_saw_is_looked_at_at_once(happens):
    async with running(engine=None) as bench:
        await steady(bench)
        before = bench.engine.scrapes
        happens(bench)
        await bench.keep_asking(0.12, every=0.01)
        assert bench.engine.scrapes == before + 1


async def test_a_publication_that_tells_nothing_of_the_engine_hastens_nothing():
    async with running() as bench:
        await steady(bench)
        before = bench.engine.scrapes
        bench.board.publish(status("sql", ready=False))
        await bench.keep_asking(0.12, every=0.01)
        assert bench.engine.scrapes == before


async def test_a_slow_engine_gets_one_scrape_at_a_time():
    async with running() as bench:
        bench.engine.delay = 0.7
        answers = await bench.keep_asking(5.0)
        assert bench.engine.most_at_once == 1
        assert all(answers[answers.index(True) :])


async def test_sampling_ends_soon_after_the_last_request():
    async with running() as bench:
        await bench.keep_asking(1.0)
        await wait(5.0)
        before = bench.engine.scrapes
        await wait(60.0)
        assert bench.engine.scrapes == before
        page = await bench.get()
        assert page.fresh
        assert bench.engine.scrapes == before + 1


@pytest.mark.parametrize("delay", [0.01, 0.15, 0.2, 0.28])
@pytest.mark.parametrize("period", [0.9, 0.95, 1.0, 1.1, 1.15, 1.3, 2.0])
async def test_a_slow_picker_is_never_refused_while_the_engine_answers(delay, period):
    async with running() as bench:
        bench.engine.delay = delay
        for _ in range(8):
            assert (await bench.get()).fresh
            await wait(period)


async def test_what_nobody_foresaw_leaves_no_waiter_behind():
    async with running(engine=NarrowEngine()) as bench:
        await bench.scraper.render_all()
        bench.engine.failure = RuntimeError("a bug")
        with pytest.raises(RuntimeError):
            await bench.scraper.sample_once()
        bench.engine.failure = None
        await bench.scraper.render_all()
        started = now()
        assert "rest" in oracle.parse(await bench.scraper.render_all())
        assert now() - started < 0.25


async def test_a_picker_that_asks_once_a_second_is_never_answered_from_the_past():
    async with running() as bench:
        await bench.get()
        for queued in range(10):
            bench.engine.page = b"vllm:num_requests_waiting %d\n" % queued
            await wait(1.0)
            assert oracle.read((await bench.get()).body).queued == queued


async def test_an_old_sample_is_not_served_and_the_reason_is():
    async with running() as bench:
        await bench.get()
        bench.engine.failure = EngineUnavailable("the engine refused the connection")
        answers = await bench.keep_asking(3.0)
        assert 15 <= answers.count(True) <= 25
        assert answers == sorted(answers, reverse=True)
        page = bench.scraper.ask()
        assert b"the limit is 1 s: the engine refused the connection" in page.body
        bench.engine.failure = None
        await wait(0.2)
        assert bench.scraper.ask().fresh


async def test_the_age_counts_from_the_end_of_the_answer():
    async with running() as bench:
        bench.engine.delay = 0.25
        await bench.get()
        bench.engine.delay = 100.0
        await wait(0.8)
        assert (await bench.get()).fresh
        await wait(0.1)
        assert not (await bench.get()).fresh


async def test_the_age_of_several_ranks_counts_from_the_first_answer():
    async with running(engine=Ranks()) as bench:
        bench.engine.delay = 0.8
        assert not (await bench.get()).fresh
        await wait(0.55)
        assert now() < 1.0
        assert (await bench.get()).fresh
        bench.engine.delay = 100.0
        await wait(0.8)
        assert now() - bench.engine.answered_at > 1.0
        assert not (await bench.get()).fresh


async def test_ranks_that_are_quick_enough_are_never_stale():
    async with running(engine=Ranks()) as bench:
        bench.engine.delay = 0.28
        assert all(await bench.keep_asking(20.0))


async def test_a_slow_rank_costs_no_more_than_its_share():
    async with running(engine=Ranks()) as bench:
        bench.engine.moves, bench.engine.delay = True, 0.016
        await bench.keep_asking(4.0)
        assert 9 <= bench.engine.scrapes <= 11


async def test_while_the_engine_is_away_requests_do_not_wait():
    async with running() as bench:
        bench.engine.failure = EngineUnavailable("gone")
        await bench.get()
        started = now()
        assert not (await bench.get()).fresh
        assert now() == started


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (EngineUnavailable("x"), "unavailable"),
        (EngineTimeout("x"), "timeout"),
        (TimeoutError(), "timeout"),
        (EngineBusy("x"), "busy"),
        (EngineProtocolError("x"), "failed"),
    ],
)
async def test_every_failure_is_counted_and_survived(failure, outcome):
    async with running() as bench:
        bench.engine.failure = failure
        assert not (await bench.get()).fresh
        assert samples(bench, outcome) == 1
        bench.engine.failure = None
        await wait(0.2)
        assert (await bench.get()).fresh
        assert samples(bench, "done") >= 1


async def test_a_page_that_is_not_the_engines_is_no_zeros():
    async with running() as bench:
        bench.engine.page = b"<html>\n"
        page = await bench.get()
        assert not page.fresh
        assert b"none of the expected families" in page.body
        assert samples(bench, "unreadable") == 1


async def test_an_engine_that_never_answers_is_given_up_at_the_deadline():
    async with running() as bench:
        bench.engine.delay = 1e6
        await bench.keep_asking(2.5)
        assert samples(bench, "timeout") == 2
        assert b"did not answer in time" in bench.scraper.ask().body


async def test_another_process_or_none_wakes_the_loop():
    async with running() as bench:
        bench.engine.page += b"process_start_time_seconds 100\n"
        await bench.keep_asking(0.5)
        assert bench.wakes == 0
        bench.engine.page = bench.engine.page.replace(b"100", b"200")
        await bench.keep_asking(0.3)
        assert bench.wakes == 1
        bench.engine.failure = EngineUnavailable("refused")
        await bench.keep_asking(0.5)
        assert bench.wakes == 2


async def test_an_engine_that_hangs_wakes_the_loop_once():
    async with running() as bench:
        await bench.keep_asking(0.5)
        bench.engine.delay = 1e6
        heard_at = bench.scraper.heard_at
        await bench.keep_asking(5.0)
        assert samples(bench, "timeout") > 1
        assert bench.wakes == 1
        assert bench.scraper.heard_at == heard_at


async def test_a_publication_shows_at_once_without_a_sample():
    async with running() as bench:
        bench.tracker.loaded("sql", 1.0)
        read = oracle.read((await bench.get()).body)
        assert (read.active, read.max_lora) == ({"sql"}, 2)
        scrapes = bench.engine.scrapes
        bench.tracker.loaded("chat", 2.0)
        bench.board.publish(status("sql", "chat", ready=False))
        page = bench.scraper.ask()
        assert oracle.read(page.body).active == {"sql", "chat"}
        assert oracle.scalar(oracle.parse(page.body), "model_sidecar_ready") == 0
        assert bench.engine.scrapes == scrapes


async def test_a_page_that_would_be_the_same_is_the_same_object():
    async with running() as bench:
        page = await bench.get()
        assert bench.scraper.ask() is page


def info_value(page):
    return oracle.parse(page.body)["vllm:lora_requests_info"].samples[0][1]


async def test_the_lora_value_moves_with_its_labels_alone_and_never_back():
    async with running() as bench:
        first = info_value(await bench.get())
        assert first == 1_763_600_000
        bench.unix_time += 50
        bench.engine.page = b"vllm:num_requests_waiting 9\n"
        await bench.keep_asking(0.3)
        assert info_value(await bench.get()) == first
        bench.tracker.loaded("sql", 1.0)
        assert info_value(await bench.get()) == first + 50
        bench.unix_time -= 1000
        bench.tracker.forgotten("sql")
        assert info_value(await bench.get()) == first + 50


async def test_activity_on_the_engines_page_moves_the_slots():
    async with running() as bench:
        bench.board.publish(status("a", "b", "c"))
        bench.tracker.residents(["a", "b", "c"])
        bench.engine.page += (
            b'vllm:lora_requests_info{max_lora="8",running_lora_adapters="b",'
            b'waiting_lora_adapters="b"} 20\n'
            b'vllm:lora_requests_info{max_lora="8",running_lora_adapters="c",'
            b'waiting_lora_adapters="c"} 10\n'
        )
        read = oracle.read((await bench.get()).body)
        assert (read.active, read.max_lora) == ({"b", "c"}, 2)
        assert bench.tracker.replay.in_slot == ("c", "b")


async def test_activity_on_the_engines_page_moves_the_slots_of_the_status_too():
    async with running() as bench:
        published = status("a", "b", "c")
        told = {
            name: replace(one, in_slot=name == "a" if name != "c" else None)
            for name, one in published.targets.items()
        }
        bench.board.publish(replace(published, targets=told))
        bench.tracker.residents(["a", "b", "c"])
        bench.engine.page += (
            b'vllm:lora_requests_info{max_lora="1",running_lora_adapters="b",'
            b'waiting_lora_adapters="b"} 20\n'
        )
        await bench.get()
        slots = {name: one.in_slot for name, one in bench.board.status.targets.items()}
        assert slots == {"a": False, "b": True, "c": None}


async def test_prometheus_gets_everything_in_one_valid_page():
    async with running() as bench:
        bench.engine.page += b"# TYPE process_open_fds gauge\nprocess_open_fds 7\n"
        families = oracle.parse(await bench.scraper.render_all())
        assert oracle.scalar(families, "vllm:num_requests_waiting") == 1
        assert oracle.scalar(families, "process_open_fds") == 7
        assert oracle.scalar(families, "model_sidecar_engine_sample_age_seconds") == 0
        assert len(families["model_sidecar_ready"].samples) == 1
        assert bench.engine.scrapes == 1


async def test_pickers_have_the_figures_alone_and_prometheus_the_whole_page():
    async with running(engine=NarrowEngine()) as bench:
        await bench.keep_asking(2.0)
        assert bench.engine.scrapes == bench.engine.narrow > 3
        families = oracle.parse(await bench.scraper.render_all())
        assert oracle.scalar(families, "rest") == 7
        assert oracle.scalar(families, "vllm:num_requests_waiting") == 1
        assert bench.engine.scrapes == bench.engine.narrow + 1


async def test_prometheus_alone_has_the_whole_page_by_one_scrape():
    async with running(engine=NarrowEngine()) as bench:
        for count in range(1, 4):
            assert oracle.scalar(oracle.parse(await bench.scraper.render_all()), "rest") == 7
            assert (bench.engine.scrapes, bench.engine.narrow) == (count, 0)
            await wait(15.0)


async def test_the_whole_page_is_waited_for_though_a_scrape_of_less_is_on_its_way():
    async with running(engine=NarrowEngine()) as bench:
        bench.engine.delay = 0.05
        first = asyncio.ensure_future(bench.get())
        await wait(0.02)
        assert bench.engine.narrow == 1
        assert oracle.scalar(oracle.parse(await bench.scraper.render_all()), "rest") == 7
        assert (await first).fresh


async def test_a_whole_page_that_is_old_is_left_out():
    async with running(engine=NarrowEngine()) as bench:
        await bench.scraper.render_all()
        await bench.keep_asking(2.0)
        bench.engine.failure = EngineUnavailable("gone")
        families = oracle.parse(await bench.scraper.render_all())
        assert "rest" not in families
        assert oracle.scalar(families, "vllm:num_requests_waiting") == 1


async def test_prometheus_waits_for_the_whole_page_of_a_slow_engine():
    async with running(engine=NarrowEngine()) as bench:
        bench.engine.delay = 0.6
        for _ in range(4):
            assert "rest" in oracle.parse(await bench.scraper.render_all())
            await wait(15.0)


async def test_the_present_interval_is_told():
    async with running() as bench:
        name = "model_sidecar_engine_sample_interval_seconds"
        assert name not in oracle.parse(bench.telemetry.render_own())
        bench.engine.delay = 0.002
        await bench.get()
        assert oracle.scalar(oracle.parse(await bench.scraper.render_all()), name) == 0.1
        await bench.keep_asking(3.0)
        slow = oracle.scalar(oracle.parse(await bench.scraper.render_all()), name)
        assert slow == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("engine", [Engine, NarrowEngine])
async def test_who_asks_for_everything_at_once_gets_the_same(engine):
    async with running(engine=engine()) as bench:
        first, *others = await asyncio.gather(*(bench.scraper.render_all() for _ in range(5)))
        assert all(one is first for one in others)
        assert bench.engine.scrapes == 1
        await wait(0.2)
        bench.telemetry.engine_restarted()
        later = oracle.parse(await bench.scraper.render_all())
        assert oracle.scalar(later, "model_sidecar_engine_restarts_total") == 1


async def test_what_is_published_since_is_told_at_once():
    async with running() as bench:
        await bench.scraper.render_all()
        bench.board.publish(status("sql", ready=False))
        families = oracle.parse(await bench.scraper.render_all())
        assert oracle.scalar(families, "model_sidecar_ready") == 0


async def test_everything_has_our_lora_family_and_not_the_engines():
    async with running() as bench:
        bench.engine.page += b"".join(
            b'vllm:lora_requests_info{max_lora="8",running_lora_adapters="x%d"} %d\n' % (at, at)
            for at in range(3)
        )
        families = oracle.parse(await bench.scraper.render_all())
        assert len(families["vllm:lora_requests_info"].samples) == 1


async def test_a_clock_that_is_set_back_does_not_freeze_the_slots():
    async with running() as bench:
        family = (
            b'vllm:lora_requests_info{max_lora="2",running_lora_adapters="%s",'
            b'waiting_lora_adapters=""} %d\n'
        )
        bench.tracker.residents(["a", "b", "c"])
        bench.wall_time = 7200
        bench.tracker.loaded("c", 7199)
        bench.engine.page += family % (b"a", 7100) + family % (b"b", 7150)
        await bench.get()
        assert bench.tracker.replay.in_slot == ("b", "c")
        bench.wall_time = 3600
        for name in (b"a", b"b", b"a,c"):
            bench.engine.page += family % (name, bench.wall_time)
            bench.wall_time += 1
            await wait(1.0)
            await bench.get()
        assert bench.tracker.in_slot() == {"a", "c"}
        bench.wall_time = 7300
        await wait(1.0)
        await bench.get()
        assert bench.tracker.in_slot() == {"a", "c"}


async def test_prometheus_alone_costs_one_sample_a_scrape():
    async with running() as bench:
        for _ in range(4):
            await bench.scraper.render_all()
            await wait(15.0)
        assert bench.engine.scrapes == 4


async def test_prometheus_gets_our_series_also_without_an_engine():
    async with running() as bench:
        await bench.scraper.render_all()
        bench.engine.failure = EngineUnavailable("gone")
        await wait(10.0)
        families = oracle.parse(await bench.scraper.render_all())
        assert "vllm:num_requests_waiting" not in families
        assert oracle.scalar(families, "model_sidecar_ready") == 1
        age = oracle.scalar(families, "model_sidecar_engine_sample_age_seconds")
        assert age is not None
        assert age > 10


async def test_the_task_is_heard_of_while_idle_and_while_busy():
    async with running() as bench:
        for _ in range(20):
            await wait(3.0)
            assert bench.deadlines.overdue() == ()
        await bench.keep_asking(5.0)
        assert bench.deadlines.overdue() == ()


async def test_a_task_that_hangs_is_named():
    deadlines = Deadlines(now)
    deadlines.beat("b", 5.0)
    deadlines.beat("a", 5.0)
    deadlines.beat("c", 500.0)
    await wait(5.5)
    assert deadlines.overdue() == ("a", "b")
    deadlines.beat("a", 5.0)
    deadlines.done("b")
    assert deadlines.overdue() == ()
