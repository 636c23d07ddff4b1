"""Scrapes one after the other, and what the picker believes after the last."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field

from tests.support.picker_oracle import Endpoint
from tests.support.picker_oracle.extract import CACHE_INFO, LORA_INFO, QUEUED, RUNNING
from tests.support.picker_pages import BLOCKS, READ, WHOLE, gauge, lora, page


@dataclass(frozen=True)
class Answer:
    """One answer to a scrape."""

    body: bytes
    status: int = 200
    encoding: str = ""
    """The header Content-Encoding."""


@dataclass(frozen=True)
class Sequence:
    """Answers, each at its index in seconds, and what differs from the memory of one whole page
    that was read at 0."""

    rule: str
    answers: tuple[Answer, ...]
    remembers: dict[str, object] = field(default_factory=dict)


REMEMBERED = {name: READ[name] for name in READ if name not in ("errors", "fresh")} | {
    "updated_at": 0, "poll_errors": 0, "extract_errors": 0,
}  # fmt: skip


def play(answers: tuple[Answer, ...]) -> tuple[Endpoint, list[Endpoint]]:
    """Return what an endpoint is after all answers, and as it was after each that refreshed it."""
    endpoint, refreshed = Endpoint(), []
    for now, answer in enumerate(answers):
        reading = endpoint.scrape(
            answer.body, now, status=answer.status, encoding=answer.encoding
        )  # fmt: skip
        if reading is not None and reading.fresh:
            refreshed.append(Endpoint(**vars(endpoint)))
    return endpoint, refreshed


def _then(rule: str, *pages: bytes | Answer, **remembers: object) -> Sequence:
    answers = [one if isinstance(one, Answer) else Answer(one) for one in (WHOLE, *pages)]
    return Sequence(rule, tuple(answers), remembers)


def _lora(labels: str, value: str = "1763600001") -> bytes:
    return page(lora=gauge(LORA_INFO, f"{labels} {value}"))


_ZIPPED = gzip.compress(page(queued=gauge(QUEUED, "9")), mtime=0)

SEQUENCES = [
    Sequence("the whole page", (Answer(WHOLE),)),
    Sequence("nothing is known before", (Answer(b"oh\n"), Answer(BLOCKS["queued"].encode())), {
        "queued": 3, "running": 0, "kv_usage": 0.0, "active": set(), "waiting": set(),
        "max_lora": 0, "block_size": 0, "num_blocks": 0, "updated_at": 1, "poll_errors": 1,
        "extract_errors": 1,
    }),
    _then("an absent LoRA family keeps the sets", page(lora=""), updated_at=1),
    _then("a LoRA family without samples keeps them", page(lora=gauge(LORA_INFO)), updated_at=1),
    _then("a LoRA sample at -1 keeps the sets", _lora(lora("a"), "-1"), updated_at=1),
    _then("two empty lists clear the sets", _lora(lora("", "")),
          active=set(), waiting=set(), updated_at=1),
    _then("a sample without max_lora keeps it", _lora('{running_lora_adapters="a"}'),
          active={"a"}, waiting=set(), updated_at=1),
    _then("an empty max_lora keeps it", _lora(lora("a", "", "")),
          active={"a"}, waiting=set(), updated_at=1),
    _then("a max_lora that is no integer keeps it", _lora(lora("a", "", "4.0")),
          active={"a"}, waiting=set(), extract_errors=1, updated_at=1),
    _then("a LoRA value that goes back counts all the same", _lora(lora("a"), "5"),
          active={"a"}, updated_at=1),
    _then("a missing figure keeps its value, the others move",
          page(queued="", running=gauge(RUNNING, "9")), running=9, extract_errors=1, updated_at=1),
    _then("many missing figures are one error", page(queued="", running="", kv=""),
          extract_errors=1, updated_at=1),
    _then("a block size that is missing becomes 0, the number of blocks stays",
          page(cache=gauge(CACHE_INFO, '{a="b"} 1')), block_size=0, updated_at=1),
    _then("a block size that is no integer becomes 0, too",
          page(cache=gauge(CACHE_INFO, '{block_size="None",num_gpu_blocks="None"} 1')),
          block_size=0, extract_errors=1, updated_at=1),
    _then("a page with nothing of ours refreshes nothing", b"x 1\n", extract_errors=1),
    _then("an empty page refreshes nothing", b"", extract_errors=1),
    _then("one figure alone refreshes", BLOCKS["lora"].encode(), extract_errors=1, updated_at=1),
    _then("a lost page changes nothing", page(queued=gauge(QUEUED, "9")) + b"oh\n", poll_errors=1),
    *(_then(f"status {status} changes nothing", Answer(WHOLE, status=status), poll_errors=1)
      for status in (201, 204, 404, 500, 503)),
    _then("errors add up", Answer(WHOLE, status=503), page(kv=""), page(cache=""), b"oh\n",
          poll_errors=2, extract_errors=2, updated_at=3),
    _then("gzip is undone", Answer(_ZIPPED, encoding="gzip"), queued=9, updated_at=1),
    _then("GZIP is undone", Answer(_ZIPPED, encoding="GZIP"), queued=9, updated_at=1),
    _then("two gzip members are one page",
          Answer(gzip.compress(WHOLE[:40]) + gzip.compress(WHOLE[40:]), encoding="gzip"),
          updated_at=1),
    _then("an empty body is an empty page, gzip or not", Answer(b"", encoding="gzip"),
          extract_errors=1),
    _then("gzip that is cut off is lost", Answer(_ZIPPED[:-9], encoding="gzip"), poll_errors=1),
    _then("gzip without its checksum is lost",
          Answer(_ZIPPED[:-8], encoding="gzip"), poll_errors=1),
    _then("gzip with a wrong checksum is lost",
          Answer(_ZIPPED[:-8] + bytes(8), encoding="gzip"), poll_errors=1),
    _then("gzip that is none is lost", Answer(WHOLE, encoding="gzip"), poll_errors=1),
    _then("gzip that is not declared is lost", Answer(_ZIPPED), poll_errors=1),
    _then("another encoding is not undone",
          Answer(zlib.compress(WHOLE), encoding="deflate"), poll_errors=1),
    _then("another encoding of plain text is read",
          Answer(WHOLE, encoding="identity"), updated_at=1),
]  # fmt: skip
