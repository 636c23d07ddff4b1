"""The contract over the fake: in process, and behind the HTTP faces of the real engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.base import EngineAdapter, EngineOptions, EngineTimeout, Kind, Target
from adapters.fake import FakeAdapter, FakeEngine, FakeServer, sglang_app, triton_app, vllm_app
from adapters.sglang import SglangAdapter
from adapters.triton import TritonAdapter
from adapters.vllm import VllmAdapter
from tests.support.artifacts import write_fake_lora, write_fake_model
from tests.support.engine_contract import EngineContract


class FakeRig:
    """A fake engine, reached in process."""

    def __init__(
        self,
        work: Path,
        kind: Kind,
        engine: FakeEngine,
        opener: Callable[[EngineOptions], EngineAdapter],
        options: EngineOptions,
    ) -> None:
        self.work = work
        self.kind = kind
        self.engine = engine
        self.adapter = opener(options)
        self._opener = opener
        self._options = options
        self._numbers = count()

    def open(self, **changes: Any) -> EngineAdapter:
        """Open another adapter to the same engine, with other options."""
        return self._opener(dataclasses.replace(self._options, **changes))

    def write(self, seed: int) -> str:
        directory = self.work / "store" / f"revision-{next(self._numbers)}"
        if self.kind is Kind.LORA:
            return write_fake_lora(directory, seed=seed)
        return write_fake_model(directory, seed=seed)

    def nonsense(self) -> str:
        directory = self.work / "store" / f"nonsense-{next(self._numbers)}"
        directory.mkdir(parents=True)
        (directory / "README.md").write_text("nothing")
        return str(directory)

    async def answer(self, name: str) -> str:
        return await self.engine.serve(name)

    async def stop(self) -> None:
        self.engine.kill()

    async def start(self) -> None:
        self.engine.restart()


class FakeHttpRig(FakeRig):
    """A fake engine behind a face on a real socket."""

    def __init__(
        self,
        work: Path,
        kind: Kind,
        engine: FakeEngine,
        opener: Callable[[EngineOptions], EngineAdapter],
        options: EngineOptions,
        server: FakeServer,
    ) -> None:
        super().__init__(work, kind, engine, opener, options)
        self.server = server

    async def answer(self, name: str) -> str:
        async with httpx.AsyncClient(
            base_url=self.server.url, trust_env=False, verify=False
        ) as client:
            if self.kind is Kind.LORA:
                body = {"model": self.model(name), "prompt": "hello", "max_tokens": 4}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                text: str = answer.json()["choices"][0]["text"]
                return text
            answer = await client.post(f"/v2/models/{name}/infer", json={"inputs": []})
            assert answer.status_code == 200, f"{name}: {answer.text}"
            output: str = answer.json()["outputs"][0]["data"][0]
            return output

    def model(self, name: str) -> str:
        """Return what a request calls a LoRA."""
        return name

    async def stop(self) -> None:
        self.engine.kill()
        await self.server.stop()

    async def start(self) -> None:
        self.engine.restart()
        await self.server.start()


class SglangRig(FakeHttpRig):
    """SGLang takes a LoRA's name alone for its base model's."""

    def model(self, name: str) -> str:
        return f"{self.engine.base_model}:{name}"


class FakeEngineContract(EngineContract):
    """What only an engine that hangs on command can show."""

    async def test_an_engine_that_hangs_is_a_timeout(self, rig: FakeRig):
        target, path = Target(name="one", kind=rig.kind), rig.write(1)
        adapter = rig.open(observe_timeout_seconds=0.05, load_timeout_seconds=0.05)
        rig.engine.hang()
        for attempt in (
            adapter.observe,
            adapter.scrape,
            lambda: adapter.load(target, path),
            lambda: adapter.unload(target),
        ):
            with pytest.raises(EngineTimeout):
                await attempt()
        await adapter.aclose()
        rig.engine.release()
        assert (await rig.adapter.observe()).asleep is False


class TestFakeInProcess(FakeEngineContract):
    @pytest.fixture(params=list(Kind))
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path):
        engine = FakeEngine()
        return FakeRig(
            tmp_path,
            request.param,
            engine,
            lambda options: FakeAdapter(engine, options),
            EngineOptions(url="fake://"),
        )


class TestVllmFace(FakeEngineContract):
    @pytest.fixture
    async def rig(self, tmp_path: Path):
        engine = FakeEngine()
        async with FakeServer(vllm_app(engine)) as server:
            options = EngineOptions(url=server.url)
            rig = FakeHttpRig(tmp_path, Kind.LORA, engine, VllmAdapter.open, options, server)
            yield rig
            await rig.adapter.aclose()


class TestTritonFace(FakeEngineContract):
    @pytest.fixture
    async def rig(self, tmp_path: Path):
        engine, repository = FakeEngine(), tmp_path / "repository"
        repository.mkdir()
        async with FakeServer(triton_app(engine, repository)) as server:
            options = EngineOptions(
                url=server.url,
                metrics_url=f"{server.url}/metrics",
                repository_dir=str(repository),
            )
            rig = FakeHttpRig(tmp_path, Kind.MODEL, engine, TritonAdapter.open, options, server)
            yield rig
            await rig.adapter.aclose()


class TestSglangFace(FakeEngineContract):
    """What SGLang's documentation says: no real one is at hand to hold the face to."""

    revives = True

    @pytest.fixture
    async def rig(self, tmp_path: Path):
        engine = FakeEngine()
        async with FakeServer(sglang_app(engine)) as server:
            options = EngineOptions(url=server.url)
            rig = SglangRig(tmp_path, Kind.LORA, engine, SglangAdapter.open, options, server)
            yield rig
            await rig.adapter.aclose()
