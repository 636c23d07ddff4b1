"""The HTTP face of Triton 2.51 under explicit model control over a fake engine."""

from __future__ import annotations

import re
from pathlib import Path

from adapters.fake.asgi import App, Reply, Request, make_app, reply_json, reply_text
from adapters.fake.engine import DownError, FakeEngine, Refusal, RefusedError

CONTROL = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
MODEL = re.compile(r"/v2/models/([^/]+)/(ready|infer)")


def triton_app(engine: FakeEngine, repository: Path) -> App:
    """Return the application; its models are what ``repository`` has."""

    async def handle(request: Request) -> Reply:
        try:
            await engine.answer()
            return await _route(engine, repository, request)
        except DownError as exc:
            return _error(500, str(exc))
        except RefusedError as exc:
            if exc.refusal is Refusal.BROKEN:
                return reply_text(str(exc), 500)
            return _error(500 if exc.refusal is Refusal.NO_FILES else 400, str(exc))

    return make_app(handle)


async def _route(engine: FakeEngine, repository: Path, request: Request) -> Reply:
    match request.method, request.path:
        case "GET", "/v2/health/live":
            return Reply(200)
        case "GET", "/v2/health/ready":
            return Reply(400 if engine.failed else 200)
        case "POST", "/v2/repository/index":
            return reply_json(_index(engine, repository))
        case "GET", "/metrics":
            return Reply(200, render_metrics(engine), "text/plain; version=0.0.4")
    if control := CONTROL.fullmatch(request.path):
        return await _control(engine, repository, control[1], control[2])
    if model := MODEL.fullmatch(request.path):
        if model[2] == "ready":
            return Reply(200 if model[1] in engine.held else 400)
        digest = await engine.serve(model[1])
        output = {"name": "ANSWER", "datatype": "BYTES", "shape": [1], "data": [digest]}
        return reply_json({"model_name": model[1], "model_version": "1", "outputs": [output]})
    return _error(404, "Not Found")


async def _control(engine: FakeEngine, repository: Path, name: str, call: str) -> Reply:
    if call == "load":
        try:
            await engine.load_model(name, str(repository / name))
        except RefusedError as exc:
            if exc.refusal is not Refusal.FAILED:
                raise
            words = f"load failed for model '{name}': version 1 is at UNAVAILABLE state: {exc};"
            raise RefusedError(Refusal.FAILED, words) from exc
    else:
        try:
            await engine.unload(name)
        except RefusedError as exc:
            # Triton answers 200 to the unloading of anything.
            if exc.refusal is not Refusal.UNKNOWN:
                raise
    return Reply(200)


def _index(engine: FakeEngine, repository: Path) -> list[dict[str, str]]:
    """List the directories there are; a model whose directory is gone is served, and not listed."""
    listed = {one.name for one in engine.listed()}
    return [
        {"name": path.name, **_state(engine, path.name, listed)}
        for path in sorted(repository.iterdir())
        if path.is_dir()
    ]


def _state(engine: FakeEngine, name: str, listed: set[str]) -> dict[str, str]:
    if name in listed:
        return {"version": "1", "state": "READY"}
    if name in engine.loading:
        return {"version": "1", "state": "LOADING"}
    if name in engine.failed:
        return {"version": "1", "state": "UNAVAILABLE", "reason": engine.failed[name]}
    if engine.is_unloading(name):
        return {"version": "1", "state": "UNLOADING"}
    if name in engine.unloaded:
        return {"version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    return {}


def _error(status: int, words: str) -> Reply:
    return reply_json({"error": words}, status)


def render_metrics(engine: FakeEngine) -> bytes:
    """Return the page: the families that the agent reads, as Triton writes them."""
    lines = [
        "# TYPE nv_pinned_memory_pool_total_bytes gauge",
        "nv_pinned_memory_pool_total_bytes 268435456",
        "# TYPE nv_cpu_memory_total_bytes gauge",
        "nv_cpu_memory_total_bytes 25276514304",
    ]
    for family, kind, value in (
        ("nv_inference_request_duration_us", "counter", 0),
        ("nv_inference_queue_duration_us", "counter", 0),
        ("nv_inference_pending_request_count", "gauge", engine.waiting),
    ):
        lines.append(f"# TYPE {family} {kind}")
        lines += [f'{family}{{model="{name}",version="1"}} {value}' for name in engine.held]
    return ("\n".join(lines) + "\n").encode()
