"""``plan``: what the agent would do; the agent then does just that, and the plan writes nothing."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.base import EngineOptions, Kind, Target
from adapters.fake import FakeEngine, FakeServer, vllm_app
from adapters.vllm import VllmAdapter
from sidecar.artifacts.disk import Disk
from sidecar.artifacts.fetch import SourceOptions, open_source
from sidecar.artifacts.memory import MemoryFile
from sidecar.artifacts.store import Store
from sidecar.cli import main
from sidecar.commands.foresight import UNKNOWN, Foresight
from sidecar.commands.plan import foresee
from sidecar.commands.plan_words import as_json, as_lines, exit_code
from sidecar.core.inventory import Revision
from sidecar.core.memory import Memory, Owned, to_json
from sidecar.errors import NotFound
from sidecar.settings import Settings
from tests.support.faulty import FaultyServer
from tests.support.loras import entry_for, write_tiny_lora, write_tiny_model

POD = "pod-a"
NOW = 2_000_000_000.0


class Rig:
    """A document, LoRAs, a store, and an engine on a socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config"
        self.store = directory / "store"
        self.config.mkdir()
        # The tiny LoRAs name no base model, and this engine's cannot be read.
        self.engine = FakeEngine()
        self.server = FakeServer(vllm_app(self.engine))

    def lora(self, name: str, **fields) -> Path:
        return write_tiny_lora(self.directory / "loras" / name, **fields)

    def document(self, *entries: Mapping[str, object]) -> None:
        (self.config / "models.yaml").write_text(json.dumps({"models": entries}))

    def settings(self, **fields) -> Settings:
        known = {
            "engine_url": (self.server.url,),
            "config_dir": str(self.config),
            "store_dir": str(self.store),
            "pod_name": POD,
        }
        return Settings(**(known | fields))

    async def plan(self, *, looks: bool = True, **fields) -> tuple[int, list[str]]:
        scene, forecast = await foresee(self.settings(**fields), looks=looks, now=NOW)
        json.dumps(as_json(scene, forecast))
        lines = as_lines(scene, forecast)
        return exit_code(scene, forecast), lines[lines.index("") + 1 :]

    async def fetch(self, source: Path, name: str) -> str:
        """Bring a source into the store as the agent does; return the revision's path."""
        store = Store(self.store, max_bytes=None, pod_uid=POD)
        await store.open()
        found = await store.fetch(entry_for(source, name), restore=None, progress=lambda *_: None)
        await store.close()
        return found.path

    async def load(self, name: str, path: str) -> None:
        adapter = VllmAdapter.open(EngineOptions(url=self.server.url))
        await adapter.load(Target(name=name, kind=Kind.LORA), path)
        await adapter.aclose()

    async def remember(self, memory: Memory) -> None:
        file = MemoryFile(self.store, POD)
        await file.save(to_json(memory))
        file.close()

    def files(self) -> dict[str, int]:
        return {path: os.lstat(path).st_mtime_ns for path in walk(self.directory)}


def walk(directory: Path) -> Iterator[str]:
    for place, directories, files in os.walk(directory):
        yield from (os.path.join(place, name) for name in (*directories, *files))


@pytest.fixture
async def rig(tmp_path):
    rig = Rig(tmp_path)
    await rig.server.start()
    yield rig
    await rig.server.stop()


def words(lines: list[str]) -> list[str]:
    """Return the first two words of each step."""
    return [" ".join(line.split()[:2]) for line in lines[:-1] if not line.startswith(" ")]


async def test_new_lora_is_fetched_checked_and_loaded(rig):
    source = rig.lora("sql")
    rig.document({"name": "sql", "source": str(source)})
    code, lines = await rig.plan()
    assert code == 2
    assert lines[0] == f"fetch sql from {source} (to see what it holds)"
    assert lines[1].startswith("  it holds a lora, 2 files, ")
    assert words(lines) == ["fetch sql", "check lora", "load lora"]
    assert lines[-1] == "3 steps."


async def test_digest_of_the_plan_can_be_pasted_into_the_document(rig):
    source = rig.lora("sql")
    rig.document({"name": "sql", "source": str(source)})
    _, lines = await rig.plan()
    digest = lines[1].rpartition("digest: ")[2]
    rig.document({"name": "sql", "source": str(source), "digest": digest})
    assert (await rig.plan())[0] == 2
    path = await rig.fetch(source, "sql")
    assert digest.removeprefix("sha256:").startswith(Path(path).name)


async def test_wrong_digest_fails_as_the_fetch_would(rig):
    source = rig.lora("sql")
    rig.document({"name": "sql", "source": str(source), "digest": "sha256:" + 64 * "0"})
    code, lines = await rig.plan()
    assert code == 1
    assert lines[0].startswith(f"fetch sql from {source}")
    assert "fails: DigestMismatch: " in lines[0]
    assert lines[-1] == "1 step, 1 of them would fail."


async def test_lora_whose_shapes_are_wrong_fails_its_check(rig):
    source = rig.lora("sql", rank=4, shapes={"base_model.model.x.lora_A.weight": (4, 8)})
    rig.document({"name": "sql", "source": str(source)})
    code, lines = await rig.plan()
    assert code == 1
    assert words(lines) == ["fetch sql", "check lora"]
    assert "fails: InvalidArtifact: " in lines[2]


async def test_rank_above_the_limit_of_a_flag_fails_the_check_without_an_engine(rig):
    rig.document({"name": "sql", "source": str(rig.lora("sql", rank=8))})
    code, lines = await rig.plan(looks=False, max_lora_rank=4)
    assert code == 1
    assert "fails: IncompatibleArtifact: " in lines[2]


async def test_nothing_is_left_to_do_when_the_engine_holds_it(rig):
    source = rig.lora("sql")
    rig.document({"name": "sql", "source": str(source), "warmup": True})
    await rig.load("sql", await rig.fetch(source, "sql"))
    code, lines = await rig.plan()
    assert (code, lines) == (0, ["Converged: nothing to do."])


async def test_what_the_store_has_is_not_fetched_again(rig):
    source = rig.lora("sql")
    rig.document({"name": "sql", "source": str(source)})
    await rig.fetch(source, "sql")
    _, lines = await rig.plan()
    assert words(lines) == ["check lora", "load lora"]


async def test_other_bytes_are_unloaded_first_where_the_engine_cannot_swap(rig):
    source = rig.lora("sql", seed=1)
    rig.document({"name": "sql", "source": str(source)})
    await rig.load("sql", await rig.fetch(source, "sql"))
    rig.lora("sql", seed=2)
    code, lines = await rig.plan()
    assert code == 2
    assert words(lines) == ["fetch sql", "check lora", "unload lora", "load lora"]


async def test_resident_of_ours_that_no_document_lists_is_unloaded(rig):
    source = rig.lora("old")
    rig.document()
    await rig.load("old", await rig.fetch(source, "old"))
    code, lines = await rig.plan(retain_seconds=1e12)
    assert (code, lines[:-1]) == (2, ["unload lora old (no document lists it)"])
    assert (await rig.plan(prune="none"))[0] == 0


async def test_resident_of_others_stays_unless_all_are_pruned(rig):
    rig.document()
    await rig.load("theirs", str(rig.lora("theirs")))
    assert (await rig.plan())[0] == 0
    assert words((await rig.plan(prune="all"))[1]) == ["unload lora"]


async def test_name_that_is_in_its_grace_waits(rig):
    source = rig.lora("old")
    rig.document()
    await rig.load("old", await rig.fetch(source, "old"))
    await rig.remember(Memory(generation=1, owned={"old": Owned(grace_seconds=150.0)}))
    code, lines = await rig.plan()
    assert code == 2
    assert lines[0] == "old waits (in 2m): Dropped: it left the document"
    assert lines[-1] == "0 steps, 1 target waits."


async def test_files_that_nobody_needs_are_evicted_only_when_the_engine_was_seen(rig):
    rig.document()
    await rig.fetch(rig.lora("old"), "old")
    await rig.remember(Memory(generation=1))
    assert words((await rig.plan(retain_seconds=0.0))[1]) == ["evict old"]
    assert (await rig.plan(looks=False, retain_seconds=0.0))[0] == 0


async def test_name_of_a_base_model_is_refused(rig):
    rig.document({"name": "base", "source": str(rig.lora("sql"))})
    code, lines = await rig.plan()
    assert code == 1
    assert any(line.startswith("base waits: NameConflict: ") for line in lines)


async def test_last_good_document_stands_in_for_one_that_is_gone(rig):
    source = rig.lora("sql")
    text = json.dumps({"models": [{"name": "sql", "source": str(source)}]})
    await rig.remember(Memory(documents={"models.yaml": text}, generation=3))
    await rig.load("sql", await rig.fetch(source, "sql"))
    code, lines = await rig.plan()
    assert code == 1
    assert lines == ["0 steps, 1 problem in the document."]


async def test_document_that_never_was_changes_nothing(rig):
    await rig.load("old", await rig.fetch(rig.lora("old"), "old"))
    assert (await rig.plan(retain_seconds=0.0)) == (0, ["Converged: nothing to do."])


async def test_engine_that_cannot_be_seen_is_an_error_and_nothing_is_asked_of_it(rig):
    source = rig.lora("sql")
    rig.document({"name": "sql", "source": str(source)})
    await rig.server.stop()
    scene, forecast = await foresee(rig.settings(), looks=True, now=NOW)
    lines = as_lines(scene, forecast)
    assert exit_code(scene, forecast) == 1
    assert any("cannot be seen, so nothing is asked of it" in line for line in lines)
    assert words(lines[lines.index("") + 1 :]) == ["fetch sql"]


async def test_engine_asleep_gets_no_loads(rig):
    rig.document({"name": "sql", "source": str(rig.lora("sql"))})
    rig.engine.faults.asleep = True
    code, lines = await rig.plan()
    assert code == 2
    assert words(lines) == ["fetch sql"]


async def test_agent_does_what_was_planned_and_then_nothing_is_left(rig):
    names = ("b", "a", "c")
    rig.document(*({"name": name, "source": str(rig.lora(name, seed=ord(name)))} for name in names))
    _, lines = await rig.plan()
    planned = [line.split()[2] for line in lines if line.startswith("load ")]
    assert planned == list(names)
    command = [sys.executable, "-m", "sidecar", "run", "--listen", "127.0.0.1:0"]
    command += ["--config-dir", str(rig.config), "--store-dir", str(rig.store)]
    command += ["--engine-url", rig.server.url]
    agent = await asyncio.create_subprocess_exec(*command, env=os.environ | {"POD_NAME": POD})
    try:
        async with asyncio.timeout(30):
            while len(rig.engine.held) < len(names):
                assert agent.returncode is None
                await asyncio.wait({asyncio.ensure_future(agent.wait())}, timeout=0.05)
    finally:
        agent.terminate()
        await agent.wait()
    assert sorted(rig.engine.calls) == sorted(f"load {name}" for name in planned)
    assert await rig.plan() == (0, ["Converged: nothing to do."])


async def test_plan_changes_nothing_at_all(rig):
    source = rig.lora("sql", seed=1)
    rig.document({"name": "sql", "source": str(source)}, {"name": "new", "source": str(source)})
    await rig.load("sql", await rig.fetch(source, "sql"))
    rig.lora("sql", seed=2)
    before, calls = rig.files(), list(rig.engine.calls)
    assert (await rig.plan(retain_seconds=0.0))[0] == 2
    assert rig.files() == before
    assert rig.engine.calls == calls


async def test_store_that_is_not_there_is_not_made(rig):
    rig.document({"name": "sql", "source": str(rig.lora("sql"))})
    await rig.plan()
    assert not rig.store.exists()


async def test_memory_that_cannot_be_used_is_reported(rig):
    rig.document()
    (rig.store / ".agent").mkdir(parents=True)
    (rig.store / ".agent" / f"{POD}.json").write_text("{")
    scene, forecast = await foresee(rig.settings(), looks=True, now=NOW)
    assert exit_code(scene, forecast) == 1
    assert f"{POD}.json cannot be used" in scene.troubles[0]


@pytest.fixture
def far():
    with FaultyServer() as server:
        server.put("/sql.tar", b"what only a fetch reads")
        yield server


async def far_sight(rig, far, held, likely=None, **fields):
    fields = {"source": f"{far.url}/sql.tar?signature=x"} | fields
    entry = entry_for(fields.pop("source"), "sql", **fields)
    options = SourceOptions(allowed=(far.url,))
    sight = await asyncio.to_thread(Foresight(rig.store, held, options).find, entry, likely)
    assert sum(seen.sent for seen in far.seen) == 0
    return sight


async def test_source_far_away_that_looks_as_it_did_holds_what_came_from_it(rig, far):
    await rig.fetch(rig.lora("sql"), "sql")
    (held,) = Disk(rig.store, POD).read_name("sql")
    entry = entry_for(f"{far.url}/sql.tar", "sql")
    look = open_source(entry, SourceOptions(allowed=(far.url,)))
    assert not isinstance(look, Revision)
    listing = await asyncio.to_thread(look.list)
    look.close()
    source = f"{far.url}/sql.tar?signature=***"
    held = replace(
        held,
        manifest=replace(held.manifest, source=source, source_signature=listing.signature),
    )
    sight = await far_sight(rig, far, {"sql": (held,)})
    assert (sight.revision, sight.is_new) == (held.revision, False)
    far.put("/sql.tar", b"something else by now")
    moved = await far_sight(rig, far, {"sql": (held,)}, Kind.LORA)
    assert (moved.is_new, moved.revision.revision) == (True, f"({UNKNOWN})")
    assert moved.revision.bytes == len(b"something else by now")


async def test_source_far_away_is_known_by_its_pin(rig, far):
    digest = "sha256:" + 64 * "a"
    sight = await far_sight(rig, far, {}, kind=Kind.MODEL, digest=digest)
    assert (sight.revision.kind, sight.revision.digest) == (Kind.MODEL, digest)
    assert digest.removeprefix("sha256:").startswith(sight.revision.revision)


async def test_source_far_away_whose_kind_nobody_knows_leaves_the_end_open(rig, far):
    assert await far_sight(rig, far, {}) is None


async def test_source_far_away_that_is_not_there_is_said_so(rig, far):
    with pytest.raises(NotFound):
        await far_sight(rig, far, {}, source=f"{far.url}/gone.tar")


async def test_scheme_that_is_not_fetched_is_said_so_and_hides_no_other(rig):
    rig.document(
        {"name": "far", "source": "gs://bucket/x"},
        {"name": "near", "source": str(rig.lora("near"))},
    )
    code, lines = await rig.plan(allow_source=(str(rig.directory),))
    assert code == 1
    assert lines[0].startswith("fetch far from gs://bucket/x")
    assert "fails: SourceNotAllowed: " in lines[0]
    assert words(lines[1:]) == ["fetch near", "check lora", "load lora"]


def test_command_prints_the_plan_and_says_that_no_engine_was_looked_at(tmp_path, capsys):
    rig = Rig(tmp_path)
    rig.document({"name": "sql", "source": str(rig.lora("sql"))})
    argv = ["plan", "--config-dir", str(rig.config), "--store-dir", str(rig.store)]
    assert main(argv) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"document dir {rig.config}: 1 target (native)"
    assert "not looked at: it is assumed to hold nothing" in lines[1]
    assert lines[2] == f"store {rig.store}: 0 revisions, 0 B"
    assert words(lines[4:]) == ["fetch sql", "check lora", "load lora"]


def test_command_prints_json(tmp_path, capsys):
    rig = Rig(tmp_path)
    rig.document({"name": "sql", "source": str(rig.lora("sql"))}, {"name": "bad"})
    argv = ["plan", "--config-dir", str(rig.config), "--store-dir", str(rig.store), "--json"]
    assert main(argv) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["converged"], told["exit_code"]) == (False, 1)
    assert told["engine"]["looked"] is False
    assert [one["action"] for one in told["actions"]] == ["fetch", "check", "load"]
    assert told["actions"][0]["digest"].startswith("sha256:")
    assert len(told["document"]["problems"]) == 1


def test_variable_that_names_the_engine_makes_the_plan_look_at_it(tmp_path, capsys, monkeypatch):
    rig = Rig(tmp_path)
    rig.document()
    monkeypatch.setenv("MODEL_SIDECAR_ENGINE_URL", "http://127.0.0.1:1")
    argv = ["plan", "--config-dir", str(rig.config), "--store-dir", str(rig.store)]
    assert main(argv) == 1
    assert "engine vllm at http://127.0.0.1:1: cannot be seen" in capsys.readouterr().out


def test_model_of_triton_is_planned_with_its_own_checks(tmp_path, capsys):
    rig = Rig(tmp_path)
    good = write_tiny_model(tmp_path / "good")
    bad = write_tiny_model(tmp_path / "bad", config='name: "other"\n')
    part = 'platform: "ensemble"\nensemble_scheduling { step [ { model_name: "good" } ] }\n'
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "config.pbtxt").write_text(part)
    entries = [{"name": one.name, "source": str(one)} for one in (good, bad, whole)]
    rig.document(*entries)
    argv = ["plan", "--engine", "triton", "--repository-dir", str(tmp_path / "models")]
    argv += ["--config-dir", str(rig.config), "--store-dir", str(rig.store)]
    assert main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("load model")] == ["good", "whole"]
    assert any(line.startswith("check model bad") and "InvalidArtifact" in line for line in lines)
    assert not (tmp_path / "models").exists()
