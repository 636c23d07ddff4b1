"""The whole agent on the fake engine: promises, and what each flag changes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters.fake import FakeEngine
from lab.tiny_model import write_lora
from sidecar.core.status import EngineCondition, State
from sidecar.drives import ENGINE_CONCURRENCY
from tests.support.agent import running_agent


@pytest.fixture
def loras(tmp_path):
    """Return a function that writes a LoRA with these weights and returns its path."""

    def write(seed: int, name: str | None = None) -> str:
        path = tmp_path / "sources" / (name or f"l{seed}")
        write_lora(path, seed=seed, rank=4, hidden=32, layers=1)
        return str(path)

    return write


async def test_a_lora_comes_changes_and_goes_with_the_document(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        status = await run.apply([{"name": "sql", "source": loras(1)}])
        assert status.targets["sql"].state is State.RESIDENT
        first = run.engine.held["sql"]
        await run.apply([{"name": "sql", "source": loras(2)}])
        second = run.engine.held["sql"]
        assert second.digest != first.digest
        assert second.path != first.path
        status = await run.apply([])
        assert not run.engine.held
        assert not status.targets


async def test_a_broken_or_deleted_document_unloads_nothing(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
        run.config.write({"models.yaml": "models: [{name: sql"})
        status = await run.wait(lambda status: status.document.problems)
        assert not status.document.valid
        run.config.delete()
        await run.wait(lambda status: status.document.problems and "sql" in run.engine.held)
        assert run.engine.calls == ["load sql"]
        assert run.status.ready


async def test_a_bad_entry_blocks_nobody_and_says_why(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        run.write([{"name": "gone", "source": "/nowhere"}, {"name": "sql", "source": loras(1)}])
        status = await run.wait(
            lambda status: (
                "gone" in status.targets
                and status.targets["gone"].reason
                and status.targets["sql"].state is State.RESIDENT
            )
        )
        assert status.targets["gone"].reason == "NotFound"
        assert status.targets["gone"].retry_at is not None
        assert not status.converged


async def test_a_restarted_engine_gets_everything_back(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": f"l{i}", "source": loras(i)} for i in range(3)])
        run.engine.kill()
        await run.wait(lambda status: status.engine.state is EngineCondition.DOWN)
        run.engine.restart()
        status = await run.wait(lambda status: status.converged and len(run.engine.held) == 3)
        assert status.engine.restarts == 1


async def test_a_restarted_agent_touches_no_resident_and_is_ready_at_once(tmp_path, loras):
    engine = FakeEngine()
    async with running_agent(tmp_path, engine) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
    calls = list(engine.calls)
    async with running_agent(tmp_path, engine) as run:
        status = await run.wait(lambda status: status.converged)
        assert status.ready
        assert status.document.generation == 1
    assert engine.calls == calls


async def test_what_left_the_document_while_the_agent_was_away_is_unloaded(tmp_path, loras):
    engine = FakeEngine()
    async with running_agent(tmp_path, engine) as run:
        await run.apply([{"name": "sql", "source": loras(1)}, {"name": "b", "source": loras(2)}])
        run.write([{"name": "b", "source": loras(2)}])
    async with running_agent(tmp_path, engine) as run:
        await run.wait(lambda status: status.converged and set(engine.held) == {"b"})


async def test_files_of_a_resident_that_vanish_are_put_back(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
        weights = next((tmp_path / "store" / "lora").rglob("adapter_model.safetensors"))
        size = weights.stat().st_size
        weights.unlink()
        async with asyncio.timeout(10):
            while not weights.exists() or weights.stat().st_size != size:
                await run.agent.board.wait_changed(0.05)
        assert run.engine.calls == ["load sql"]


async def test_changed_bytes_behind_an_unedited_document_become_a_new_revision(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": loras(1, "same")}])
        before = run.engine.held["sql"].digest
        loras(2, "same")
        await run.wait(
            lambda status: (
                status.converged
                and (held := run.engine.held.get("sql")) is not None
                and held.digest != before
            )
        )


async def test_an_engine_that_sleeps_is_not_ready_and_gets_no_loads(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
        run.engine.faults.asleep = True
        await run.wait(lambda status: status.engine.state is EngineCondition.ASLEEP)
        assert not run.status.ready
        run.write([{"name": "sql", "source": loras(1)}, {"name": "b", "source": loras(2)}])
        await run.wait(lambda status: status.document.generation == 2 and "b" in status.targets)
        assert set(run.engine.held) == {"sql"}
        run.engine.faults.asleep = False
        await run.wait(lambda status: status.ready and status.converged)
        assert set(run.engine.held) == {"sql", "b"}


async def test_a_document_from_before_the_first_look_gates_readiness(tmp_path, loras):
    engine = FakeEngine()
    engine.kill()
    async with running_agent(tmp_path, engine) as run:
        run.write([{"name": "sql", "source": loras(1), "readiness": "required"}])
        await run.wait(lambda status: status.document.generation == 1)
        assert not run.status.ready
        code, body = await run.get("/ready")
        assert code == 503
        assert json.loads(body)["reasons"]
        engine.restart()
        await run.wait(lambda status: status.ready)
        assert "sql" in engine.held


async def test_stopping_unreadies_first_and_unloads_nothing(tmp_path, loras):
    engine = FakeEngine()
    async with running_agent(tmp_path, engine) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
        run.stop.set()
        await run.wait(lambda status: not status.ready)
    assert set(engine.held) == {"sql"}


class TestFlags:
    """One test for each flag whose effect is the whole agent's."""

    async def test_prune_all_unloads_what_the_engine_was_started_with(self, tmp_path, loras):
        engine = FakeEngine()
        await engine.load_lora("startup", loras(1))
        async with running_agent(tmp_path, engine, prune="all") as run:
            await run.apply([{"name": "sql", "source": loras(2)}])
            assert set(engine.held) == {"sql"}

    @pytest.mark.parametrize("prune", ["owned", "none"])
    async def test_prune_owned_leaves_what_is_not_ours_and_none_leaves_ours_too(
        self, tmp_path, loras, prune
    ):
        engine = FakeEngine()
        await engine.load_lora("startup", loras(1))
        async with running_agent(tmp_path, engine, prune=prune) as run:
            await run.apply([{"name": "sql", "source": loras(2)}])
            await run.apply([])
            left = {"startup"} if prune == "owned" else {"startup", "sql"}
            assert set(engine.held) == left

    async def test_unload_grace_holds_a_dropped_lora_for_so_long(self, tmp_path, loras):
        async with running_agent(tmp_path, unload_grace_seconds=600.0) as run:
            await run.apply([{"name": "sql", "source": loras(1)}])
            run.write([])
            status = await run.wait(lambda status: status.document.generation == 2)
            status = await run.wait(lambda status: status.targets["sql"].reason == "Dropped")
            assert status.targets["sql"].retry_at is not None
            assert "sql" in run.engine.held

    async def test_warmup_sends_a_request_before_a_lora_counts(self, tmp_path, loras):
        async with running_agent(tmp_path, warmup=True, max_loras=1) as run:
            await run.apply([{"name": "sql", "source": loras(1)}])
            _, page = await run.get("/metrics/all")
            warmed = 'model_sidecar_actions_total{action="warm",outcome="done"} 1.0'
            assert warmed in page.splitlines()

    async def test_max_lora_rank_keeps_a_lora_from_the_engine(self, tmp_path, loras):
        async with running_agent(tmp_path, max_lora_rank=2) as run:
            run.write([{"name": "sql", "source": loras(1)}])
            status = await run.wait(
                lambda status: "sql" in status.targets and status.targets["sql"].reason
            )
            assert status.targets["sql"].reason == "IncompatibleArtifact"
            assert not run.engine.calls

    async def test_max_loras_is_the_number_of_slots_on_the_picker_page(self, tmp_path, loras):
        async with running_agent(tmp_path, max_loras=7, max_cpu_loras=9) as run:
            await run.apply([{"name": "sql", "source": loras(1)}])
            _, page = await run.get("/metrics")
            assert 'max_lora="7"' in page
            assert run.status.engine.slots == 7

    async def test_lora_labels_registered_lists_what_is_in_no_slot(self, tmp_path, loras):
        entries = [{"name": f"l{i}", "source": loras(i)} for i in range(2)]
        seen = {}
        for mode in ("residency", "registered"):
            work = tmp_path / mode
            async with running_agent(work, max_loras=1, lora_labels=mode) as run:
                await run.apply(entries)
                _, page = await run.get("/metrics")
                line = next(one for one in page.splitlines() if "lora_requests_info{" in one)
                seen[mode] = 'waiting_lora_adapters=""' in line
        assert seen == {"residency": True, "registered": False}

    async def test_allow_source_refuses_what_lies_outside(self, tmp_path, loras):
        async with running_agent(tmp_path, allow_source=("/elsewhere",)) as run:
            run.write([{"name": "sql", "source": loras(1)}])
            status = await run.wait(
                lambda status: "sql" in status.targets and status.targets["sql"].reason
            )
            assert status.targets["sql"].reason == "SourceNotAllowed"

    async def test_engine_path_prefix_is_what_the_engine_is_told(self, tmp_path, loras):
        seen = tmp_path / "engine-sees"
        (tmp_path / "store").mkdir()
        seen.symlink_to(tmp_path / "store")
        prefix = (str(tmp_path / "store"), str(seen))
        async with running_agent(tmp_path, engine_path_prefix=prefix) as run:
            status = await run.apply([{"name": "sql", "source": loras(1)}])
            assert run.engine.held["sql"].path.startswith(str(seen))
            assert status.targets["sql"].path.startswith(str(tmp_path / "store"))

    async def test_load_timeout_leaves_the_outcome_unknown_and_looks(self, tmp_path, loras):
        engine = FakeEngine()
        engine.faults.load_seconds = 0.6
        async with running_agent(tmp_path, engine, load_timeout_seconds=0.2) as run:
            run.write([{"name": "sql", "source": loras(1)}])
            await run.wait(
                lambda status: (
                    "sql" in status.targets and status.targets["sql"].reason == "EngineTimeout"
                )
            )
            engine.faults.load_seconds = 0.0
            await run.wait(lambda status: status.converged)
            assert "sql" in engine.held

    async def test_store_max_bytes_refuses_more_and_makes_room_when_it_can(self, tmp_path, loras):
        one = loras(1)
        size = sum(path.stat().st_size for path in (tmp_path / "sources" / "l1").iterdir())
        limit = int(size * 1.5)
        flags: dict[str, Any] = {"store_max_bytes": limit, "retain_seconds": 0.0}
        async with running_agent(tmp_path, **flags) as run:
            await run.apply([{"name": "a", "source": one}])
            run.write([{"name": "a", "source": one}, {"name": "b", "source": loras(2)}])
            await run.wait(
                lambda status: "b" in status.targets and status.targets["b"].reason == "StoreFull"
            )
            status = await run.apply([{"name": "b", "source": loras(2)}])
            assert set(run.engine.held) == {"b"}
            assert status.store.bytes <= limit

    @pytest.mark.parametrize(("retain", "left"), [(0.0, 1), (600.0, 2)])
    async def test_retain_seconds_keeps_the_files_of_what_was_unloaded(
        self, tmp_path, loras, retain, left
    ):
        async with running_agent(tmp_path, retain_seconds=retain) as run:
            await run.apply([{"name": "sql", "source": loras(1)}])
            await run.apply([{"name": "sql", "source": loras(2)}])
            status = await run.wait(
                lambda status: status.converged and status.store.revisions == left
            )
            assert status.store.revisions == left

    async def test_readiness_none_asks_for_the_engine_only(self, tmp_path):
        async with running_agent(tmp_path, readiness="none") as run:
            run.write([{"name": "sql", "source": "/nowhere", "readiness": "required"}])
            await run.wait(lambda status: status.document.generation == 1 and status.ready)

    async def test_readiness_required_gates_for_ever(self, tmp_path, loras):
        async with running_agent(tmp_path, readiness="required") as run:
            await run.apply([{"name": "sql", "source": loras(1)}])
            assert run.status.ready
            run.write([{"name": "b", "source": "/nowhere", "readiness": "required"}])
            await run.wait(lambda status: not status.ready)

    async def test_the_initial_timeout_ends_the_initial_pass(self, tmp_path):
        async with running_agent(tmp_path, initial_timeout_seconds=0.5) as run:
            run.write([{"name": "sql", "source": "/nowhere"}])
            status = await run.wait(lambda status: status.ready and status.document.generation == 1)
            assert status.targets["sql"].reason == "NotFound"

    async def test_config_key_reads_that_key_only(self, tmp_path, loras):
        other = json.dumps({"models": [{"name": "b", "source": loras(2)}]})
        async with running_agent(tmp_path, config_key="models.yaml") as run:
            await run.apply([{"name": "sql", "source": loras(1)}], **{"models.yml": other})
            assert set(run.engine.held) == {"sql"}

    async def test_a_stale_sample_turns_the_picker_page_into_503(self, tmp_path, loras):
        flags: dict[str, Any] = {"stale_after_seconds": 0.3, "scrape_interval_seconds": 0.05}
        async with running_agent(tmp_path, **flags) as run:
            await run.apply([{"name": "sql", "source": loras(1)}])
            assert (await run.get("/metrics"))[0] == 200
            run.engine.hang()
            async with asyncio.timeout(10):
                while (await run.get("/metrics"))[0] != 503:
                    await run.agent.board.wait_changed(0.05)
            assert (await run.get("/metrics/all"))[0] == 200
            run.engine.release()

    async def test_shutdown_grace_bounds_the_wait_for_a_running_load(self, tmp_path, loras):
        engine = FakeEngine()
        engine.faults.load_seconds = 60.0
        async with asyncio.timeout(10):
            async with running_agent(tmp_path, engine, shutdown_grace_seconds=0.1) as run:
                run.write([{"name": "sql", "source": loras(1)}])
                await run.wait(
                    lambda status: (
                        "sql" in status.targets and status.targets["sql"].state is State.LOADING
                    )
                )


async def test_secrets_in_an_engine_url_are_told_to_nobody(tmp_path):
    url = "http://user:hunter2@127.0.0.1:8000"
    async with running_agent(tmp_path, engine_url=(url,)) as run:
        _, body = await run.get("/status")
        assert "hunter2" not in body
        assert "127.0.0.1:8000" in body


async def test_a_startup_lora_stays_when_an_entry_of_its_name_could_not_be_had(tmp_path, loras):
    engine = FakeEngine()
    await engine.load_lora("startup", loras(1))
    async with running_agent(tmp_path, engine) as run:
        run.write([{"name": "startup", "source": "/nowhere"}])
        await run.wait(
            lambda status: (
                "startup" in status.targets and status.targets["startup"].reason == "NotFound"
            )
        )
        await run.apply([])
        assert "startup" in engine.held


async def test_nobody_is_told_of_residents_while_the_engine_is_not_seen(tmp_path, loras):
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
        assert (await run.get("/v2/models/sql/ready"))[0] == 200
        run.engine.kill()
        await run.wait(lambda status: status.engine.state is EngineCondition.DOWN)
        assert (await run.get("/v2/models/sql/ready"))[0] != 200
        assert json.loads((await run.get("/v1/models"))[1])["data"] == []
        _, index = await run.get("/v2/repository/index")
        (row,) = [one for one in json.loads(index) if one["name"] == "sql"]
        # Controllers roll back at UNAVAILABLE with a reason, and wait at LOADING.
        assert row["state"] == "LOADING"
        run.engine.restart()


async def test_an_invalid_document_with_no_last_good_is_not_converged(tmp_path):
    async with running_agent(tmp_path) as run:
        run.config.write({"model-list.json": "[{"})
        status = await run.wait(lambda status: status.document.problems)
        assert not status.converged


async def test_a_memory_that_could_not_be_kept_is_kept_once_it_can_be(tmp_path, loras):
    kept = tmp_path / "store" / ".agent" / "uid-0.json"
    kept.mkdir(parents=True)
    (kept / "in-the-way").touch()
    async with running_agent(tmp_path) as run:
        await run.apply([{"name": "sql", "source": loras(1)}])
        await run.apply([])
        (kept / "in-the-way").unlink()
        kept.rmdir()
        async with asyncio.timeout(10):
            while not kept.is_file():
                await run.agent.board.wait_changed(0.05)
        documents = json.loads(kept.read_text())["documents"]
        assert json.loads(documents["models.yaml"]) == {"models": []}


async def test_once_it_is_asked_to_stop_it_begins_no_load(tmp_path, loras):
    engine = FakeEngine(max_loras=20)
    async with running_agent(tmp_path, engine, max_loras=20) as run:
        engine.faults.load_seconds = 0.2
        run.write([{"name": f"l{i}", "source": loras(i)} for i in range(20)])
        await run.wait(lambda _: len(engine.calls) >= ENGINE_CONCURRENCY)
        begun = len(engine.calls)
        run.stop.set()
    assert begun < 20
    assert len(engine.calls) == begun
