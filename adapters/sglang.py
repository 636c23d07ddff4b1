"""SGLang: LoRAs beside its base model, loaded and unloaded at run time.

Everything here is read from the source of SGLang 0.5.23 and was never run against one:

- Loading and unloading answer 200 or 400 with ``{success, error_message, loaded_adapters}``; behind
  one lock, in order of arrival. With ``--dp-size`` above 1 they answer 500. A name of the base
  model is not refused, so it is refused here.
- An unload takes the name off the list, then **waits for the running requests** of the LoRA, and
  holds the lock meanwhile.
- **A request for an unloaded name loads it again**, from the last path that it was loaded from,
  for as long as the server lives. So an unload and a load are no replacement: whoever asks between
  them brings the old revision back. Here the load stands in line before the unload has begun;
  requests line up behind it, find the new one loaded, and are answered by it. None is refused.
- The prefix cache is keyed by an identity that each load gives anew: no path is unsafe to reuse.
- Weights stay in host memory, and no file is read again, except as said above; a file that is
  missing then costs that request a 400. Above ``--max-loaded-loras`` a load unloads another LoRA.
- A load puts nothing into a GPU slot (``--max-loras-per-batch``, one of them for the base model);
  requests do, and no page names the LoRAs that have any. ``Limits.max_loras`` stays unknown for
  that reason, and so everything that was loaded counts as resident.
- ``/v1/models``: a LoRA's ``root`` is its path and ``parent`` the served name; the base model's
  ``root`` is its own name. Clients ask a LoRA as ``<served name>:<LoRA>``, or with the field
  ``lora_path``; **a LoRA's name alone is answered by the base model**.
- No page says when the process started. Released memory (``/release_memory_occupation``) is told
  nowhere, so the engine is never known to sleep; ``/ready`` answers 503 while it starts, while it
  is paused and after it failed its own check of health.
- ``--api-key`` guards everything but ``/health``, ``/ready`` and ``/metrics``; ``--admin-api-key``
  takes its place for loading and unloading alone, so that both must be the same key.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from adapters.base import (
    Capabilities,
    EngineBusy,
    EngineError,
    EngineOptions,
    EngineRejected,
    EngineState,
    EngineUnavailable,
    EngineUnsupported,
    Kind,
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
    cut,
    deadline_words,
    map_engine_errors,
)
from adapters.model_cards import Card, base_cards, lora_cards, parse_cards, resident_lora
from adapters.sglang_answers import (
    ALREADY_LOADED,
    ENGINE,
    HALF_UNLOADED,
    UNKNOWN,
    ServerInfo,
    check_kind,
    lora_error,
    lora_parameters,
    parse_server_info,
    refusal_words,
)
from adapters.sglang_metrics import QUEUED_NOW, SGLANG_METRICS

LOAD_PATH = "/load_lora_adapter"
UNLOAD_PATH = "/unload_lora_adapter"
LOADS_PATH = "/v1/loads?include=core&format=prometheus"
INFO_PATHS = ("/server_info", "/get_server_info")
"""The newer name first."""
INFO_SECONDS = 1.0
"""It asks the scheduler, which may be busy."""
METRICS_SECONDS = 5.0
"""How old the page of metrics may be beside fresh loads: they have the figures that change."""
SWAPS = 4
"""How often one load may find that a request was faster and brought the old revision back."""


class SglangAdapter:
    """One SGLang server."""

    capabilities = Capabilities(
        kinds=frozenset({Kind.LORA}),
        serves_alone=True,
        replaces_in_place=True,
        reports_paths=True,
        warms=True,
        loras_after_base=True,
    )
    metric_map = SGLANG_METRICS

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._http = EngineHttp(ENGINE, options)
        self._metrics_url = options.metrics_url or "/metrics"
        # What a server was started with is asked for once a connection, which ends with it.
        self._known: WeakKeyDictionary[object, ServerInfo] = WeakKeyDictionary()
        self._info = ServerInfo()
        self._loaded: dict[str, dict[str, object]] = {}
        """How each LoRA was last loaded from here: of that SGLang tells the path alone."""
        self._metrics = b""
        self._metrics_until = float("-inf")

    @classmethod
    def open(cls, options: EngineOptions) -> SglangAdapter:
        """Open an adapter; nothing is sent yet."""
        return cls(options)

    async def observe(self) -> EngineState:
        """Ask whether it is ready, what it holds, and, once a connection, its limits."""
        seconds = self._options.observe_timeout_seconds
        with map_engine_errors(ENGINE), deadline_words(ENGINE, "a look at it", seconds):
            async with asyncio.timeout(seconds):
                try:
                    await self._check_ready()
                except EngineUnavailable:
                    # What answers next may be another process, with other limits.
                    self._info = ServerInfo()
                    raise
                answer = await self._models()
                self._info = await self._server_info(answer.connection)
        return self._state(parse_cards(ENGINE, answer))

    async def load(self, target: Target, path: str) -> None:
        """Load a LoRA, in the place of what it holds under this name, if it holds anything.

        When it refuses, what it held is loaded again.
        """
        check_kind(target)
        request = {
            "lora_name": target.name,
            "lora_path": engine_path(self._options, path),
            **lora_parameters(target),
        }
        seconds, what = self._load_seconds, f"the loading of {target.name!r}"
        with map_engine_errors(ENGINE), deadline_words(ENGINE, what, seconds):
            async with asyncio.timeout(seconds):
                await self._load(target.name, request)
        self._loaded[target.name] = request

    async def unload(self, target: Target) -> None:
        """Make it forget the name; it answers when the running requests are done."""
        check_kind(target)
        answer = await self._post(UNLOAD_PATH, {"lora_name": target.name})
        if answer.status != 200 and UNKNOWN not in refusal_words(answer):
            raise lora_error(UNLOAD_PATH, answer, self._info)
        self._loaded.pop(target.name, None)

    async def warm(self, target: Target) -> None:
        """Generate one token from one token: needs neither a tokenizer nor a chat template."""
        parameters = {"max_new_tokens": 1, "temperature": 0}
        payload = {"input_ids": [1], "sampling_params": parameters, "lora_path": target.name}
        answer = await self._post("/generate", payload)
        if answer.status == 404:
            raise EngineUnsupported("SGLang answers 404 for /generate: it generates no text")
        if words := refusal_words(answer):
            raise EngineRejected(f"SGLang refused a tiny request for {target.name!r}: {cut(words)}")
        check_status(ENGINE, "POST /generate", answer)

    async def scrape(self) -> tuple[bytes, ...]:
        """Return its loads and its metrics as one page."""
        self._metrics_until = float("-inf")
        return await self.scrape_figures()

    async def scrape_figures(self) -> tuple[bytes, ...]:
        """Return the same; beside the loads, metrics that may be some seconds old."""
        loads = await self._page(LOADS_PATH)
        now = asyncio.get_running_loop().time()
        # Without a replica's figures among them, the figures are those of the metrics.
        if loads is None or QUEUED_NOW not in loads or now >= self._metrics_until:
            metrics = await self._page(self._metrics_url)
            if loads is None and metrics is None:
                raise EngineUnsupported(
                    "SGLang answers 404 for /v1/loads and /metrics: start it with --enable-metrics"
                )
            self._metrics, self._metrics_until = metrics or b"", now + METRICS_SECONDS
        return (b"\n".join(page for page in (loads, self._metrics) if page),)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def _load_seconds(self) -> float:
        return load_timeout_seconds(self._options, Kind.LORA)

    async def _get(self, path: str, *, max_bytes: int = MAX_PAGE_BYTES) -> Answer:
        seconds = self._options.observe_timeout_seconds
        return await self._http.get(path, timeout=seconds, max_bytes=max_bytes)

    async def _post(self, path: str, payload: object) -> Answer:
        return await self._http.post(path, payload, timeout=self._load_seconds)

    async def _models(self) -> Answer:
        answer = await self._get("/v1/models")
        check_status(ENGINE, "GET /v1/models", answer)
        return answer

    async def _page(self, path: str) -> bytes | None:
        answer = await self._get(path)
        if answer.status == 404:
            return None
        check_status(ENGINE, f"GET {path.partition('?')[0]}", answer)
        return answer.body

    async def _check_ready(self) -> None:
        answer = await self._get("/ready")
        if answer.status == 503:
            raise EngineUnavailable("SGLang says that it is not ready: it starts, or is paused")
        # Older releases have no such route.
        if answer.status != 404:
            check_status(ENGINE, "GET /ready", answer)

    async def _server_info(self, connection: object) -> ServerInfo:
        if (known := self._known.get(connection)) is not None:
            return known
        for path in INFO_PATHS:
            try:
                answer = await self._http.get(path, timeout=INFO_SECONDS)
                if answer.status == 404:
                    continue
                check_status(ENGINE, f"GET {path}", answer)
                info = parse_server_info(answer.json())
            except EngineError:
                # Limits are not worth a look that fails: what was known holds until it answers.
                return self._info
            self._known[connection] = info
            return info
        self._known[connection] = ServerInfo()
        return ServerInfo()

    async def _held_path(self, name: str) -> str | None:
        """Return where the LoRA was loaded from; None when it holds none of this name."""
        cards = parse_cards(ENGINE, await self._models())
        if any(card["id"] == name for card in base_cards(cards)):
            raise EngineRejected(f"SGLang serves a base model named {name!r}")
        roots = [str(card.get("root") or "") for card in lora_cards(cards) if card["id"] == name]
        return roots[0] if roots else None

    async def _load(self, name: str, request: dict[str, object]) -> None:
        before = await self._held_path(name)
        held, in_the_way = before, before is not None
        for _ in range(SWAPS):
            if not in_the_way:
                answer = await self._post(LOAD_PATH, request)
            elif held is not None:
                answer = await self._swap(name, request)
            else:
                await self._post(UNLOAD_PATH, {"lora_name": name})
                answer = await self._post(LOAD_PATH, request)
            if answer.status == 200:
                return
            words = refusal_words(answer)
            in_the_way = ALREADY_LOADED in words or HALF_UNLOADED in words
            if not in_the_way:
                break
            held = await self._held_path(name)
            # Such as by an earlier call of ours, that timed out here and went on there.
            if held == request["lora_path"]:
                return
        if in_the_way:
            raise EngineBusy(f"SGLang goes on holding a former revision of {name!r}: {cut(words)}")
        error = lora_error(LOAD_PATH, answer, self._info)
        if before:
            await self._restore(name, before, error)
        raise error

    async def _swap(self, name: str, request: dict[str, object]) -> Answer:
        """Unload, with the load next in line; return the answer to the load.

        Requests stand in the line of SGLang's lock only while the name is off the list. So a load
        in front, which the held one makes fail, has the lock for one turn of the scheduler, in
        which unload and load find places next to each other.
        """
        # The connections come first, so that the three calls arrive together.
        await asyncio.gather(*(self._models() for _ in range(3)))
        answers = await asyncio.gather(
            self._post(LOAD_PATH, request),
            self._post(UNLOAD_PATH, {"lora_name": name}),
            self._post(LOAD_PATH, request),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        front, unload, load = (answer for answer in answers if isinstance(answer, Answer))
        if front.status == 200:
            return front
        if 200 not in (load.status, unload.status) and UNKNOWN not in refusal_words(unload):
            raise lora_error(UNLOAD_PATH, unload, self._info)
        return load

    async def _restore(self, name: str, path: str, error: EngineError) -> None:
        """Load what a refused load took the place of."""
        request = self._loaded.get(name, {})
        if request.get("lora_path") != path:
            request = {"lora_name": name, "lora_path": path}
        answer = await self._post(LOAD_PATH, request)
        # A request may have brought it back.
        if answer.status != 200 and ALREADY_LOADED not in refusal_words(answer):
            again = lora_error(LOAD_PATH, answer, self._info)
            raise type(error)(f"{error}; and its former revision is gone: {again}") from error

    def _state(self, cards: tuple[Card, ...]) -> EngineState:
        base = base_cards(cards)
        path = self._info.model_path
        return EngineState(
            residents=tuple(resident_lora(self._options, card) for card in lora_cards(cards)),
            base_names=frozenset(str(card["id"]) for card in base),
            base_model=str(base[0]["id"]) if base else None,
            base_model_path=agent_path(self._options, path) if path is not None else None,
            limits=self._info.limits,
        )
