"""Fixtures that the tests with real components share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab.kube import Kube
from tests.support.agent_process import AgentProcess
from tests.support.vllm_lab import VllmLab

StartAgent = Callable[..., AgentProcess]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A real kube-apiserver with etcd; one that is not installed fails the test."""
    with Kube(tmp_path_factory.mktemp("kube")) as kube:
        yield kube


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[StartAgent]:
    """Start real agents, each in a directory of its own; all are stopped at the end.

    ``start_agent("vllm", [url], flags=[...])`` takes what ``AgentProcess`` takes.
    """
    agents: list[AgentProcess] = []
    numbers = count()

    def start(engine: str, urls: Sequence[str] = (), **more: Any) -> AgentProcess:
        work = tmp_path / f"agent-{next(numbers)}"
        agent = AgentProcess(work, engine=engine, engine_urls=urls, **more)
        agents.append(agent)
        return agent.start()

    try:
        yield start
    finally:
        for agent in agents:
            agent.stop()


@pytest.fixture(scope="session")
def vllm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmLab]:
    lab = VllmLab(tmp_path_factory.mktemp("vllm"))
    try:
        lab.server.start()
        yield lab
    finally:
        lab.server.kill()


@pytest.fixture
def engine(vllm_session: VllmLab) -> Iterator[VllmLab]:
    """The shared vLLM, alive, awake, and holding its own LoRA alone."""
    vllm_session.clear()
    yield vllm_session
    vllm_session.clear()
