"""Pages that bend or break the rules of the picker's parser and extraction, and what comes of them.

The same table serves the oracle's own tests and the test that asks the real picker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.picker_oracle.extract import (
    CACHE_INFO,
    KV_USAGE,
    LORA_INFO,
    QUEUED,
    RUNNING,
)
from tests.support.picker_oracle.go import MIN_INT64


def gauge(name: str, *values: str) -> str:
    """One family; each of ``values`` is what stands behind its name, labels included."""
    return typed("gauge", name, *values)


def typed(kind: str, name: str, *values: str) -> str:
    """One family of some type."""
    lines = [f"{name}{value if value.startswith('{') else ' ' + value}\n" for value in values]
    return "".join([f"# TYPE {name} {kind}\n", *lines])


def lora(running: str = "de,fr", waiting: str = "it", max_lora: str = "8") -> str:
    """The labels of the LoRA family."""
    return (
        f'{{max_lora="{max_lora}",running_lora_adapters="{running}",'
        f'waiting_lora_adapters="{waiting}"}}'
    )


BLOCKS = {
    "queued": gauge(QUEUED, "3"),
    "running": gauge(RUNNING, "7"),
    "kv": gauge(KV_USAGE, "0.42"),
    "lora": gauge(LORA_INFO, f"{lora()} 1763600000"),
    "cache": gauge(CACHE_INFO, '{block_size="16",num_gpu_blocks="4096"} 1'),
}
"""A whole page, block by block."""


def page(**blocks: str) -> bytes:
    """The whole page, some blocks of it replaced; any other name adds one at the end."""
    return "".join((BLOCKS | blocks).values()).encode()


WHOLE = page()
READ = {
    "queued": 3, "running": 7, "kv_usage": 0.42, "active": {"de", "fr"}, "waiting": {"it"},
    "max_lora": 8, "block_size": 16, "num_blocks": 4096, "errors": [], "fresh": True,
}  # fmt: skip
"""What is read off the whole page."""
NOTHING = dict.fromkeys(READ) | {
    "errors": ["queued", "running", "kv", "cache"], "fresh": False,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One rule and a page on which it counts."""

    rule: str
    page: bytes
    says: str = ""
    """Words of the refusal; empty where the page is read."""
    reads: dict[str, object] = field(default_factory=dict)
    """What is read differently from ``READ``."""


def refused(rule: str, text: bytes | str, says: str) -> Case:
    """A line or two that lose the whole page they stand on."""
    extra = text if isinstance(text, bytes) else text.encode()
    return Case(rule, WHOLE + extra, says)


def taken(rule: str, text: bytes | str) -> Case:
    """A line or two that do no harm."""
    return Case(rule, WHOLE + (text if isinstance(text, bytes) else text.encode()))


def reads(rule: str, text: bytes, **differently: object) -> Case:
    """A page that is read, though not as the whole page is."""
    return Case(rule, text, reads=differently)


SYNTAX = [
    refused("a second TYPE", gauge(QUEUED), "second TYPE"),
    refused("a second TYPE by another name of the family",
            typed("summary", "s", "1") + "# TYPE s_count gauge\n", "second TYPE|TYPE after"),
    refused("a second HELP", "# HELP x a\n# HELP x b\n", "second HELP"),
    taken("a second HELP where the first says nothing", "# HELP x \n# HELP x b\nx 1\n"),
    refused("a TYPE after samples", "x 1\n# TYPE x gauge\n", "TYPE after samples"),
    *(refused(f"type {kind}", typed(kind, "x", "1"), "unknown type")
      for kind in ("info", "unknown", "stateset", "gauge ", "gauge\r", "g")),
    *(taken(f"type {kind}", typed(kind, "x", "1"))
      for kind in ("GAUGE", "Counter", "untyped", "gaugehistogram", "gauge_histogram", "ga\\uge")),
    taken("a TYPE without a type", "# TYPE x\n# TYPE\n# TYPE x \n"),
    refused("a bad name in a comment", "# TYPE 9x gauge\n", "bad name"),
    refused("a name without a blank in a comment", "# TYPE x-y gauge\n", "bad name"),
    taken("other comments", b"#\n# EOF\n# UNIT x seconds\n#HELPS x\n#\tx\n# \xff\r\n"),
    refused("a bad escape in HELP", "# HELP x \\t\n", "bad escape"),
    taken("escapes in HELP", b'# HELP x \\\\ \\n \\" \xff \r\n'),
    refused("an exemplar", 'x 1 # {trace="a"} 1\n', "bad timestamp"),
    refused("a float timestamp", "x 1 1763600000.5\n", "bad timestamp"),
    refused("a timestamp that is too large", "x 1 9223372036854775808\n", "bad timestamp"),
    refused("a blank behind the value", "x 1 \n", "bad timestamp"),
    refused("a blank behind the timestamp", "x 1 5 \n", "after the timestamp"),
    taken("timestamps", "x 1 5\nx{a=\"1\"} 1\t+05\nx{a=\"2\"} 1  -5\n"),
    Case("lines that end as on Windows", WHOLE.replace(b"\n", b"\r\n"), "unknown type"),
    refused("a carriage return behind a value", "x 1\r\n", "bad value"),
    Case("no newline at the end", WHOLE[:-1], "no newline"),
    taken("blanks at the end, without a newline", " \t"),
    taken("empty lines and blanks before a line", "\n \t\n  x 1\n"),
    refused("a quoted name with a dot", '{"my.name",a="b"} 1\n', "bad name"),
    taken("a quoted name without one", '{"x",a="b"} 1\n"y" 1\nz{"a"="b"} 1\n{ "v" } 1\n'),
    refused("two quoted names", '{"x","y"} 1\n', "without value"),
    refused("a name that starts with a digit", "0x 1\n", "bad name"),
    refused("a name that is not ASCII", "é 1\n", "bad name"),
    taken("a value hard by the name or the labels", 'x-1\ny+1\nz{a="b"}1\n'),
    refused("an unfinished label value", 'x{a="b} 1\n', "no finished"),
    refused("a bad escape in a label", 'x{a="\\t"} 1\n', "no finished"),
    refused("a label value without quotes", "x{a=b} 1\n", "no finished"),
    refused("no comma between labels", 'x{a="b" c="d"} 1\n', "no comma"),
    refused("two commas", 'x{a="b",,c="d"} 1\n', "bad label"),
    refused("a label twice", 'x{a="b",a="c"} 1\n', "twice"),
    refused("a label that is not ASCII", 'x{é="b"} 1\n', "bad label"),
    refused("a quoted label with a dot", 'x{"a.b"="c"} 1\n', "bad label name"),
    refused("a reserved label", 'x{__name__="b"} 1\n', "bad label name"),
    refused("a label value that is not UTF-8", b'x{a="\xff"} 1\n', "not UTF-8"),
    refused("a label value with half a surrogate", b'x{a="\xed\xa0\x80"} 1\n', "not UTF-8"),
    taken("labels as they may stand", 'x{ a = "1" , b="\\\\\\"\\n\r\t}{#,=" , } 1\ny{} 1\n'),
    *(refused(f"value {value}", f"x {value}\n", "bad value") for value in (
        "one", "1_0", "0x10", "0x1p4", "1e400", "+NaN", "infinit", "e5", ".", "1e", "--1", "٣",
        "1,5", "1f", "")),
    *(taken(f"value {value}", f"x {value}\n") for value in (
        "1.", ".5", "+1", "-0", "1E3", "1e-400", "NAN", "-inf", "+Infinity", "0e999999")),
    refused("a bucket without a number", typed("histogram", "h", '{le="a"} 1'), "no number"),
    refused("a quantile without a number", typed("summary", "s", '{quantile="a"} 1'), "no number"),
    refused("a negative bucket", typed("histogram", "h", '{le="1"} -1'), "negative count"),
    refused("a negative count", "# TYPE h histogram\nh_count -1\n", "negative count"),
    taken("a negative sum", "# TYPE h histogram\nh_sum -1\nh_bucket{le=\"1\"} 1\nh_count NaN\n"),
]  # fmt: skip
"""Lines beside a whole page: it is lost, or it is read as if they were not there."""

EXTRACTION = [
    reads("the whole page", WHOLE),
    reads("the first of several series", page(queued=gauge(QUEUED, '{e="0"} 3', '{e="1"} 9'))),
    reads("the same series twice", page(queued=gauge(QUEUED, "3", "9"))),
    reads("interleaved families", page() + QUEUED.encode() + b" 9\n"),
    reads("the greatest timestamp", page(queued=gauge(QUEUED, "1 5", "3 7", "2 6"))),
    reads("the first of equal timestamps", page(queued=gauge(QUEUED, "3 7", "1 7", "2"))),
    reads("no timestamp beside negative ones", page(queued=gauge(QUEUED, "1 -5", "3", "2 -1"))),
    reads("negative timestamps alone", page(queued=gauge(QUEUED, "3 -5")),
          queued=None, errors=["queued"]),
    *(reads(f"queue {value}", page(queued=gauge(QUEUED, value)), queued=number)
      for value, number in (
          ("NaN", MIN_INT64), ("+Inf", MIN_INT64), ("-Inf", MIN_INT64), ("1e19", MIN_INT64),
          ("9223372036854775807", MIN_INT64), ("-9223372036854775808", MIN_INT64),
          ("9007199254740993", 2**53), ("3.99", 3), ("-3.99", -3), ("1e3", 1000), (".5", 0))),
    reads("usage above 1", page(kv=gauge(KV_USAGE, "42")), kv_usage=42.0),
    reads("a counter", page(running=typed("counter", RUNNING, "7"))),
    *(reads(f"a figure typed {kind}", page(queued=typed(kind, QUEUED, "3")), queued=0)
      for kind in ("untyped", "histogram", "summary")),
    reads("a figure without a type", page(queued=f"{QUEUED} 3\n"), queued=0),
    reads("a histogram's lines as one series", page(
        queued="# TYPE h histogram\n" + typed("histogram", QUEUED, '{le="1"} 3 5', '{le="2"} 4')),
        queued=0),
    *(reads(f"no {what}", page(**{what: ""}), errors=[what], **{name: None for name in names})
      for what, names in (
          ("queued", ["queued"]), ("running", ["running"]), ("kv", ["kv_usage"]),
          ("cache", ["block_size", "num_blocks"]))),
    reads("a family that is declared alone", page(queued=gauge(QUEUED)),
          queued=None, errors=["queued"]),
    reads("no LoRA family", page(lora=""), active=None, waiting=None, max_lora=None),
    reads("a LoRA family without samples", page(lora=gauge(LORA_INFO)),
          active=None, waiting=None, max_lora=None),
    reads("two empty lists", page(lora=gauge(LORA_INFO, f"{lora('', '')} 1")),
          active=set(), waiting=set()),
    reads("no lists", page(lora=gauge(LORA_INFO, '{max_lora="8"} 1')),
          active=set(), waiting=set()),
    reads("no labels at all", page(lora=gauge(LORA_INFO, "1")),
          active=set(), waiting=set(), max_lora=None),
    reads("the greatest value", page(lora=gauge(
        LORA_INFO, f"{lora('a')} 1 9", f"{lora('de,fr')} 3", f"{lora('c')} 2"))),
    reads("the first of equal values", page(lora=gauge(
        LORA_INFO, f"{lora()} 3", f"{lora('c')} 3"))),
    reads("0 and NaN", page(lora=gauge(LORA_INFO, f"{lora('c')} NaN", f"{lora()} 0"))),
    reads("values above -1", page(lora=gauge(LORA_INFO, f"{lora()} -0.5", f"{lora('c')} -1"))),
    reads("-1 is too low", page(lora=gauge(LORA_INFO, f"{lora()} -1")),
          active=None, waiting=None, max_lora=None),
    reads("NaN alone", page(lora=gauge(LORA_INFO, f"{lora()} NaN")),
          active=None, waiting=None, max_lora=None),
    reads("infinity", page(lora=gauge(LORA_INFO, f"{lora('c')} 5", f"{lora()} +Inf"))),
    reads("an untyped LoRA family: all are 0, the first is taken", page(
        lora=f"{LORA_INFO}{lora()} 1\n{LORA_INFO}{lora('c')} 2\n")),
    reads("blanks and empties in a list", page(lora=gauge(
        LORA_INFO, f"{lora(' de ,,fr,', chr(0x2003) + 'it' + chr(0xa0))} 1"))),
    reads("what is no blank to the picker", page(lora=gauge(
        LORA_INFO, f"{lora(chr(0x1c) + 'de,' + chr(0x200b) + 'fr')} 1")),
        active={"\x1cde", "\u200bfr"}),
    reads("names of all kinds", page(lora=gauge(
        LORA_INFO, f"{lora('模型,é,e' + chr(0x301) + ',a b,' + chr(0x1F600))} 1")),
        active={"模型", "é", "e\u0301", "a b", "\U0001f600"}),
    reads("escapes in names", page(lora=gauge(LORA_INFO, lora('a\\"b,a\\\\b,a\\nb,a}b{') + " 1")),
          active={'a"b', "a\\b", "a\nb", "a}b{"}),
    reads("a name twice, and in both lists", page(lora=gauge(LORA_INFO, f"{lora('a,a', 'a')} 1")),
          active={"a"}, waiting={"a"}),
    *(reads(f"max_lora {text}", page(lora=gauge(LORA_INFO, f"{lora(max_lora=text)} 1")),
            max_lora=number)
      for text, number in (("+4", 4), ("-4", -4), ("004", 4), ("", None))),
    *(reads(f"max_lora {text}", page(lora=gauge(LORA_INFO, f"{lora(max_lora=text)} 1")),
            max_lora=None, errors=["max_lora"])
      for text in ("4.0", " 4", "4_0", "0x4", "None", "٤", "9223372036854775808", "+", "1e1")),
    *(reads(f"cache {labels}", page(cache=gauge(CACHE_INFO, f"{{{labels}}} 1")),
            block_size=size, num_blocks=blocks, errors=errors)
      for labels, size, blocks, errors in (
          ('num_gpu_blocks="5"', 0, 5, []),
          ('block_size="16"', 16, None, []),
          ('block_size="",num_gpu_blocks=""', 0, None, []),
          ('block_size="None",num_gpu_blocks="5"', 0, 5, ["block_size"]),
          ('block_size="16",num_gpu_blocks="None"', 16, None, ["num_blocks"]),
          ('a="b"', 0, None, []))),
    reads("nothing of ours", b"# TYPE x gauge\nx 1\n", **NOTHING),
    reads("an empty page", b"", **NOTHING),
    reads("cache info alone", BLOCKS["cache"].encode(),
          **NOTHING | {"block_size": 16, "num_blocks": 4096, "fresh": True,
                       "errors": ["queued", "running", "kv"]}),
    reads("LoRA info alone", BLOCKS["lora"].encode(),
          **NOTHING | {"active": {"de", "fr"}, "waiting": {"it"}, "max_lora": 8, "fresh": True}),
]  # fmt: skip
"""Pages that are read."""

CASES = [*SYNTAX, *EXTRACTION]
