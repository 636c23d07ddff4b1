import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.documents import text
from sidecar.core.documents.nodes import MAX_DEPTH
from sidecar.core.documents.text import MAX_BYTES, parse_text
from sidecar.errors import DocumentError

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def plain(written: str, key: str = "a.yaml") -> object:
    return parse_text(key, written).plain()


def failure(written: str, key: str = "a.yaml") -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        parse_text(key, written)
    return caught.value


@given(JSON_VALUES, st.sampled_from([None, 2, "\t"]))
def test_json_reads_as_the_json_module_reads_it(value, indent):
    assert plain(json.dumps(value, indent=indent), "a.json") == value


@given(JSON_VALUES)
def test_yaml_reads_as_the_yaml_module_reads_it(value):
    written = yaml.safe_dump(value)
    assert plain(written) == yaml.safe_load(written)


def test_json_under_a_yaml_key_may_be_indented_with_tabs():
    assert plain('{\n\t"a": [1,\t2]\n}') == {"a": [1, 2]}


def test_flow_yaml_that_is_no_json_is_still_yaml():
    assert plain("{a: [1, yes]}") == {"a": [1, True]}


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert plain("\ufeff[1]", "a.json") == [1]


def test_dates_are_text_and_keys_are_as_written():
    assert plain("2026-04-30: 2026-05-01\non: off\n1: ~\n") == {
        "2026-04-30": "2026-05-01",
        "on": False,
        "1": None,
    }


def test_quoted_and_tagged_scalars():
    assert plain('[ "1", !!str 1, !!int "2", !!float 3, !!bool "true", ! 4, 1_000, 0x10, .5]') == [
        "1",
        "1",
        2,
        3.0,
        True,
        "4",
        1000,
        16,
        0.5,
    ]


def test_anchors_and_merge_keys_are_written_out():
    assert plain(
        "a: &a {x: 1, y: 2}\n"
        "b: {<<: *a, y: 3}\n"
        "c: {y: 4, <<: [*a, {z: 5}]}\n"
        "d: {'<<': 1}\n"
        "? &k key\n: *k\n"
        "e: {*k : 1}\n"
    ) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 4, "z": 5},
        "d": {"<<": 1},
        "key": "key",
        "e": {"key": 1},
    }


def test_lines_are_known_in_both_notations():
    for key, written in (
        ("a.json", '{"a":\n[1,\n\n{"b": 2}]}'),
        ("a.yaml", "a:\n- 1\n\n- b: 2\n"),
    ):
        items = parse_text(key, written).value
        assert isinstance(items, dict)
        inner = items["a"].value
        assert isinstance(inner, list)
        assert [node.line for node in inner] == [2, 4]


@pytest.mark.parametrize("key", ["a.json", "a.yaml"])
def test_keys_that_stand_twice_are_told(key):
    node = parse_text(key, '{"a": 1,\n"b": [{"c": 1, "c": 2}]}')
    assert node.find_duplicate() == ("c", 2)
    assert parse_text(key, '{"a": 1, "b": [{}]}').find_duplicate() is None
    assert parse_text(key, "7").find_duplicate() is None


def test_json_errors_tell_line_and_column():
    error = failure('[\n  {"a": 1,}\n]', "a.json")
    assert error.where == "a.json (line 2, column 11)"
    assert "it is no JSON" in str(error)


def test_yaml_errors_tell_line_and_column():
    error = failure("a: 1\n\tb: 2\n")
    assert error.where == "a.yaml (line 2, column 1)"
    assert "it is no YAML" in str(error)


@pytest.mark.parametrize(
    "written",
    [
        "NaN",
        "-Infinity",
        "1" * 5000,
        "[" * 100_000,
        '"\\ud800"',
        '{"\\udfff": 1}',
        "",
        "{",
        "[1 2]",
    ],
)
def test_what_json_cannot_be(written):
    failure(written, "a.json")


@pytest.mark.parametrize(
    "written",
    [
        "a: *unknown",
        "&a [*a]",
        "!!python/object/apply:os.system ['true']",
        "!!binary aGk=",
        "!local {a: 1}",
        "!!set {a}",
        "!!int x",
        "!!bool maybe",
        "9" * 5000,
        "0b_",
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "a: &a [1]\nb: {*a : 1}",
        "<<: 1",
        "<<: [1]",
        "a: 1\n---\nb: 1\n",
        "a\x00b",
        "\ud800",
        '"\\ud800"',
        "- " * 100_000,
        "[" * 100_000,
        "{a: " * 1_000,
    ],
)
def test_what_yaml_cannot_be(written):
    failure(written)


def test_depth_is_bounded():
    plain("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for key in ("a.json", "a.yaml"):
        deeper = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
        assert "deep" in str(failure(deeper, key))


def test_alias_bombs_are_refused_without_being_written_out():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 30):
        previous = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{previous}]")
    assert "aliases" in str(failure("\n".join(lines)))


def test_size_is_bounded_in_bytes():
    assert plain("'" + "é" * (MAX_BYTES // 2 - 1) + "'") == "é" * (MAX_BYTES // 2 - 1)
    assert str(MAX_BYTES) in str(failure("'" + "é" * (MAX_BYTES // 2) + "'"))


def test_an_empty_text_is_nothing():
    assert plain("# only a comment\n") is None


def test_the_python_loader_gives_the_same(monkeypatch):
    written = "models:\n- {name: a, x: [1, 2.5, ~, yes, 2026-01-01]}\n- &b 'q'\n- *b\n"
    expected = plain(written)
    monkeypatch.setattr(text, "_LOADER", yaml.SafeLoader)
    assert plain(written) == expected
    for broken in ("a: [", "a\x00b", '"\\ud800"', "- " * 10_000):
        failure(broken)


@given(st.text(max_size=60), st.sampled_from(["a.json", "a.yaml"]))
def test_no_text_raises_anything_else(written, key):
    with suppress(DocumentError):
        json.dumps(parse_text(key, written).plain())
