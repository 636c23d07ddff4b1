"""The engine of the benchmarks: the fake vLLM, which also says when each call came and ended.

`python -m bench.engine --port 8000 --load-seconds 0.001`. Beyond vLLM's own paths it answers
`GET /bench/calls` (load and unload calls since the last `POST /bench/reset`, times in nanoseconds
of CLOCK_MONOTONIC, which all processes of a machine share).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from adapters.fake.asgi import App, Message, Receive, Reply, Request, Send, make_app, reply_json
from adapters.fake.engine import FakeEngine, Faults
from adapters.fake.server import FakeServer
from adapters.fake.vllm_face import vllm_app

WATCHED = {"/v1/load_lora_adapter": "load", "/v1/unload_lora_adapter": "unload"}


@dataclass
class Record:
    """What the engine was asked since the last reset."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    scrapes: int = 0


def recording_app(inner: App, record: Record) -> App:
    """Return ``inner`` with each watched call written down."""

    async def answer(request: Request) -> Reply:
        if request.path == "/bench/reset":
            record.calls.clear()
            record.scrapes = 0
        return reply_json({"calls": record.calls, "scrapes": record.scrapes})

    own = make_app(answer)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        arrived = time.monotonic_ns()
        path = scope["path"]
        if path.startswith("/bench/"):
            await own(scope, receive, send)
            return
        record.scrapes += path in ("/metrics", "/metrics/")
        kind = WATCHED.get(path)
        if kind is None:
            await inner(scope, receive, send)
            return
        body = bytearray()

        async def reading() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await inner(scope, reading, send)
        name = json.loads(bytes(body)).get("lora_name")
        ended = time.monotonic_ns()
        record.calls.append({"kind": kind, "name": name, "arrived": arrived, "ended": ended})

    return app


async def serve(port: int, load_seconds: float) -> None:
    """Serve until SIGINT or SIGTERM."""
    engine = FakeEngine(max_cpu_loras=2000, faults=Faults(load_seconds=load_seconds))
    server = FakeServer(recording_app(vllm_app(engine), Record()), port=port)
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.cut)
    await server.wait_stopped()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.load_seconds))


if __name__ == "__main__":
    main()
