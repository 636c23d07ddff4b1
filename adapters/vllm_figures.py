"""vLLM's figures without the rest of its page, for a fifth of what that costs it.

vLLM serves its page twice (0.32: ``entrypoints/serve/instrumentator/metrics.py``). The route at
``/metrics`` renders all of it, whatever is asked. Whatever is below that path is an application of
prometheus_client, which renders only the families that ``name[]`` lists. With several API servers
some versions of it answer with none, and a proxy may answer anything: so nothing is believed that
was not compared with the whole page.

The family of LoRA activity gains a line for every set of LoRAs and loses none. Where it has grown
large, most pages are asked without it: each line keeps its time, so what they leave out is told
later, and not lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapters.base import MetricMap, Series

ATTEMPTS = 3
"""Requests that may fail one after another: a family may appear between the two pages."""
REST_PAGES = 300
"""Whole pages after which the narrow one is tried again: what was in its way may be gone."""
LORA_BYTES = 64 * 1024
"""A page with the LoRA family counts as one for every so many bytes: so many follow without."""


class FiguresPage:
    """Where the narrow page is, and whether it is to be believed."""

    def __init__(self, metrics_url: str, metric_map: MetricMap) -> None:
        """``metrics_url`` is that of the whole page."""
        names = tuple(_names(metric_map))
        lora = metric_map.lora_activity
        self._large = frozenset() if lora is None else frozenset({lora.name})
        self.url = _url(metrics_url, names)
        self._short_url = _url(metrics_url, [name for name in names if name not in self._large])
        self._names = frozenset(names)
        self._proven: frozenset[str] | None = None
        # Below any other URL there is nothing of the kind to expect.
        self._is_possible = metrics_url.endswith("/metrics") and "?" not in metrics_url
        self._attempts = ATTEMPTS if self._is_possible else 0
        self._rested = 0
        self._left_out: frozenset[str] = frozenset()
        """What the last request did not ask for."""
        self._short_pages = 0
        """So many more requests are to leave it out."""

    @property
    def is_offered(self) -> bool:
        """Worth asking for."""
        return self._attempts > 0

    def ask(self) -> str:
        """Return the URL; this attempt counts as failed until a page is accepted or compares."""
        self._attempts -= 1
        if self._short_pages == 0:
            self._left_out = frozenset()
            return self.url
        self._short_pages -= 1
        self._left_out = self._large
        return self._short_url

    def rest(self) -> None:
        """Take note of a whole page that was taken without asking for the narrow one."""
        self._rested += 1
        if self._is_possible and self._rested >= REST_PAGES:
            self._attempts, self._rested = 1, 0

    def accept(self, narrow: bytes) -> bool:
        """Tell whether it has every family that was on both pages when they were compared."""
        if self._proven is None or not self._proven - self._left_out <= self._on(narrow):
            return False
        self._attempts = ATTEMPTS
        if not self._left_out:
            self._short_pages = len(narrow) // LORA_BYTES
        return True

    def compare(self, narrow: bytes, whole: bytes) -> None:
        """Take note of two pages, one just after the other."""
        wanted = self._on(whole)
        if wanted and wanted - self._left_out <= self._on(narrow):
            self._proven, self._attempts = wanted, ATTEMPTS

    def _on(self, page: bytes) -> frozenset[str]:
        return frozenset(name for name in self._names if _is_on(page, name.encode()))


def _is_on(page: bytes, name: bytes) -> bool:
    starts = (name + b"{", name + b" ")
    return page.startswith(starts) or any(b"\n" + start in page for start in starts)


def _url(metrics_url: str, names: Iterable[str]) -> str:
    return f"{metrics_url}/?{'&'.join(f'name[]={name}' for name in names)}"


def _names(metric_map: MetricMap) -> Iterator[str]:
    for alternatives in (metric_map.queued, metric_map.running, metric_map.kv_usage):
        yield from (series.name for series in alternatives)
    single: list[Series | None] = [info.info for info in metric_map.cache]
    single += [metric_map.lora_activity, metric_map.started_at]
    yield from (series.name for series in single if series is not None)
