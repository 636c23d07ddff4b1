"""The picker page read back by the oracle, and the oracle against pages that break its rules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import Kind
from sidecar.core.picker_page import (
    LabelValues,
    LoraLabels,
    LoraView,
    is_listable,
    lora_labels,
    lora_view,
    render_picker_page,
)
from sidecar.core.residency import SlotReplay
from sidecar.core.status import (
    DocumentStatus,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
)
from sidecar.core.translate import Sample
from tests.support import picker_oracle as oracle

A, B, C, D = "sql", "chat", "legal", "ocr"


def view(resident="", in_slot="", partial="", slots=4, complete=True, in_cpu=""):
    def names(text):
        return frozenset(text.split())

    return LoraView(
        slots=slots,
        resident=names(resident),
        in_slot=names(in_slot),
        in_cpu=names(in_cpu),
        partial=names(partial),
        complete=complete,
    )


def page(loras, sample=None, mode=LoraLabels.AUTO, ready=True, changed_at=1763600000.5):
    labels = lora_labels(loras, mode)
    return render_picker_page(
        sample or Sample(taken_at=0.0), loras, labels, ready=ready, changed_at=changed_at
    )


@pytest.mark.parametrize(
    ("mode", "loras", "running", "waiting", "max_lora"),
    [
        pytest.param(
            "auto", view("b a c", "b a"), ("a", "b"), (), 4,
            id="the slots run, what is only registered is not listed",
        ),
        pytest.param(
            "auto", view("a b", "a", partial="b"), ("a",), ("b",), 4,
            id="a LoRA of some pods only that is not in a slot waits",
        ),
        pytest.param(
            "auto", view("a b", "a b", partial="b"), ("a", "b"), (), 4,
            id="one in a slot runs and does not wait, too",
        ),
        pytest.param(
            "auto", view("a", "a", partial="b", complete=False), ("a",), (), 1,
            id="a pod that lacks a LoRA shows no free slot",
        ),
        pytest.param(
            "auto", view("a b c", "a b c", slots=2, complete=False), ("a", "b", "c"), (), 2,
            id="and never more slots than there are",
        ),
        pytest.param("auto", view(complete=False), (), (), 0, id="lacking all: no slot at all"),
        pytest.param("auto", view(), (), (), 4, id="an empty document: every slot is free"),
        pytest.param(
            "auto", view("a b", "a b", slots=None), ("a", "b"), (), 2,
            id="unknown slots: as many as are listed",
        ),
        pytest.param(
            "residency", view("a b", "a", partial="b"), ("a",), (), 4,
            id="residency never lists the rest",
        ),
        pytest.param(
            "registered", view("a b c", "a"), ("a",), ("b", "c"), 4,
            id="registered lists all the rest",
        ),
        pytest.param(
            "registered", view("a b", "a", complete=False), ("a",), ("b",), 2,
            id="registered: the bound counts both lists",
        ),
    ],
)  # fmt: skip
def test_labels_follow_the_rules(mode, loras, running, waiting, max_lora):
    labels = lora_labels(loras, LoraLabels(mode))
    assert labels == LabelValues(running=running, waiting=waiting, max_lora=max_lora)


def target(name, state=State.RESIDENT, kind=Kind.LORA, desired=True, everywhere=True):
    return TargetStatus(
        name=name,
        kind=kind,
        source="s3://x",
        desired=desired,
        readiness="initial",
        state=state,
        everywhere=everywhere,
    )


def status(*targets, generation=1, elsewhere=()):
    return Status(
        version="1.0",
        pod="pod-a",
        ready=True,
        converged=True,
        reasons=(),
        cycle="",
        document=DocumentStatus(generation=generation, elsewhere=elsewhere),
        engine=EngineStatus(kind="vllm", urls=()),
        store=StoreStatus(),
        targets={one.name: one for one in targets},
    )


@pytest.mark.parametrize(
    ("published", "complete"),
    [
        (status(target(A), target(B)), True),
        (status(), True),
        (status(target(A), target(B, State.FETCHING)), False),
        (status(target(A), target(B, State.ABSENT, desired=False)), True),
        (status(target(A), target("base", State.FAILED, kind=Kind.MODEL)), True),
        (status(target(A), target(B, State.FAILED, kind=None)), False),
        (status(target(A), target(B, State.FAILED, desired=False)), False),
        (status(target(A), elsewhere=(B,)), False),
        (status(target(A), target(B), elsewhere=(B,)), True),
        (status(target(A), generation=0), False),
    ],
)
def test_a_pod_is_complete_only_with_every_lora_of_a_known_document(published, complete):
    assert lora_view(published, SlotReplay(max_loras=2)).complete is complete


def test_the_view_claims_slots_only_for_residents():
    replay = SlotReplay(max_loras=2).loaded(A).loaded(B)
    seen = lora_view(status(target(A), target(B, State.UNLOADING), target(C)), replay)
    assert seen.in_slot == {A}
    assert seen.in_cpu == {A}
    assert seen.resident == {A, C}
    assert seen.slots == 2


def test_the_view_knows_what_only_some_pods_hold():
    seen = lora_view(status(target(A), target(B, everywhere=False)), SlotReplay())
    assert seen.partial == {B}


def test_the_page_says_what_the_engine_said():
    sample = Sample(
        taken_at=0.0, queued=3.0, running=6.5, kv_usage=0.42, block_size=16, num_blocks=4096
    )
    read = oracle.read(page(view("sql chat", "sql"), sample))
    assert read.errors == []
    assert (read.queued, read.running, read.kv_usage) == (3, 7, 0.42)
    assert (read.block_size, read.num_blocks) == (16, 4096)
    assert (read.active, read.waiting, read.max_lora) == ({A}, set(), 4)


def test_every_family_is_a_typed_gauge_with_one_sample_a_figure():
    families = oracle.parse(page(view("sql chat", "sql", in_cpu="sql chat")))
    assert {family.type for family in families.values()} == {"gauge"}
    several = {name: len(one.samples) for name, one in families.items() if len(one.samples) != 1}
    assert several == {"vllm:lora_adapter_loaded": 2}


def test_the_coming_residency_families_tell_the_levels_apart():
    families = oracle.parse(page(view("sql chat ocr", "sql", in_cpu="sql chat")))
    loaded = [labels for labels, _, _ in families["vllm:lora_adapter_loaded"].samples]
    assert loaded == [
        {"adapter_name": A, "level": "gpu", "pinned": "false", "rank": "0"},
        {"adapter_name": B, "level": "cpu", "pinned": "false", "rank": "0"},
    ]
    assert oracle.scalar(families, "vllm:num_gpu_loaded_lora_adapters") == 1
    assert oracle.scalar(families, "vllm:max_gpu_lora_adapters") == 4


def test_a_pod_that_lacks_a_lora_shows_no_free_slot_to_the_coming_scorer_either():
    families = oracle.parse(page(view("sql", "sql", complete=False)))
    free = oracle.scalar(families, "vllm:max_gpu_lora_adapters")
    assert free == oracle.scalar(families, "vllm:num_gpu_loaded_lora_adapters")


@pytest.mark.parametrize("ready", [True, False])
def test_readiness_stands_on_the_page(ready):
    assert oracle.scalar(oracle.parse(page(view(), ready=ready)), "model_sidecar_ready") == ready


def test_five_loras_fit_in_a_kilobyte_and_a_half():
    names = " ".join(f"team-sql-lora-{number}" for number in range(5))
    assert len(page(view(names, names, in_cpu=names, slots=8))) < 1536


def test_the_page_does_not_grow_with_models():
    models = [target(f"model-{number}", kind=Kind.MODEL) for number in range(200)]
    few, many = (
        lora_view(status(target(A), *some), SlotReplay(max_loras=1)) for some in ((), models)
    )
    assert page(few) == page(many)


def test_older_pickers_read_the_page_too():
    sample = Sample(taken_at=0.0, queued=3.0, running=7.0, kv_usage=0.42)
    read = oracle.read_legacy(page(view("sql chat ocr", "sql chat", partial="ocr"), sample))
    assert read.errors == []
    assert (read.queued, read.running, read.kv_usage) == (3, 7, 0.42)
    assert (read.active, read.waiting, read.max_lora) == ({A, B}, {D}, 4)


def test_older_pickers_pass_over_two_empty_lists():
    # Known and without remedy: there is no name that could be listed in their place.
    assert oracle.read_legacy(page(view())).active is None
    assert oracle.read(page(view())).active == set()


def test_a_clock_at_zero_still_gives_a_positive_value():
    families = oracle.parse(page(view(), changed_at=0.0))
    assert families["vllm:lora_requests_info"].samples[0][1] > 0


@pytest.mark.parametrize("name", ["a,b", " a", "a ", "", "\u2003a", "a\ud800"])
def test_a_name_that_no_picker_could_read_back_is_not_listed(name):
    assert not is_listable(name)
    labels = lora_labels(LoraView(slots=2, resident=frozenset({name}), in_slot=frozenset({name})))
    assert labels.running == ()


names = st.sets(
    st.text(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=",/"),
        min_size=1,
        max_size=253,
    )
    | st.sampled_from(['"', "\\", '\\"', "a\\nb", "}", "{", "#", "a b", "é", "模型", "# TYPE x"]),
    max_size=6,
)
figures = st.floats(min_value=0, max_value=2.0**53)


@settings(max_examples=200)
@given(
    resident=names,
    other=names,
    data=st.data(),
    slots=st.none() | st.integers(0, 64),
    complete=st.booleans(),
    mode=st.sampled_from(LoraLabels),
    queued=figures,
    running=figures,
    kv=st.floats(0, 1),
    blocks=st.integers(0, 2**53),
    changed_at=st.floats(0, 2**40),
)
def test_whatever_is_said_is_read_back(
    resident, other, data, slots, complete, mode, queued, running, kv, blocks, changed_at
):
    chosen = st.sets(st.sampled_from(sorted(resident))) if resident else st.just(set())
    in_slot = frozenset(data.draw(chosen))
    partial = frozenset(data.draw(chosen)) | frozenset(other)
    loras = LoraView(
        slots=slots,
        resident=frozenset(resident),
        in_slot=in_slot,
        in_cpu=in_slot,
        partial=partial,
        complete=complete,
    )
    sample = Sample(
        taken_at=0.0, queued=queued, running=running, kv_usage=kv, block_size=16, num_blocks=blocks
    )
    labels = lora_labels(loras, mode)
    body = render_picker_page(sample, loras, labels, ready=True, changed_at=changed_at)
    read = oracle.read(body)
    assert read.errors == []
    assert abs(read.queued - queued) <= 1
    assert abs(read.running - running) <= 1
    assert read.kv_usage == pytest.approx(kv, rel=1e-5, abs=1e-12)
    assert read.kv_usage is not None
    assert 0 <= read.kv_usage <= 1
    assert (read.block_size, read.num_blocks) == (16, blocks)
    assert read.active == {name for name in in_slot if is_listable(name)}
    assert read.waiting == set(labels.waiting)
    assert read.active.isdisjoint(read.waiting)
    assert read.max_lora == labels.max_lora >= 0
    if not complete or slots is None:
        assert read.max_lora <= len(read.active) + len(read.waiting)
    loaded = oracle.parse(body).get("vllm:lora_adapter_loaded", oracle.Family()).samples
    assert {one["adapter_name"] for one, _, _ in loaded} == read.active


GOOD = page(view("sql", "sql"))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (GOOD + GOOD.split(b"\n")[0] + b"\n", "second TYPE"),
        (b"# HELP x a\n# HELP x b\nx 1\n", "second HELP"),
        (b"x 1\n# TYPE x gauge\n", "TYPE after samples"),
        (b"# TYPE x info\nx 1\n", "unknown type"),
        (b"# TYPE x unknown\nx 1\n", "unknown type"),
        (b"# TYPE x stateset\nx 1\n", "unknown type"),
        (b'# TYPE x counter\nx 1 # {trace="a"} 1\n', "bad value"),
        (b"x 1 1763600000.5\n", "bad timestamp"),
        (GOOD.replace(b"\n", b"\r\n"), "carriage return"),
        (GOOD[:-1], "no newline"),
        (b'{"my.name",a="b"} 1\n', "bad name"),
        (b'x{a="b} 1\n', "unfinished"),
        (b'x{a="\\t"} 1\n', "bad escape"),
        (b'x{a="b" c="d"} 1\n', "no comma"),
        (b'x{a="b",a="c"} 1\n', "twice"),
        (b'x{a="\xff"} 1\n', "not UTF-8"),
        (b"x one\n", "bad value"),
    ],
)
def test_the_oracle_refuses_what_the_parser_refuses(broken, why):
    with pytest.raises(oracle.PageRefused, match=why):
        oracle.parse(broken)


def test_the_oracle_accepts_what_the_parser_accepts():
    text = (
        b"# EOF\n# UNIT x seconds\n# TYPE x gauge\n# TYPE y gauge\n"
        b'x{ a = "1" , } 1\ny 2\nx{a="1"} 3\nz_created 1.7e+09\n\n'
    )
    families = oracle.parse(text)
    assert oracle.scalar(families, "x") == 1
    assert oracle.scalar(families, "y") == 2
    assert oracle.parse(b"") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"# TYPE x gauge\nx{e='0'} 1\n".replace(b"'", b'"') + b'x{e="1"} 2\n', 1),
        (b'# TYPE x gauge\nx{e="0"} 1 5\nx{e="1"} 2 6\n', 2),
        (b"x 5\n", 0),
        (b"# TYPE x untyped\nx 5\n", 0),
        (b"y 1\n", None),
        (b"# TYPE x gauge\n", None),
    ],
)
def test_the_oracle_picks_one_series_and_never_adds_up(text, expected):
    assert oracle.scalar(oracle.parse(text), "x") == expected


def with_value(name, value):
    lines = GOOD.split(b"\n")
    head = name.encode() + b" "
    return b"\n".join(head + value if line.startswith(head) else line for line in lines)


def test_the_oracle_turns_a_nan_queue_into_the_best_of_all():
    assert oracle.read(with_value("vllm:num_requests_waiting", b"NaN")).queued == oracle.MIN_INT64


def test_the_oracle_misses_each_family_that_is_left_out():
    lines = GOOD.decode().splitlines(keepends=True)
    for name, what in (
        ("vllm:num_requests_waiting", "queued"),
        ("vllm:num_requests_running", "running"),
        ("vllm:kv_cache_usage_perc", "kv"),
        ("vllm:cache_config_info", "cache"),
    ):
        left = "".join(line for line in lines if name not in line)
        assert oracle.read(left.encode()).errors == [what]


INFO = b"# TYPE vllm:lora_requests_info gauge\n"


def lora_line(running, value, max_lora=b"4"):
    text = b'vllm:lora_requests_info{max_lora="%s",running_lora_adapters="%s",'
    return (text + b'waiting_lora_adapters=""} %s\n') % (max_lora, running, value)


@pytest.mark.parametrize(
    ("text", "active", "max_lora"),
    [
        (lora_line(b"a", b"1") + lora_line(b"b", b"3") + lora_line(b"c", b"2"), {"b"}, 4),
        (lora_line(b"a", b"1") + lora_line(b"b", b"1"), {"a"}, 4),
        (lora_line(b"a", b"0") + lora_line(b"b", b"NaN"), {"a"}, 4),
        (lora_line(b"a", b"-1"), None, None),
        (lora_line(b"a, b ,,", b"1"), {"a", "b"}, 4),
        (lora_line(b"a", b"1", b"4.0"), {"a"}, None),
    ],
)
def test_the_oracle_takes_the_lora_sample_with_the_greatest_value(text, active, max_lora):
    read = oracle.read(INFO + text)
    assert (read.active, read.max_lora) == (active, max_lora)
    assert ("max_lora" in read.errors) is (b"4.0" in text)
