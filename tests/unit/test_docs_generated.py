"""The generated documents name everything, and a stale one is found."""

from dataclasses import replace

import pytest

from sidecar.cli import build_parser
from sidecar.core.desired import Format
from sidecar.flags import environment_name, flags
from sidecar.settings import Settings
from tools.docs import documents, main, own_families
from tools.docs_commands import render_commands
from tools.docs_fields import LAYOUTS, Field, FieldError, render_layout


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


def test_every_command_has_a_section_and_its_flags():
    text = documents()["commands.md"]
    for name in ("run", "plan", "validate", "status", "models", "inject", "webhook", "version"):
        assert f"\n## {name}\n" in text
    for name in ("list", "create", "delete", "exists", "add", "remove"):
        assert f"\n## models {name}\n" in text
    assert "| `-l`, `--selector` | `SELECTOR` |" in text
    assert "| `--kind` | `lora`, `model` | default: told by the files |" in text
    assert text.count("| `--configmap` | `NAME` | required; the ConfigMap |") == 1


def test_a_new_flag_is_in_the_reference():
    parser = build_parser()
    status = parser.parse_args(["status"]).parser
    status.add_argument("--loud", action="store_true", help="say more")
    assert "| `--loud` |  | say more |" in render_commands(parser)


@pytest.mark.parametrize("form", Format)
def test_the_fields_of_every_format_are_told(form):
    text = render_layout(form, LAYOUTS[form])
    assert text in documents()["fields.md"]
    for name in LAYOUTS[form].fields:
        assert f"| `{name}` |" in text
    assert "| yes |" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": Field(example="lorra", means="")},
        {"kind": Field(example="lora", means="", values=("lora", "adapter"))},
        {"sauce": Field(example="x", means="")},
    ],
)
def test_a_field_that_the_parser_refuses_is_not_told(wrong):
    native = LAYOUTS[Format.NATIVE]
    with pytest.raises(FieldError):
        render_layout(Format.NATIVE, replace(native, fields={**native.fields, **wrong}))
