"""The agent's own series, prefix ``model_sidecar_``, on a registry of their own.

What is counted is recorded where it happens; what is a state is read off the published status at
the moment of the scrape, so that no series outlives its target.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from adapters.base import Kind
from sidecar.core.exposition import as_text
from sidecar.core.status import EngineCondition, State, Status

PREFIX = "model_sidecar"
_ACTION_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
_PROPAGATION_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800)
_GAP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_LAG_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2)


class Telemetry:
    """Records what happened and renders it, with the present state, as text 0.0.4."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """Open a registry; ``status`` gives the published status at each scrape."""
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._state = _StateCollector(status)
        self._registry.register(self._state)
        self._actions = self._counter("actions", "Actions by outcome.", "action", "outcome")
        self._action_seconds = Histogram(
            "action_duration_seconds",
            "How long actions took.",
            ("action",),
            namespace=PREFIX,
            registry=self._registry,
            buckets=_ACTION_BUCKETS,
        )
        self._propagation = self._histogram(
            "propagation_seconds",
            "From a document seen to its targets serving.",
            _PROPAGATION_BUCKETS,
        )
        self._gaps = self._histogram(
            "replacement_gap_seconds",
            "From a name's unload to the end of the load that replaces it: requests for it fail.",
            _GAP_BUCKETS,
        )
        self._restarts = self._counter("engine_restarts", "Engine restarts noticed.")
        self._samples = self._counter("engine_samples", "Engine scrapes by outcome.", "outcome")
        self._fetched = self._counter("fetched_bytes", "Bytes fetched from sources.")
        self._lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop woke a task.", _LAG_BUCKETS
        )

    def action_done(self, action: str, outcome: str, seconds: float) -> None:
        """One action ended."""
        self._actions.labels(action, outcome).inc()
        self._action_seconds.labels(action).observe(seconds)

    def propagated(self, seconds: float) -> None:
        """Everything a document asks for serves, ``seconds`` after it was seen."""
        self._propagation.observe(seconds)

    def replaced(self, gap_seconds: float) -> None:
        """A revision took the place of another, and its name was unknown for so long."""
        self._gaps.observe(gap_seconds)

    def engine_restarted(self) -> None:
        """The engine is another incarnation."""
        self._restarts.inc()

    def sampled(self, outcome: str) -> None:
        """One scrape of the engine ended: ``done`` or why it did not."""
        self._samples.labels(outcome).inc()

    def fetched(self, size: int) -> None:
        """``size`` bytes came from a source."""
        self._fetched.inc(size)

    def loop_lag(self, seconds: float) -> None:
        """A timer fired ``seconds`` late."""
        self._lag.observe(seconds)

    def render_own(
        self,
        *,
        sample_age_seconds: float | None = None,
        sample_interval_seconds: float | None = None,
    ) -> bytes:
        """Render every series; None: the engine was never sampled, and there is no such series."""
        self._state.sample_age_seconds = sample_age_seconds
        self._state.sample_interval_seconds = sample_interval_seconds
        return prometheus_client.generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, namespace=PREFIX, registry=self._registry, buckets=buckets)


class _StateCollector(Collector):
    """Turns the last published status into series."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self.sample_age_seconds: float | None = None
        self.sample_interval_seconds: float | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        status = self._status()
        document, engine, store = status.document, status.engine, status.store
        # The picker page has model_sidecar_ready, too: the merge keeps one of them.
        yield _gauge("ready", "The pod may receive traffic.", status.ready)
        yield _gauge("converged", "The plan is empty and nothing waits.", status.converged)
        yield _labelled(
            "document_info", "The accepted document.", ("digest",), [((document.digest,), 1)]
        )
        yield _gauge("document_valid", "The last read was accepted as a whole.", document.valid)
        yield _gauge("document_problems", "Problems of the document.", len(document.problems))
        up = engine.state in (EngineCondition.UP, EngineCondition.ASLEEP)
        yield _gauge("engine_up", "The engine answers.", up)
        asleep = engine.state is EngineCondition.ASLEEP
        yield _gauge("engine_asleep", "The engine answers, and sleeps.", asleep)
        if self.sample_age_seconds is not None:
            yield _gauge(
                "engine_sample_age_seconds", "Age of the engine figures.", self.sample_age_seconds
            )
        if self.sample_interval_seconds is not None:
            yield _gauge(
                "engine_sample_interval_seconds",
                "From one scrape of the engine to the next, as long as somebody asks.",
                self.sample_interval_seconds,
            )
        yield _gauge("store_bytes", "Bytes of complete revisions on disk.", store.bytes)
        yield _labelled(
            "build_info",
            "What runs here.",
            ("version", "python"),
            [((status.version, platform.python_version()), 1)],
        )
        yield _labelled("targets", "Targets by state.", ("kind", "state"), _tally(status))
        yield _labelled(
            "target_state",
            "The state that each target is in.",
            ("target", "kind", "revision", "state"),
            [
                ((one.name, str(one.kind or "unknown"), one.revision, str(one.state)), 1)
                for one in status.targets.values()
            ],
        )
        yield _labelled(
            "target_reason",
            "Why a target is not, or not only, what it should be.",
            ("target", "kind", "reason"),
            [
                ((one.name, str(one.kind or "unknown"), one.reason), 1)
                for one in status.targets.values()
                if one.reason
            ],
        )


def _tally(status: Status) -> list[tuple[tuple[str, str], int]]:
    tally = Tally((str(one.kind or "unknown"), str(one.state)) for one in status.targets.values())
    for kind in Kind:
        for state in State:
            tally.setdefault((str(kind), str(state)), 0)
    return sorted(tally.items())


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, float(value))


def _labelled(
    name: str,
    text: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float]],
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric([as_text(one) for one in values], value)
    return family
