"""The lab takes the picker from PATH, or from its own folder, and only what can be run."""

from __future__ import annotations

import pytest

from lab.epp import find


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Put a file named `epp` onto PATH or into the lab's folder."""
    places = {"path": tmp_path / "path", "lab": tmp_path / "lab" / "bin"}
    for place in places.values():
        place.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(places["path"]))
    monkeypatch.setenv("MODEL_SIDECAR_LAB", str(tmp_path / "lab"))

    def put(where, mode=0o755):
        file = places[where] / "epp"
        file.touch()
        file.chmod(mode)
        return file

    return put


def test_a_picker_on_path_comes_before_the_labs(put):
    assert find() is None
    kept = put("lab")
    assert find() == kept
    chosen = put("path")
    assert find() == chosen


@pytest.mark.parametrize("where", ["path", "lab"])
def test_a_file_that_nobody_may_run_is_no_picker(put, where):
    put(where, mode=0o644)
    assert find() is None


def test_a_folder_of_that_name_is_no_picker(put, tmp_path):
    (tmp_path / "lab" / "bin" / "epp").mkdir()
    assert find() is None
