"""The page of every engine: what is recorded or documented in tests/data, and what is read off it.

Each file of written pages says at its head that nobody recorded it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapters.base import Kind, MetricMap
from adapters.sglang_metrics import SGLANG_METRICS
from adapters.triton_metrics import TRITON_METRICS
from adapters.vllm import VLLM_METRICS
from sidecar.core.exposition import find_lines
from sidecar.core.picker_page import lora_labels, lora_view
from sidecar.core.residency import LoraTracker
from sidecar.core.status import (
    DocumentStatus,
    EngineStatus,
    State,
    Status,
    StoreStatus,
    TargetStatus,
)
from sidecar.core.translate import Sample, translate

DATA = Path(__file__).parent.parent / "data"
MAPS = {"vllm": VLLM_METRICS, "triton": TRITON_METRICS, "sglang": SGLANG_METRICS}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one page, or the pages of all ranks, amount to."""

    queued: float = 0
    running: float = 0
    kv: float = 0
    block_size: int = 0
    blocks: int = 0
    slots: int | None = None
    started_at: float | None = None
    active: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    files: tuple[str, ...]
    figures: Figures = field(default_factory=Figures)

    @property
    def metric_map(self) -> MetricMap:
        return MAPS[self.files[0].partition("-")[0]]

    def read(self, previous: Sample | None = None, *, now: float = 0.0) -> Sample:
        pages = tuple((DATA / file).read_bytes() for file in self.files)
        return translate(pages, self.metric_map, previous, now)


CASES = {
    "vLLM, idle": Case(
        files=("vllm-0.32-metrics.txt",),
        figures=Figures(block_size=128, blocks=8192, started_at=1795225750.32),
    ),
    "vLLM, with LoRAs": Case(
        files=("vllm-0.32-metrics-lora.txt",),
        figures=Figures(
            queued=2,
            running=4,
            kv=0.000488,
            block_size=128,
            blocks=8192,
            slots=2,
            started_at=1795225750.32,
            active=("chat-lora", "sql-lora"),
        ),
    ),
    "vLLM, asleep": Case(
        files=("vllm-0.32-metrics-asleep.txt",),
        figures=Figures(block_size=128, blocks=8192, slots=2, started_at=1795249287.17),
    ),
    "vLLM, two ranks on one page": Case(
        files=("vllm-0.32-metrics-ranks.txt",),
        figures=Figures(
            queued=4,
            running=15,
            kv=0.00293,
            block_size=128,
            blocks=2 * 16384,
            slots=2,
            started_at=1795248922.68,
            active=("chat-lora", "sql-lora"),
        ),
    ),
    "vLLM, two ranks with pages of their own": Case(
        files=("vllm-0.32-metrics-lora.txt", "vllm-0.32-metrics-asleep.txt"),
        figures=Figures(
            queued=2,
            running=4,
            kv=0.000488,
            block_size=128,
            blocks=2 * 8192,
            slots=2,
            started_at=1795249287.17,
            active=("chat-lora", "sql-lora"),
        ),
    ),
    "vLLM, old names": Case(
        files=("vllm-0.8-metrics.txt",),
        figures=Figures(
            queued=1,
            running=3,
            kv=0.25,
            block_size=16,
            blocks=1024,
            slots=4,
            started_at=1.74e9,
            active=("sql",),
        ),
    ),
    "Triton, one look": Case(
        files=("triton-2.51-metrics.txt",), figures=Figures(queued=7, running=0)
    ),
    "Triton, two looks": Case(
        files=("triton-2.51-metrics-busy.txt",), figures=Figures(queued=8, running=0)
    ),
    "Triton with TensorRT-LLM": Case(
        files=("triton-trtllm-metrics.txt",),
        figures=Figures(queued=2, running=5, kv=0.25, block_size=64, blocks=1000),
    ),
    "Triton with TensorRT-LLM, several models and versions": Case(
        files=("triton-trtllm-metrics-models.txt",),
        figures=Figures(queued=7, running=16, kv=0.5, block_size=64, blocks=3500),
    ),
    "Triton with the vLLM backend, one look": Case(
        files=("triton-vllm-metrics.txt",), figures=Figures(queued=1, running=0)
    ),
    "SGLang": Case(
        files=("sglang-metrics.txt",),
        figures=Figures(queued=3, running=6, kv=0.375, block_size=16, blocks=4096),
    ),
    "SGLang, replicas, no page of metrics": Case(
        files=("sglang-metrics-replicas.txt",), figures=Figures(queued=3, running=8, kv=0.375)
    ),
    "SGLang, ranks of replicas, metrics alone": Case(
        files=("sglang-metrics-ranks.txt",),
        figures=Figures(queued=4, running=8, kv=0.375, block_size=16, blocks=2 * 4096),
    ),
    "SGLang, old names": Case(
        files=("sglang-0.5.11-metrics.txt",),
        figures=Figures(queued=9, running=4, kv=0.25, block_size=64, blocks=1024),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_read_off_the_page_of(case: Case):
    sample = case.read()
    assert (
        Figures(
            queued=sample.queued,
            running=sample.running,
            kv=round(sample.kv_usage, 6),
            block_size=sample.block_size,
            blocks=sample.num_blocks,
            slots=sample.max_loras,
            started_at=sample.started_at,
            active=sample.lora_running,
        )
        == case.figures
    )


@dataclass(frozen=True, kw_only=True)
class Grown:
    """Two pages of one engine, under a load that is known."""

    before: str
    after: str
    seconds: float
    running: float


GROWN = {
    "plain models: one request of each runs": Grown(
        before="triton-2.51-metrics-busy.txt",
        after="triton-2.51-metrics-busy-later.txt",
        seconds=6.001,
        running=2.0,
    ),
    # Each of the 1.45 requests that run counts in the ensemble and in one of its parts.
    "an ensemble: it counts beside its parts": Grown(
        before="triton-2.51-metrics-ensemble.txt",
        after="triton-2.51-metrics-ensemble-later.txt",
        seconds=6.001,
        running=2.9,
    ),
    "the vLLM backend: five streams, beside one plain request": Grown(
        before="triton-vllm-metrics.txt",
        after="triton-vllm-metrics-later.txt",
        seconds=6.007,
        running=6.0,
    ),
}


@pytest.mark.parametrize("case", GROWN.values(), ids=GROWN)
def test_how_many_requests_run_follows_from_two_pages_of(case: Grown):
    before = Case(files=(case.before,)).read()
    after = Case(files=(case.after,)).read(before, now=case.seconds)
    grown = sum(after.busy[key] - before.busy.get(key, 0.0) for key in after.busy)
    assert grown / 1e6 / case.seconds == pytest.approx(case.running, rel=0.05)
    # The mean is smoothed, and six seconds after nothing was known 5 % of nothing are left in it.
    assert after.running == pytest.approx(0.95 * case.running, rel=0.05)


def test_the_figure_that_the_picker_reads_off_triton_itself_only_grows():
    """Why the running requests come from durations: its mapping takes a counter for them."""
    before, after = (
        sum(
            line.value for line in find_lines((DATA / name).read_bytes(), "nv_inference_exec_count")
        )
        for name in ("triton-2.51-metrics-busy.txt", "triton-2.51-metrics-busy-later.txt")
    )
    assert after - before > 100


@pytest.mark.parametrize("path", sorted(DATA.glob("*metrics*.txt")), ids=lambda path: path.stem)
def test_the_head_of_a_page_says_whether_it_was_recorded(path: Path):
    assert path.read_text().startswith(("# Recorded from ", "# Recorded 6.", "# Written from "))


def status(*names: str) -> Status:
    """Every LoRA of the document is resident."""
    return Status(
        version="1.0",
        pod="pod-a",
        ready=True,
        converged=True,
        reasons=(),
        cycle="",
        document=DocumentStatus(generation=1),
        engine=EngineStatus(kind="sglang", urls=()),
        store=StoreStatus(),
        targets={
            name: TargetStatus(
                name=name,
                kind=Kind.LORA,
                source="s3://x",
                desired=True,
                readiness="initial",
                state=State.RESIDENT,
            )
            for name in names
        },
    )


def test_an_engine_that_names_no_active_lora_is_taken_to_hold_what_it_loaded():
    """SGLang counts slots and names nobody in them: no LoRA is preferred to another."""
    sample = Case(files=("sglang-metrics.txt",)).read()
    tracker = LoraTracker(max_loras=None, max_cpu_loras=None)
    names = [f"lora-{number}" for number in range(20)]
    for at, name in enumerate(names):
        tracker.loaded(name, at=float(at))
    tracker.limits(max_loras=sample.max_loras, max_cpu_loras=None)
    labels = lora_labels(lora_view(status(*names), tracker.replay))
    assert set(labels.running) == set(names)
    assert (labels.waiting, labels.max_lora) == ((), 20)
