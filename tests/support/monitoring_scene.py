"""A small cluster in which everything that is watched for goes wrong at once.

Real agents, fake engines (which fail on command), and a real Prometheus that scrapes the agents as
the PodMonitor says and evaluates the alerts without their waiting times.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

from adapters.fake.asgi import App
from adapters.fake.engine import FakeEngine, Faults
from adapters.fake.server import FakeServer
from adapters.fake.triton_face import triton_app
from adapters.fake.vllm_face import vllm_app
from lab.process import free_port
from lab.prometheus import Prometheus
from lab.web import post
from tests.support.agent_process import AgentProcess
from tests.support.loras import lora_shapes, write_tiny_lora
from tests.support.monitoring import Place, groups, rules, scrape_config

CHAT = ("ReplicaSet", "chat-5d4f8c7b9")
CHAT_LABELS = {"pod_template_hash": "5d4f8c7b9"}
SLOW_LOAD_SECONDS = 1.2
STORE_BYTES = 200_000


class Engines:
    """Fake engines on sockets, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._servers: dict[str, FakeServer] = {}

    def serve(self, app: App) -> str:
        """Listen; return the URL."""
        server = FakeServer(app)
        self._run(server.start())
        self._servers[server.url] = server
        return server.url

    def restart(self, url: str, engine: FakeEngine) -> None:
        """End the engine's process, its connections too, and start the next one."""
        self._run(self._servers[url].stop())
        engine.restart()
        self._run(self._servers[url].start())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers.values():
            self._run(server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Scene:
    """Agents by pod name, and the Prometheus that watches them."""

    def __init__(self, work: Path, engines: Engines) -> None:
        self.work = work
        self._engines = engines
        self.busy = FakeEngine(max_loras=2)
        # Its loads do not end.
        self.stuck = FakeEngine(faults=Faults(load_seconds=600))
        repository = work / "repository"
        repository.mkdir(parents=True)
        nobody = f"http://127.0.0.1:{free_port()}"
        self.chat_url = engines.serve(vllm_app(self.busy))
        stuck_url = engines.serve(vllm_app(self.stuck))
        triton_url = engines.serve(triton_app(FakeEngine(), repository))
        self.chat = self._agent("chat-0", "vllm", self.chat_url, f"--store-max-bytes={STORE_BYTES}")
        self.other = self._agent("chat-1", "vllm", engines.serve(vllm_app(FakeEngine())))
        self.slow = self._agent("slow-0", "vllm", stuck_url)
        self.idle = self._agent("idle-0", "vllm", nobody)
        # Its page of metrics is a port of its own, which is closed.
        self.scoring = self._agent(
            "scoring-0",
            "triton",
            triton_url,
            f"--engine-metrics-url={nobody}",
            f"--repository-dir={repository}",
        )
        self.agents = (self.chat, self.other, self.slow, self.idle, self.scoring)
        self.began = time.time_ns() / 1e9
        self.prometheus = Prometheus(work / "prometheus", self._config())

    def _agent(self, pod: str, engine: str, url: str, *flags: str) -> AgentProcess:
        flags = ("--resync-seconds=0.5", *flags)
        work = self.work / pod
        return AgentProcess(work, engine=engine, engine_urls=[url], flags=flags, pod_name=pod)

    def places(self) -> list[Place]:
        """Who is discovered: the agents, one that is gone, and a container that is none."""

        def address(agent: AgentProcess) -> str:
            return agent.url.removeprefix("http://")

        nobody = f"127.0.0.1:{free_port()}"
        revision = {"controller_revision_hash": "scoring-6c8"}
        return [
            Place(address=address(self.chat), pod="chat-0", controller=CHAT, labels=CHAT_LABELS),
            Place(address=address(self.other), pod="chat-1", controller=CHAT, labels=CHAT_LABELS),
            Place(address=nobody, pod="chat-2", controller=CHAT, labels=CHAT_LABELS),
            Place(address=nobody, pod="web-0", container="proxy", controller=CHAT),
            Place(address=address(self.slow), pod="slow-0"),
            Place(address=address(self.idle), pod="idle-0", controller=("ReplicaSet", "idle-set")),
            Place(
                address=address(self.scoring),
                pod="scoring-0",
                controller=("StatefulSet", "scoring"),
                labels=revision,
            ),
        ]

    def _config(self) -> dict[str, object]:
        spec = copy.deepcopy(groups())
        for rule in rules(spec):
            rule.pop("for", None)
        folder = self.work / "prometheus"
        folder.mkdir()
        (folder / "rules.yaml").write_text(json.dumps(spec))
        return {
            "global": {"evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [scrape_config(self.places())],
        }

    def play(self) -> None:
        """Let everything happen; the figures are in Prometheus when this returns."""
        self._begin()
        self._replace()
        self._spoil()
        self._restart_engine()
        self._pause_agent()

    def wait(self, what: str, look: Callable[[], bool], deadline: float = 30.0) -> None:
        """Look until it is so, or fail."""
        self.chat.wait_for(what, look, deadline)

    def wait_scraped(self, times: int = 2) -> None:
        """Wait until every agent that is there was scraped so often after now."""
        first = self._scrapes()
        self.wait("scrapes", lambda: self._scrapes() >= first + times)

    def _scrapes(self) -> float:
        found = self.prometheus.query("min(count_over_time(up[10m]))")
        return found[0].value if found else 0.0

    def _lora(self, place: str, **more: Any) -> str:
        return str(write_tiny_lora(self.work / "sources" / place, **more))

    def _begin(self) -> None:
        self.busy.running, self.busy.waiting, self.busy.kv_usage = 3, 2, 0.4
        for agent in (self.chat, self.other, self.idle, self.scoring, self.slow):
            agent.write([])
        self.scoring.wait_ready()
        self.slow.wait_ready()
        self.wait_scraped()
        self.chat.apply([{"name": "sql", "source": self._lora("sql-1", seed=1)}])
        self.wait_scraped()
        self.chat.apply(
            [
                {"name": "sql", "source": self._lora("sql-1", seed=1)},
                {"name": "law", "source": self._lora("law-1", seed=2)},
            ]
        )
        post(f"{self.chat_url}/v1/completions", {"model": "sql", "prompt": "x"})

    def _replace(self) -> None:
        """Twice another revision under the same name, by an engine that takes its time."""
        self.busy.faults.load_seconds = SLOW_LOAD_SECONDS
        for seed in (3, 4):
            self.wait_scraped()
            self.chat.apply(
                [
                    {"name": "sql", "source": self._lora(f"sql-{seed}", seed=seed)},
                    {"name": "law", "source": self._lora("law-1", seed=2)},
                ]
            )
        self.busy.faults.load_seconds = 0.0

    def _spoil(self) -> None:
        """Documents and targets that cannot be had."""
        large = lora_shapes(inputs=STORE_BYTES // 16)
        self.chat.edit(
            [
                {"name": "sql", "source": self._lora("sql-4", seed=4)},
                {"name": "law", "source": self._lora("law-1", seed=2)},
                {"name": "lost", "source": str(self.work / "sources" / "nowhere")},
                {"name": "huge", "source": self._lora("huge", shapes=large)},
            ]
        )
        self.chat.wait_target("huge", lambda one: one["reason"] == "StoreFull")
        self.chat.wait_target("lost", lambda one: one["reason"] == "NotFound")
        self.other.config.write({"models.yaml": "models: ["})
        self.other.wait_status(lambda status: status["document"]["problems"])
        self.slow.edit([{"name": "sql", "source": self._lora("sql-1", seed=1)}])
        nowhere = str(self.work / "sources" / "nowhere")
        self.scoring.edit([{"name": "fraud", "kind": "model", "source": nowhere}])
        self.scoring.wait_target("fraud", lambda one: one["state"] == "failed")

    def _restart_engine(self) -> None:
        for number in range(1, 5):
            self.wait_scraped(1)
            self._engines.restart(self.chat_url, self.busy)
            self._wait_restarts(number)
            self.chat.wait_target("sql", lambda one: one["state"] == "resident")

    def _wait_restarts(self, number: int) -> None:
        self.chat.wait_status(lambda status: status["engine"]["restarts"] >= number)

    def _pause_agent(self) -> None:
        """No CPU at all for three seconds."""
        for _ in range(2):
            os.kill(self.slow.pid, signal.SIGSTOP)
            time.sleep(3)
            os.kill(self.slow.pid, signal.SIGCONT)
            self.wait_scraped()

    def __enter__(self) -> Self:
        for agent in self.agents:
            agent.start()
        self.prometheus.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.prometheus.stop()
        for agent in self.agents:
            agent.stop()
