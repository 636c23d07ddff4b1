"""Strategies for pages and pods: whatever the picker, the engine or the documents may say."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

from hypothesis import strategies as st

from adapters.base import Kind, MetricMap
from sidecar.core.documents import parse_document
from sidecar.core.picker_page import LoraLabels, lora_labels, lora_view, render_picker_page
from sidecar.core.residency import SlotReplay
from sidecar.core.status import (
    DocumentStatus,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
)
from sidecar.core.translate import LARGEST, Sample
from sidecar.errors import DocumentError
from tests.support.picker_oracle.extract import CACHE_INFO, KV_USAGE, LORA_INFO, QUEUED, RUNNING
from tests.support.picker_pages import BLOCKS

_TEXTS = st.sampled_from(
    ["", "a", "a,b", "a, b ,,", "\u2003a", "\x1ca", "a\x85", "4", "4.0", "+4", "4_0", "None",
     "é", "٤",
     "0.5", "+Inf", "1e400", "9223372036854775808", '\\"', "\\\\", "\\n", "\\t", "\\", "\r",
     "\0", "}",
     "{", "#", "\ufeff"]
)  # fmt: skip
_VALUES = st.sampled_from(
    ["1", "2", "3", "0.5", "1763600000.25", "NaN", "+NaN", "Inf", "-inf", "infinity", "1e3",
     "1e400",
     "0x1p4", "1_0", "1.", ".5", ".", "-0", "-0.5", "-1", "1e19", "9007199254740993", "",
     "one", "٣"]
)  # fmt: skip
_TAILS = st.sampled_from([""] * 8 + [" 5", " 6", " -5", "\t+7", " 1.5", " ", " 5 ", " # {}", "\r"])
_NAMES = st.sampled_from(
    [QUEUED, RUNNING, KV_USAGE, LORA_INFO, LORA_INFO, CACHE_INFO, "x", "x_count"] * 5
    + ["x_sum", "x_bucket", '"x"', 'x"y"', '"x.y"', "0x"]
)
_LABELS = st.sampled_from(
    ["running_lora_adapters", "waiting_lora_adapters", "max_lora", "block_size",
     "num_gpu_blocks"] * 4
    + ["le", "quantile", "a", "__name__", '"a"', '"a.b"', "é"]
)  # fmt: skip
_TYPES = st.sampled_from(
    ["gauge"] * 8 + ["counter", "untyped", "histogram", "summary", "GAUGE", "gauge ", "info", ""]
)
_BLANKS = st.sampled_from([""] * 8 + [" ", "\t"])
_PAIRS = st.builds('{}{}{}="{}"{}'.format, _BLANKS, _LABELS, _BLANKS, _TEXTS, _BLANKS)
_LABEL_SETS = st.builds(
    "{{{}{}".format,
    st.lists(_PAIRS, max_size=3).map(",".join),
    st.sampled_from(["}"] * 12 + [",}", "}}", ""]),
)
_SAMPLES = st.builds(
    "{}{}{}{}{}{}\n".format,
    _BLANKS, _NAMES, st.just("") | _LABEL_SETS | _LABEL_SETS, st.sampled_from([" "] * 9 + [""]),
    _VALUES, _TAILS,
)  # fmt: skip
_COMMENTS = st.builds("# TYPE {} {}\n".format, _NAMES, _TYPES) | st.builds(
    "{}#{}{} {}{}\n".format,
    _BLANKS, _BLANKS, st.sampled_from(["HELP", "TYPE", "EOF"]), _NAMES, st.just("") | _TEXTS,
)  # fmt: skip
_BLOCKS = st.builds(
    lambda name, kind, lines: (
        f"# TYPE {name} {kind}\n" + "".join(f"{name}{one}\n" for one in lines)
    ),
    _NAMES,
    _TYPES,
    st.lists(st.builds("{} {}{}".format, st.just("") | _LABEL_SETS, _VALUES, _TAILS), max_size=3),
)
_SOUP = st.lists(_SAMPLES | _COMMENTS | _BLOCKS | _BLOCKS, max_size=6).map(
    lambda parts: "".join(parts).encode()
)


@st.composite
def _bent(draw: st.DrawFn) -> bytes:
    """The whole page, its blocks in any order, cut into and written over somewhere."""
    chosen = draw(st.permutations(list(BLOCKS.values())))
    page = "".join(chosen[draw(st.integers(0, 2)) :]).encode()
    at = draw(st.integers(0, len(page)))
    piece = draw(
        st.sampled_from([b"", b'"', b"\\", b"{", b"}", b",", b"=", b" ", b"\n", b"\r", b"#", b"9"])
    )
    return page[:at] + piece + page[at + draw(st.integers(0, 2)) :]


def pages() -> st.SearchStrategy[bytes]:
    """Pages of which about one half is refused; most of the others are read in part."""
    return _SOUP | _bent()


@st.composite
def document_names(draw: st.DrawFn) -> frozenset[str]:
    """Names that a document of some format gave to entries, exactly as it was accepted."""
    texts = draw(st.lists(_ANY_NAMES, max_size=6, unique=True))
    key, root = draw(st.sampled_from(_FORMATS))
    try:
        parsed = parse_document(key, json.dumps(root(texts)))
    except DocumentError:
        return frozenset()
    return frozenset() if parsed is None else parsed.names


_ANY_NAMES = (
    st.text(min_size=1, max_size=260)
    | st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), min_size=1, max_size=90)
    | st.sampled_from(
        ['"', '\\"', "a\\nb", "}", "{", "#", "a b", "é", "e\u0301", "模型", "# TYPE x",
         "a\u200bb", "=",
         "\ufeff", "a\u00a0b", "a\u2028b", "\ud800", "\x85", "a\u0600", "\U0001f600", "-1",
         "None", "'"]
    )
)  # fmt: skip
_SOURCE = "s3://bucket/lora/"
_FORMATS = [
    ("models.yaml", lambda names: {"models": [{"name": one, "source": _SOURCE} for one in names]}),
    ("configmap.yaml", lambda names: {
        "vLLMLoRAConfig": {"ensureExist": {"models": [{"id": one,
        "source": "org/repo"} for one in names]}}
    }),
    ("models.json", lambda names: [
        {"modelName": one, "modelSpec": {"storageUri": _SOURCE}} for one in names
    ]),
    ("model-list.json", lambda names: [{"name": one, "storage_path": _SOURCE} for one in names]),
]  # fmt: skip


@st.composite
def statuses(draw: st.DrawFn) -> Status:
    """What an agent may publish: targets of any kind and state, known or strange, and some that the
    document gives to other pods."""
    names = draw(document_names())
    strange = draw(st.sets(_STRANGE, max_size=2)) if draw(st.booleans()) else set()
    targets = {name: draw(_targets(name)) for name in sorted(names | strange)}
    elsewhere = draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    document = DocumentStatus(
        generation=draw(st.integers(0, 2)), elsewhere=tuple(sorted(elsewhere))
    )
    return replace(STATUS, ready=draw(st.booleans()), document=document, targets=targets)


_STRANGE = st.text(max_size=8) | st.sampled_from(["a\\b", "a\\nb", "a\nb", 'a"', "a,b", " a", ""])
"""What an engine may have been started with; no document is behind it."""
STATUS = Status(
    version="1", pod="p", ready=True, converged=True, reasons=(), cycle="",
    document=DocumentStatus(), engine=EngineStatus(kind="vllm", urls=()), store=StoreStatus(),
    targets={},
)  # fmt: skip


def _targets(name: str) -> st.SearchStrategy[TargetStatus]:
    return st.builds(
        TargetStatus,
        name=st.just(name),
        kind=st.sampled_from([Kind.LORA] * 3 + [Kind.MODEL, None]),
        source=st.just(_SOURCE),
        desired=st.booleans(),
        readiness=st.just("initial"),
        state=st.sampled_from([State.RESIDENT] * 4 + list(State)),
        everywhere=st.booleans(),
    )


@st.composite
def replays(draw: st.DrawFn, names: Collection[str]) -> SlotReplay:
    """Whatever the replay may believe of these names, and of one that nobody else knows."""
    replay = SlotReplay(
        max_loras=draw(st.none() | st.integers(0, 8)),
        max_cpu_loras=draw(st.none() | st.integers(0, 8)),
    )
    held = draw(st.permutations([*sorted(names), "stranger"]))
    for moment, name in enumerate(held[: draw(st.integers(0, len(held)))]):
        replay = replay.loaded(name, float(moment))
    return replay


def samples() -> st.SearchStrategy[Sample]:
    """Any sample that translating can give."""
    figures = st.integers(0, 300).map(float) | st.floats(0, LARGEST)
    return st.builds(
        Sample,
        taken_at=st.just(0.0),
        queued=figures,
        running=figures,
        kv_usage=st.floats(0, 1),
        block_size=st.integers(0, int(LARGEST)),
        num_blocks=st.integers(0, int(LARGEST)),
    )


def clocks() -> st.SearchStrategy[float]:
    """Unix seconds, of clocks that are wrong as well."""
    return st.floats(1.7e9, 1.9e9) | st.floats(-(2.0**40), 2.0**40)


@st.composite
def agent_pages(draw: st.DrawFn) -> bytes:
    """Pages that an agent may serve."""
    published = draw(statuses())
    loras = lora_view(published, draw(replays(published.targets)))
    labels = lora_labels(loras, draw(st.sampled_from(LoraLabels)))
    return render_picker_page(
        draw(samples()), loras, labels, ready=published.ready, changed_at=draw(clocks())
    )


def engine_pages(metric_map: MetricMap) -> st.SearchStrategy[bytes]:
    """Pages of an engine of this kind, with figures that no engine should give, cut off anywhere,
    or with bytes of anything else."""
    series = [*metric_map.queued, *metric_map.running, *metric_map.kv_usage]
    if metric_map.running_time is not None:
        series += [*metric_map.running_time.microseconds, *metric_map.running_time.seconds]
    for cache in metric_map.cache:
        series += [one for one in (cache.info, cache.block_size, cache.num_blocks) if one]
    series += [one for one in (metric_map.lora_activity, metric_map.started_at) if one]
    labelled = [
        (one.name, "".join(f'{name}="{value}",' for name, value in one.labels.items()))
        for one in series
    ]
    lines = st.builds(
        lambda series, more, value: f"{series[0]}{{{series[1]}{more}}} {value}\n".encode(),
        st.sampled_from(labelled),
        st.lists(_ENGINE_PAIRS, max_size=3).map(",".join),
        _ENGINE_VALUES,
    )
    heads = st.sampled_from([*(name for name, _ in labelled), *metric_map.present]).map(
        lambda name: f"# HELP {name} of it\n# TYPE {name} gauge\n".encode()
    )
    noise = st.binary(max_size=40) | _SAMPLES.map(str.encode)
    parts = st.lists(lines | lines | heads | noise, max_size=10).map(b"".join)
    return parts | st.builds(lambda page, at: page[:at], parts, st.integers(0, 400))


_ENGINE_PAIRS = st.builds(
    '{}="{}"'.format,
    st.sampled_from(
        [
            "engine",
            "model_name",
            "tp_rank",
            "priority",
            "running_lora_adapters",
            "waiting_lora_adapters",
            "max_lora",
            "block_size",
            "num_gpu_blocks",
            "page_size",
            "num_pages",
        ]
    ),
    _TEXTS,
)  # fmt: skip
_ENGINE_VALUES = (
    st.sampled_from(["0", "1", "3", "16", "0.42", "1763600000.5", "1e3"])
    | _VALUES
    | st.floats().map(str)
    | st.integers(-(10**6), 10**30).map(str)
)
