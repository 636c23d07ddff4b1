"""The picker page, read back by the oracle: by example, and whatever there is to say."""

import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import Kind
from sidecar.core.page_cache import PageCache
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
from tests.support.picker_oracle.go import trim_space
from tests.support.picker_strategies import (
    clocks,
    document_names,
    replays,
    samples,
    statuses,
)

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


def test_where_clients_ask_for_a_lora_after_its_base_the_page_does_so_too():
    published = replace(
        status(target(A), target(B, everywhere=False)),
        engine=EngineStatus(kind="sglang", urls=(), base_model="base"),
    )
    replay = SlotReplay(max_loras=1).loaded(B, 1.0).loaded(A, 2.0)
    labels = lora_labels(lora_view(published, replay, after_base=True))
    assert labels == LabelValues(running=(f"base:{A}",), waiting=(f"base:{B}",), max_lora=1)
    assert lora_labels(lora_view(published, replay)).running == (A,)


def test_the_view_claims_slots_only_for_residents():
    replay = SlotReplay(max_loras=2).loaded(A, 1.0).loaded(B, 2.0)
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
    body = page(view("sql chat ocr", "sql chat", partial="ocr"), sample)
    for picker in oracle.OLD_PICKERS:
        read = oracle.read_legacy(body, picker)
        assert read.errors == []
        assert (read.queued, read.kv_usage) == (3, 0.42)
        assert read.running == (7 if picker.reads_running else None)
        assert (read.active, read.waiting, read.max_lora) == ({A, B}, {D}, 4)


def test_older_pickers_pass_over_two_empty_lists():
    # Known and without remedy: there is no name that could be listed in their place.
    assert oracle.read_legacy(page(view())).active is None
    assert oracle.read(page(view())).active == set()


def test_a_clock_at_zero_still_gives_a_positive_value():
    families = oracle.parse(page(view(), changed_at=0.0))
    assert families["vllm:lora_requests_info"].samples[0][1] > 0


def test_every_character_that_a_picker_trims_keeps_a_name_off_the_lists():
    trimmed = {chr(code) for code in range(sys.maxunicode + 1) if not trim_space(chr(code))}
    assert len(trimmed) == 25
    assert not any(is_listable(blank + "a") or is_listable("a" + blank) for blank in trimmed)


@pytest.mark.parametrize("name", ["a,b", " a", "a ", "", "\u2003a", "a\ud800"])
def test_a_name_that_no_picker_could_read_back_is_not_listed(name):
    assert not is_listable(name)
    labels = lora_labels(LoraView(slots=2, resident=frozenset({name}), in_slot=frozenset({name})))
    assert labels.running == ()


@settings(max_examples=300)
@given(document_names())
def test_every_name_that_a_document_accepts_can_be_listed(names):
    assert all(map(is_listable, names))
    loras = LoraView(slots=9, resident=names, in_slot=names, complete=True)
    assert oracle.check_page(page(loras)).active == names


@settings(max_examples=250)
@given(
    published=statuses(),
    data=st.data(),
    sample=samples(),
    mode=st.sampled_from(LoraLabels),
    clock=clocks(),
)
def test_whatever_is_said_is_read_back(published, data, sample, mode, clock):
    replay = data.draw(replays(published.targets))
    loras = lora_view(published, replay)
    labels = lora_labels(loras, mode)
    body = render_picker_page(sample, loras, labels, ready=published.ready, changed_at=clock)
    read = oracle.check_page(body)

    assert read.errors == []
    assert abs((read.queued or 0) - sample.queued) <= 1
    assert abs((read.running or 0) - sample.running) <= 1
    assert read.kv_usage == pytest.approx(sample.kv_usage, rel=1e-5, abs=1e-12)
    assert (read.block_size, read.num_blocks) == (sample.block_size, sample.num_blocks)
    check_loras(read, published, replay, mode)
    families = oracle.parse(body)
    assert oracle.scalar(families, "model_sidecar_ready") == published.ready
    loaded = families.get("vllm:lora_adapter_loaded", oracle.Family()).samples
    in_memory = resident_loras(published) & set(replay.in_cpu)
    assert {one["adapter_name"] for one, _, _ in loaded} == in_memory

    again = render_picker_page(sample, loras, labels, ready=published.ready, changed_at=clock)
    assert again == body
    for picker in oracle.OLD_PICKERS:
        old = oracle.read_legacy(body, picker)
        assert old.errors == []
        assert (old.queued, old.kv_usage) == (read.queued, read.kv_usage)
        if read.active or read.waiting:
            told = old.active, old.waiting, old.max_lora
            assert told == (read.active, read.waiting, read.max_lora)


@settings(max_examples=250)
@given(
    published=statuses(),
    data=st.data(),
    mode=st.sampled_from(LoraLabels),
    base=st.sampled_from(["base", "org/model:7b", "", " odd", "a,b"]) | st.text(max_size=5),
)
def test_a_lora_stands_after_the_name_of_its_base_wherever_clients_ask_so(
    published, data, mode, base
):
    published = replace(published, engine=replace(published.engine, base_model=base))
    replay = data.draw(replays(published.targets))
    cache = PageCache(mode, lambda: 1763600000.5, after_base=True)
    read = oracle.check_page(cache.page(Sample(taken_at=0.0), published, replay).body)
    assert read.errors == []
    check_loras(read, published, replay, mode, before=f"{base}:" if base else "")


def resident_loras(published, before=""):
    """The LoRAs that the engine holds and whose names can stand in a list, ``before`` each."""
    return {
        before + one.name
        for one in published.targets.values()
        if one.kind is Kind.LORA and one.state is State.RESIDENT and is_listable(before + one.name)
    }


def check_loras(read, published, replay, mode, before=""):
    """Say of every LoRA what the page must say, from what is published alone."""
    targets, document = published.targets.values(), published.document
    resident = resident_loras(published, before)
    elsewhere = {before + one.name for one in targets if not one.everywhere}
    assert read.active == resident & {before + name for name in replay.in_slot}
    waiting = {
        LoraLabels.AUTO: resident & elsewhere,
        LoraLabels.RESIDENCY: set(),
        LoraLabels.REGISTERED: resident,
    }[mode]
    assert read.waiting == waiting - read.active

    held = {one.name for one in targets if one.kind is Kind.LORA and one.state is State.RESIDENT}
    wanted = {
        one.name
        for one in targets
        if one.kind is not Kind.MODEL and (one.desired or one.state is State.FAILED)
    }
    holds_all = document.generation > 0 and wanted | set(document.elsewhere) <= held
    listed = len(read.active) + len(read.waiting)
    if replay.max_loras is None:
        assert read.max_lora == listed
    elif holds_all:
        assert read.max_lora == replay.max_loras
    else:
        assert read.max_lora == min(replay.max_loras, listed)
