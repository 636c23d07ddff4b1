"""The contract over the real engines: what the fakes promise is what these do."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from adapters.base import EngineAdapter, EngineOptions, EngineUnsupported, Kind, Limits, Target
from adapters.triton import TritonAdapter
from adapters.vllm import VllmAdapter
from lab import triton, vllm
from lab.tiny_model import write_base_model, write_lora
from lab.triton import Triton, write_python_model
from lab.vllm import Vllm
from lab.web import get
from tests.support.engine_contract import EngineContract, replace, resident_names

# These machines are shared with other engines that start.
PATIENCE_SECONDS = 60.0


class TritonRig:
    kind = Kind.MODEL

    def __init__(self, work: Path, repository: Path, server: Triton) -> None:
        self.work = work
        self.server = server
        options = EngineOptions(
            url=server.url,
            metrics_url=server.metrics_url,
            repository_dir=str(repository),
            observe_timeout_seconds=PATIENCE_SECONDS,
        )
        self.adapter: EngineAdapter = TritonAdapter.open(options)
        self._numbers = count()

    def write(self, seed: int) -> str:
        directory = self.work / "store" / f"revision-{next(self._numbers)}"
        return str(write_python_model(directory, answer=f"answer {seed}"))

    def nonsense(self) -> str:
        directory = self.work / "store" / f"broken-{next(self._numbers)}"
        return str(write_python_model(directory, answer="never", broken=True))

    async def answer(self, name: str) -> str:
        return str(await asyncio.to_thread(triton.infer, self.server.url, name))

    async def stop(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)


class VllmRig:
    kind = Kind.LORA

    def __init__(self, work: Path, server: Vllm) -> None:
        self.work = work
        self.server = server
        self.adapter: EngineAdapter = VllmAdapter.open(
            EngineOptions(url=server.url, observe_timeout_seconds=PATIENCE_SECONDS)
        )
        self._numbers = count()

    def write(self, seed: int) -> str:
        directory = self.work / "store" / f"revision-{next(self._numbers)}"
        return str(write_lora(directory, seed=seed))

    def nonsense(self) -> str:
        directory = self.work / "store" / f"nonsense-{next(self._numbers)}"
        return str(write_lora(directory, seed=9, target_modules=("nonsense",)))

    async def answer(self, name: str) -> str:
        return await asyncio.to_thread(vllm.complete, self.server.url, name)

    async def stop(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)


async def unload_everything(adapter: EngineAdapter) -> None:
    for resident in (await adapter.observe()).residents:
        await adapter.unload(Target(name=resident.name, kind=resident.kind))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    repository.mkdir()
    return repository


@pytest.fixture(scope="module")
def triton_server(repository: Path) -> Iterator[Triton]:
    with Triton(repository.parent / "server", repository) as server:
        yield server


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    work = tmp_path_factory.mktemp("vllm")
    with Vllm(work, write_base_model(work / "base"), dev_mode=True) as server:
        yield server


@pytest.mark.triton
class TestTriton(EngineContract):
    @pytest.fixture
    async def rig(self, triton_server: Triton, repository: Path, tmp_path: Path):
        # The store is beside the repository, as in the pod.
        rig = TritonRig(repository.parent / tmp_path.name, repository, triton_server)
        yield rig
        await unload_everything(rig.adapter)
        assert os.listdir(repository) == []
        await rig.adapter.aclose()
        shutil.rmtree(rig.work, ignore_errors=True)

    async def test_a_revision_with_old_times_takes_effect(self, rig: TritonRig):
        """Triton keeps the old model unless the tree is newer: that is what stamping is for."""
        target, first, second = Target(name="one", kind=rig.kind), rig.write(1), rig.write(2)
        await rig.adapter.load(target, first)
        for _ in range(2):
            await rig.adapter.load(target, second)
            assert await rig.answer("one") == "answer 2"
            await rig.adapter.load(target, first)
            assert await rig.answer("one") == "answer 1"

    async def test_a_config_of_the_entry_holds_until_the_next_revision(self, rig: TritonRig):
        instances = {
            "backend": "python",
            "max_batch_size": 0,
            "input": [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]}],
            "output": [{"name": "ANSWER", "data_type": "TYPE_STRING", "dims": [1]}],
            "instance_group": [{"kind": "KIND_CPU", "count": 2}],
        }
        target = Target(name="one", kind=rig.kind, parameters={"config": instances})
        path = rig.write(1)
        await rig.adapter.load(target, path)
        assert await self._instances(rig) == 2
        await rig.adapter.load(Target(name="one", kind=rig.kind), path)
        assert await self._instances(rig) == 1

    async def _instances(self, rig: TritonRig) -> int:
        url = f"{rig.server.url}/v2/models/one/config"
        answer = await asyncio.to_thread(get, url)
        return int(answer.json()["instance_group"][0]["count"])

    async def test_a_server_without_explicit_control_is_unsupported(self, tmp_path: Path):
        repository = tmp_path / "repository"
        repository.mkdir()
        server = Triton(tmp_path, repository, extra_args=["--model-control-mode=none"])
        rig = TritonRig(tmp_path, repository, server)
        await rig.start()
        try:
            with pytest.raises(EngineUnsupported, match="--model-control-mode=explicit"):
                await rig.adapter.load(Target(name="one", kind=rig.kind), rig.write(1))
            assert os.listdir(repository) == []
        finally:
            await rig.adapter.aclose()
            await rig.stop()


@pytest.mark.vllm
class TestVllm(EngineContract):
    @pytest.fixture
    async def rig(self, vllm_server: Vllm, tmp_path: Path):
        rig = VllmRig(tmp_path, vllm_server)
        yield rig
        await unload_everything(rig.adapter)
        await rig.adapter.aclose()

    async def test_the_limits_of_a_development_server_are_read(self, rig: VllmRig):
        async with asyncio.timeout(PATIENCE_SECONDS):
            # Its first answer takes seconds; until then the limits are unknown.
            while (limits := (await rig.adapter.observe()).limits) == Limits():
                pass
        assert (limits.max_loras, limits.max_cpu_loras, limits.max_lora_rank) == (2, 8, 16)

    async def test_a_rank_above_the_limit_is_rejected_with_the_engine_s_words(self, rig: VllmRig):
        path = write_lora(rig.work / "rank", seed=1, rank=64)
        with pytest.raises(Exception, match="LoRA rank 64 is greater than max_lora_rank 16"):
            await rig.adapter.load(Target(name="one", kind=rig.kind), str(path))

    async def test_a_replacement_answers_like_a_first_load(self, rig: VllmRig):
        one, two = Target(name="one", kind=rig.kind), Target(name="two", kind=rig.kind)
        second = rig.write(2)
        await rig.adapter.load(two, second)
        expected = await rig.answer("two")
        await rig.adapter.load(one, rig.write(1))
        await rig.answer("one")
        await replace(rig, one, second)
        assert await rig.answer("one") == expected
        assert await resident_names(rig) == {"one", "two"}
