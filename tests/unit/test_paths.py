import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.manifest import MARKER
from sidecar.artifacts.paths import MAX_PARTS, check_paths, safe_path, shown
from sidecar.errors import ArtifactError, InvalidArtifact, UnsafeArtifact

PARTS = st.sampled_from(
    ["a", "b", "..", ".", "", "\\", "\n", "1", "ü", "\udcff", MARKER, "x" * 256]
)
NAMES = st.one_of(st.text(max_size=40), st.lists(PARTS, max_size=6).map("/".join))


@pytest.mark.parametrize(
    "name", ["a", "1/model.onnx", "...", "..a/b..", "a b/ü (1)%.bin", "x" * 255, "x/" + MARKER]
)
def test_a_plain_relative_path_is_returned_as_it_is(name):
    assert safe_path(name, "s3://b/x") == name


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a/..", "..", "/"])
def test_a_path_that_leads_out_is_unsafe(name):
    with pytest.raises(UnsafeArtifact, match=r"s3://b/x: '.*' leads out"):
        safe_path(name, "s3://b/x")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "no plain path"),
        ("a//b", "no plain path"),
        ("a/", "no plain path"),
        ("./a", "no plain path"),
        ("a\\b", "cannot be kept"),
        ("C:\\x", "cannot be kept"),
        ("a\nb", "cannot be kept"),
        ("a\0b", "cannot be kept"),
        ("a\x1b[2Jb", "cannot be kept"),
        ("a\udcffb", "cannot be kept"),
        ("a\u202eb", "cannot be kept"),
        (MARKER, "store calls its own"),
        (MARKER + "/x", "store calls its own"),
        ("x" * 256, "longer than 255 bytes"),
        ("ü" * 128, "longer than 255 bytes"),
        ("/".join("d" * (MAX_PARTS + 1)), "nest deeper"),
        ("/".join(["x" * 250] * 9), "longer than 2048 bytes"),
    ],
)
def test_a_name_that_cannot_be_kept_is_invalid_and_says_why(name, why):
    with pytest.raises(InvalidArtifact, match=why) as raised:
        safe_path(name, "s3://b/x")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


@given(NAMES)
def test_what_is_returned_stays_below_its_directory_and_the_rest_is_an_artifact_error(name):
    said = ""
    try:
        path = safe_path(name, "w")
    except ArtifactError as error:
        path, said = "x", str(error)
    assert said.isprintable()
    parts = path.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert path.isprintable()
    assert "\\" not in path
    assert parts[0] != MARKER
    assert all(len(part.encode()) <= 255 for part in parts)


def test_distinct_files_are_accepted():
    check_paths(["a/b", "a/c", "a-/b", "b", "A/b", "ab"], "w")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a", "b", "a"], "there twice"),
        (["a/b/c", "a/b"], "a file and a directory at once"),
        (["a/b", "a/b/c"], "a file and a directory at once"),
        (["a", "a/b/c"], "a file and a directory at once"),
    ],
)
def test_names_that_get_in_each_others_way_are_refused(names, why):
    with pytest.raises(UnsafeArtifact, match=why):
        check_paths(names, "w")


def test_every_name_of_a_listing_is_checked():
    with pytest.raises(UnsafeArtifact, match="leads out"):
        check_paths(["a", "../b"], "w")


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), max_size=6))
def test_names_are_accepted_exactly_when_a_directory_can_hold_them(names):
    whole = {tuple(name.split("/")) for name in names}
    clash = any(a != b and b[: len(a)] == a for a in whole for b in whole)
    try:
        check_paths(names, "w")
    except UnsafeArtifact:
        assert clash or len(whole) < len(names)
    else:
        assert not clash
        assert len(whole) == len(names)


def test_a_long_name_is_cut_where_it_is_shown():
    assert len(shown("x" * 5000)) < 130
    assert shown("a\nb") == r"'a\nb'"
