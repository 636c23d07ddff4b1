"""The text format: lines found by name, pages merged by family."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.exposition import (
    as_text,
    find_lines,
    has_family,
    merge_pages,
    render_family,
)
from tests.support import picker_oracle as oracle


@pytest.mark.parametrize(
    ("page", "values"),
    [
        (b"x 1\n", [1]),
        (b"y 1\nx 2", [2]),
        (b"x_total 1\nxy 2\nx 3\n", [3]),
        (b"# HELP x of x 5\n# TYPE x gauge\nx 4\n", [4]),
        (b'x{a="}"} 1\nx{a="\\""} 2 1763600000\nx\t3\r\n', [1, 2, 3]),
        (b"x 1\ny 5\nx 2\n", [1, 2]),
        (b'x NaN\nx{a="b} 1\nx\nx \nx one\n', []),
        (b"ax 1\n x 2\n", []),
    ],
)
def test_samples_are_found_by_name(page, values):
    assert [line.value for line in find_lines(page, "x")] == values


def test_labels_are_unescaped():
    (line,) = find_lines(b'x{a="1",b = "q\\"\\\\\\n",} 1\n', "x")
    assert line.labels() == {"a": "1", "b": 'q"\\\n'}


@pytest.mark.parametrize(
    ("page", "there"),
    [
        (b"x 1\n", True),
        (b"y 1\nx{} 1\n", True),
        (b"# TYPE x gauge\n", True),
        (b"# TYPE xy gauge\nxy 1\n", False),
        (b"# HELP y of x 5\ny 1\n", False),
        (b"", False),
    ],
)
def test_a_family_is_known_by_its_type_or_a_sample(page, there):
    assert has_family(page, "x") is there


@given(st.text(), st.text())
def test_every_label_value_is_read_back(first, second):
    labels = {"a": first, "b": second}
    page = render_family("x", [(labels, 1)])
    told = {name: as_text(value) for name, value in labels.items()}
    (line,) = find_lines(page.encode(), "x")
    assert line.labels() == told
    if "\r" not in page:
        assert oracle.parse(page.encode())["x"].samples == [(told, 1.0, 0)]


HISTOGRAM = (
    b'# HELP h how long\n# TYPE h histogram\nh_bucket{le="1"} 2\nh_bucket{le="+Inf"} 3\n'
    b"h_sum 2.5\nh_count 3\n"
)


def test_the_first_page_wins_a_name():
    ours = b"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 3\n"
    engine = (
        b"# HELP vllm:num_requests_waiting theirs\n# TYPE vllm:num_requests_waiting gauge\n"
        b'vllm:num_requests_waiting{engine="0"} 1\n# TYPE process_open_fds gauge\n'
        b"process_open_fds 9\n"
    )
    families = oracle.parse(merge_pages([ours, ours], [engine]))
    assert families["vllm:num_requests_waiting"].samples == [({}, 3.0, 0)]
    assert families["process_open_fds"].samples == [({}, 9.0, 0)]


def test_histograms_stay_one_block():
    merged = merge_pages([b"# TYPE a gauge\na 1\n"], [HISTOGRAM])
    assert merged.endswith(HISTOGRAM)
    assert len(oracle.parse(merged)["h"].samples) == 4


def test_ranks_are_told_apart_by_a_label():
    families = oracle.parse(merge_pages([], [HISTOGRAM + b"x 1\n", HISTOGRAM + b'x{a="b"} 2\n']))
    assert [labels for labels, _, _ in families["x"].samples] == [
        {"engine_rank": "0"},
        {"engine_rank": "1", "a": "b"},
    ]
    assert len(families["h"].samples) == 8


def test_a_page_that_glues_blocks_of_one_name_is_put_in_order():
    glued = b'# TYPE x gauge\nx 1\n# TYPE y gauge\ny 1\n# TYPE x gauge\n# HELP x late\nx{a="b"} 2\n'
    with pytest.raises(oracle.PageRefused):
        oracle.parse(glued)
    families = oracle.parse(merge_pages([], [glued]))
    assert len(families["x"].samples) == 2


def test_types_that_the_format_does_not_know_become_untyped():
    families = oracle.parse(merge_pages([], [b"# TYPE x unknown\nx 1\n"]))
    assert families["x"].type == "untyped"


pieces = st.sampled_from(
    [b"# TYPE x gauge", b"# HELP x y", b"# TYPE x info", b"x 1", b'x{a="b"} 2', b"x{", b"x 1 2 3",
     b"h_sum 1", b"# TYPE h summary", b"h_count x", b"x 1.5 # {} 1", b"# EOF", b"\xff 1", b"x nan"]
)  # fmt: skip


@given(st.lists(st.lists(pieces, max_size=8).map(b"\n".join), max_size=3))
def test_whatever_the_engine_writes_the_merged_page_is_read(pages):
    oracle.parse(merge_pages([b"# TYPE a gauge\na 1\n"], pages))
