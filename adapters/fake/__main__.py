"""Run a fake engine alone: ``python -m adapters.fake --shape vllm --port 8000``."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from adapters.fake.asgi import App
from adapters.fake.engine import FakeEngine, Faults
from adapters.fake.server import FakeServer
from adapters.fake.sglang_face import sglang_app
from adapters.fake.triton_face import triton_app
from adapters.fake.vllm_face import vllm_app


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; exit with a message when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m adapters.fake", description=__doc__)
    parser.add_argument("--shape", choices=("vllm", "triton", "sglang"), default="vllm")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--repository", type=Path, help="Triton: the model repository")
    parser.add_argument("--base-model", default="base", help="vLLM, SGLang: the served model name")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--max-loras", type=int, default=4)
    parser.add_argument("--max-cpu-loras", type=int, default=16)
    parser.add_argument("--max-lora-rank", type=int, default=64)
    parsed = parser.parse_args(arguments)
    if parsed.shape == "triton" and parsed.repository is None:
        parser.error("--shape triton needs --repository")
    return parsed


def open_app(arguments: argparse.Namespace, engine: FakeEngine) -> App:
    """Return the face that was asked for."""
    if arguments.shape == "triton":
        return triton_app(engine, arguments.repository)
    return sglang_app(engine) if arguments.shape == "sglang" else vllm_app(engine)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM, or until the engine dies."""
    engine = FakeEngine(
        base_model=arguments.base_model,
        max_loras=arguments.max_loras,
        max_cpu_loras=arguments.max_cpu_loras,
        max_lora_rank=arguments.max_lora_rank,
        faults=Faults(load_seconds=arguments.load_seconds),
    )
    server = FakeServer(open_app(arguments, engine), host=arguments.host, port=arguments.port)
    engine.on_death.append(server.cut)
    await server.start()
    print(f"fake {arguments.shape} at {server.url}", flush=True)  # noqa: T201 - a command's output
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.cut)
    await server.wait_stopped()


if __name__ == "__main__":
    asyncio.run(serve(parse_arguments()))
