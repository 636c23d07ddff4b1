"""The whole agent in this process, beside a fake engine and a mounted ConfigMap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base import EngineAdapter, EngineOptions
from adapters.fake import FakeAdapter, FakeEngine
from lab.configmap import MountedConfigMap
from sidecar.agent import Agent, open_tls
from sidecar.core.status import Status
from sidecar.opening import open_source
from sidecar.server import bound_port, open_sockets
from sidecar.settings import Settings

DEADLINE_SECONDS = 10.0


@dataclass(slots=True)
class Running:
    """An agent at work."""

    agent: Agent
    engine: FakeEngine
    config: MountedConfigMap
    port: int
    stop: asyncio.Event

    @property
    def status(self) -> Status:
        return self.agent.board.status

    def write(self, entries: Sequence[Mapping[str, Any]], **more: str) -> None:
        """Make a native document of ``entries`` the ConfigMap."""
        self.config.write({"models.yaml": json.dumps({"models": list(entries)}), **more})

    async def wait(
        self, condition: Callable[[Status], object], seconds: float = DEADLINE_SECONDS
    ) -> Status:
        """Wait for a status; fails with the last one."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition(self.status):
            left = end - loop.time()
            assert left > 0, f"no such status within {seconds:g} s: {self.status}"
            await self.agent.board.wait_changed(left)
        return self.status

    async def apply(self, entries: Sequence[Mapping[str, Any]], **more: str) -> Status:
        """Write a document and wait until it is converged."""
        before = self.status.document.generation
        self.write(entries, **more)
        return await self.wait(
            lambda status: status.converged and status.document.generation > before
        )

    async def get(self, path: str) -> tuple[int, str]:
        """Send one GET, return status code and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]), body


@asynccontextmanager
async def running_agent(
    work: Path,
    engine: FakeEngine | None = None,
    *,
    adapter: Callable[[FakeEngine, EngineOptions], EngineAdapter] = FakeAdapter,
    **flags: Any,
) -> AsyncIterator[Running]:
    """Run an agent whose settings are ``flags``; ends it in order."""
    engine = engine or FakeEngine()
    config = MountedConfigMap(work / "config")
    settings = Settings(
        **{
            "engine": "fake",
            "config_dir": str(config.path),
            "store_dir": str(work / "store"),
            "listen": "127.0.0.1:0",
            "resync_seconds": 0.2,
            "shutdown_grace_seconds": 1.0,
            "pod_name": "pod-0",
            "pod_uid": "uid-0",
            **flags,
        }
    )
    options = EngineOptions(
        url=settings.engine_url[0],
        load_timeout_seconds=settings.load_timeout_seconds,
        path_prefix=settings.engine_path_prefix,
        observe_timeout_seconds=1.0,
    )
    agent = Agent(settings, adapter=adapter(engine, options), source=open_source(settings))
    sockets = open_sockets(settings.listen)
    port, stop = bound_port(sockets), asyncio.Event()
    task = asyncio.create_task(agent.run(stop, sockets, open_tls(settings)))
    try:
        yield Running(agent=agent, engine=engine, config=config, port=port, stop=stop)
    finally:
        stop.set()
        await task
