"""The picker page of one sample, rendered again only when something on it may have changed."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.core.picker_page import (
    LabelValues,
    LoraLabels,
    LoraView,
    Page,
    lora_labels,
    lora_view,
    render_picker_page,
)
from sidecar.core.residency import SlotReplay
from sidecar.core.status import Status
from sidecar.core.translate import Sample


class PageCache:
    """The last rendered page, and what it was made of."""

    def __init__(
        self, mode: LoraLabels, clock: Callable[[], float], *, after_base: bool = False
    ) -> None:
        """``clock`` gives unix seconds, for the time at which the LoRA labels last changed;
        ``after_base`` is what ``lora_view`` takes."""
        self._mode = mode
        self._after_base = after_base
        self._clock = clock
        self._sample: Sample | None = None
        self._status: Status | None = None
        self._replay: SlotReplay | None = None
        self._view = LoraView()
        self._labels: LabelValues | None = None
        self._changed_at = 0.0
        self._page = Page(fresh=False, body=b"")

    def page(self, sample: Sample, status: Status, replay: SlotReplay) -> Page:
        """Return the page; the identity of its three inputs says whether it is the same."""
        told = status is self._status and replay is self._replay
        if told and sample is self._sample:
            return self._page
        if not told:
            self._view = lora_view(status, replay, after_base=self._after_base)
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
