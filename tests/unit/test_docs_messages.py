"""Messages that the documentation quotes are messages that the program has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.test_docs_commands import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
READY = re.compile(r"^\| `([^`]+\.)` \|", re.MULTILINE)


@cache
def texts() -> tuple[str, ...]:
    """Every text of the product's code; what an f-string puts in is written as three dots."""
    found = []
    for package in ("sidecar", "adapters"):
        for path in (ROOT / package).rglob("*.py"):
            found += list(strings(ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(one.value) if isinstance(one, ast.Constant) else "..." for one in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sdr]|\{\w*\}", "...", node.value)


def has(message: str, among: tuple[str, ...]) -> bool:
    """Whether one of these texts has every part of a message, in order."""
    parts = [part.strip() for part in message.split("...") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in among)


def quoted() -> list[str]:
    lines = [line for block in blocks(PAGE, "text") for line in block.splitlines()]
    return [*lines, *READY.findall(PAGE.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("message", quoted())
def test_a_message_that_is_quoted_exists(message):
    assert has(message, texts())


def test_there_are_messages_of_every_kind():
    assert len(quoted()) > 20
    assert any("is not resident yet" in one for one in quoted())


def test_a_message_that_was_reworded_is_found():
    assert has("it took ... s, no more", ("it took ... s, no more than that",))
    assert not has("it took ... s, no less", ("it took ... s, no more than that",))
