"""The port over a fake engine in this very process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapters.base import (
    CacheInfo,
    Capabilities,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnavailable,
    Kind,
    Limits,
    MetricMap,
    Resident,
    Series,
    Target,
    agent_path,
    engine_path,
    load_timeout_seconds,
    path_aliases,
)
from adapters.fake.engine import DownError, FakeEngine, Refusal, RefusedError
from adapters.fake.vllm_face import render_metrics

FAKE_METRICS = MetricMap(
    queued=(Series(name="vllm:num_requests_waiting"),),
    running=(Series(name="vllm:num_requests_running"),),
    kv_usage=(Series(name="vllm:kv_cache_usage_perc"),),
    cache=(CacheInfo(info=Series(name="vllm:cache_config_info")),),
    lora_activity=Series(name="vllm:lora_requests_info"),
    started_at=Series(name="process_start_time_seconds"),
)


class FakeAdapter:
    """One fake engine that holds models and LoRAs alike."""

    capabilities = Capabilities(
        kinds=frozenset(Kind),
        serves_alone=True,
        replaces_in_place=False,
        reports_paths=True,
        warms=True,
        sleeps=True,
    )
    metric_map = FAKE_METRICS

    def __init__(self, engine: FakeEngine, options: EngineOptions) -> None:
        self.engine = engine
        self._options = options

    @classmethod
    def open(cls, options: EngineOptions) -> FakeAdapter:
        """Open an adapter over an engine of its own; the URL is not used."""
        return cls(FakeEngine(), options)

    async def observe(self) -> EngineState:
        """Look at the engine."""
        async with self._asking(self._options.observe_timeout_seconds):
            await self.engine.answer()
        engine = self.engine
        return EngineState(
            residents=tuple(
                Resident(
                    name=one.name,
                    kind=one.kind,
                    paths=frozenset({agent_path(self._options, one.path)}),
                    aliases=path_aliases(self._options, one.path),
                )
                for one in engine.listed()
            ),
            base_names=frozenset({engine.base_model}),
            base_model=engine.base_model,
            base_model_path=engine.base_model_path,
            started_at=engine.started_at,
            asleep=engine.faults.asleep,
            limits=Limits(
                max_loras=engine.max_loras,
                max_cpu_loras=engine.max_cpu_loras,
                max_lora_rank=engine.max_lora_rank,
            ),
        )

    async def load(self, target: Target, path: str) -> None:
        """Load from a path; a name that is held from this path is held."""
        _check_parameters(target)
        theirs = engine_path(self._options, path)
        async with self._asking(load_timeout_seconds(self._options, target.kind)):
            held = self.engine.held.get(target.name)
            if held is not None and held.path == theirs:
                await self.engine.answer()
            elif held is not None:
                raise EngineRejected(
                    f"the engine already holds {target.name!r} from {held.path}: unload it first"
                )
            elif target.name == self.engine.base_model:
                raise EngineRejected(f"the engine serves {target.name!r} by itself")
            elif target.kind is Kind.LORA:
                await self.engine.load_lora(target.name, theirs)
            else:
                await self.engine.load_model(target.name, theirs)

    async def unload(self, target: Target) -> None:
        """Make the engine forget the target."""
        async with self._asking(load_timeout_seconds(self._options, target.kind)):
            try:
                await self.engine.unload(target.name)
            except RefusedError as exc:
                if exc.refusal is not Refusal.UNKNOWN:
                    raise

    async def warm(self, target: Target) -> None:
        """Have one request answered."""
        async with self._asking(load_timeout_seconds(self._options, target.kind)):
            await self.engine.serve(target.name)

    async def scrape(self) -> tuple[bytes, ...]:
        """Return the engine's page."""
        async with self._asking(self._options.observe_timeout_seconds):
            await self.engine.answer()
        return (render_metrics(self.engine),)

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""

    @asynccontextmanager
    async def _asking(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as exc:
            raise EngineTimeout(f"the engine did not answer within {seconds:g} s") from exc
        except DownError as exc:
            raise EngineUnavailable(f"the engine does not answer: {exc}") from exc
        except RefusedError as exc:
            if exc.refusal is Refusal.BROKEN:
                raise EngineProtocolError(f"the engine answered with an error: {exc}") from exc
            raise EngineRejected(f"the engine refused: {exc}") from exc


def _check_parameters(target: Target) -> None:
    for name in target.parameters:
        raise EngineRejected(f"this engine takes no parameter {name!r}")
