"""The picker page: what an endpoint picker reads, under the names it reads by default.

Constant in size save for LoRA names, gauges only, one series a figure, no HELP. Its rules are those
of the pickers' parsers, which the tests hold as an executable oracle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.base import Kind
from sidecar.core.exposition import render_family
from sidecar.core.residency import SlotReplay
from sidecar.core.status import State, Status
from sidecar.core.translate import Sample

LORA_INFO = "vllm:lora_requests_info"


class LoraLabels(StrEnum):
    """``--lora-labels``: which LoRAs stand under ``waiting``. ``running`` is always the slots."""

    AUTO = "auto"
    """Those that hold for some pods only and are not in a slot here."""
    RESIDENCY = "residency"
    """None."""
    REGISTERED = "registered"
    """All that the engine holds and that are not in a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraView:
    """The LoRAs of this pod, as the labels need them."""

    slots: int | None = None
    """GPU slots; None where that is unknown."""
    resident: frozenset[str] = frozenset()
    in_slot: frozenset[str] = frozenset()
    """Resident, and believed to be in a GPU slot."""
    in_cpu: frozenset[str] = frozenset()
    """Resident, and believed to be in the engine's host memory."""
    partial: frozenset[str] = frozenset()
    """Those of the document that hold for some pods only."""
    complete: bool = False
    """This pod holds every LoRA of the document, meant for it or not. False while no document
    is known: unknown is not empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelValues:
    """The three labels of the LoRA family."""

    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    max_lora: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A rendered page, or why there is none."""

    fresh: bool
    body: bytes = field(repr=False)


def lora_view(status: Status, replay: SlotReplay, *, after_base: bool = False) -> LoraView:
    """Gather what the labels need from the published status and the replay of the slots.

    ``after_base``: names stand as clients ask for them, after that of the base model.
    """
    loras = [one for one in status.targets.values() if one.kind is not Kind.MODEL]
    resident = frozenset(
        one.name for one in loras if one.state is State.RESIDENT and one.kind is Kind.LORA
    )
    # A spoiled entry is not desired, and other pods may still hold what it was before.
    documented = frozenset(
        one.name for one in loras if one.desired or one.state is State.FAILED
    ).union(status.document.elsewhere)
    base = f"{status.engine.base_model}:" if after_base and status.engine.base_model else ""

    def asked(names: Iterable[str]) -> frozenset[str]:
        return frozenset(base + name for name in names)

    return LoraView(
        slots=replay.max_loras,
        resident=asked(resident),
        in_slot=asked(resident.intersection(replay.in_slot)),
        in_cpu=asked(resident.intersection(replay.in_cpu)),
        partial=asked(one.name for one in loras if not one.everywhere),
        complete=status.document.generation > 0 and documented <= resident,
    )


def lora_labels(loras: LoraView, mode: LoraLabels = LoraLabels.AUTO) -> LabelValues:
    """Say which LoRAs run here and how many could, so that residency attracts requests.

    A pod that lacks a LoRA of the document must not win it by a free slot: its ``max_lora`` is no
    more than the number of names listed, and so it is where the slots are unknown.
    """
    running = _listed(loras.in_slot)
    if mode is LoraLabels.AUTO:
        waiting = _listed((loras.resident & loras.partial) - loras.in_slot)
    elif mode is LoraLabels.REGISTERED:
        waiting = _listed(loras.resident - loras.in_slot)
    else:
        waiting = ()
    listed = len(running) + len(waiting)
    slots = listed if loras.slots is None else loras.slots
    return LabelValues(
        running=running, waiting=waiting, max_lora=slots if loras.complete else min(slots, listed)
    )


def is_listable(name: str) -> bool:
    """Tell whether pickers read ``name`` back out of a list: they split at commas and trim."""
    return bool(name) and "," not in name and name == name.strip() and not _has_surrogate(name)


def render_picker_page(
    sample: Sample, loras: LoraView, labels: LabelValues, *, ready: bool, changed_at: float
) -> bytes:
    """Render the page.

    ``changed_at`` is the unix time at which ``labels`` last changed; pickers compare it.
    """
    info = {
        "max_lora": str(labels.max_lora),
        "running_lora_adapters": ",".join(labels.running),
        "waiting_lora_adapters": ",".join(labels.waiting),
    }
    cache = {"block_size": str(sample.block_size), "num_gpu_blocks": str(sample.num_blocks)}
    usage = f"{sample.kv_usage:.6g}"
    levels = [(name, "gpu") for name in labels.running]
    levels += [(name, "cpu") for name in _listed(loras.in_cpu - loras.in_slot)]
    parts = [
        render_family("vllm:num_requests_waiting", [({}, _rounded(sample.queued))]),
        render_family("vllm:num_requests_running", [({}, _rounded(sample.running))]),
        render_family("vllm:kv_cache_usage_perc", [({}, usage)]),
        render_family("vllm:gpu_cache_usage_perc", [({}, usage)]),
        render_family(LORA_INFO, [(info, f"{max(changed_at, 0.001):.3f}")]),
        render_family("vllm:cache_config_info", [(cache, 1)]),
        render_family(
            "vllm:lora_adapter_loaded", [(_loaded_labels(name, level), 1) for name, level in levels]
        )
        if levels
        else "",
        render_family("vllm:num_gpu_loaded_lora_adapters", [({}, len(labels.running))]),
        # Bounded like max_lora, and for the same reason: a free slot is a tier of its own.
        render_family("vllm:max_gpu_lora_adapters", [({}, labels.max_lora)]),
        render_family("model_sidecar_ready", [({}, int(ready))]),
    ]
    return "".join(parts).encode()


def _loaded_labels(name: str, level: str) -> Mapping[str, str]:
    return {"adapter_name": name, "level": level, "pinned": "false", "rank": "0"}


def _listed(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if is_listable(name)))


def _has_surrogate(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _rounded(value: float) -> int:
    return int(value + 0.5)
