"""The oracle beside the real picker: hundreds of pages, served at once, read by both.

The picker's log says what it took from each page, its counters how many it could not take.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings

from lab.epp import Epp
from lab.picker import wait_until
from tests.support import picker_oracle as oracle
from tests.support.picker_oracle.extract import (
    CACHE_INFO,
    KV_USAGE,
    LORA_INFO,
    QUEUED,
    RUNNING,
)
from tests.support.picker_pages import CASES, gauge, lora, page
from tests.support.picker_sequences import SEQUENCES, Answer
from tests.support.picker_strategies import agent_pages, pages
from tests.support.scripted_pages import ScriptedPages

pytestmark = pytest.mark.epp

GENERATED = 250
RENDERED = 60
ITEMS_AN_ADDRESS = 8
MARKED = 10_000_000
INTERVAL = "200ms"
PLAYED_SECONDS = 60.0
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {{name: discovery, type: file-discovery, parameters: {{path: {endpoints}}}}}
- {{type: metrics-data-source}}
- {{type: core-metrics-extractor}}
- {{type: queue-scorer}}
- {{type: max-score-picker}}
- {{type: single-profile-handler}}
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: queue-scorer, weight: 1}}, {{pluginRef: max-score-picker}}]
dataLayer:
  injectDefaults: false
  discovery: {{pluginRef: discovery}}
  sources: [{{pluginRef: metrics-data-source, extractors: [{{pluginRef: core-metrics-extractor}}]}}]
"""
STRUCT = re.compile(
    r"\{ActiveModels:map\[(?P<active>.*)\] WaitingModels:map\[(?P<waiting>.*)\] "
    r"MaxActiveModels:(?P<max_lora>\S+) RunningRequestsSize:(?P<running>\S+) "
    r"WaitingQueueSize:(?P<queued>\S+) KVCacheUsagePercent:(?P<kv_usage>\S+) "
    r"KvCacheMaxTokenCapacity:0 CacheBlockSize:(?P<block_size>\S+) "
    r"CacheNumBlocks:(?P<num_blocks>\S+) UpdateTime:.*\}",
    re.DOTALL,
)
MISSING = re.compile(r'(?:metric family|no matching metric found for) "([^"]+)"')
FIGURES = {QUEUED: "queued", RUNNING: "running", KV_USAGE: "kv", CACHE_INFO: "cache"}


@dataclass(frozen=True)
class Item:
    """Some answers in a row, and what they are there for."""

    rule: str
    answers: tuple[Answer, ...]


@dataclass
class Log:
    """What the picker wrote of its scrapes."""

    refreshed: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    """Endpoint -> what it believed after each scrape that changed anything."""
    lost: Counter[str] = field(default_factory=Counter)
    """Address -> polls that failed."""
    late: list[str] = field(default_factory=list)
    """Polls that failed because something took too long."""
    unread: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """The figures that an extraction missed -> how often."""


def marker(number: int) -> Answer:
    """A whole page that nothing else looks like, so that every item starts from one state."""
    return Answer(
        page(
            queued=gauge(QUEUED, str(MARKED + number)),
            running=gauge(RUNNING, "77"),
            kv=gauge(KV_USAGE, "0.77"),
            lora=gauge(LORA_INFO, lora("m1,m2", "m3", "77") + " 1"),
            cache=gauge(CACHE_INFO, '{block_size="77",num_gpu_blocks="777"} 1'),
        )
    )


def examples(strategy, number) -> list[bytes]:
    """The same pages every time."""
    found: list[bytes] = []

    @settings(max_examples=number, derandomize=True, database=None)
    @given(strategy)
    def collect(body: bytes) -> None:
        found.append(body)

    collect()
    return list(dict.fromkeys(found))


def is_deadly(body: bytes) -> bool:
    try:
        oracle.parse(body)
    except oracle.PickerDies:
        return True
    except oracle.PageRefused:
        return False
    return False


def all_items() -> list[Item]:
    generated = [body for body in examples(pages(), GENERATED) if not is_deadly(body)]
    rendered = examples(agent_pages(), RENDERED)
    return [
        *(Item(one.rule, (Answer(one.page),)) for one in CASES),
        *(Item(one.rule, one.answers) for one in SEQUENCES),
        *(Item(f"generated: {body!r}", (Answer(body),)) for body in generated),
        *(Item(f"rendered: {body!r}", (Answer(body),)) for body in rendered),
    ]


def script(items: Sequence[Item]) -> list[Answer]:
    """The items in a row, a marker before each and behind the last."""
    row = [one for number, item in enumerate(items) for one in (marker(number), *item.answers)]
    return [*row, marker(len(items))]


def start(work: Path, served: ScriptedPages) -> Epp:
    """A picker that scrapes every address."""
    entries = [
        f'- {{name: page-{at}, address: "{address}", port: "{served.port}"}}\n'
        for at, address in enumerate(served.addresses)
    ]
    (work / "endpoints.yaml").write_text("endpoints:\n" + "".join(entries))
    config = CONFIG.format(endpoints=work / "endpoints.yaml")
    args = [f"--refresh-metrics-interval={INTERVAL}"]
    return Epp(work, config, args=args, verbosity=5)


def read_log(path: Path) -> Log:
    log = Log()
    for line in path.read_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        match entry.get("msg"):
            case "Refreshed metrics":
                states = log.refreshed.setdefault(entry["endpoint"]["name"], [])
                states.append(told(entry["updated"]))
            case "dispatch failed":
                log.lost[entry["endpoint"]] += 1
                if "deadline" in entry["err"] or "canceled" in entry["err"]:
                    log.late.append(entry["err"])
            case "extract failed":
                log.unread[unread(entry["err"].splitlines())] += 1
    return log


def told(struct: str) -> dict[str, object]:
    """The picker's own struct, as Go prints it."""
    match = STRUCT.fullmatch(struct)
    assert match is not None, struct
    names = {name: match[name] for name in ("active", "waiting")}
    counts = {
        name: int(match[name])
        for name in ("queued", "running", "max_lora", "block_size", "num_blocks")
    }
    return {**names, **counts, "kv_usage": repr(float(match["kv_usage"]))}


def printed(endpoint: oracle.Endpoint) -> dict[str, object]:
    """The oracle's account in the same form: Go prints maps in the order of their keys' bytes."""
    sets = {
        name: " ".join(f"{one}:0" for one in sorted(getattr(endpoint, name), key=str.encode))
        for name in ("active", "waiting")
    }
    counts = {
        name: getattr(endpoint, name)
        for name in ("queued", "running", "max_lora", "block_size", "num_blocks")
    }
    return {**sets, **counts, "kv_usage": repr(endpoint.kv_usage)}


def unread(lines: list[str]) -> tuple[str, ...]:
    """What an extraction missed, in the words of ``Reading.errors``, labels alike."""
    found = [MISSING.match(line) for line in lines]
    return tuple("label" if one is None else FIGURES[one[1]] for one in found)


def by_marker(states: list[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    """What was believed between one marker and the next, item by item."""
    present: list[dict[str, object]] | None = None
    number = 0
    for state in states:
        if (state["queued"], state["running"]) == (MARKED + number, 77):
            if present is not None:
                yield present
            present, number = [], number + 1
        elif present is not None:
            present.append(state)


@dataclass
class Expected:
    """What the oracle says of all that is served."""

    states: list[list[list[dict[str, object]]]] = field(default_factory=list)
    """Address -> item -> what is believed after each scrape that changed anything."""
    lost: list[int] = field(default_factory=list)
    unread: Counter[tuple[str, ...]] = field(default_factory=Counter)


def foretell(rows: list[list[Item]]) -> Expected:
    expected = Expected()
    for row in rows:
        endpoint, states = oracle.Endpoint(), []
        for number, item in enumerate(row):
            endpoint.scrape(marker(number).body, 0.0)
            seen = []
            for one in item.answers:
                reading = endpoint.scrape(one.body, 0.0, status=one.status, encoding=one.encoding)
                if reading is not None and reading.fresh:
                    seen.append(printed(endpoint))
                if reading is not None and reading.errors:
                    expected.unread[
                        tuple(one if one in FIGURES.values() else "label" for one in reading.errors)
                    ] += 1
            states.append(seen)
        expected.states.append(states)
        expected.lost.append(endpoint.poll_errors)
    return expected


def test_the_oracle_reads_every_page_as_the_picker_does(tmp_path):
    items = all_items()
    rows = [items[at : at + ITEMS_AN_ADDRESS] for at in range(0, len(items), ITEMS_AN_ADDRESS)]
    expected = foretell(rows)
    with ScriptedPages([script(row) for row in rows]) as served, start(tmp_path, served) as epp:
        wait_until("end of every script", served.is_done, PLAYED_SECONDS)
        polls = epp.total("llm_d_epp_datalayer_poll_errors_total")
        extracts = epp.total("llm_d_epp_datalayer_extract_errors_total")
        queues = {
            labels["model_server_endpoint"]: value
            for labels, value in epp.samples("llm_d_epp_per_endpoint_queue_size")
        }
    log = read_log(epp.log)
    assert not log.late, "this machine was too busy to scrape in time"

    for at, row in enumerate(rows):
        found = list(by_marker(log.refreshed[f"page-{at}"]))[: len(row)]
        assert len(found) == len(row)
        for item, believed, foretold in zip(row, found, expected.states[at], strict=True):
            assert believed == foretold, item.rule
        lost = log.lost[served.addresses[at]]
        assert lost == expected.lost[at], [item.rule for item in row]
    assert log.unread == expected.unread
    assert polls == sum(expected.lost)
    assert extracts == expected.unread.total()
    assert queues == {f"page-{at}": MARKED + len(row) for at, row in enumerate(rows)}


def test_the_picker_dies_of_a_page_that_begins_with_a_brace(tmp_path):
    body = b"{} 1\n"
    assert is_deadly(body)
    with ScriptedPages([[marker(0), Answer(body)]]) as served, start(tmp_path, served) as epp:
        wait_until("end of the picker", lambda: not epp.process.is_alive(), 20.0)
    assert "nil pointer dereference" in epp.log.read_text()
