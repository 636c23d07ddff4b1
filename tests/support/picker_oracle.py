"""What an endpoint picker reads off a page, as executable rules.

Follows the picker's own text parser (format 0.0.4, legacy names; any error loses the page) and its
extraction for pods with no engine label. ``read(page)`` is one scrape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MIN_INT64 = -(2**63)
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+|[iI]nf|NaN|nan)")
_TYPES = {"counter", "gauge", "histogram", "summary", "untyped"}


class PageRefused(Exception):
    """The parser loses the whole page."""


@dataclass
class Family:
    type: str = "untyped"
    typed: bool = False
    helped: bool = False
    samples: list[tuple[dict[str, str], float, int]] = field(default_factory=list)


@dataclass
class Reading:
    """What one scrape changed; None or an entry in ``errors``: the old value stays."""

    queued: int | None = None
    running: int | None = None
    kv_usage: float | None = None
    active: set[str] | None = None
    waiting: set[str] | None = None
    max_lora: int | None = None
    block_size: int | None = None
    num_blocks: int | None = None
    errors: list[str] = field(default_factory=list)


def parse(page: bytes) -> dict[str, Family]:
    """Parse a page, or raise ``PageRefused``."""
    try:
        text = page.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise PageRefused("not UTF-8") from exc
    if "\r" in text:
        raise PageRefused("carriage return")
    if text and not text.endswith("\n"):
        raise PageRefused("no newline at the end")
    families: dict[str, Family] = {}
    for line in text.split("\n"):
        line = line.strip(" \t")
        if line.startswith("#"):
            _comment(line, families)
        elif line:
            _sample(line, families)
    return families


def _comment(line: str, families: dict[str, Family]) -> None:
    words = line[1:].strip(" \t").split(" ", 2)
    if words[0] not in ("HELP", "TYPE"):
        return
    if len(words) < 2 or not _NAME.fullmatch(words[1]):
        raise PageRefused(f"bad name in {line!r}")
    family = families.setdefault(words[1], Family())
    if words[0] == "HELP":
        if family.helped:
            raise PageRefused(f"second HELP for {words[1]}")
        family.helped = True
        return
    if family.typed:
        raise PageRefused(f"second TYPE for {words[1]}")
    if family.samples:
        raise PageRefused(f"TYPE after samples of {words[1]}")
    kind = words[2].strip(" \t") if len(words) > 2 else ""
    if kind not in _TYPES:
        raise PageRefused(f"unknown type {kind!r}")
    family.type, family.typed = kind, True


def _sample(line: str, families: dict[str, Family]) -> None:
    name = _NAME.match(line)
    if name is None:
        raise PageRefused(f"bad name in {line!r}")
    rest = line[name.end() :].lstrip(" \t")
    labels: dict[str, str] = {}
    if rest.startswith("{"):
        labels, rest = _labels(rest[1:], line)
    elif rest == line[name.end() :]:
        raise PageRefused(f"no blank after the name in {line!r}")
    words = rest.split()
    if len(words) not in (1, 2) or not _NUMBER.fullmatch(words[0]):
        raise PageRefused(f"bad value in {line!r}")
    if len(words) == 2 and not re.fullmatch(r"-?[0-9]+", words[1]):
        raise PageRefused(f"bad timestamp in {line!r}")
    timestamp = int(words[1]) if len(words) == 2 else 0
    family = families.setdefault(_family_name(name[0], families), Family())
    family.samples.append((labels, float(words[0]), timestamp))


def _family_name(name: str, families: dict[str, Family]) -> str:
    for suffix in ("_bucket", "_sum", "_count"):
        whole = families.get(name.removesuffix(suffix))
        if whole is not None and name.endswith(suffix) and whole.type in ("histogram", "summary"):
            return name.removesuffix(suffix)
    return name


def _labels(rest: str, line: str) -> tuple[dict[str, str], str]:
    labels: dict[str, str] = {}
    while True:
        rest = rest.lstrip(" \t")
        if rest.startswith("}"):
            return labels, rest[1:]
        name = _LABEL_NAME.match(rest)
        if name is None:
            raise PageRefused(f"bad label in {line!r}")
        rest = rest[name.end() :].lstrip(" \t")
        if not rest.startswith("="):
            raise PageRefused(f"label without value in {line!r}")
        rest = rest[1:].lstrip(" \t")
        if not rest.startswith('"'):
            raise PageRefused(f"label value without quotes in {line!r}")
        if name[0] in labels:
            raise PageRefused(f"label {name[0]} twice in {line!r}")
        labels[name[0]], rest = _quoted(rest[1:], line)
        rest = rest.lstrip(" \t")
        if rest.startswith(","):
            rest = rest[1:]
        elif not rest.startswith("}"):
            raise PageRefused(f"no comma between labels in {line!r}")


def _quoted(rest: str, line: str) -> tuple[str, str]:
    value: list[str] = []
    at = 0
    while at < len(rest):
        letter = rest[at]
        if letter == '"':
            return "".join(value), rest[at + 1 :]
        if letter == "\\":
            at += 1
            escaped = {"\\": "\\", '"': '"', "n": "\n"}.get(rest[at : at + 1])
            if escaped is None:
                raise PageRefused(f"bad escape in {line!r}")
            letter = escaped
        value.append(letter)
        at += 1
    raise PageRefused(f"unfinished label value in {line!r}")


def scalar(families: dict[str, Family], name: str) -> float | None:
    """Return the figure of one family as the extractor picks it; None: it is an error."""
    family = families.get(name)
    if family is None or not family.samples:
        return None
    best = family.samples[0]
    for sample in family.samples[1:]:
        if sample[2] > best[2]:
            best = sample
    return best[1] if family.type in ("gauge", "counter") else 0.0


def read(page: bytes, *, kv_name: str = "vllm:kv_cache_usage_perc") -> Reading:
    """Scrape one page as the current picker does. ``kv_name`` differs in pickers before 1.3."""
    families = parse(page)
    reading = Reading()
    queued = scalar(families, "vllm:num_requests_waiting")
    running = scalar(families, "vllm:num_requests_running")
    reading.kv_usage = scalar(families, kv_name)
    for what, value in (("queued", queued), ("running", running), ("kv", reading.kv_usage)):
        if value is None:
            reading.errors.append(what)
    reading.queued = None if queued is None else _go_int(queued)
    reading.running = None if running is None else _go_int(running)
    _read_lora(families, reading)
    _read_cache(families, reading)
    return reading


def read_legacy(page: bytes) -> Reading:
    """Scrape one page as pickers up to 1.2 do: gauges only, list items are not trimmed, and a LoRA
    sample with two empty lists or a value of 0 is passed over."""
    families = {name: one for name, one in parse(page).items() if one.type == "gauge"}
    reading = Reading()
    queued = scalar(families, "vllm:num_requests_waiting")
    running = scalar(families, "vllm:num_requests_running")
    reading.kv_usage = scalar(families, "vllm:gpu_cache_usage_perc")
    for what, value in (("queued", queued), ("running", running), ("kv", reading.kv_usage)):
        if value is None:
            reading.errors.append(what)
    reading.queued = None if queued is None else _go_int(queued)
    reading.running = None if running is None else _go_int(running)
    family = families.get("vllm:lora_requests_info")
    if family is None:
        reading.errors.append("lora")
        return reading
    best: tuple[dict[str, str], float] | None = None
    for labels, value, _ in family.samples:
        both = labels.get("running_lora_adapters"), labels.get("waiting_lora_adapters")
        if value > 0 and any(both) and (best is None or value > best[1]):
            best = labels, value
    if best is not None:
        reading.active = {one for one in best[0].get("running_lora_adapters", "").split(",") if one}
        reading.waiting = {
            one for one in best[0].get("waiting_lora_adapters", "").split(",") if one
        }
        reading.max_lora = _plain_int(best[0].get("max_lora", ""))
    return reading


def _read_lora(families: dict[str, Family], reading: Reading) -> None:
    family = families.get("vllm:lora_requests_info")
    best: tuple[dict[str, str], float] | None = None
    for labels, value, _ in family.samples if family is not None else ():
        shown = value if family is not None and family.type in ("gauge", "counter") else 0.0
        if shown > (-1.0 if best is None else best[1]):
            best = labels, shown
    if best is None:
        return
    reading.active = _names(best[0].get("running_lora_adapters", ""))
    reading.waiting = _names(best[0].get("waiting_lora_adapters", ""))
    if "max_lora" in best[0]:
        reading.max_lora = _plain_int(best[0]["max_lora"])
        if reading.max_lora is None:
            reading.errors.append("max_lora")


def _read_cache(families: dict[str, Family], reading: Reading) -> None:
    family = families.get("vllm:cache_config_info")
    if family is None or not family.samples:
        reading.errors.append("cache")
        return
    labels = family.samples[0][0]
    reading.block_size = _plain_int(labels.get("block_size", ""))
    reading.num_blocks = _plain_int(labels.get("num_gpu_blocks", ""))
    if reading.block_size is None or reading.num_blocks is None:
        reading.errors.append("cache")


def _names(text: str) -> set[str]:
    return {one.strip() for one in text.split(",") if one.strip()}


def _plain_int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII) else None


def _go_int(value: float) -> int:
    return MIN_INT64 if value != value or abs(value) >= 2.0**63 else int(value)
