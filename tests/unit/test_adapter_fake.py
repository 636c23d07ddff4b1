"""The fake's own tricks: what the real engines do wrong, on command."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import httpx
import pytest

from adapters import engine_names, find_engine
from adapters.base import EngineOptions, EngineProtocolError, EngineRejected, Kind, Target
from adapters.fake import FakeAdapter, FakeEngine, FakeServer, triton_app, vllm_app
from adapters.fake.__main__ import parse_arguments
from adapters.fake.engine import DownError, RefusedError
from tests.support.artifacts import write_fake_lora, write_fake_model


async def test_a_tree_that_is_not_newer_is_not_read_again(tmp_path: Path):
    engine = FakeEngine()
    first, second = (write_fake_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    later = os.stat(first).st_ctime_ns + 10**9
    os.utime(second, ns=(later, later))
    await engine.load_model("m", first)
    old = await engine.serve("m")
    await engine.load_model("m", second)
    new = await engine.serve("m")
    assert new != old
    await engine.load_model("m", first)
    assert await engine.serve("m") == new


async def test_a_model_whose_directory_is_gone_is_served_and_not_listed(tmp_path: Path):
    engine, repository = FakeEngine(), tmp_path / "repository"
    write_fake_model(repository / "m")
    async with (
        FakeServer(triton_app(engine, repository)) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as client,
    ):
        assert (await client.post("/v2/repository/models/m/load")).status_code == 200
        assert (await client.post("/v2/repository/index")).json()[0]["state"] == "READY"
        shutil.rmtree(repository / "m")
        assert (await client.post("/v2/repository/index")).json() == []
        assert (await client.post("/v2/models/m/infer")).status_code == 200


async def test_one_failed_load_makes_triton_unready_and_leaves_it_live(tmp_path: Path):
    engine, repository = FakeEngine(), tmp_path / "repository"
    write_fake_model(repository / "m")
    engine.faults.reject["m"] = "broken"
    async with (
        FakeServer(triton_app(engine, repository)) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as client,
    ):
        assert (await client.post("/v2/repository/models/m/load")).status_code == 400
        assert (await client.get("/v2/health/ready")).status_code == 400
        assert (await client.get("/v2/health/live")).status_code == 200


async def test_an_evicted_lora_without_its_files_kills_the_engine(tmp_path: Path):
    engine, deaths = FakeEngine(max_cpu_loras=1), []
    engine.on_death.append(lambda: deaths.append("dead"))
    one = write_fake_lora(tmp_path / "1")
    await engine.load_lora("one", one)
    shutil.rmtree(one)
    await engine.serve("one")
    await engine.load_lora("two", write_fake_lora(tmp_path / "2"))
    with pytest.raises(DownError):
        await engine.serve("one")
    assert deaths == ["dead"]
    assert engine.held == {}


async def test_the_page_has_a_series_for_each_combination_of_loras(tmp_path: Path):
    engine = FakeEngine()
    adapter = FakeAdapter(engine, EngineOptions(url="fake://"))
    (page,) = await adapter.scrape()
    assert b"vllm:lora_requests_info{" not in page
    await engine.load_lora("one", write_fake_lora(tmp_path / "1"))
    await engine.serve("one")
    (page,) = await adapter.scrape()
    assert page.count(b"\nvllm:lora_requests_info{") == 2
    assert b'running_lora_adapters="one",waiting_lora_adapters="one"' in page


async def test_a_hidden_resident_is_served_and_not_listed(tmp_path: Path):
    engine = FakeEngine()
    adapter = FakeAdapter(engine, EngineOptions(url="fake://"))
    await engine.load_lora("one", write_fake_lora(tmp_path / "1"))
    engine.faults.hidden.add("one")
    assert (await adapter.observe()).residents == ()
    await engine.serve("one")


async def test_a_broken_engine_is_a_protocol_error():
    adapter = FakeAdapter.open(EngineOptions(url="fake://"))
    adapter.engine.faults.broken = True
    with pytest.raises(EngineProtocolError):
        await adapter.observe()


async def test_an_engine_that_dies_while_it_loads_holds_nothing(tmp_path: Path):
    engine = FakeEngine()
    engine.faults.load_seconds = 0.05
    loading = asyncio.create_task(engine.load_lora("one", write_fake_lora(tmp_path / "1")))
    async with asyncio.timeout(5):
        while not engine.calls:
            await asyncio.wait({loading}, timeout=0.001)
        engine.restart()
        with pytest.raises(DownError):
            await loading
    assert engine.held == {}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("adapter_config.json", b"{", "invalid"),
        ("adapter_config.json", b"[]", "no rank"),
        ("adapter_config.json", json.dumps({"r": 65}).encode(), "LoRA rank 65 is greater"),
        ("adapter_model.safetensors", None, "tensors"),
    ],
)
async def test_a_lora_is_read_before_it_is_held(
    tmp_path: Path, name: str, content: bytes | None, words: str
):
    path = Path(write_fake_lora(tmp_path / "1"))
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    engine = FakeEngine()
    with pytest.raises(RefusedError, match=words):
        await engine.load_lora("one", str(path))
    assert engine.held == {}


async def test_the_face_of_a_server_without_runtime_loading_has_no_such_route():
    async with (
        FakeServer(vllm_app(FakeEngine(), runtime_loading=False, development=False)) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as client,
    ):
        assert (await client.post("/v1/load_lora_adapter", json={})).json() == {
            "detail": "Not Found"
        }
        assert (await client.get("/is_sleeping")).status_code == 404
        assert (await client.get("/health")).status_code == 200


async def test_a_load_without_a_name_is_refused_as_vllm_does():
    async with (
        FakeServer(vllm_app(FakeEngine())) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as client,
    ):
        answer = await client.post("/v1/load_lora_adapter", content=b"no json")
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")


async def test_another_path_over_a_resident_is_rejected(tmp_path: Path):
    adapter = FakeAdapter.open(EngineOptions(url="fake://"))
    target = Target(name="one", kind=Kind.LORA)
    await adapter.load(target, write_fake_lora(tmp_path / "1"))
    with pytest.raises(EngineRejected, match="unload it first"):
        await adapter.load(target, write_fake_lora(tmp_path / "2"))


def test_a_triton_shape_needs_a_repository(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse_arguments(["--shape", "triton"])
    assert "needs --repository" in capsys.readouterr().err


async def test_it_runs_alone_until_it_is_told_to_end():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "adapters.fake",
        "--port=0",
        "--base-model=llama",
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().split()[-1]
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                answer = await client.get(f"{url}/v1/models")
            assert answer.json()["data"][0]["id"] == "llama"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_table_names_every_engine_and_no_other():
    assert engine_names()[:4] == ("vllm", "triton", "sglang", "fake")
    for name in ("vllm", "triton", "sglang", "fake"):
        assert callable(find_engine(name).open)
    with pytest.raises(LookupError, match="no engine 'nonsense'; known engines: vllm, triton"):
        find_engine("nonsense")
