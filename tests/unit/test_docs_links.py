"""Every link of the documentation that stays in this repository leads somewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]*)\)")


def anchors(text: str) -> set[str]:
    """What leads to the headings of a page, as GitHub names it."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def links(text: str) -> Iterator[str]:
    """The targets of a page's links, save those to other places of the web."""
    for target in LINK.findall(CODE.sub("`code`", FENCED.sub("", text))):
        if not re.match(r"[a-z]+:", target):
            yield target


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    found = []
    for target in links(text):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        missing = not file.exists()
        if missing or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    assert broken(page) == []


def test_the_documentation_has_links_to_files_and_to_headings():
    found = [target for page in PAGES for target in links(page.read_text(encoding="utf-8"))]
    assert len(found) > 10
    assert any("#" in target for target in found)


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text(
        "# One\n\n## `--two` (three)\n\n## One\n\n```sh\n# four\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [a](#here) [a](other.md#--two-three) [a](other.md#one-1)\n"
        "[`b`](none.md) [b](#there) [b](other.md#four) [b](https://example.com/none.md)\n"
        "```\n[c](none.md)\n```\n`[c](none.md)`\n"
    )
    assert broken(page) == ["none.md", "#there", "other.md#four"]
