"""The HTTP face of vLLM 0.32 over a fake engine."""

from __future__ import annotations

import time

from adapters.base import Kind
from adapters.fake.asgi import App, Reply, Request, make_app, reply_json, reply_text
from adapters.fake.engine import DownError, FakeEngine, Refusal, RefusedError

STATUS = {
    Refusal.NO_FILES: (404, "NotFoundError"),
    Refusal.UNKNOWN: (404, "NotFoundError"),
    Refusal.HELD: (400, "InvalidUserInput"),
    Refusal.BASE_NAME: (400, "InvalidUserInput"),
    Refusal.FAILED: (500, "InternalServerError"),
}


def vllm_app(engine: FakeEngine, *, runtime_loading: bool = True, development: bool = True) -> App:
    """Return the application.

    ``runtime_loading`` is VLLM_ALLOW_RUNTIME_LORA_UPDATING, ``development`` VLLM_SERVER_DEV_MODE.
    """
    missing = reply_json({"detail": "Not Found"}, 404)

    async def handle(request: Request) -> Reply:
        try:
            await engine.answer()
            match request.method, request.path:
                case "GET", "/health":
                    return reply_text("")
                case "GET", "/v1/models":
                    return reply_json({"object": "list", "data": _cards(engine)})
                case "GET", "/metrics" | "/metrics/":
                    # Below /metrics vLLM leaves out what name[] does not list: here, nothing.
                    return Reply(200, render_metrics(engine), "text/plain; version=0.0.4")
                case "GET", "/is_sleeping" if development:
                    return reply_json({"is_sleeping": engine.faults.asleep})
                case "GET", "/server_info" if development:
                    return reply_json({"vllm_config": {"lora_config": _lora_config(engine)}})
                case "POST", "/v1/load_lora_adapter" if runtime_loading:
                    return await _load(engine, request)
                case "POST", "/v1/unload_lora_adapter" if runtime_loading:
                    name = str(request.json().get("lora_name", ""))
                    await engine.unload(name)
                    return reply_text(f"Success: LoRA adapter '{name}' removed successfully.")
                case "POST", "/v1/completions":
                    return await _complete(engine, request)
                case _:
                    return missing
        except DownError:
            return _error(500, "InternalServerError", "EngineCore encountered an issue.")
        except RefusedError as exc:
            if exc.refusal is Refusal.BROKEN:
                return reply_text(str(exc), 500)
            return _error(*STATUS[exc.refusal], str(exc))

    return make_app(handle)


async def _load(engine: FakeEngine, request: Request) -> Reply:
    body = request.json()
    name, path = body.get("lora_name"), body.get("lora_path")
    if not isinstance(name, str) or not isinstance(path, str) or not name or not path:
        words = "Both 'lora_name' and 'lora_path' must be provided."
        return _error(400, "InvalidUserInput", words)
    await engine.load_lora(name, path)
    return reply_text(f"Success: LoRA adapter '{name}' added successfully.")


async def _complete(engine: FakeEngine, request: Request) -> Reply:
    name = str(request.json().get("model", ""))
    digest = await engine.serve(name)
    choice = {"index": 0, "text": digest, "logprobs": None, "finish_reason": "length"}
    return reply_json(
        {
            "id": "cmpl-fake",
            "object": "text_completion",
            "created": int(time.time_ns() / 1e9),
            "model": name,
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    )


def _cards(engine: FakeEngine) -> list[dict[str, object]]:
    base = engine.base_model
    shared = {"object": "model", "owned_by": "vllm", "created": int(time.time_ns() / 1e9)}
    return [
        {"id": base, "root": engine.base_model_path, "parent": None, **shared},
        *(
            {"id": one.name, "root": one.path, "parent": base, **shared}
            for one in engine.listed()
            if one.kind is Kind.LORA
        ),
    ]


def _lora_config(engine: FakeEngine) -> dict[str, int]:
    return {
        "max_loras": engine.max_loras,
        "max_cpu_loras": engine.max_cpu_loras,
        "max_lora_rank": engine.max_lora_rank,
    }


def _error(status: int, kind: str, message: str) -> Reply:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return reply_json({"error": error}, status)


def render_metrics(engine: FakeEngine) -> bytes:
    """Return the page: the families that the agent reads, as vLLM writes them."""
    labels = f'{{engine="0",model_name="{engine.base_model}"}}'
    lines = [
        "# TYPE process_start_time_seconds gauge",
        f"process_start_time_seconds {engine.started_at!r}",
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{labels} {engine.running}",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{labels} {engine.waiting}",
        "# TYPE vllm:kv_cache_usage_perc gauge",
        f"vllm:kv_cache_usage_perc{labels} {engine.kv_usage}",
        "# TYPE vllm:cache_config_info gauge",
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0',
        "# TYPE vllm:lora_requests_info gauge",
    ]
    for names, changed_at in engine.lora_activity.items():
        shown = ",".join(names)
        lines.append(
            f'vllm:lora_requests_info{{max_lora="{engine.max_loras}",'
            f'running_lora_adapters="{shown}",waiting_lora_adapters="{shown}"}} {changed_at!r}'
        )
    return ("\n".join(lines) + "\n").encode()
