"""Fixtures that the tests with real components share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab import epp
from lab.azure import Azure
from lab.gcs import GuardedGcs
from lab.kube import Kube
from lab.registry import Registry
from lab.s3 import S3
from lab.tls import Authority
from lab.tokens import Issuer
from tests.support.agent_process import AgentProcess
from tests.support.cluster_audit import Audit
from tests.support.pod_network import PodNetwork
from tests.support.pool_place import CRDS, NO_CRDS
from tests.support.vllm_lab import VllmLab
from tools.not_run import NotRun

StartAgent = Callable[..., AgentProcess]


def pytest_configure(config: pytest.Config) -> None:
    """Without a picker's binary, or the ecosystem's definitions, which nothing here can install,
    their tests are not run."""
    if epp.find() is None:
        config.pluginmanager.register(NotRun("epp", epp.MISSING))
    if not os.environ.get(CRDS):
        config.pluginmanager.register(NotRun("crds", NO_CRDS))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A real kube-apiserver with etcd; one that is not installed fails the test."""
    with Kube(tmp_path_factory.mktemp("kube")) as kube:
        yield kube


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """What is asked of ``audited_cluster``."""
    return Audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def audited_cluster(tmp_path_factory: pytest.TempPathFactory, audit: Audit) -> Iterator[Kube]:
    """Like ``cluster``; it may be killed and started again."""
    kube = Kube(tmp_path_factory.mktemp("kube"), apiserver_args=audit.apiserver_args())
    try:
        yield kube.start()
    finally:
        kube.kill()


@pytest.fixture(scope="module")
def network() -> Iterator[PodNetwork]:
    """The way from ``pod_cluster`` to its pods."""
    with PodNetwork() as network:
        yield network


@pytest.fixture(scope="module")
def pod_cluster(tmp_path_factory: pytest.TempPathFactory, network: PodNetwork) -> Iterator[Kube]:
    """Like ``cluster``; its pod proxy reaches pods."""
    work = tmp_path_factory.mktemp("kube")
    with Kube(work, apiserver_args=network.apiserver_args()) as kube:
        yield kube


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA for the servers that speak https."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Issuer]:
    """Gives tokens to workloads, as a cluster does to its pods."""
    with Issuer(tmp_path_factory.mktemp("issuer"), authority) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server with IAM; tests make buckets of their own names."""
    with S3(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[GuardedGcs]:
    """The emulator of Google Cloud Storage, with a door that asks for tokens."""
    with GuardedGcs(tmp_path_factory.mktemp("gcs"), issuer=issuer) as gcs:
        yield gcs


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    """The emulator of Azure Blob Storage."""
    with Azure(tmp_path_factory.mktemp("azure")) as azure:
        yield azure


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An open OCI registry."""
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


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
