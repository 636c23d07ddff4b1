import asyncio
import json
import os

import pytest

from sidecar.artifacts.memory import MemoryFile
from sidecar.errors import ArtifactError


@pytest.fixture
def memory(tmp_path):
    one = MemoryFile(tmp_path / "store", "pod-a")
    yield one
    one.close()


def _path(tmp_path):
    return tmp_path / "store" / ".agent" / "pod-a.json"


async def test_nothing_saved_is_nothing_remembered_and_no_problem(memory):
    recalled = await memory.load()
    assert (recalled.mapping, recalled.problem) == (None, "")


async def test_what_was_saved_last_is_remembered_by_the_agent_alone(memory, tmp_path):
    await memory.save({"documents": {"models.yaml": "models: []"}})
    await memory.save({"latch": True})
    assert (await memory.load()).mapping == {"latch": True}
    assert os.stat(_path(tmp_path)).st_mode & 0o777 == 0o600
    assert [one.name for one in _path(tmp_path).parent.iterdir()] == ["pod-a.json"]


@pytest.mark.parametrize("text", [b"", b'{"a": ', b"[]", b"\xff\xfe", b"[" * 5000])
async def test_a_damaged_memory_is_a_problem_and_no_crash(memory, tmp_path, text):
    await memory.save({})
    _path(tmp_path).write_bytes(text)
    recalled = await memory.load()
    assert recalled.mapping is None
    assert "pod-a.json" in recalled.problem
    await memory.save({"whole": "again"})
    assert (await memory.load()).mapping == {"whole": "again"}


async def test_an_unreadable_memory_is_a_problem_and_no_crash(memory, tmp_path):
    _path(tmp_path).mkdir(parents=True)
    recalled = await memory.load()
    assert recalled.mapping is None
    assert "cannot be used" in recalled.problem
    with pytest.raises(ArtifactError):
        await memory.save({})


async def test_without_a_writable_store_saving_is_an_artifact_error(memory, tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ArtifactError, match="--store-dir"):
        await memory.save({})


async def test_overlapping_saves_end_with_the_newest(memory, tmp_path):
    written: list[int] = []
    inodes = asyncio.create_task(_watch(_path(tmp_path), written))
    await asyncio.gather(*(memory.save({"number": i}) for i in range(200)))
    inodes.cancel()
    assert json.loads(_path(tmp_path).read_text()) == {"number": 199}
    assert len(set(written)) < 20


async def _watch(path, written):
    while True:
        if path.exists():
            written.append(path.stat().st_mtime_ns)
        await asyncio.to_thread(lambda: None)


async def test_any_pod_uid_is_a_file_of_its_own(tmp_path):
    uids = ["../../escape", "a/b", ".", "x" * 400]
    for uid in uids:
        one = MemoryFile(tmp_path / "store", uid)
        await one.save({"uid": uid})
        assert (await one.load()).mapping == {"uid": uid}
        one.close()
    assert len(list((tmp_path / "store" / ".agent").iterdir())) == len(uids)
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
