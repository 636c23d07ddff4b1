"""Several ranks behind the port of one."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from adapters import open_engine
from adapters.base import (
    EngineBusy,
    EngineError,
    EngineOptions,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnavailable,
    FiguresAdapter,
    Kind,
    RanksAdapter,
    Residency,
    Target,
)
from adapters.fake import FakeAdapter, FakeEngine
from adapters.fake.engine import Held
from adapters.ranks import WORST_FIRST, RankedAdapter, join_ranks, merge_states
from tests.support.artifacts import write_fake_lora

LORA = Target(name="sql", kind=Kind.LORA)
OPTIONS = EngineOptions(url="fake://")


class Ranks:
    def __init__(self, number: int = 3) -> None:
        self.engines = [FakeEngine(max_loras=4 + index) for index in range(number)]
        self.adapter = RankedAdapter(tuple(FakeAdapter(one, OPTIONS) for one in self.engines))

    async def resident(self):
        return {one.name: one for one in (await self.adapter.observe()).residents}


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


async def test_a_load_reaches_every_rank(ranks: Ranks, tmp_path: Path):
    path = write_fake_lora(tmp_path / "1")
    await ranks.adapter.load(LORA, path)
    assert [engine.held["sql"].path for engine in ranks.engines] == [path] * 3
    resident = (await ranks.resident())["sql"]
    assert (resident.state, resident.paths) == (Residency.RESIDENT, {path})


async def test_a_rank_that_holds_the_path_is_not_asked_again(ranks: Ranks, tmp_path: Path):
    path = write_fake_lora(tmp_path / "1")
    await ranks.engines[1].load_lora("sql", path)
    await ranks.adapter.load(LORA, path)
    assert [engine.calls for engine in ranks.engines] == [["load sql"]] * 3


async def test_ranks_that_lack_it_or_hold_another_revision_disagree(ranks: Ranks, tmp_path: Path):
    first, second = write_fake_lora(tmp_path / "1"), write_fake_lora(tmp_path / "2", seed=2)
    await ranks.engines[0].load_lora("sql", first)
    assert (await ranks.resident())["sql"].state is Residency.PARTIAL
    assert (await ranks.resident())["sql"].paths == {first}
    await ranks.engines[1].load_lora("sql", first)
    await ranks.engines[2].load_lora("sql", second)
    resident = (await ranks.resident())["sql"]
    assert (resident.state, resident.paths) == (Residency.PARTIAL, {first, second})
    assert resident.reason


async def test_what_one_rank_lost_is_loaded_there_alone(ranks: Ranks, tmp_path: Path):
    path = write_fake_lora(tmp_path / "1")
    await ranks.adapter.load(LORA, path)
    ranks.engines[2].restart()
    assert (await ranks.resident())["sql"].state is Residency.PARTIAL
    await ranks.adapter.load(LORA, path)
    assert (await ranks.resident())["sql"].state is Residency.RESIDENT
    assert [len(engine.calls) for engine in ranks.engines] == [1, 1, 2]


async def test_unload_reaches_every_rank_also_those_that_lack_it(ranks: Ranks, tmp_path: Path):
    await ranks.engines[1].load_lora("sql", write_fake_lora(tmp_path / "1"))
    await ranks.adapter.unload(LORA)
    assert await ranks.resident() == {}


async def test_one_rank_that_cannot_be_seen_hides_the_whole(ranks: Ranks):
    ranks.engines[1].kill()
    with pytest.raises(EngineUnavailable):
        await ranks.adapter.observe()
    with pytest.raises(EngineUnavailable):
        await ranks.adapter.scrape()


async def test_the_state_is_that_of_the_weakest_rank(ranks: Ranks):
    ranks.engines[2].faults.asleep = True
    ranks.engines[0].restart()
    state = await ranks.adapter.observe()
    assert state.asleep is True
    assert state.started_at == max(engine.started_at for engine in ranks.engines)
    assert state.limits.max_loras == 4
    assert state.base_names == {"base"}


async def test_pages_come_in_the_order_of_the_ranks(ranks: Ranks):
    for index, engine in enumerate(ranks.engines):
        engine.waiting = index
    pages = await ranks.adapter.scrape()
    assert [page.count(b"num_requests_waiting{") for page in pages] == [1, 1, 1]
    assert [
        f'waiting{{engine="0",model_name="base"}} {i}'.encode() in p for i, p in enumerate(pages)
    ] == [True] * 3


class Narrow(FakeAdapter):
    """A rank that can be asked for its figures alone."""

    async def scrape_figures(self) -> tuple[bytes, ...]:
        return await self.scrape()


async def test_figures_alone_are_offered_where_every_rank_has_them():
    plain, narrow = FakeAdapter(FakeEngine(), OPTIONS), Narrow(FakeEngine(), OPTIONS)
    assert not isinstance(join_ranks((plain, plain)), FiguresAdapter)
    assert not isinstance(join_ranks((plain, narrow)), FiguresAdapter)
    ranked = join_ranks((narrow, narrow))
    assert isinstance(ranked, FiguresAdapter)
    assert len(await ranked.scrape_figures()) == 2


class Late(FakeAdapter):
    """A rank whose page takes so many seconds."""

    def __init__(self, seconds: float):
        super().__init__(FakeEngine(), OPTIONS)
        self._seconds = seconds

    async def scrape(self) -> tuple[bytes, ...]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), self._seconds)
        return await super().scrape()


@pytest.mark.looptime
async def test_the_first_answer_of_a_scrape_tells_how_old_its_pages_are():
    now = asyncio.get_running_loop().time
    began = now()
    adapter = join_ranks((Late(0.6), Late(0.2), Late(0.4)))
    assert isinstance(adapter, RanksAdapter)
    await adapter.scrape()
    assert now() - began == pytest.approx(0.6, abs=0.01)
    assert adapter.answered_at - began == pytest.approx(0.2, abs=0.01)


class Scripted(FakeAdapter):
    """A rank whose load ends as told, when told."""

    def __init__(self, error: EngineError | None, ended: list[object], wait: asyncio.Event):
        super().__init__(FakeEngine(), OPTIONS)
        self._error = error
        self._ended = ended
        self._wait = wait

    async def load(self, target: Target, path: str) -> None:
        await self._wait.wait()
        self._ended.append(self._error)
        if self._error is not None:
            raise self._error


async def test_the_worst_error_is_raised_after_every_rank_has_ended():
    ended: list[object] = []
    now, later = asyncio.Event(), asyncio.Event()
    now.set()
    adapter = RankedAdapter(
        (
            Scripted(EngineRejected("no"), ended, now),
            Scripted(EngineTimeout("slow"), ended, later),
            Scripted(None, ended, later),
        )
    )
    loading = asyncio.create_task(adapter.load(LORA, "/x"))
    async with asyncio.timeout(5):
        while not ended:
            await asyncio.wait({loading}, timeout=0.001)
        assert not loading.done()
        later.set()
        with pytest.raises(EngineTimeout, match="slow"):
            await loading
    assert len(ended) == 3


def test_every_error_of_the_port_has_its_rank():
    def leaves(kind: type[EngineError]) -> set[type[EngineError]]:
        return {kind}.union(*(leaves(child) for child in kind.__subclasses__()))

    assert leaves(EngineError) == set(WORST_FIRST)


async def test_an_error_that_only_one_rank_has_is_raised(ranks: Ranks, tmp_path: Path):
    ranks.engines[1].faults.reject["sql"] = "out of memory"
    with pytest.raises(EngineRejected, match="out of memory"):
        await ranks.adapter.load(LORA, write_fake_lora(tmp_path / "1"))
    assert [("sql" in engine.held) for engine in ranks.engines] == [True, False, True]


async def test_warming_warms_every_rank(ranks: Ranks, tmp_path: Path):
    await ranks.adapter.load(LORA, write_fake_lora(tmp_path / "1"))
    await ranks.adapter.warm(LORA)
    assert all(("sql",) in engine.lora_activity for engine in ranks.engines)


async def test_several_urls_open_ranks_and_one_opens_itself():
    assert isinstance(open_engine("fake", (OPTIONS,)), FakeAdapter)
    adapter = open_engine("fake", (OPTIONS, OPTIONS))
    assert isinstance(adapter, RankedAdapter)
    assert adapter.capabilities is FakeAdapter.capabilities
    assert adapter.metric_map is FakeAdapter.metric_map
    assert len(await adapter.scrape()) == 2
    await adapter.aclose()


def test_an_engine_has_at_least_one_rank():
    with pytest.raises(ValueError, match="at least one rank"):
        RankedAdapter(())


def test_busy_is_milder_than_a_refusal():
    assert WORST_FIRST.index(EngineBusy) > WORST_FIRST.index(EngineRejected)


async def test_ranks_tell_how_many_they_are_and_the_start_of_the_oldest(ranks: Ranks):
    first = ranks.engines[1].started_at
    ranks.engines[0].restart()
    ranks.engines[2].restart()
    state = await ranks.adapter.observe()
    assert state.ranks == 3
    assert state.oldest_started_at == min(first, *(one.started_at for one in ranks.engines))
    assert state.started_at == max(one.started_at for one in ranks.engines)


def test_a_rank_that_does_not_say_when_it_started_may_be_as_old_as_can_be():
    state = merge_states((EngineState(started_at=5.0), EngineState()))
    assert (state.started_at, state.oldest_started_at) == (5.0, 0.0)
    assert merge_states((EngineState(started_at=5.0),)).oldest_started_at is None


async def test_a_rank_that_holds_what_was_told_in_its_own_view_is_not_asked_again():
    options = EngineOptions(url="fake://", path_prefix=("/store", "/mnt"))
    engine = FakeEngine()
    engine.held["sql"] = Held("sql", Kind.LORA, "/mnt/mine", "x")
    adapter = RankedAdapter((FakeAdapter(engine, options),))
    await adapter.load(LORA, "/mnt/mine")
    assert engine.calls == []
    (resident,) = (await adapter.observe()).residents
    assert resident.paths == {"/store/mine"}
    assert resident.known_as("/mnt/mine").paths == {"/mnt/mine"}
    assert resident.known_as("/mnt/mine").known_as().paths == {"/store/mine"}
