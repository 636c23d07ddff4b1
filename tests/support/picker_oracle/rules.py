"""The rules that every picker page of ours keeps, each with a name.

What a picker would forgive is refused here too: a page is read by releases that forgive less, and
an oddity on it is a slip of ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from tests.support.picker_oracle.extract import (
    CACHE_INFO,
    KV_USAGE,
    LORA_INFO,
    OLD_KV_USAGE,
    QUEUED,
    RUNNING,
    Reading,
    read,
)
from tests.support.picker_oracle.go import trim_space
from tests.support.picker_oracle.text import Family, PageRefused, parse

LOADED = "vllm:lora_adapter_loaded"
LOADED_COUNT = "vllm:num_gpu_loaded_lora_adapters"
SLOTS = "vllm:max_gpu_lora_adapters"
READY = "model_sidecar_ready"
FIGURES = (QUEUED, RUNNING, KV_USAGE, OLD_KV_USAGE, LOADED_COUNT, SLOTS, READY)
"""Families of one sample without labels."""
INFOS = {
    LORA_INFO: {"max_lora", "running_lora_adapters", "waiting_lora_adapters"},
    CACHE_INFO: {"block_size", "num_gpu_blocks"},
}
"""Families of one sample whose labels say it, and those labels."""
LOADED_LABELS = {"adapter_name", "level", "pinned", "rank"}
MAX_BYTES_WITHOUT_NAMES = 1024
MAX_BYTES_A_LORA = 96
"""For each, beside its name, which stands there twice."""
LARGEST = 2**53
"""Integers up to here survive their way through a float."""
_COUNT = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_TYPE_LINE = re.compile(rb"# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) [a-z]+")
_PAIR = rb'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\["\\n])*"'
_SAMPLE_LINE = re.compile(
    rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{" + _PAIR + rb"(?:," + _PAIR + rb")*\})? [^ ]+( -?[0-9]+)?"
)

Families = Mapping[str, Family]
Sample = tuple[dict[str, str], float, int]
Rule = Callable[[bytes, Families], Iterable[str]]


def check_page(page: bytes) -> Reading:
    """Return what the current picker reads off a page that keeps every rule.

    Raises:
        AssertionError: it breaks some; the message names each of them and says where.
    """
    broken = broken_rules(page)
    assert not broken, "\n".join(f"{rule}: {why}" for rule, why in broken.items())
    return read(page)


def check_pages(pages: Iterable[bytes]) -> None:
    """Check pages that one agent served one after the other.

    Raises:
        AssertionError: one breaks a rule, or the value of the LoRA sample went back.
    """
    values = [(check_page(page), parse(page)[LORA_INFO].samples[0][1])[1] for page in pages]
    for earlier, later in pairwise(values):
        assert later >= earlier, f"the LoRA value goes back from {earlier} to {later}"


def broken_rules(page: bytes) -> dict[str, str]:
    """Return the rules that a page breaks, and why; where it cannot be parsed, that alone."""
    if not page.endswith(b"\n"):
        return {"final newline": f"it ends with {page[-20:]!r}"}
    try:
        families = parse(page)
    except PageRefused as exc:
        return {"the parser takes the page": str(exc)}
    broken = {name: list(rule(page, families)) for name, rule in RULES.items()}
    return {name: "; ".join(found) for name, found in broken.items() if found}


def _plain_lines(page: bytes, families: Families) -> Iterable[str]:
    for line in page[:-1].split(b"\n"):
        if not _TYPE_LINE.fullmatch(line) and not _SAMPLE_LINE.fullmatch(line):
            yield repr(line)


def _typed_gauges(page: bytes, families: Families) -> Iterable[str]:
    return (f"{name} is {one.type}" for name, one in families.items() if one.type != "gauge")


def _together(page: bytes, families: Families) -> Iterable[str]:
    present = b""
    for line in page.split(b"\n"):
        if line.startswith(b"# TYPE "):
            present = line.split(b" ")[2]
        elif (sample := _SAMPLE_LINE.fullmatch(line)) is not None and sample[1] != present:
            yield f"{sample[1]!r} stands under {present!r}"


def _every_family(page: bytes, families: Families) -> Iterable[str]:
    return (name for name in (*FIGURES, *INFOS) if not _samples(families, name))


def _no_other_family(page: bytes, families: Families) -> Iterable[str]:
    return families.keys() - {*FIGURES, *INFOS, LOADED}


def _one_series(page: bytes, families: Families) -> Iterable[str]:
    return (name for name in (*FIGURES, *INFOS) if len(_samples(families, name)) > 1)


def _no_labels(page: bytes, families: Families) -> Iterable[str]:
    return (name for name in FIGURES if any(labels for labels, _, _ in _samples(families, name)))


def _no_timestamps(page: bytes, families: Families) -> Iterable[str]:
    lines = (_SAMPLE_LINE.fullmatch(line) for line in page.split(b"\n"))
    return (repr(line[0]) for line in lines if line is not None and line[2])


def _finite(page: bytes, families: Families) -> Iterable[str]:
    for name in families:
        for _, value, _ in _samples(families, name):
            if not 0 <= value < math.inf:
                yield f"{name} {value}"


def _whole(page: bytes, families: Families) -> Iterable[str]:
    for name in (QUEUED, RUNNING, LOADED_COUNT, SLOTS, READY):
        for _, value, _ in _samples(families, name):
            if 0 <= value < math.inf and (value % 1 or value > LARGEST):
                yield f"{name} {value}"


def _fraction(page: bytes, families: Families) -> Iterable[str]:
    for name in (KV_USAGE, OLD_KV_USAGE):
        for _, value, _ in _samples(families, name):
            if 1 < value < math.inf:
                yield f"{name} {value}"


def _one_usage(page: bytes, families: Families) -> Iterable[str]:
    usages = [_samples(families, name) for name in (KV_USAGE, OLD_KV_USAGE)]
    if all(usages) and usages[0][0][1] != usages[1][0][1]:
        yield f"{usages[0][0][1]} and {usages[1][0][1]}"


def _ready(page: bytes, families: Families) -> Iterable[str]:
    return (str(one[1]) for one in _samples(families, READY) if one[1] > 1)


def _lora_labels(page: bytes, families: Families) -> Iterable[str]:
    return _other_labels(families, LORA_INFO, INFOS[LORA_INFO])


def _cache_labels(page: bytes, families: Families) -> Iterable[str]:
    return _other_labels(families, CACHE_INFO, INFOS[CACHE_INFO])


def _loaded_labels(page: bytes, families: Families) -> Iterable[str]:
    return _other_labels(families, LOADED, LOADED_LABELS)


def _other_labels(families: Families, name: str, wanted: set[str]) -> Iterable[str]:
    return (str(labels) for labels, _, _ in _samples(families, name) if labels.keys() != wanted)


def _plain_integers(page: bytes, families: Families) -> Iterable[str]:
    for name, label in (
        (LORA_INFO, "max_lora"), (CACHE_INFO, "block_size"), (CACHE_INFO, "num_gpu_blocks")
    ):  # fmt: skip
        text = _label(families, name, label)
        if text is not None and (not _COUNT.fullmatch(text) or int(text[:17]) > LARGEST):
            yield f"{label}={text!r}"


def _lora_value(page: bytes, families: Families) -> Iterable[str]:
    return (str(value) for _, value, _ in _samples(families, LORA_INFO) if value == 0)


def _info_values(page: bytes, families: Families) -> Iterable[str]:
    for name in (CACHE_INFO, LOADED):
        for _, value, _ in _samples(families, name):
            if value != 1:
                yield f"{name} {value}"


def _sorted(page: bytes, families: Families) -> Iterable[str]:
    for text in _lists(families):
        names = [trim_space(one) for one in text.split(",") if trim_space(one)]
        if any(later <= earlier for earlier, later in pairwise(names)):
            yield repr(text)


def _names_alone(page: bytes, families: Families) -> Iterable[str]:
    for text in filter(None, _lists(families)):
        if any(one != one.strip() or not one for one in text.split(",")):
            yield repr(text)


def _one_list(page: bytes, families: Families) -> Iterable[str]:
    return map(repr, set.intersection(*map(_split, _lists(families))))


def _one_level(page: bytes, families: Families) -> Iterable[str]:
    names = [labels.get("adapter_name") for labels, _, _ in _samples(families, LOADED)]
    return {repr(name) for name in names if names.count(name) > 1}


def _known_levels(page: bytes, families: Families) -> Iterable[str]:
    plain = {"pinned": "false", "rank": "0"}
    for labels, _, _ in _samples(families, LOADED):
        if labels.get("level", "gpu") not in ("gpu", "cpu") or labels != labels | {
            label: text for label, text in plain.items() if label in labels
        }:
            yield str(labels)


def _gpu_level(page: bytes, families: Families) -> Iterable[str]:
    on_gpu = {
        labels.get("adapter_name", "")
        for labels, _, _ in _samples(families, LOADED)
        if labels.get("level") == "gpu"
    }
    return map(repr, on_gpu ^ _split(_lists(families)[0]))


def _loaded_count(page: bytes, families: Families) -> Iterable[str]:
    listed = len(_split(_lists(families)[0]))
    for _, value, _ in _samples(families, LOADED_COUNT):
        if value != listed and not value % 1:
            yield f"{value} for {listed} names"


def _slots(page: bytes, families: Families) -> Iterable[str]:
    text = _label(families, LORA_INFO, "max_lora")
    for _, value, _ in _samples(families, SLOTS):
        if text is not None and _COUNT.fullmatch(text) and value != float(text):
            yield f"{value} beside max_lora {text}"


def _small(page: bytes, families: Families) -> Iterable[str]:
    names = set().union(*map(_split, _lists(families)))
    names |= {labels.get("adapter_name", "") for labels, _, _ in _samples(families, LOADED)}
    written = [one.replace("\\", "\\\\").replace('"', '\\"').encode() for one in names]
    most = MAX_BYTES_WITHOUT_NAMES + sum(MAX_BYTES_A_LORA + 2 * len(one) for one in written)
    if len(page) > most:
        yield f"{len(page)} bytes, {len(names)} names allow {most}"


RULES: Mapping[str, Rule] = {
    "lines in their plainest form": _plain_lines,
    "every family typed gauge": _typed_gauges,
    "each sample under its own TYPE": _together,
    "every family that pickers ask for": _every_family,
    "no other family": _no_other_family,
    "one series a figure": _one_series,
    "no labels on a figure": _no_labels,
    "no timestamps": _no_timestamps,
    "finite and not negative": _finite,
    "counts are whole numbers": _whole,
    "usage is a fraction": _fraction,
    "one usage under both names": _one_usage,
    "ready is 0 or 1": _ready,
    "always max_lora and both lists": _lora_labels,
    "always both cache labels": _cache_labels,
    "always the labels of a level": _loaded_labels,
    "labels that count are plain integers": _plain_integers,
    "the LoRA value is above 0": _lora_value,
    "the other infos are 1": _info_values,
    "lists are sorted": _sorted,
    "lists hold names alone": _names_alone,
    "a name stands in one list": _one_list,
    "a LoRA has one level": _one_level,
    "levels are gpu and cpu": _known_levels,
    "the gpu level is the running list": _gpu_level,
    "the loaded count is that of the running list": _loaded_count,
    "the slots are max_lora": _slots,
    "the size is bounded": _small,
}
"""Name of a rule -> what breaks it on a parsed page. Besides these: ``final newline`` and
``the parser takes the page``."""


def _samples(families: Families, name: str) -> list[Sample]:
    family = families.get(name)
    return [] if family is None else family.samples


def _label(families: Families, name: str, label: str) -> str | None:
    samples = _samples(families, name)
    return samples[0][0].get(label) if samples else None


def _lists(families: Families) -> tuple[str, str]:
    running, waiting = (
        _label(families, LORA_INFO, f"{one}_lora_adapters") or "" for one in ("running", "waiting")
    )
    return running, waiting


def _split(text: str) -> set[str]:
    return {name for one in text.split(",") if (name := trim_space(one))}
