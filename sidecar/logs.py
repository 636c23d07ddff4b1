"""Log lines: text for people, JSON with fixed field names for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

FIELDS = ("target", "kind", "revision", "generation", "digest", "reason")
"""What a record may carry beside its message; ``pod`` and ``engine`` are the same on every line."""

QUIET = ("httpcore", "uvicorn", "aiohttp", "kubernetes", "httpx2", "huggingface_hub")
"""Libraries that speak of each request at level info."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, *, pod: str, engine: str) -> None:
        super().__init__()
        self._same = {"pod": pod, "engine": engine}

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._same,
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(*, form: str, level: str, pod: str, engine: str) -> None:
    """Send every log line to standard error in the form that was asked for."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter(pod=pod, engine=engine))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
