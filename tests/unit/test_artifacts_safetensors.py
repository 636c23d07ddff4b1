import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.safetensors import read_header
from sidecar.errors import ArtifactError, InvalidArtifact, NotFound
from tests.support.loras import lora_shapes, write_safetensors


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "valid.safetensors"
    write_safetensors(path, lora_shapes())
    return path.read_bytes()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "broken.safetensors"


def _file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_valid_header_tells_shapes_and_types(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": (2, 3), "b": (4,), "empty": (0, 4)}, dtype="BF16")
    tensors = read_header(path)
    assert {name: one.shape for name, one in tensors.items()} == {
        "a": (2, 3),
        "b": (4,),
        "empty": (0, 4),
    }
    assert tensors["a"].dtype == "BF16"


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        read_header(tmp_path / "none.safetensors")


@given(st.data())
def test_every_truncation_is_invalid(valid, broken, data):
    broken.write_bytes(valid[: data.draw(st.integers(0, len(valid) - 1))])
    with pytest.raises(InvalidArtifact, match="copy it again"):
        read_header(broken)


@given(st.binary(min_size=1, max_size=64))
def test_bytes_too_many_are_invalid(valid, broken, more):
    broken.write_bytes(valid + more)
    with pytest.raises(InvalidArtifact):
        read_header(broken)


@given(st.data())
def test_a_damaged_file_is_read_or_invalid_and_never_anything_else(valid, broken, data):
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    broken.write_bytes(damaged)
    try:
        tensors = read_header(broken)
    except InvalidArtifact:
        return
    assert all(isinstance(name, str) for name in tensors)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_for_a_header_is_read_or_invalid(broken, header):
    try:
        read_header(_file(broken, header))
    except ArtifactError as error:
        assert isinstance(error, InvalidArtifact)  # noqa: PT017 (nothing else may come)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": [1 << 62] * 65, "data_offsets": [0, 8]}},
        {"__metadata__": {"x": 1}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        [],
        b" {}",
        b"[" * 5000,
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"\xff\xfe",
    ],
)
def test_a_header_that_contradicts_itself_is_invalid(tmp_path, header):
    path = _file(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(InvalidArtifact, match=r"x\.safetensors"):
        read_header(path)


def test_a_header_length_beyond_the_file_is_invalid_without_reading_that_much(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(InvalidArtifact, match="claims"):
        read_header(path)
