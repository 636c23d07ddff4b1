"""The HTTP face of SGLang 0.5.23 over a fake engine, written from its documented protocol.

No real SGLang was ever run beside it: what it does is what SGLang's source and documentation say.
"""

from __future__ import annotations

import asyncio

from adapters.base import Kind
from adapters.fake.asgi import App, Reply, Request, make_app, reply_json, reply_text
from adapters.fake.engine import DownError, FakeEngine, Refusal, RefusedError

PAGE_SIZE = 16
NUM_PAGES = 4096
SCHEDULER_SECONDS = 0.01
"""Every load and unload crosses to the scheduler, and waits there for the end of a step."""
NOT_ENABLED = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."


def sglang_app(
    engine: FakeEngine,
    *,
    enable_lora: bool = True,
    enable_metrics: bool = True,
    replicas: int = 1,
) -> App:
    """Return the application; ``replicas`` is ``--dp-size``."""
    engine.rereads = False
    face = _Face(engine, enable_lora=enable_lora, replicas=replicas)
    missing = reply_json({"detail": "Not Found"}, 404)

    async def handle(request: Request) -> Reply:
        try:
            await engine.answer()
            match request.method, request.path:
                case "GET", "/health":
                    return reply_text("")
                case "GET", "/ready":
                    return reply_text("", 503 if engine.faults.asleep else 200)
                case "GET", "/v1/models":
                    return reply_json({"object": "list", "data": face.cards()})
                case "GET", "/server_info":
                    return reply_json(face.server_info())
                case "GET", "/v1/loads":
                    return Reply(200, render_loads(engine, replicas), "text/plain; version=0.0.4")
                case "GET", "/metrics" if enable_metrics:
                    return Reply(200, render_metrics(engine), "text/plain; version=0.0.4")
                case "POST", "/load_lora_adapter":
                    return await face.load(request)
                case "POST", "/unload_lora_adapter":
                    return await face.unload(request)
                case "POST", "/generate":
                    return await face.generate(request)
                case "POST", "/v1/completions":
                    return await face.complete(request)
                case _:
                    return missing
        except DownError as exc:
            return reply_text(str(exc), 500)
        except RefusedError as exc:
            # Only an engine that was told to be broken refuses what no route expects.
            return reply_text(str(exc), 500)

    return make_app(handle)


class _Face:
    """What SGLang keeps beside the engine: its lock, and the paths it ever loaded from."""

    def __init__(self, engine: FakeEngine, *, enable_lora: bool, replicas: int) -> None:
        self._engine = engine
        self._enable_lora = enable_lora
        self._replicas = replicas
        self._lock = asyncio.Lock()
        self._paths: dict[str, str] = {}
        """The last path of every name, least recently used first; an unload forgets none."""
        self._started_at = engine.started_at

    def cards(self) -> list[dict[str, object]]:
        base = self._engine.base_model
        shared = {"object": "model", "owned_by": "sglang", "created": 1}
        return [
            {"id": base, "root": base, "parent": None, **shared},
            *(
                {"id": one.name, "root": one.path, "parent": base, **shared}
                for one in self._engine.listed()
                if one.kind is Kind.LORA
            ),
        ]

    def server_info(self) -> dict[str, object]:
        return {
            "model_path": self._engine.base_model_path,
            "served_model_name": self._engine.base_model,
            "enable_lora": self._enable_lora,
            "max_loras_per_batch": self._engine.max_loras,
            "max_loaded_loras": self._engine.max_cpu_loras,
            "max_lora_rank": self._engine.max_lora_rank,
            "dp_size": self._replicas,
            "version": "0.5.23",
        }

    async def load(self, request: Request) -> Reply:
        body = request.json()
        name, path = body.get("lora_name"), body.get("lora_path")
        if not isinstance(name, str) or not isinstance(path, str):
            message = "[{'type': 'missing', 'msg': 'Field required'}]"
            return reply_json({"object": "error", "message": message, "code": 400}, 400)
        if (refused := self._refused()) is not None:
            return refused
        return self._answer(await self._load(name, path))

    async def unload(self, request: Request) -> Reply:
        name = str(request.json().get("lora_name", ""))
        if (refused := self._refused()) is not None:
            return refused
        async with self._lock:
            self._forget_former_life()
            try:
                await self._engine.unload(name)
            except RefusedError as exc:
                if exc.refusal is Refusal.BROKEN:
                    raise
                return self._answer(f"LoRA with name {name} does not exist. Loaded LoRAs: ...")
            await self._wait_for_running_requests()
        return self._answer("")

    async def generate(self, request: Request) -> Reply:
        name = request.json().get("lora_path")
        try:
            text = await self._serve(name if isinstance(name, str) else None)
        except RefusedError as exc:
            return reply_json({"error": {"message": str(exc)}}, 400)
        return reply_json({"text": text, "meta_info": {}})

    async def complete(self, request: Request) -> Reply:
        body = request.json()
        # A name without a colon is the base model, whatever it is.
        _, _, name = str(body.get("model", "")).partition(":")
        try:
            text = await self._serve(name or body.get("lora_path"))
        except RefusedError as exc:
            error = {"object": "error", "message": str(exc), "type": "BadRequest", "code": 400}
            return reply_json(error, 400)
        choice = {"index": 0, "text": text, "finish_reason": "length"}
        return reply_json({"object": "text_completion", "choices": [choice]})

    async def _serve(self, name: str | None) -> str:
        if name is None:
            return await self._engine.serve(self._engine.base_model)
        self._forget_former_life()
        if name not in self._engine.held:
            if name not in self._paths:
                words = f"Got LoRA adapter that has never been loaded: {name}"
                raise RefusedError(Refusal.UNKNOWN, words)
            words = await self._load(name, self._paths[name])
            if words and "already loaded" not in words:
                raise RefusedError(
                    Refusal.FAILED, f"Failed to implicitly load LoRA adapter {name}: {words}"
                )
        self._paths[name] = self._paths.pop(name)
        return await self._engine.serve(name)

    async def _load(self, name: str, path: str) -> str:
        """Load behind the lock; return the words of a refusal."""
        async with self._lock:
            self._forget_former_life()
            await asyncio.sleep(SCHEDULER_SECONDS)  # noqa: TID251 - a step is to take this long
            if name in self._engine.held:
                return f"Failed to load LoRA adapter {name} because it is already loaded"
            try:
                await self._engine.load_lora(name, path)
            except RefusedError as exc:
                if exc.refusal is Refusal.BROKEN:
                    raise
                return str(exc)
            self._paths.pop(name, None)
            self._paths[name] = path
            for other in [one for one in self._paths if one in self._engine.held]:
                if len(self._engine.held) <= self._engine.max_cpu_loras:
                    break
                await self._engine.unload(other)
            return ""

    async def _wait_for_running_requests(self) -> None:
        seconds = self._engine.faults.unload_seconds
        await asyncio.sleep(seconds)  # noqa: TID251 - running requests are to take this long

    def _forget_former_life(self) -> None:
        if self._started_at != self._engine.started_at:
            self._started_at = self._engine.started_at
            self._paths.clear()

    def _refused(self) -> Reply | None:
        if not self._enable_lora:
            return self._answer(NOT_ENABLED)
        if self._replicas > 1:
            # An assertion fails, which nothing catches.
            return reply_text("Internal Server Error", 500)
        return None

    def _answer(self, words: str) -> Reply:
        loaded = {one.name: one.path for one in self._engine.listed()}
        body = {"success": not words, "error_message": words, "loaded_adapters": loaded}
        return reply_json(body, 400 if words else 200)


def render_loads(engine: FakeEngine, replicas: int = 1) -> bytes:
    """Return ``/v1/loads`` in the text format, the whole load on the first replica."""
    lines: list[str] = []
    for name, value in (
        ("sglang_num_running_reqs", engine.running),
        ("sglang_num_waiting_reqs", engine.waiting),
        ("sglang_max_total_num_tokens", PAGE_SIZE * NUM_PAGES),
        ("sglang_token_usage", engine.kv_usage),
    ):
        lines += [f"# TYPE {name} gauge", f'{name}{{dp_rank="0"}} {value}']
        lines += [f'{name}{{dp_rank="{rank}"}} 0' for rank in range(1, replicas)]
    return ("\n".join(lines) + "\n").encode()


def render_metrics(engine: FakeEngine) -> bytes:
    """Return the page: the families that the agent reads, as SGLang writes them."""
    labels = (
        f'{{engine_type="unified",model_name="{engine.base_model}",'
        'moe_ep_rank="0",pp_rank="0",tp_rank="0"}'
    )
    lines: list[str] = []
    for name, value in (
        ("sglang:num_running_reqs", engine.running),
        ("sglang:num_queue_reqs", engine.waiting),
        ("sglang:token_usage", engine.kv_usage),
        ("sglang:lora_pool_slots_used", 0),
        ("sglang:lora_pool_slots_total", engine.max_loras),
        ("sglang:page_size", PAGE_SIZE),
        ("sglang:num_pages", NUM_PAGES),
    ):
        lines += [f"# TYPE {name} gauge", f"{name}{labels} {float(value)}"]
    return ("\n".join(lines) + "\n").encode()
