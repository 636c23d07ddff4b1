"""Samples the engine while somebody asks, and renders the picker page ahead of the requests.

However many pickers ask, the engine is scraped at most once an interval, one scrape at a time, and
not at all while nobody asks. A page is as old as the moment at which the engine's answer was
complete, and too old a page is never served.
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
)
from sidecar.board import Board
from sidecar.core.deadlines import Deadlines
from sidecar.core.exposition import merge_pages
from sidecar.core.picker_page import (
    LabelValues,
    LoraLabels,
    LoraView,
    Page,
    lora_labels,
    lora_view,
    render_picker_page,
)
from sidecar.core.residency import LoraTracker, SlotReplay
from sidecar.core.status import Status
from sidecar.core.translate import Sample, SampleError, translate
from sidecar.telemetry import Telemetry

FIRST_SAMPLE_WAIT_SECONDS = 0.3
"""How long the first request after idle waits for its sample."""
TASK = "scraper"
_IDLE_BEAT_SECONDS = 5.0
_LONGEST_SCRAPE_SECONDS = 10.0


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
        wake: Callable[[], None],
    ) -> None:
        """``clock`` gives unix seconds; ``wake`` is called when the engine seems to have gone or
        to be another process, so that someone looks at it."""
        self._adapter = adapter
        self._board = board
        self._telemetry = telemetry
        self._tracker = tracker
        self._deadlines = deadlines
        self._interval = interval_seconds
        self._stale_after = stale_after_seconds
        self._labels = labels
        self._clock = clock
        self._wake = wake
        self._scrape_seconds = min(max(stale_after_seconds, 1.0), _LONGEST_SCRAPE_SECONDS)
        # Pickers that ask less often than this find no sample kept warm for them.
        self._attention = max(2 * stale_after_seconds, 20 * interval_seconds)

        self._wanted_until = float("-inf")
        self._demand = asyncio.Event()
        self._tried = asyncio.Event()
        self._sample: Sample | None = None
        self._pages: tuple[bytes, ...] = ()
        self._failure = "the engine has not been sampled yet"
        self._renderer = _Renderer(board, tracker, labels, clock)

    def ask(self) -> Page | None:
        """Note that a picker asks and return what to answer.

        None: nobody had asked for a while and the first sample is on its way;
        ``wait_page`` waits for it.
        """
        now = asyncio.get_running_loop().time()
        self._want(now + self._attention)
        sample = self._sample
        if sample is not None and now - sample.taken_at <= self._stale_after:
            return self._renderer.page(sample)
        return self._stale(now) if self._tried.is_set() else None

    async def wait_page(self) -> Page:
        """Wait for the sample that was asked for, at most 300 ms; return what to answer."""
        try:
            async with asyncio.timeout(FIRST_SAMPLE_WAIT_SECONDS):
                await self._tried.wait()
        except TimeoutError:
            pass
        return self._current() or self._stale(asyncio.get_running_loop().time())

    async def render_all(self) -> bytes:
        """Return everything that Prometheus may have: this never fails, and what is stale is
        left out of it."""
        now = asyncio.get_running_loop().time()
        page = self._current()
        if page is None:
            self._want(now)
            page = await self.wait_page()
        taken_at = None if self._sample is None else self._sample.taken_at
        now = asyncio.get_running_loop().time()
        own = self._telemetry.render_own(
            sample_age_seconds=None if taken_at is None else max(0.0, now - taken_at)
        )
        if not page.fresh:
            return merge_pages([own], [])
        return merge_pages([page.body, own], self._pages)

    async def run(self) -> None:
        """Sample while there is demand, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._deadlines.beat(
                TASK, 2 * (_IDLE_BEAT_SECONDS + self._scrape_seconds + self._interval)
            )
            if not await self._wait_demand():
                continue
            next_at = loop.time() + self._interval
            await self.sample_once()
            if loop.time() >= self._wanted_until:
                self._demand.clear()
                self._tried.clear()
            await self._wait_until(next_at)

    async def sample_once(self) -> None:
        """Scrape every rank once and publish what it said, or remember why it could not."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._scrape_seconds):
                pages = await self._adapter.scrape()
            sample = translate(pages, self._adapter.metric_map, self._sample, loop.time())
        except (EngineError, SampleError, TimeoutError) as exc:
            self._failed(exc)
        else:
            self._publish(sample, pages)
        self._tried.set()

    def _publish(self, sample: Sample, pages: tuple[bytes, ...]) -> None:
        before, self._sample, self._pages = self._sample, sample, pages
        self._failure = ""
        self._telemetry.sampled("done")
        if before is not None and before.started_at != sample.started_at:
            self._wake()
        self._tracker.limits(max_loras=sample.max_loras, max_cpu_loras=None)
        self._tracker.active(sample.lora_activity)
        self._renderer.page(sample)

    def _failed(self, exc: EngineError | SampleError | TimeoutError) -> None:
        if isinstance(exc, EngineUnavailable) and not self._failure:
            self._wake()
        self._failure = str(exc) or "the engine did not answer in time"
        self._telemetry.sampled(_outcome(exc))

    def _want(self, until: float) -> None:
        self._wanted_until = max(self._wanted_until, until)
        self._demand.set()

    def _current(self) -> Page | None:
        sample = self._sample
        now = asyncio.get_running_loop().time()
        if sample is None or now - sample.taken_at > self._stale_after:
            return None
        return self._renderer.page(sample)

    def _stale(self, now: float) -> Page:
        if self._sample is None:
            text = f"no engine figures: {self._failure}\n"
        else:
            age = now - self._sample.taken_at
            text = f"the engine figures are {age:.1f} s old, the limit is {self._stale_after:g} s"
            text += f": {self._failure}\n" if self._failure else "\n"
        return Page(fresh=False, body=text.encode("utf-8", "replace"))

    async def _wait_demand(self) -> bool:
        if self._demand.is_set():
            return True
        try:
            async with asyncio.timeout(_IDLE_BEAT_SECONDS):
                await self._demand.wait()
        except TimeoutError:
            return False
        return True

    async def _wait_until(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.create_future()
        timer = loop.call_at(when, _release, due)
        try:
            await due
        finally:
            timer.cancel()


class _Renderer:
    """The page of one sample, rendered again only when something on it may have changed."""

    def __init__(
        self,
        board: Board,
        tracker: LoraTracker,
        mode: LoraLabels,
        clock: Callable[[], float],
    ) -> None:
        self._board = board
        self._tracker = tracker
        self._mode = mode
        self._clock = clock
        self._sample: Sample | None = None
        self._status: Status | None = None
        self._replay: SlotReplay | None = None
        self._view = LoraView()
        self._labels: LabelValues | None = None
        self._changed_at = 0.0
        self._page = Page(fresh=False, body=b"")

    def page(self, sample: Sample) -> Page:
        """Return the page; the identity of its three inputs says whether it is the same."""
        status, replay = self._board.status, self._tracker.replay
        told = status is self._status and replay is self._replay
        if told and sample is self._sample:
            return self._page
        if not told:
            self._view = lora_view(status, replay)
            labels = lora_labels(self._view, self._mode)
            if labels != self._labels:
                self._labels = labels
                self._changed_at = max(self._clock(), self._changed_at)
        self._sample, self._status, self._replay = sample, status, replay
        self._page = Page(
            fresh=True,
            body=render_picker_page(
                sample,
                self._view,
                self._labels or LabelValues(),
                ready=status.ready,
                changed_at=self._changed_at,
            ),
        )
        return self._page


def _release(due: asyncio.Future[None]) -> None:
    if not due.done():
        due.set_result(None)


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
