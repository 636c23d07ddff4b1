import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.triton_layout import add_missing_version, parse_config, read_config
from sidecar.errors import InvalidArtifact

ENSEMBLE = """
name: "pipeline"  # the whole of it
platform: "ensemble"
max_batch_size: 8
input [ { name: "TEXT", data_type: TYPE_STRING, dims: [ 1, -1 ] } ]
output { name: "OUT" data_type: TYPE_FP32 dims: [1] }
parameters: { key: "name" value: { string_value: "not the name" } }
ensemble_scheduling {
  step [
    { model_name: "tokenizer" model_version: -1 input_map { key: "TEXT" value: "TEXT" } },
    { model_name: 'bert' model_version: -1 },
    { model_name: "tokenizer" }
  ]
}
"""


def test_an_ensemble_tells_its_parts_once_each_and_in_order():
    config = parse_config(ENSEMBLE)
    assert config.name == "pipeline"
    assert config.parts == ("tokenizer", "bert")
    assert config.is_ensemble


def test_repeated_steps_without_a_list_are_read_alike():
    text = 'ensemble_scheduling: { step: { model_name: "a" } step < model_name: "b" > }'
    assert parse_config(text).parts == ("a", "b")


def test_only_top_level_fields_count():
    config = parse_config(
        'backend: "onnxruntime"\ninput [{ name: "x" }]\ninstance_group { name: "y" }'
    )
    assert (config.name, config.backend, config.is_ensemble) == ("", "onnxruntime", False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'name: "a\"b"', 'a"b'),
        ("name: 'a'", "a"),
        ('name: "a" "b"', "a"),
        ('name:"x";platform:"y"', "x"),
    ],
)
def test_strings_are_read_as_protobuf_writes_them(text, value):
    assert parse_config(text).name == value


def test_file_names_of_its_own_are_noticed():
    assert parse_config('default_model_filename: "x.onnx"').has_file_name
    assert parse_config('cc_model_filenames { key: "8.0" value: "x.plan" }').has_file_name


@pytest.mark.parametrize(
    "text",
    ["input [", "}", 'name: "open', "input [ { name: 'x' ) ]", "input { ]", "name:", "a: {b: 1"],
)
def test_what_cannot_be_protobuf_text_is_refused_with_its_place(tmp_path, text):
    (tmp_path / "config.pbtxt").write_text(text)
    with pytest.raises(InvalidArtifact, match=r"config\.pbtxt"):
        read_config(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArtifact):
        read_config(tmp_path)


@given(st.text(alphabet="ab{}[]<>:;,#\"'\\ \n-1", max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        parse_config(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 (nothing else may come)


def test_an_ensemble_without_version_directory_is_given_one(tmp_path):
    (tmp_path / "config.pbtxt").write_text(ENSEMBLE)
    add_missing_version(tmp_path)
    assert (tmp_path / "1").is_dir()


def test_a_version_that_is_there_stays_the_only_one(tmp_path):
    (tmp_path / "config.pbtxt").write_text(ENSEMBLE)
    (tmp_path / "7").mkdir()
    add_missing_version(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["7", "config.pbtxt"]


def test_other_models_are_left_as_they_are(tmp_path):
    (tmp_path / "config.pbtxt").write_text('backend: "python"')
    add_missing_version(tmp_path)
    assert not (tmp_path / "1").exists()
