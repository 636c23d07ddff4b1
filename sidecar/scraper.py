"""Samples the engine while somebody asks, and renders the picker page ahead of the requests.

However many pickers ask, the engine is scraped one scrape at a time, no more often than its figures
and its costs call for (``core.cadence``), and not at all while nobody asks. A page is as old as the
moment at which the engine's answer was complete, the first one of several ranks, and too old a page
is never served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from adapters.base import (
    EngineAdapter,
    EngineBusy,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    FiguresAdapter,
    RanksAdapter,
)
from sidecar.board import Board
from sidecar.core.cadence import Cadence, has_changed
from sidecar.core.deadlines import Deadlines
from sidecar.core.exposition import merge_pages
from sidecar.core.lora_activity import take_lines
from sidecar.core.page_cache import PageCache
from sidecar.core.picker_page import LORA_INFO, LoraLabels, Page
from sidecar.core.residency import LoraTracker
from sidecar.core.status import State, Status, with_slots
from sidecar.core.translate import Sample, SampleError, translate
from sidecar.telemetry import Telemetry

FIRST_SAMPLE_WAIT_SECONDS = 0.3
"""How long a request waits for its sample, where nobody had asked for a while."""
TASK = "scraper"
_IDLE_BEAT_SECONDS = 5.0
_LONGEST_SCRAPE_SECONDS = 10.0
_TIMER_SECONDS = 0.001
_ANSWER_SECONDS = 0.01
"""So long before the figures at hand turn stale, waiting for newer ones ends,"""
_LEAST_WAIT_SECONDS = 0.05
"""unless it would be shorter than this: then newer ones are waited for as if there were none."""
_LONGEST_WHOLE_WAIT_SECONDS = 8.0
"""Prometheus waits 10 s for a page, unless it is told otherwise."""
_SHARED_SECONDS = 0.1


class Scraper:
    """Serves the present picker page; ``run`` is its sampling task."""

    def __init__(
        self,
        adapter: EngineAdapter,
        board: Board,
        telemetry: Telemetry,
        tracker: LoraTracker,
        deadlines: Deadlines,
        *,
        interval_seconds: float,
        stale_after_seconds: float,
        labels: LoraLabels,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        """``clock`` gives unix seconds that never go back, ``wall_clock`` those by which the engine
        stamps, too; ``wake`` is called when the engine seems to have gone or
        to be another process, so that someone looks at it."""
        self._adapter = adapter
        self._figures = adapter if isinstance(adapter, FiguresAdapter) else None
        self._ranks = adapter if isinstance(adapter, RanksAdapter) else None
        self._board = board
        self._telemetry = telemetry
        self._tracker = tracker
        self._deadlines = deadlines
        self._wall_clock = wall_clock
        self._stale_after = stale_after_seconds
        self._wake = wake
        self._scrape_seconds = min(max(stale_after_seconds, 1.0), _LONGEST_SCRAPE_SECONDS)
        self._cadence = Cadence(
            interval_seconds=interval_seconds, stale_after_seconds=stale_after_seconds
        )

        self._asked = False
        """Somebody asked since the last scrape ended."""
        self._late = False
        """Nobody had, when the sample was due: who asks now waits for it."""
        self._whole_wanted = False
        self._hurried = False
        """Something happened since the last scrape began that it may not show."""
        self._news = asyncio.Event()
        self._begun = self._ended = 0
        self._end = asyncio.Event()
        self._sample: Sample | None = None
        self._pages: tuple[bytes, ...] = ()
        self._pages_at = float("-inf")
        self._everything: tuple[int, Page, float, bytes] | None = None
        """For Prometheus: after which scrape, with which page, until when, and what."""
        self._failure = "the engine has not been sampled yet"
        self._cache = PageCache(labels, clock, after_base=adapter.capabilities.loras_after_base)
        self._status = board.status
        self._replay = tracker.replay

    @property
    def heard_at(self) -> float:
        """When the engine last gave a sample, in seconds of the loop's clock."""
        return self._cadence.taken_at

    def ask(self) -> Page | None:
        """Note that a picker asks and return what to answer.

        None: nobody had asked for a while and a sample is on its way; ``wait_page`` waits for it.
        """
        now = asyncio.get_running_loop().time()
        self._notice()
        if not self._asked:
            self._late = self._cadence.is_late(now)
            self._asked = True
            self._news.set()
        return None if self._late else self._answer(now)

    async def wait_page(self) -> Page:
        """Wait for the sample that was asked for, at most 300 ms; return what to answer."""
        loop = asyncio.get_running_loop()
        seconds = FIRST_SAMPLE_WAIT_SECONDS
        left = self._cadence.taken_at + self._stale_after - loop.time()
        if left >= _LEAST_WAIT_SECONDS:
            seconds = min(seconds, left - _ANSWER_SECONDS)
        await self._wait_ended(self._ended + 1, seconds)
        return self._answer(loop.time())

    async def render_all(self) -> bytes:
        """Return everything that Prometheus may have: this never fails, and what is stale is
        left out of it."""
        loop = asyncio.get_running_loop()
        late = self.ask() is None
        if self._figures is not None:
            self._whole_wanted = True
            self._hasten()
            # Prometheus has time: it may have to wait for its turn, and for a slow engine.
            longest = self._cadence.interval_seconds + self._scrape_seconds
            await self._wait_ended(self._begun + 1, min(longest, _LONGEST_WHOLE_WAIT_SECONDS))
        elif late:
            await self.wait_page()
        page = self._answer(now := loop.time())
        # Whoever asks at the same time has waited for the same, and rendering takes milliseconds.
        known = self._everything
        if known is None or known[0] != self._ended or known[1] is not page or now >= known[2]:
            until, text = now + _SHARED_SECONDS, self._render(page, now)
            self._everything = known = (self._ended, page, until, text)
        return known[3]

    def _render(self, page: Page, now: float) -> bytes:
        sample, cadence = self._sample, self._cadence
        own = self._telemetry.render_own(
            sample_age_seconds=None if sample is None else max(0.0, now - sample.taken_at),
            sample_interval_seconds=None if sample is None else cadence.due_at - cadence.began_at,
        )
        if not page.fresh:
            return merge_pages([own], [])
        whole = self._pages if now - self._pages_at <= self._stale_after else ()
        # There may be thousands of lines of the family that our page has instead.
        return merge_pages([page.body, own], [take_lines(one, LORA_INFO)[0] for one in whole])

    async def run(self) -> None:
        """Sample while there is demand, until cancelled."""
        while True:
            self._deadlines.beat(
                TASK, 2 * (_IDLE_BEAT_SECONDS + self._scrape_seconds + self._stale_after)
            )
            if await self._wait_due(_IDLE_BEAT_SECONDS):
                await self.sample_once()

    async def sample_once(self) -> None:
        """Scrape every rank once and publish what it said, or remember why it could not."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._begun += 1
        whole, self._whole_wanted, self._hurried = self._whole_wanted, False, False
        try:
            await self._scrape(began, whole=whole)
        finally:
            # Whatever became of it: nobody is to wait for this one any more.
            if self._hurried:
                self._cadence = self._cadence.hastened()
            self._asked, self._late = self._whole_wanted, False
            self._ended = self._begun
            end, self._end = self._end, asyncio.Event()
            end.set()

    async def _scrape(self, began: float, *, whole: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._scrape_seconds):
                if whole or self._figures is None:
                    pages, whole = await self._adapter.scrape(), True
                else:
                    pages = await self._figures.scrape_figures()
            answered = loop.time() if self._ranks is None else self._ranks.answered_at
            unix_now = self._wall_clock()
            sample = translate(pages, self._adapter.metric_map, self._sample, answered, unix_now)
        except (EngineError, SampleError, TimeoutError) as exc:
            self._failed(exc, began)
        else:
            if whole:
                self._pages, self._pages_at = pages, sample.taken_at
            self._publish(sample, began, unix_now)

    def _publish(self, sample: Sample, began: float, unix_now: float) -> None:
        before, self._sample = self._sample, sample
        self._failure = ""
        self._telemetry.sampled("done")
        if before is not None and before.started_at != sample.started_at:
            self._wake()
        self._cadence = self._cadence.sampled(
            began,
            sample.taken_at,
            asyncio.get_running_loop().time(),
            changed=has_changed(before, sample),
        )
        self._notice()
        self._tracker.limits(max_loras=sample.max_loras, max_cpu_loras=None)
        self._tracker.not_after(unix_now)
        self._tracker.active(sample.lora_activity)
        status = with_slots(self._board.status, self._tracker.in_slot())
        if status is not self._board.status:
            self._board.publish(status)
        self._status, self._replay = status, self._tracker.replay
        self._cache.page(sample, status, self._replay)

    def _failed(self, exc: EngineError | SampleError | TimeoutError, began: float) -> None:
        if isinstance(exc, EngineUnavailable | EngineTimeout | TimeoutError) and not self._failure:
            self._wake()
        self._failure = str(exc) or "the engine did not answer in time"
        self._telemetry.sampled(_outcome(exc))
        self._cadence = self._cadence.failed(began, asyncio.get_running_loop().time())

    def _notice(self) -> None:
        """Hasten the next sample when someone else saw or did something to the engine."""
        status, replay = self._board.status, self._tracker.replay
        if status is self._status and replay is self._replay:
            return
        if replay is not self._replay or _holdings(status) != _holdings(self._status):
            self._hasten()
        self._status, self._replay = status, replay

    def _hasten(self) -> None:
        self._hurried = True
        self._cadence = self._cadence.hastened()
        self._news.set()

    def _answer(self, now: float) -> Page:
        sample = self._sample
        if sample is not None and now - sample.taken_at <= self._stale_after:
            return self._cache.page(sample, self._board.status, self._tracker.replay)
        if sample is None:
            text = f"no engine figures: {self._failure}\n"
        else:
            age = now - sample.taken_at
            text = f"the engine figures are {age:.1f} s old, the limit is {self._stale_after:g} s"
            text += f": {self._failure}\n" if self._failure else "\n"
        return Page(fresh=False, body=text.encode("utf-8", "replace"))

    async def _wait_ended(self, number: int, seconds: float) -> None:
        """Wait for the end of the scrape of this number, for so long at most."""
        try:
            async with asyncio.timeout(seconds):
                while self._ended < number:
                    await self._end.wait()
        except TimeoutError:
            pass

    async def _wait_due(self, seconds: float) -> bool:
        """Wait until a sample is due that somebody asked for; False after so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (now := loop.time()) < until:
            due_at = self._cadence.due_at if self._asked else float("inf")
            # A timer may fire a little before its time.
            if due_at - now < _TIMER_SECONDS:
                return True
            self._news.clear()
            try:
                async with asyncio.timeout_at(min(due_at, until)):
                    await self._news.wait()
            except TimeoutError:
                pass
        return False


def _holdings(status: Status) -> tuple[object, ...]:
    engine = status.engine
    residents = {
        (one.name, one.revision) for one in status.targets.values() if one.state is State.RESIDENT
    }
    return engine.state, engine.started_at, engine.restarts, residents


def _outcome(exc: Exception) -> str:
    match exc:
        case EngineUnavailable():
            return "unavailable"
        case EngineTimeout() | TimeoutError():
            return "timeout"
        case EngineBusy():
            return "busy"
        case SampleError():
            return "unreadable"
    return "failed"
