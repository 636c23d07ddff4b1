"""What pickers take from a parsed page, and what they go on believing of an endpoint."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.picker_oracle.go import int_after_error, parse_int, to_int, trim_space
from tests.support.picker_oracle.text import Family, Metric, PageRefused, parse

QUEUED = "vllm:num_requests_waiting"
RUNNING = "vllm:num_requests_running"
KV_USAGE = "vllm:kv_cache_usage_perc"
OLD_KV_USAGE = "vllm:gpu_cache_usage_perc"
LORA_INFO = "vllm:lora_requests_info"
CACHE_INFO = "vllm:cache_config_info"


@dataclass
class Reading:
    """What one scrape changed; None: the old value stays."""

    queued: int | None = None
    running: int | None = None
    kv_usage: float | None = None
    active: set[str] | None = None
    waiting: set[str] | None = None
    max_lora: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    errors: list[str] = field(default_factory=list)
    """Each figure that could not be read. The picker counts a scrape that has any as one extract
    error, however many there are."""
    fresh: bool = False
    """The endpoint's figures count as new from now on: anything at all was found."""


@dataclass(frozen=True)
class OldPicker:
    """A release of the Gateway API Inference Extension that polls by itself (no data layer)."""

    release: str
    kv_usage: str = OLD_KV_USAGE
    reads_running: bool = False
    reads_cache: bool = True


OLD_PICKERS = (
    OldPicker("1.0", reads_cache=False),
    OldPicker("1.2"),
    OldPicker("1.3", kv_usage=KV_USAGE, reads_running=True),
)
"""1.1 is as 1.2; 1.4, and 1.5 where it is told so (gate ``enableLegacyMetrics``), are as 1.3."""


def read(page: bytes) -> Reading:
    """Scrape one page as the current picker does, for an endpoint without an engine label."""
    families = parse(page)
    reading = Reading()
    reading.queued = _count(families, QUEUED, reading, "queued")
    reading.running = _count(families, RUNNING, reading, "running")
    reading.kv_usage = scalar(families, KV_USAGE)
    if reading.kv_usage is None:
        reading.errors.append("kv")
    # No family, or none of its samples above -1: passed over in silence, the old sets stay.
    if (lora := _newest(_metrics(families, LORA_INFO), above=-1.0)) is not None:
        _read_lora(lora, reading)
        reading.fresh = True
    cache = _latest(_metrics(families, CACHE_INFO))
    if cache is None:
        reading.errors.append("cache")
    else:
        _read_cache(cache, reading)
    figures = (reading.queued, reading.running, reading.kv_usage, cache)
    reading.fresh |= any(one is not None for one in figures)
    return reading


def read_legacy(page: bytes, picker: OldPicker = OLD_PICKERS[-1]) -> Reading:
    """Scrape one page as an older picker does: a counter's value reads as 0, list items are not
    trimmed, a LoRA sample with two empty lists or a value of 0 is passed over, an integer label
    that is none becomes 0, and every page that parses makes the endpoint fresh."""
    families = parse(page)
    reading = Reading(fresh=True)
    reading.queued = _count(families, QUEUED, reading, "queued", gauges=True)
    if picker.reads_running:
        reading.running = _count(families, RUNNING, reading, "running", gauges=True)
    reading.kv_usage = scalar(families, picker.kv_usage, gauges=True)
    if reading.kv_usage is None:
        reading.errors.append("kv")
    samples = _metrics(families, LORA_INFO)
    if not samples:
        reading.errors.append("lora")
    lists = ("running_lora_adapters", "waiting_lora_adapters")
    shown = [one for one in samples if any(one.label.get(name) for name in lists)]
    if (lora := _newest(shown, above=0.0, gauges=True)) is not None:
        reading.active, reading.waiting = (_untrimmed(lora.label.get(name, "")) for name in lists)
        if lora.label.get("max_lora"):
            reading.max_lora = _assigned(lora, "max_lora", reading, "max_lora")
    if picker.reads_cache:
        cache = _latest(_metrics(families, CACHE_INFO))
        if cache is None:
            reading.errors.append("cache")
        else:
            reading.block_size = _assigned(cache, "block_size", reading, "block_size")
            reading.num_blocks = _assigned(cache, "num_gpu_blocks", reading, "num_blocks")
    return reading


def scalar(families: Mapping[str, Family], name: str, *, gauges: bool = False) -> float | None:
    """Return the figure of one family as the extraction picks it; None: it is an error.

    Never a sum: the series with the greatest timestamp, and the first of equals. What is neither
    gauge nor counter (with ``gauges``: no gauge) reads as 0.
    """
    metric = _latest(_metrics(families, name))
    return None if metric is None else _value(metric, gauges)


@dataclass
class Endpoint:
    """One endpoint as the current picker remembers it, scrape after scrape.

    A scrape that fails, and a figure that is missing, leave what was known before.
    """

    queued: int = 0
    running: int = 0
    kv_usage: float = 0.0
    active: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    max_lora: int = 0
    block_size: int = 0
    num_blocks: int = 0
    updated_at: float | None = None
    """When anything was last extracted; None: never."""
    poll_errors: int = 0
    extract_errors: int = 0

    def scrape(
        self, body: bytes, now: float, *, status: int = 200, encoding: str = ""
    ) -> Reading | None:
        """Take one answer in; None where the poll failed. Its Content-Type is not looked at."""
        try:
            if status != 200:
                raise PageRefused(f"status {status}")
            reading = read(inflate(body) if encoding.lower() == "gzip" else body)
        except PageRefused:
            self.poll_errors += 1
            return None
        self.extract_errors += bool(reading.errors)
        if reading.fresh:
            self._keep(reading)
            self.updated_at = now
        return reading

    def _keep(self, reading: Reading) -> None:
        for name in (
            "queued", "running", "kv_usage", "active", "waiting",
            "max_lora", "block_size", "num_blocks",
        ):  # fmt: skip
            if (value := getattr(reading, name)) is not None:
                setattr(self, name, value)


def inflate(body: bytes) -> bytes:
    """Undo gzip, which the picker asks for.

    Raises:
        PageRefused: the stream is cut off or damaged.
    """
    plain = b""
    while body:
        member = zlib.decompressobj(wbits=31)
        try:
            plain += member.decompress(body) + member.flush()
        except zlib.error as exc:
            raise PageRefused(f"bad gzip: {exc}") from exc
        if not member.eof:
            raise PageRefused("gzip cut off")
        body = member.unused_data
    return plain


def _metrics(families: Mapping[str, Family], name: str) -> list[Metric]:
    family = families.get(name)
    return [] if family is None else family.metrics


def _value(metric: Metric, gauges: bool) -> float:
    return (metric.gauge or 0.0) if gauges else metric.value


def _latest(metrics: list[Metric]) -> Metric | None:
    best = None
    for metric in metrics:
        if metric.timestamp > (-1 if best is None else best.timestamp):
            best = metric
    return best


def _newest(metrics: list[Metric], *, above: float, gauges: bool = False) -> Metric | None:
    best = None
    for metric in metrics:
        if (value := _value(metric, gauges)) > above:
            best, above = metric, value
    return best


def _count(
    families: Mapping[str, Family], name: str, reading: Reading, what: str, *, gauges: bool = False
) -> int | None:
    value = scalar(families, name, gauges=gauges)
    if value is None:
        reading.errors.append(what)
    return None if value is None else to_int(value)


def _read_lora(lora: Metric, reading: Reading) -> None:
    reading.active = _names(lora, "running_lora_adapters")
    reading.waiting = _names(lora, "waiting_lora_adapters")
    reading.max_lora = _integer(lora, "max_lora", reading, "max_lora")


def _read_cache(cache: Metric, reading: Reading) -> None:
    # The size is set back before it is read, the number of blocks is not.
    reading.block_size = _integer(cache, "block_size", reading, "block_size") or 0
    reading.num_blocks = _integer(cache, "num_gpu_blocks", reading, "num_blocks")


def _integer(metric: Metric, label: str, reading: Reading, what: str) -> int | None:
    """Read an integer label; one that is missing or empty is no error, and says nothing."""
    read = None
    for name, text in metric.labels:
        if name == label and text:
            if (value := parse_int(text)) is None:
                reading.errors.append(what)
            else:
                read = value
    return read


def _assigned(metric: Metric, label: str, reading: Reading, what: str) -> int | None:
    """Read as older pickers do, which assign what a failed conversion returns."""
    text = metric.label.get(label)
    if text is None:
        return None
    value = parse_int(text)
    if value is None:
        reading.errors.append(what)
        return int_after_error(text)
    return value


def _names(metric: Metric, label: str) -> set[str]:
    lists = (text for name, text in metric.labels if name == label)
    return {name for text in lists for one in text.split(",") if (name := trim_space(one))}


def _untrimmed(text: str) -> set[str]:
    return set(text.split(",")) if text else set()
