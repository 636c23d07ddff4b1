"""The generated documents name everything, and a stale one is found."""

import pytest

from sidecar.flags import environment_name, flags
from sidecar.settings import Settings
from tools.docs import documents, main, own_families


def test_written_documents_are_current(tmp_path, capsys):
    assert main([], tmp_path / "docs") == 0
    assert sorted(one.name for one in (tmp_path / "docs").iterdir()) == sorted(documents())
    assert main(["--check"], tmp_path / "docs") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", documents())
@pytest.mark.parametrize("is_missing", [False, True])
def test_stale_document_is_named_and_left_as_it_is(name, is_missing, tmp_path, capsys):
    main([], tmp_path)
    stale = tmp_path / name
    if is_missing:
        stale.unlink()
    else:
        stale.write_text("old")
    assert main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    assert f"docs/{name} is not current" in said
    assert said.count("\n") == 1
    assert not stale.exists() if is_missing else stale.read_text() == "old"


def test_every_flag_has_one_row_with_its_variable():
    rows = documents()["flags.md"].splitlines()
    for field, (name, _, _) in flags(Settings).items():
        (row,) = (row for row in rows if row.startswith(f"| `{name}` |"))
        assert f"`{environment_name(field)}`" in row


def test_every_series_of_the_contract_has_a_row():
    text = documents()["metrics.md"]
    for name in (
        "ready",
        "converged",
        "document_info",
        "document_valid",
        "document_problems",
        "targets",
        "target_state",
        "target_reason",
        "actions_total",
        "action_duration_seconds",
        "propagation_seconds",
        "engine_up",
        "engine_restarts_total",
        "engine_sample_age_seconds",
        "engine_sample_interval_seconds",
        "engine_samples_total",
        "store_bytes",
        "fetched_bytes_total",
        "event_loop_lag_seconds",
        "build_info",
    ):
        assert f"| `model_sidecar_{name}` |" in text
    assert all(family.documentation for family in own_families())
