"""The named rules of our pages, each broken alone by a change of a good page."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.picker_page import LoraView, lora_labels, render_picker_page
from sidecar.core.translate import Sample
from tests.support import picker_oracle as oracle

NAMES = frozenset({"chat", "sql"})
VIEW = LoraView(
    slots=4,
    resident=NAMES | {"ocr"},
    in_slot=NAMES,
    in_cpu=NAMES | {"ocr"},
    partial=frozenset({"ocr"}),
    complete=True,
)
SAMPLE = Sample(
    taken_at=0.0, queued=3.0, running=7.0, kv_usage=0.42, block_size=16, num_blocks=4096
)


def good_page(changed_at=1763600000.5):
    return render_picker_page(SAMPLE, VIEW, lora_labels(VIEW), ready=True, changed_at=changed_at)


GOOD = good_page().decode()
INFO = "vllm:lora_requests_info{"
CPU = 'vllm:lora_adapter_loaded{adapter_name="ocr",level="cpu",pinned="false",rank="0"} 1\n'
"""The last line of its family."""


def swap(*pairs):
    """A change that puts one text in the place of another, which must stand there once."""

    def change(page):
        for old, new in pairs:
            assert page.count(old) == 1, old
            page = page.replace(old, new)
        return page

    return change


def block(name):
    (found,) = re.findall(f"# TYPE {name} .*\n{name}.*\n", GOOD)
    return found


def value(name, text):
    """A change of one figure."""
    return swap((f"\n{name} {re.findall(f'^{name} (.*)$', GOOD, re.M)[0]}\n", f"\n{name} {text}\n"))


BREAKS = [
    ("final newline", lambda page: page[:-1]),
    ("the parser takes the page", lambda page: page + block("vllm:num_requests_waiting")),
    ("the parser takes the page", lambda page: page.replace("\n", "\r\n")),
    ("the parser takes the page", value("vllm:num_requests_waiting", "1_0")),
    ("lines in their plainest form", lambda page: "# HELP model_sidecar_ready Yes.\n" + page),
    ("lines in their plainest form", lambda page: page + "# EOF\n"),
    ("lines in their plainest form", lambda page: page + "\n"),
    ("lines in their plainest form", swap(("ready 1", "ready  1"))),
    ("lines in their plainest form", swap(('4",running', '4", running'))),
    ("lines in their plainest form", swap(("ready gauge", "ready GAUGE"))),
    ("every family typed gauge", swap(("ready gauge", "ready counter"))),
    ("every family typed gauge", swap(("running gauge", "running untyped"))),
    ("each sample under its own TYPE", lambda page: page.replace(CPU, "") + CPU),
    *(("every family that pickers ask for", swap((block(name), ""))) for name in (
        "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc", "vllm:cache_config_info", "vllm:num_gpu_loaded_lora_adapters",
        "vllm:max_gpu_lora_adapters", "model_sidecar_ready")),
    ("every family that pickers ask for", swap(("model_sidecar_ready 1\n", ""))),
    ("no other family", lambda page: page + "# TYPE x gauge\nx 1\n"),
    ("one series a figure", swap(("_waiting 3\n", "_waiting 3\nvllm:num_requests_waiting 3\n"))),
    ("no labels on a figure", swap(("_waiting 3\n", '_waiting{engine="0"} 3\n'))),
    ("no timestamps", swap(("_waiting 3\n", "_waiting 3 1763600000\n"))),
    ("no timestamps", swap(("_waiting 3\n", "_waiting 3 0\n"))),
    *(("finite and not negative", value("vllm:num_requests_waiting", text))
      for text in ("NaN", "+Inf", "-1")),
    ("finite and not negative", swap(("1763600000.500", "+Inf"))),
    ("counts are whole numbers", value("vllm:num_requests_running", "7.5")),
    ("counts are whole numbers", value("vllm:num_requests_running", "1e16")),
    ("usage is a fraction", swap(("kv_cache_usage_perc 0.42", "kv_cache_usage_perc 42"),
                                 ("gpu_cache_usage_perc 0.42", "gpu_cache_usage_perc 42"))),
    ("one usage under both names", swap(("gpu_cache_usage_perc 0.42", "gpu_cache_usage_perc 0.4"))),
    ("ready is 0 or 1", value("model_sidecar_ready", "2")),
    *(("always max_lora and both lists", swap((text, ""))) for text in (
        'max_lora="4",', ',waiting_lora_adapters="ocr"')),
    ("always max_lora and both lists", swap((INFO, INFO + 'a="b",'))),
    ("always both cache labels", swap(('block_size="16",', ""))),
    ("always both cache labels", swap((',num_gpu_blocks="4096"', ""))),
    ("always the labels of a level", swap((CPU, CPU.replace(',rank="0"', "")))),
    *(("labels that count are plain integers", swap(('max_lora="4"', f'max_lora="{text}"')))
      for text in ("4.0", "", "+4", "04", "None", "٤")),
    ("labels that count are plain integers", swap(
        ('max_lora="4"', 'max_lora="9007199254740993"'),
        ("max_gpu_lora_adapters 4\n", "max_gpu_lora_adapters 9007199254740993\n"))),
    ("labels that count are plain integers", swap(('size="16"', 'size="None"'))),
    ("labels that count are plain integers", swap(('blocks="4096"', 'blocks="-1"'))),
    ("the LoRA value is above 0", swap(("1763600000.500", "0.000"))),
    ("the other infos are 1", swap(('blocks="4096"} 1', 'blocks="4096"} 0'))),
    ("the other infos are 1", swap((CPU, CPU.replace("} 1", "} 2")))),
    ("lists are sorted", swap(("chat,sql", "sql,chat"))),
    ("lists are sorted", swap(("chat,sql", "chat,chat,sql"))),
    ("lists hold names alone", swap(("chat,sql", "chat, sql"))),
    ("lists hold names alone", swap(("chat,sql", "chat,sql,"))),
    ("lists hold names alone", swap(("chat,sql", "chat,\u2003sql"))),
    ("a name stands in one list", swap(('adapters="ocr"', 'adapters="ocr,sql"'))),
    ("a LoRA has one level", swap((CPU, CPU + CPU.replace("ocr", "sql")))),
    ("levels are gpu and cpu", swap((CPU, CPU.replace('"cpu"', '"disk"')))),
    ("levels are gpu and cpu", swap((CPU, CPU.replace('"false"', '"true"')))),
    ("levels are gpu and cpu", swap((CPU, CPU.replace('"0"', '"1"')))),
    ("the gpu level is the running list", swap((CPU, CPU.replace('"cpu"', '"gpu"')))),
    ("the gpu level is the running list", swap(('"sql",level="gpu"', '"sql",level="cpu"'))),
    ("the loaded count is that of the running list",
     value("vllm:num_gpu_loaded_lora_adapters", "3")),
    ("the slots are max_lora", value("vllm:max_gpu_lora_adapters", "5")),
    ("the size is bounded", value("vllm:num_requests_waiting", "3." + "0" * 800)),
]  # fmt: skip


def test_a_good_page_breaks_none():
    reading = oracle.check_page(GOOD.encode())
    assert reading.errors == []
    assert reading.active == set(NAMES)


@pytest.mark.parametrize(("rule", "change"), BREAKS)
def test_each_rule_is_broken_alone(rule, change):
    page = change(GOOD).encode()
    assert oracle.broken_rules(page).keys() == {rule}
    with pytest.raises(AssertionError, match=rule):
        oracle.check_page(page)


def test_each_rule_has_a_page_that_breaks_it():
    assert {rule for rule, _ in BREAKS} == {
        *oracle.RULES,
        "final newline",
        "the parser takes the page",
    }


def test_the_lora_value_never_goes_back():
    oracle.check_pages([good_page(1.0), good_page(1.0), good_page(2.0)])
    with pytest.raises(AssertionError, match="the LoRA value goes back"):
        oracle.check_pages([good_page(2.0), good_page(1.0)])


@st.composite
def changed(draw):
    """The good page with a line or a few bytes out of place."""
    lines = GOOD.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["drop", "double", "move", "bytes", "bytes"])):
        case "drop":
            del lines[at]
        case "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        case "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        case _:
            cut = draw(st.integers(0, len(lines[at])))
            end = cut + draw(st.integers(0, 4))
            piece = draw(st.text('",\\{}= \n#01.-a', max_size=2))
            lines[at] = lines[at][:cut] + piece + lines[at][end:]
    return "".join(lines).encode()


@settings(max_examples=1000)
@given(changed())
def test_every_picker_reads_a_page_that_keeps_the_rules(page):
    if oracle.broken_rules(page):
        return
    reading = oracle.read(page)
    assert reading.errors == []
    assert reading.fresh
    newest = oracle.OLD_PICKERS[-1]
    for picker in oracle.OLD_PICKERS:
        old = oracle.read_legacy(page, picker)
        assert old.errors == []
        assert (old.queued, old.kv_usage) == (reading.queued, reading.kv_usage)
        if reading.active or reading.waiting:
            told = old.active, old.waiting, old.max_lora
            assert told == (reading.active, reading.waiting, reading.max_lora)
    assert oracle.read_legacy(page, newest).running == reading.running
