"""What is read off the engines' own pages."""

import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import CacheInfo, MetricMap
from adapters.sglang_metrics import SGLANG_METRICS
from adapters.triton_metrics import TRITON_METRICS
from adapters.vllm import VLLM_METRICS
from sidecar.core.cadence import has_changed
from sidecar.core.lora_activity import MAX_ACTIVITY, Moment
from sidecar.core.translate import LARGEST, SampleError, translate

DATA = Path(__file__).parent.parent / "data"
VLLM = VLLM_METRICS
TRITON = TENSORRT = TRITON_METRICS


def recorded(name):
    return (DATA / name).read_bytes()


def busy(infer_us, output_us=0):
    return (
        b"# TYPE nv_inference_pending_request_count gauge\n"
        b'nv_inference_compute_infer_duration_us{model="m",version="1"} %d\n'
        b'nv_inference_compute_output_duration_us{model="m",version="1"} %d\n'
    ) % (infer_us, output_us)


def lora(value, running, max_lora="2"):
    text = 'vllm:lora_requests_info{max_lora="%s",running_lora_adapters="%s",'
    return (text + 'waiting_lora_adapters="%s"} %s\n') % (max_lora, running, running, value)


def vllm(text=""):
    return (
        "vllm:num_requests_waiting 1.0\nvllm:num_requests_running 2.0\n"
        f"vllm:kv_cache_usage_perc 0.5\n{text}"
    ).encode()


def test_a_page_of_a_real_vllm_is_read():
    sample = translate((recorded("vllm-0.32-metrics-lora.txt"),), VLLM, None, now=7.0)
    assert (sample.queued, sample.running, sample.taken_at) == (2.0, 4.0, 7.0)
    assert sample.kv_usage == pytest.approx(0.000488, abs=1e-6)
    assert sample.block_size == 128
    assert sample.num_blocks > 0
    assert sample.started_at == 1.79522575032e09
    assert sample.max_loras == 2
    assert sample.lora_running == ("chat-lora", "sql-lora")
    assert sample.lora_activity[-1][1] == ("chat-lora", "sql-lora")
    assert sample.lora_activity[0][1] == ("sql-lora",)


def test_an_idle_vllm_that_never_had_a_lora_request_says_nothing_of_loras():
    sample = translate((recorded("vllm-0.32-metrics.txt"),), VLLM, None, now=0.0)
    assert (sample.queued, sample.running, sample.kv_usage) == (0.0, 0.0, 0.0)
    assert (sample.lora_running, sample.max_loras, sample.lora_activity) == ((), None, ())


def test_a_page_of_a_real_triton_is_summed_over_its_models():
    sample = translate((recorded("triton-2.51-metrics.txt"),), TRITON, None, now=0.0)
    assert (sample.queued, sample.running, sample.kv_usage) == (7.0, 0.0, 0.0)
    assert len(sample.busy) == 6


def test_labels_select_series():
    page = recorded("triton-trtllm-metrics.txt")
    sample = translate((page,), TENSORRT, None, now=0.0)
    assert (sample.queued, sample.running, sample.kv_usage) == (2.0, 5.0, 0.25)
    assert (sample.block_size, sample.num_blocks) == (64, 1000)


MIXED = (
    b'nv_trt_llm_request_metrics{model="llm",request_type="waiting",version="1"} 2\n'
    b'nv_trt_llm_request_metrics{model="llm",request_type="scheduled",version="1"} 5\n'
    b'nv_inference_pending_request_count{model="llm",version="1"} 100\n'
    b'nv_inference_pending_request_count{model="ranker",version="1"} 7\n'
    b'nv_inference_compute_infer_duration_us{model="llm",version="1"} %d\n'
    b'nv_inference_compute_infer_duration_us{model="ranker",version="1"} %d\n'
    b'vllm:e2e_request_latency_seconds_sum{model="chat",version="1"} %d\n'
)
"""Three models on one Triton, each told of in its own way."""


def test_each_model_on_a_server_is_read_by_the_best_family_that_tells_of_it():
    sample = translate((MIXED % (0, 0, 0),), TRITON, None, now=0.0)
    for second in range(1, 61):
        page = MIXED % (50_000_000 * second, 3_000_000 * second, 4 * second)
        sample = translate((page,), TRITON, sample, now=float(second))
    assert sample.queued == 9.0
    assert sample.running == pytest.approx(5 + 3 + 4, rel=1e-3)
    assert sample.running_told == 5.0


def test_a_rank_whose_models_have_counters_only_is_not_hidden_by_one_with_gauges():
    sample = translate((MIXED % (0, 0, 0), busy(0)), TRITON, None, now=0.0)
    for second in range(1, 61):
        pages = (MIXED % (0, 0, 0), busy(2_000_000 * second))
        sample = translate(pages, TRITON, sample, now=float(second))
    assert sample.running == pytest.approx(5 + 2, rel=1e-3)


def test_counters_of_a_model_whose_gauges_have_gone_do_not_count_from_its_beginning():
    before = translate((MIXED % (10**12, 0, 0),), TRITON, None, now=0.0)
    gone = (MIXED % (10**12, 0, 0)).replace(b"nv_trt_llm_request", b"other")
    assert translate((gone,), TRITON, before, now=1.0).running == 0.0


def test_an_old_name_of_a_figure_is_not_added_to_the_new_one_whatever_its_labels():
    page = (
        b'sglang_num_waiting_reqs{dp_rank="0"} 3\n'
        b'sglang:num_queue_reqs{model_name="m",model="x",tp_rank="0"} 30\n'
    )
    assert translate((page,), SGLANG_METRICS, None, now=0.0).queued == 3.0


def test_ranks_are_added_up_and_the_fullest_cache_counts():
    one = vllm('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n')
    two = one.replace(b"perc 0.5", b"perc 0.75")
    sample = translate((one, two), VLLM, None, now=0.0)
    assert (sample.queued, sample.running, sample.kv_usage) == (2.0, 4.0, 0.75)
    assert (sample.block_size, sample.num_blocks) == (16, 200)


def test_series_of_engines_on_one_page_are_added_up():
    page = (
        b'vllm:num_requests_waiting{engine="0"} 1\nvllm:num_requests_running{engine="0"} 2\n'
        b'vllm:num_requests_waiting{engine="1"} 10\nvllm:num_requests_running{engine="1"} 20\n'
        b'vllm:num_requests_waiting_by_reason{engine="0"} 100\n'
    )
    sample = translate((page,), VLLM, None, now=0.0)
    assert (sample.queued, sample.running) == (11.0, 22.0)


def test_the_newest_name_of_a_figure_wins():
    both = vllm("vllm:gpu_cache_usage_perc 0.9\n")
    assert translate((both,), VLLM, None, now=0.0).kv_usage == 0.5
    old = both.replace(b"kv_cache_usage_perc", b"other")
    assert translate((old,), VLLM, None, now=0.0).kv_usage == 0.9


@pytest.mark.parametrize(
    "page", [b"", b"\n", b"<html>busy</html>", b"process_start_time_seconds 5\npython_info 1\n"]
)
def test_a_page_that_is_not_the_engines_is_no_zeros(page):
    with pytest.raises(SampleError, match="rank 1 has none of the expected families"):
        translate((vllm(), page), VLLM, None, now=0.0)


def test_no_page_at_all_is_no_zeros():
    with pytest.raises(SampleError):
        translate((), VLLM, None, now=0.0)


def test_an_engine_that_serves_nothing_has_zeros():
    sample = translate((b"nv_pinned_memory_pool_total_bytes 2.7e8\n",), TRITON, None, now=0.0)
    assert (sample.queued, sample.running) == (0.0, 0.0)


def test_a_family_that_is_declared_but_empty_is_zero():
    page = b"# TYPE nv_inference_pending_request_count gauge\n"
    assert translate((page,), TRITON, None, now=0.0).queued == 0.0


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3", "x", "", '{a="b" 1', "1 2 3"])
def test_a_figure_that_is_no_number_counts_as_missing(value):
    page = f"vllm:num_requests_waiting {value}\nvllm:num_requests_running 2\n".encode()
    sample = translate((page,), VLLM, None, now=0.0)
    assert (sample.queued, sample.running) == (0.0, 2.0)


def test_a_usage_in_percent_is_no_more_than_full():
    page = vllm().replace(b"perc 0.5", b"perc 42")
    assert translate((page,), VLLM, None, now=0.0).kv_usage == 1.0


@pytest.mark.parametrize(
    "text", ['block_size="None"', 'num_gpu_blocks="None"', "", 'block_size="1.5"']
)
def test_cache_info_that_is_not_whole_numbers_is_zero(text):
    page = vllm(f"vllm:cache_config_info{{{text}}} 1.0\n")
    sample = translate((page,), VLLM, None, now=0.0)
    assert (sample.block_size, sample.num_blocks) == (0, 0)


def test_a_map_that_names_no_cache_place_reads_none():
    empty = MetricMap(queued=VLLM.queued, cache=(CacheInfo(), *VLLM.cache))
    page = vllm('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n')
    sample = translate((page,), empty, None, now=0.0)
    assert (sample.block_size, sample.num_blocks) == (16, 100)


def test_a_lora_sample_without_slots_leaves_them_unknown():
    page = vllm('vllm:lora_requests_info{running_lora_adapters="a"} 5\n')
    sample = translate((page,), VLLM, None, now=0.0)
    assert (sample.lora_running, sample.max_loras) == (("a",), None)


def test_busy_time_becomes_the_mean_of_running_requests():
    sample = translate((busy(0),), TRITON, None, now=0.0)
    for second in range(1, 31):
        page = busy(infer_us=2_000_000 * second, output_us=1_000_000 * second)
        sample = translate((page,), TRITON, sample, now=float(second))
    assert sample.running == pytest.approx(3.0, rel=1e-3)


def test_a_long_request_that_ends_does_not_look_like_many():
    before = translate((busy(0),), TRITON, None, now=0.0)
    sample = translate((busy(2_000_000),), TRITON, before, now=0.1)
    assert 0 < sample.running < 2


def test_counters_that_start_again_count_from_zero():
    before = translate((busy(9_000_000),), TRITON, None, now=0.0)
    after = translate((busy(1_000_000),), TRITON, before, now=100.0)
    assert after.running == pytest.approx(0.01)


def test_busy_time_needs_two_moments():
    before = translate((busy(0),), TRITON, None, now=5.0)
    assert translate((busy(1_000_000),), TRITON, before, now=5.0).running == before.running == 0.0


def test_activity_is_what_is_newer_than_the_last_sample_in_its_order():
    first = translate((vllm(lora(20, "b") + lora(10, "a,c") + lora(30, "")),), VLLM, None, now=0.0)
    assert first.lora_activity == ((10.0, ("a", "c")), (20.0, ("b",)))
    assert first.lora_running == ()
    page = vllm(lora(20, "b") + lora(50, "a,c") + lora(30, "") + lora(40, "d"))
    second = translate((page,), VLLM, first, now=1.0)
    assert second.lora_activity == ((40.0, ("d",)), (50.0, ("a", "c")))
    assert translate((page,), VLLM, second, now=2.0).lora_activity == ()


def test_an_engine_that_counts_anew_shows_all_its_activity():
    first = translate((vllm(lora(100, "a")),), VLLM, None, now=0.0)
    second = translate((vllm(lora(5, "b")),), VLLM, first, now=1.0)
    assert second.lora_activity == ((5.0, ("b",)),)


def test_activity_is_bounded_to_the_newest():
    text = "".join(lora(number + 1, f"n{number}") for number in range(MAX_ACTIVITY + 10))
    sample = translate((vllm(text),), VLLM, None, now=0.0)
    assert len(sample.lora_activity) == MAX_ACTIVITY
    assert sample.lora_activity[0] == (11.0, ("n10",))


def test_names_come_unescaped_and_the_fewest_slots_count():
    one = vllm(lora(1, 'we\\"ird\\\\name, b'))
    two = vllm(lora(2, "c", max_lora="1"))
    sample = translate((one, two), VLLM, None, now=0.0)
    assert sample.lora_running == ("b", "c", 'we"ird\\name')
    assert sample.max_loras == 1


def test_a_rank_that_answered_earlier_tells_the_rest_with_the_next_sample():
    one, two = vllm(lora(100, "a")), vllm(lora(90, "b"))
    first = translate((one, two), VLLM, None, now=0.0)
    assert first.lora_activity == ((90.0, ("b",)), (100.0, ("a",)))
    # It went on after its answer, and before that of the other.
    two = vllm(lora(90, "b") + lora(95, "c"))
    second = translate((one, two), VLLM, first, now=1.0)
    assert second.lora_activity == ((95.0, ("c",)),)
    assert translate((one, two), VLLM, second, now=2.0).lora_activity == ()
    assert len(translate((one,), VLLM, second, now=3.0).lora_activity) == 1


def test_a_page_without_the_family_leaves_what_was_known_of_it():
    first = translate((vllm(lora(100, "a")),), VLLM, None, now=0.0)
    without = translate((vllm(),), VLLM, first, now=1.0)
    assert (without.lora_running, without.max_loras) == (("a",), 2)
    assert without.lora_activity == ()
    assert not has_changed(first, without)
    third = translate((vllm(lora(100, "a") + lora(101, "b")),), VLLM, without, now=2.0)
    assert third.lora_activity == ((101.0, ("b",)),)


def test_what_is_ahead_of_our_clock_is_told_once_and_as_of_now():
    page = vllm(lora(90, "a") + lora(110, "b") + lora(120, "c"))
    first = translate((page,), VLLM, None, 0.0, unix_now=100.0)
    assert first.lora_activity == ((90.0, ("a",)), (100.0, ("b",)), (100.0, ("c",)))
    for at in (101.0, 111.0, 121.0, 131.0):
        first = translate((page,), VLLM, first, at, unix_now=at)
        assert first.lora_activity == ()
        assert first.lora_running == (("a",) if at < 110 else ("b",) if at < 120 else ("c",))


def test_after_a_clock_was_set_back_what_happens_is_told_again_at_once():
    text = lora(3600, "a") + lora(3601, "b")
    sample = translate((vllm(text),), VLLM, None, 0.0, unix_now=3602.0)
    for second in range(1, 5):
        text += lora(second, f"n{second}")
        sample = translate((vllm(text),), VLLM, sample, second, unix_now=second + 0.5)
        assert sample.lora_activity == ((second, (f"n{second}",)),)


def test_odd_values_in_the_lora_family_are_left_out_and_hide_no_other():
    odd = [lora(value, "x") for value in ("NaN", "+Inf", "-Inf", "1_0", "", "9e999", "-1")]
    stamped = lora("30 1763600000", "b")
    for text in ("".join(odd), "".join([*odd[:3], odd[-1]])):
        sample = translate((vllm(text + lora(20, "a") + stamped),), VLLM, None, 0.0, 100.0)
        assert sample.lora_activity == ((20.0, ("a",)), (30.0, ("b",)))


COMBINATIONS = st.lists(st.sampled_from("abcdef"), max_size=3, unique=True).map(",".join)


@given(
    st.lists(st.tuples(COMBINATIONS, st.booleans()), min_size=1, max_size=40),
    st.floats(-5.0, 5.0),
)
def test_every_set_is_told_once_in_its_order_however_seldom_the_family_is_read(steps, skew):
    """``skew``: how far the engine's clock is ahead of ours."""
    family: dict[str, float] = {}
    sample = None
    told: list[Moment] = []
    expected: list[tuple[str, ...]] = []
    read_at = 0.0
    for at, (names, with_family) in enumerate([*steps, ("", True)], start=1):
        family[names] = at + skew + 1000
        text = "".join(lora(value, key) for key, value in family.items())
        sample = translate((vllm(text if with_family else ""),), VLLM, sample, at, at + 1000.5)
        told += sample.lora_activity
        if with_family:
            newly = sorted((value, key) for key, value in family.items() if value > read_at)
            expected += [tuple(key.split(",")) for _, key in newly if key]
            read_at = at + skew + 1000
    assert [names for _, names in told] == expected
    assert all(at <= len(steps) + 1001.5 for at, _ in told)
    assert [at for at, _ in told] == sorted(at for at, _ in told)


def test_twenty_thousand_lines_of_loras_cost_little():
    # The order of magnitude only, by this thread's own time: it was 200 ms, and is below 20.
    text = "".join(lora(number + 1, f"n{number % 50},m{number}") for number in range(20_000))
    page = vllm(text)
    before = translate((page,), VLLM, None, now=0.0)
    took = []
    for _ in range(5):
        started = time.thread_time()
        translate((page,), VLLM, before, now=1.0)
        took.append(time.thread_time() - started)
    assert min(took) < 0.08


def test_reading_a_page_costs_little():
    # The order of magnitude only: a parse of the whole page takes several milliseconds.
    page = recorded("vllm-0.32-metrics-lora.txt")
    took = []
    for _ in range(20):
        started = time.perf_counter()
        translate((page,), VLLM, None, now=0.0)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.002


numbers = st.sampled_from(["1", "0", "NaN", "-Inf", "+Inf", "-5", "1e308", "9" * 400, "", "0x1"])
lines = st.tuples(
    st.sampled_from(
        [
            "vllm:num_requests_waiting",
            "vllm:num_requests_running",
            "vllm:kv_cache_usage_perc",
            "vllm:lora_requests_info",
            "vllm:cache_config_info",
            "process_start_time_seconds",
            "nv_inference_compute_infer_duration_us",
            "vllm:e2e_request_latency_seconds_sum",
            "nv_inference_pending_request_count",
        ]
    ),
    st.sampled_from(
        [
            "",
            "{",
            "{}",
            '{max_lora="9",running_lora_adapters="a,"}',
            '{block_size="%s"}' % ("9" * 50),
        ]
    ),
    numbers,
).map(lambda parts: f"{parts[0]}{parts[1]} {parts[2]}".encode())
pages = st.lists(lines | st.binary(max_size=40), max_size=12).map(b"\n".join)


@settings(max_examples=300)
@given(st.lists(pages, min_size=2, max_size=2), st.sampled_from([VLLM, TRITON]), st.floats(0, 1e9))
def test_no_page_breaks_the_reader_or_yields_a_figure_out_of_bounds(texts, metric_map, elapsed):
    sample = None
    for at, text in enumerate(texts):
        try:
            sample = translate((text, text), metric_map, sample, now=at * elapsed)
        except SampleError:
            continue
        figures = (sample.queued, sample.running, float(sample.num_blocks))
        assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
        assert all(figure <= LARGEST for figure in figures)
        assert 0 <= sample.kv_usage <= 1
