"""vLLM: LoRAs over its OpenAI server, loaded and unloaded at run time.

vLLM keys its prefix cache by the name and the path of a LoRA, so another revision must come from
another path, after an unload; ``load_inplace`` would mix weights inside running answers and is
never asked for.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from adapters.base import (
    CacheInfo,
    Capabilities,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnsupported,
    Kind,
    Limits,
    MetricMap,
    Series,
    Target,
    agent_path,
    engine_path,
    load_timeout_seconds,
)
from adapters.http import (
    MAX_PAGE_BYTES,
    Answer,
    EngineHttp,
    check_status,
    deadline_words,
    map_engine_errors,
)
from adapters.model_cards import (
    Card,
    base_cards,
    lora_cards,
    parse_cards,
    resident_lora,
)
from adapters.vllm_answers import (
    ENGINE,
    check_kind,
    lora_error,
    lora_parameters,
    parse_error,
    parse_limits,
    server_error,
)
from adapters.vllm_figures import FiguresPage
from adapters.vllm_overlap import FAMILY, Gate, InFlight, read_in_flight

LOAD_PATH = "/v1/load_lora_adapter"
UNLOAD_PATH = "/v1/unload_lora_adapter"
LIMITS_PATH = "/server_info?config_format=json"
ALREADY_LOADED = "already been loaded"
LOOKS = 2
LIMITS_SECONDS = 1.0
"""A development server collects facts about its machine, for seconds, before it first answers."""

VLLM_METRICS = MetricMap(
    queued=(Series(name="vllm:num_requests_waiting"),),
    running=(Series(name="vllm:num_requests_running"),),
    kv_usage=(
        Series(name="vllm:kv_cache_usage_perc"),
        Series(name="vllm:gpu_cache_usage_perc"),
    ),
    cache=(CacheInfo(info=Series(name="vllm:cache_config_info")),),
    lora_activity=Series(name=FAMILY),
    started_at=Series(name="process_start_time_seconds"),
)

_STARTED_AT = re.compile(rb"^process_start_time_seconds(?:\{[^\n]*\})? ([0-9.eE+-]+)", re.MULTILINE)
_MAX_LORA = re.compile(rb'^vllm:lora_requests_info\{[^\n]*max_lora="(\d+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Incarnation:
    """What does not change while one engine process lives."""

    started_at: float | None
    sleeps: bool
    """It has ``/is_sleeping`` (a development server)."""
    limits: Limits | None
    """None: it did not say in time, and is asked again."""


class VllmAdapter:
    """One vLLM server."""

    capabilities = Capabilities(
        kinds=frozenset({Kind.LORA}),
        serves_alone=True,
        replaces_in_place=False,
        reports_paths=True,
        warms=True,
        sleeps=True,
    )
    metric_map = VLLM_METRICS

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._http = EngineHttp(ENGINE, options)
        self._metrics_url = options.metrics_url or "/metrics"
        self._figures = FiguresPage(self._metrics_url, VLLM_METRICS)
        # Its page of metrics costs vLLM 10 ms, so its start time is read once a connection.
        self._known: WeakKeyDictionary[object, _Incarnation] = WeakKeyDictionary()
        self._last: _Incarnation | None = None
        self._gate = Gate(self._in_flight)

    @classmethod
    def open(cls, options: EngineOptions) -> VllmAdapter:
        """Open an adapter; nothing is sent yet."""
        return cls(options)

    async def observe(self) -> EngineState:
        """List the models, and tell which incarnation listed them."""
        seconds = self._options.observe_timeout_seconds
        with map_engine_errors(ENGINE), deadline_words(ENGINE, "a look at it", seconds):
            async with asyncio.timeout(seconds):
                answer, incarnation = await self._look()
                asleep = incarnation.sleeps and await self._is_asleep()
        return self._state(parse_cards(ENGINE, answer), incarnation, asleep)

    async def load(self, target: Target, path: str) -> None:
        """Load a LoRA from a path that this name was never loaded from with other bytes.

        Waits for the requests of the revision before it where they would end the engine.
        """
        check_kind(target)
        await self._gate.enter(target.name)
        theirs = engine_path(self._options, path)
        payload = {"lora_name": target.name, "lora_path": theirs, **lora_parameters(target)}
        answer = await self._http.post(LOAD_PATH, payload, timeout=self._load_seconds)
        if answer.status == 200:
            return
        _, message = parse_error(answer)
        if answer.status == 400 and ALREADY_LOADED in message:
            await self._accept_if_same(target.name, theirs)
            return
        self._gate.overlaps.refused(target.name)
        raise lora_error(LOAD_PATH, answer)

    async def unload(self, target: Target) -> None:
        """Make vLLM forget the name; running answers keep their weights to the last token."""
        check_kind(target)
        self._gate.overlaps.unloaded(target.name, asyncio.get_running_loop().time())
        answer = await self._http.post(
            UNLOAD_PATH, {"lora_name": target.name}, timeout=self._load_seconds
        )
        if answer.status == 200 or (
            answer.status == 404 and parse_error(answer)[0] == "NotFoundError"
        ):
            return
        raise lora_error(UNLOAD_PATH, answer)

    async def warm(self, target: Target) -> None:
        """Generate one token from one token: needs neither a tokenizer nor a chat template."""
        payload = {"model": target.name, "prompt": [1], "max_tokens": 1, "temperature": 0}
        answer = await self._http.post("/v1/completions", payload, timeout=self._load_seconds)
        if answer.status == 200:
            return
        kind, message = parse_error(answer)
        if answer.status == 404 and kind != "NotFoundError":
            raise EngineUnsupported("vLLM answers 404 for /v1/completions: it generates no text")
        if answer.status in (400, 404, 422):
            raise EngineRejected(f"vLLM refused a tiny request for {target.name!r}: {message}")
        raise server_error("POST /v1/completions", answer)

    async def scrape(self) -> tuple[bytes, ...]:
        """Return the page of this server."""
        return (await self._whole_page(),)

    async def scrape_figures(self) -> tuple[bytes, ...]:
        """Return the figures alone where this server leaves out the rest, else its page."""
        figures = self._figures
        if not figures.is_offered:
            pages = await self.scrape()
            figures.rest()
            return pages
        answer = await self._page(figures.ask())
        narrow = answer.body if answer.status == 200 else b""
        if figures.accept(narrow):
            return (narrow,)
        (whole,) = await self.scrape()
        figures.compare(narrow, whole)
        return (whole,)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _in_flight(self) -> InFlight:
        answer = await self._page(self._figures.url)
        # Where no LoRA had a request yet, the family is on neither page.
        if answer.status == 200 and FAMILY.encode() in answer.body:
            return read_in_flight(answer.body)
        return read_in_flight(await self._whole_page())

    @property
    def _load_seconds(self) -> float:
        return load_timeout_seconds(self._options, Kind.LORA)

    async def _models(self) -> Answer:
        answer = await self._get("/v1/models")
        check_status(ENGINE, "GET /v1/models", answer)
        return answer

    async def _whole_page(self) -> bytes:
        answer = await self._page(self._metrics_url)
        check_status(ENGINE, "GET /metrics", answer)
        return answer.body

    async def _page(self, url: str) -> Answer:
        return await self._http.get(
            url, timeout=self._options.observe_timeout_seconds, max_bytes=MAX_PAGE_BYTES
        )

    async def _get(self, path: str) -> Answer:
        return await self._http.get(path, timeout=self._options.observe_timeout_seconds)

    async def _look(self) -> tuple[Answer, _Incarnation]:
        """Ask for models and incarnation such that both are of one process.

        One connection ends in one process: a start time that was read between two answers over
        one connection is that of the process which answered.
        """
        answer = await self._models()
        incarnation = self._known.get(answer.connection)
        for _ in range(LOOKS):
            if incarnation is not None:
                break
            found = await self._incarnation(await self._whole_page())
            again = await self._models()
            if found.limits is None:
                # The deadline closed the connection, so that another round tells no more.
                incarnation = found
            elif again.connection is answer.connection:
                self._known[answer.connection] = incarnation = found
            answer = again
        return answer, incarnation or found

    async def _incarnation(self, page: bytes) -> _Incarnation:
        match = _STARTED_AT.search(page)
        started_at = float(match[1]) if match else None
        last = self._last
        if last is not None and started_at is not None and last.started_at == started_at:
            return last
        sleeps = (await self._get("/is_sleeping")).status != 404
        found = _Incarnation(started_at, sleeps, await self._limits(page))
        self._last = found if found.limits is not None else None
        return found

    async def _limits(self, page: bytes) -> Limits | None:
        """Read the limits where a development server tells them, else what the page tells."""
        try:
            answer = await self._http.get(LIMITS_PATH, timeout=LIMITS_SECONDS)
        except EngineTimeout:
            return None
        if answer.status == 200:
            return parse_limits(answer.json())
        # The page has this label only once a LoRA had a request.
        match = _MAX_LORA.search(page)
        return Limits(max_loras=int(match[1]) if match else None)

    async def _is_asleep(self) -> bool:
        answer = await self._get("/is_sleeping")
        if answer.status != 200:
            raise server_error("GET /is_sleeping", answer)
        body = answer.json()
        asleep = body.get("is_sleeping") if isinstance(body, dict) else None
        if not isinstance(asleep, bool):
            raise EngineProtocolError(f"vLLM answered /is_sleeping with {answer.words}")
        return asleep

    async def _accept_if_same(self, name: str, path: str) -> None:
        """Take "already loaded" for success when a look shows the name from this very path."""
        for card in lora_cards(parse_cards(ENGINE, await self._models())):
            if card["id"] == name:
                if card.get("root") == path:
                    return
                raise EngineRejected(
                    f"vLLM already holds {name!r} from {card.get('root')}: unload it first"
                )
        raise EngineRejected(f"vLLM says that {name!r} is loaded, and does not list it")

    def _state(
        self, cards: tuple[Card, ...], incarnation: _Incarnation, asleep: bool
    ) -> EngineState:
        base = base_cards(cards)
        held = frozenset(str(card["id"]) for card in lora_cards(cards))
        self._gate.overlaps.listed(held, asyncio.get_running_loop().time())
        first_root = base[0].get("root") if base else None
        return EngineState(
            residents=tuple(resident_lora(self._options, card) for card in lora_cards(cards)),
            base_names=frozenset(str(card["id"]) for card in base),
            base_model=str(base[0]["id"]) if base else None,
            base_model_path=(
                agent_path(self._options, first_root) if isinstance(first_root, str) else None
            ),
            started_at=incarnation.started_at,
            asleep=asleep,
            limits=incarnation.limits or Limits(),
        )
