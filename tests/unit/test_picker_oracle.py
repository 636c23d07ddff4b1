"""The oracle against pages that break its rules; the real picker reads the same pages elsewhere."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import picker_oracle as oracle
from tests.support.picker_oracle.extract import (
    CACHE_INFO,
    KV_USAGE,
    LORA_INFO,
    OLD_KV_USAGE,
    QUEUED,
    RUNNING,
)
from tests.support.picker_oracle.go import MAX_INT64, MIN_INT64
from tests.support.picker_pages import CASES, READ, WHOLE, gauge, lora, page, typed
from tests.support.picker_sequences import REMEMBERED, SEQUENCES, Answer, play
from tests.support.picker_strategies import pages


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_each_rule_shows_on_a_page_that_breaks_it(case):
    if case.says:
        with pytest.raises(oracle.PageRefused, match=case.says):
            oracle.read(case.page)
    else:
        read = vars(oracle.read(case.page))
        assert {name: read[name] for name in READ} == READ | case.reads


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.rule)
def test_what_is_not_read_stays_as_it_was(sequence):
    endpoint, _ = play(sequence.answers)
    assert vars(endpoint) == REMEMBERED | sequence.remembers


def test_no_two_cases_have_one_name():
    names = [one.rule for one in CASES] + [one.rule for one in SEQUENCES]
    assert len(CASES) > 150
    assert [name for name in names if names.count(name) > 1] == ["the whole page"] * 2


def test_a_nan_is_read_as_a_nan():
    usage = oracle.read(page(kv=gauge(KV_USAGE, "NaN"))).kv_usage
    assert usage is not None
    assert usage != usage


@pytest.mark.parametrize(
    "text",
    [
        b"{} 1\n",
        b'# TYPE x gauge\n{a="b"} 1\n',
        b"{}",
        b'# TYPE s summary\n# TYPE g gauge\n{"s",a="b"} 1\n',
        b'# TYPE h histogram\n# TYPE g gauge\n{"h",le="1",a="b"} 1\n',
    ],
)
def test_there_are_pages_of_which_the_picker_dies(text):
    with pytest.raises(oracle.PickerDies):
        oracle.parse(text)


def test_labels_without_a_name_change_the_sample_before_them():
    (first, second) = oracle.parse(b'# TYPE x gauge\nx{a="1"} 1\n{b="2"} 5\n')["x"].metrics
    assert first is second
    assert (first.labels, first.value) == ([("a", "1"), ("b", "2")], 5.0)


def test_the_lines_of_a_histogram_are_one_series_for_each_set_of_labels():
    text = typed("histogram", "h", '{le="1",a="x"} 3 5', '{le="+Inf",a="x"} 4', '{le="1",a="y"} 1')
    family = oracle.parse((text + 'h_sum{a="x"} 7 9\nh_count 3\n').encode())["h"]
    told = [(dict(one.labels), one.value, one.timestamp) for one in family.metrics]
    assert told == [({"a": "x"}, 0.0, 9), ({"a": "y"}, 0.0, 0), ({}, 0.0, 0)]
    assert len(family.samples) == 5
    assert family.samples[0] == ({"le": "1", "a": "x"}, 3.0, 5)


def test_a_count_is_its_family_s_only_where_that_is_declared():
    assert oracle.parse(b"# TYPE x gauge\nx_count 1\n").keys() == {"x", "x_count"}
    assert oracle.parse(b"# TYPE x summary\nx_count 1\nx_bucket 1\n").keys() == {"x", "x_bucket"}
    assert oracle.parse(b"x_count 1\n# TYPE x summary\nx_count 2\n")["x_count"].samples[1][1] == 2


@given(pages(), st.integers(0, 3000))
def test_gzip_changes_nothing_and_half_of_it_is_lost(body, at):
    zipped = gzip.compress(body)
    assert oracle.inflate(zipped) == body
    cut = zipped[1 : 1 + at % (len(zipped) - 1)]
    whole, _ = play((Answer(body),))
    assert play((Answer(zipped, encoding="gzip"),))[0] == whole
    assert play((Answer(zipped[:1] + cut, encoding="gzip"),))[0].poll_errors == 1


OLD = page(old_kv=gauge(OLD_KV_USAGE, "0.41"))
FIRST, SECOND, THIRD = oracle.OLD_PICKERS


def test_old_pickers_differ_in_what_they_read():
    loras = {"active": {"de", "fr"}, "waiting": {"it"}, "max_lora": 8, "errors": [], "fresh": True}
    cache = {"block_size": 16, "num_blocks": 4096}
    nothing = dict.fromkeys(READ)
    read = [vars(oracle.read_legacy(OLD, picker)) for picker in oracle.OLD_PICKERS]
    assert read == [
        nothing | loras | {"queued": 3, "kv_usage": 0.41},
        nothing | loras | cache | {"queued": 3, "kv_usage": 0.41},
        nothing | loras | cache | {"queued": 3, "running": 7, "kv_usage": 0.42},
    ]


@pytest.mark.parametrize(
    ("rule", "text", "differently"),
    [
        ("a counter reads as 0", page(queued=typed("counter", QUEUED, "3")), {"queued": 0}),
        ("the greatest timestamp", page(running=gauge(RUNNING, "1", "2 5")), {"running": 2}),
        ("NaN", page(queued=gauge(QUEUED, "NaN")), {"queued": MIN_INT64}),
        ("no usage", page(kv=""), {"kv_usage": None, "errors": ["kv"]}),
        ("no queue", page(queued=""), {"queued": None, "errors": ["queued"]}),
        ("no running", page(running=""), {"running": None, "errors": ["running"]}),
        ("no LoRA family is an error", page(lora=""),
         {"active": None, "waiting": None, "max_lora": None, "errors": ["lora"]}),
        ("a LoRA family without samples, too", page(lora=gauge(LORA_INFO)),
         {"active": None, "waiting": None, "max_lora": None, "errors": ["lora"]}),
        ("two empty lists are passed over", page(lora=gauge(LORA_INFO, f"{lora('', '')} 1")),
         {"active": None, "waiting": None, "max_lora": None}),
        ("so is a value of 0", page(lora=gauge(LORA_INFO, f"{lora()} 0")),
         {"active": None, "waiting": None, "max_lora": None}),
        ("so is a counter's", page(lora=typed("counter", LORA_INFO, f"{lora()} 1")),
         {"active": None, "waiting": None, "max_lora": None}),
        ("the greatest value", page(lora=gauge(LORA_INFO, f"{lora('a')} 1", f"{lora('b')} 2")),
         {"active": {"b"}}),
        ("blanks and empties stay", page(lora=gauge(LORA_INFO, f"{lora('a, b,', ',')} 1")),
         {"active": {"a", " b", ""}, "waiting": {""}}),
        ("a max_lora that is no integer becomes 0",
         page(lora=gauge(LORA_INFO, f"{lora(max_lora='4.0')} 1")),
         {"max_lora": 0, "errors": ["max_lora"]}),
        ("one that is too large, the largest",
         page(lora=gauge(LORA_INFO, f"{lora(max_lora='9' * 30)} 1")),
         {"max_lora": MAX_INT64, "errors": ["max_lora"]}),
        ("an empty one stays as it was", page(lora=gauge(LORA_INFO, f"{lora(max_lora='')} 1")),
         {"max_lora": None}),
        ("no cache info", page(cache=""),
         {"block_size": None, "num_blocks": None, "errors": ["cache"]}),
        ("cache labels that are no integers",
         page(cache=gauge(CACHE_INFO, '{block_size="None",num_gpu_blocks=""} 1')),
         {"block_size": 0, "num_blocks": 0, "errors": ["block_size", "num_blocks"]}),
        ("a block size that is missing stays",
         page(cache=gauge(CACHE_INFO, '{num_gpu_blocks="5"} 1')),
         {"block_size": None, "num_blocks": 5}),
    ],
)  # fmt: skip
def test_old_pickers_read_some_pages_in_another_way(rule, text, differently):
    assert vars(oracle.read_legacy(text)) == READ | differently, rule


def test_any_page_that_parses_is_fresh_to_old_pickers():
    assert oracle.read_legacy(b"").fresh
    assert not oracle.read(b"").fresh
    with pytest.raises(oracle.PageRefused):
        oracle.read_legacy(WHOLE[:-1])
