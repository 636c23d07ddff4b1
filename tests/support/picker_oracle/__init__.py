"""What an endpoint picker reads off a page, as executable rules.

Three parts: the parser (``text``), the extraction and what the picker remembers (``extract``), and
the rules that a page of ours keeps (``rules``). They follow llm-d-router v0.10.0 with
prometheus/common v0.67.5, for endpoints with no engine label; a test beside the real picker
compares every figure. Known to differ: nothing that was found.

The older pickers (Gateway API Inference Extension 1.0 to 1.5, ``read_legacy``) are written after
their sources alone: there is no binary of one to compare with. Release 1.0 also takes UTF-8 metric
names in quotes, which this parser refuses. So is what the proposed ``lora-load-state-scorer``
would read (``rules``), which no released picker does.
"""

from tests.support.picker_oracle.extract import (
    OLD_PICKERS,
    Endpoint,
    OldPicker,
    Reading,
    inflate,
    read,
    read_legacy,
    scalar,
)
from tests.support.picker_oracle.go import MIN_INT64
from tests.support.picker_oracle.rules import RULES, broken_rules, check_page, check_pages
from tests.support.picker_oracle.text import Family, Metric, PageRefused, PickerDies, parse

__all__ = [
    "MIN_INT64",
    "OLD_PICKERS",
    "RULES",
    "Endpoint",
    "Family",
    "Metric",
    "OldPicker",
    "PageRefused",
    "PickerDies",
    "Reading",
    "broken_rules",
    "check_page",
    "check_pages",
    "inflate",
    "parse",
    "read",
    "read_legacy",
    "scalar",
]
