"""vLLM's figures without the rest of its page, for a fifth of what that costs it.

vLLM serves its page twice (0.32: ``entrypoints/serve/instrumentator/metrics.py``). The route at
``/metrics`` renders all of it, whatever is asked. Whatever is below that path is an application of
prometheus_client, which renders only the families that ``name[]`` lists. With several API servers
some versions of it answer with none, and a proxy may answer anything: so nothing is believed that
was not compared with the whole page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from adapters.base import MetricMap, Series

ATTEMPTS = 3
"""Requests that may fail one after another: a family may appear between the two pages."""
REST_PAGES = 300
"""Whole pages after which the narrow one is tried again: what was in its way may be gone."""

_SERIES = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)[{ ]", re.MULTILINE)


class FiguresPage:
    """Where the narrow page is, and whether it is to be believed."""

    def __init__(self, metrics_url: str, metric_map: MetricMap) -> None:
        """``metrics_url`` is that of the whole page."""
        names = tuple(_names(metric_map))
        self.url = f"{metrics_url}/?{'&'.join(f'name[]={name}' for name in names)}"
        self._names = frozenset(name.encode() for name in names)
        self._proven: frozenset[bytes] | None = None
        # Below any other URL there is nothing of the kind to expect.
        self._is_possible = metrics_url.endswith("/metrics") and "?" not in metrics_url
        self._attempts = ATTEMPTS if self._is_possible else 0
        self._rested = 0

    @property
    def is_offered(self) -> bool:
        """Worth asking for."""
        return self._attempts > 0

    def ask(self) -> str:
        """Return the URL; this attempt counts as failed until a page is accepted or compares."""
        self._attempts -= 1
        return self.url

    def rest(self) -> None:
        """Take note of a whole page that was taken without asking for the narrow one."""
        self._rested += 1
        if self._is_possible and self._rested >= REST_PAGES:
            self._attempts, self._rested = 1, 0

    def accept(self, narrow: bytes) -> bool:
        """Tell whether it has every family that was on both pages when they were compared."""
        if self._proven is None or not self._proven <= self._on(narrow):
            return False
        self._attempts = ATTEMPTS
        return True

    def compare(self, narrow: bytes, whole: bytes) -> None:
        """Take note of two pages, one just after the other."""
        wanted = self._on(whole)
        if wanted and wanted <= self._on(narrow):
            self._proven, self._attempts = wanted, ATTEMPTS

    def _on(self, page: bytes) -> frozenset[bytes]:
        return self._names.intersection(_SERIES.findall(page))


def _names(metric_map: MetricMap) -> Iterator[str]:
    for alternatives in (metric_map.queued, metric_map.running, metric_map.kv_usage):
        yield from (series.name for series in alternatives)
    single: list[Series | None] = [info.info for info in metric_map.cache]
    single += [metric_map.lora_activity, metric_map.started_at]
    yield from (series.name for series in single if series is not None)
