"""The status of an agent as lines and rows for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sidecar.commands.output import count, printable
from sidecar.core.sizes import share, size

HEADINGS = ("NAME", "KIND", "STATE", "REVISION", "READINESS", "SINCE", "PROGRESS", "REASON")
REVISION_CHARACTERS = 12
_AGES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))

Json = Mapping[str, Any]


def head_lines(status: Json, now: float) -> list[str]:
    """Say how the pod as a whole stands; ``now`` is unix seconds."""
    document, engine = _part(status, "document"), _part(status, "engine")
    ready = "ready" if status.get("ready") else "not ready"
    converged = "converged" if status.get("converged") else "not converged"
    lines = [f"pod {status.get('pod', '')}: {ready}, {converged}", *_cycle(status)]
    lines += [f"  {reason}" for reason in status.get("reasons", ())]
    lines.append(_document_line(document, now))
    for problem in document.get("problems", ()):
        hint = f"; {problem['hint']}" if problem.get("hint") else ""
        lines.append(f"  {problem.get('where')}: {problem.get('what')}{hint}")
    lines.append(_engine_line(engine, now))
    lines.append(_store_line(_part(status, "store")))
    return [printable(line) for line in lines]


def rows(status: Json, now: float) -> list[tuple[str, ...]]:
    """Return one row a target, by name."""
    targets = status["targets"].values()
    return [
        tuple(printable(cell) for cell in _row(one, now))
        for one in sorted(targets, key=lambda one: str(one.get("name")))
    ]


def table_lines(cells: Sequence[Sequence[str]], headings: Sequence[str] = HEADINGS) -> list[str]:
    """Align rows under the headings, as ``kubectl get`` does."""
    table = [headings, *cells]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def unconverged(status: Json) -> str:
    """Say in one sentence what keeps an agent from being converged."""
    waiting = []
    for one in status["targets"].values():
        settled = (one.get("state") == "resident") == bool(one.get("desired"))
        if not settled or one.get("reason"):
            why = one.get("reason") or one.get("state")
            said = f": {one['message']}" if one.get("message") else ""
            waiting.append(f"{one.get('name')} ({why}{said})")
    problems = len(_part(status, "document").get("problems", ()))
    if problems:
        waiting.append(f"the document has {count(problems, 'problem')}")
    return printable(", ".join(waiting) or str(status.get("cycle") or "no cycle has ended yet"))


def age(seconds: float) -> str:
    """Return a duration as its greatest unit: ``3m``."""
    for length, unit in _AGES:
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return "0s"


def _cycle(status: Json) -> Iterable[str]:
    return (f"  {status['cycle']}",) if status.get("cycle") else ()


def _document_line(document: Json, now: float) -> str:
    place = document.get("source") or "no source"
    if not document.get("generation"):
        return f"document {place}: none accepted"
    formats = ", ".join(document.get("formats", ()))
    accepted = f", accepted {_ago(document.get('accepted_at'), now)}"
    behind = ""
    if document.get("observed_generation") != document["generation"]:
        behind = f" (converged last: {document.get('observed_generation')})"
    valid = "" if document.get("valid") else ", the last good one: what is there now is not valid"
    generation = f"generation {document['generation']}{behind}"
    return f"document {place}: {formats}, {generation}{accepted}{valid}"


def _engine_line(engine: Json, now: float) -> str:
    urls = ", ".join(engine.get("urls", ()))
    parts = [f"engine {engine.get('kind')} at {urls}: {engine.get('state')}"]
    if engine.get("base_model"):
        parts.append(f"base model {engine['base_model']}")
    if engine.get("slots") is not None:
        parts.append(count(engine["slots"], "LoRA slot"))
    if engine.get("started_at") is not None:
        parts.append(f"started {_ago(engine['started_at'], now)}")
    if engine.get("message"):
        parts.append(engine["message"])
    return ", ".join(parts)


def _store_line(store: Json) -> str:
    limit = f" of {size(store['max_bytes'])}" if store.get("max_bytes") else ""
    held = size(store.get("bytes", 0))
    return f"store: {count(store.get('revisions', 0), 'revision')}, {held}{limit}"


def _row(one: Json, now: float) -> tuple[str, ...]:
    why = ": ".join(part for part in (one.get("reason"), one.get("message")) if part)
    if one.get("retry_at"):
        why += f" (again in {age(max(0.0, one['retry_at'] - now))})"
    return (
        str(one.get("name", "")),
        str(one.get("kind") or "-"),
        str(one.get("state", "")),
        str(one.get("revision") or "-")[:REVISION_CHARACTERS],
        _readiness(one),
        age(max(0.0, now - one["since"])) if one.get("since") else "-",
        _progress(one),
        why,
    )


def _readiness(one: Json) -> str:
    if one.get("desired"):
        return str(one.get("readiness", ""))
    # A failed one is in the document, and spoiled.
    return "-" if one.get("state") == "failed" else "not desired"


def _progress(one: Json) -> str:
    done, total, rate = one.get("bytes") or 0, one.get("total_bytes"), one.get("bytes_per_second")
    fetching = one.get("state") == "fetching"
    if not fetching and total is None and rate is None:
        return size(done) if done else "-"
    shown = share(done, total) + (f", {size(rate)}/s" if rate is not None else "")
    # What serves meanwhile has another word for its state.
    return shown if fetching else f"fetching {shown}"


def _ago(moment: float | None, now: float) -> str:
    return f"{age(max(0.0, now - moment))} ago" if moment is not None else "at an unknown time"


def _part(status: Json, name: str) -> Json:
    found = status.get(name)
    return found if isinstance(found, dict) else {}
