"""Checks that CHANGELOG.md, pyproject.toml and `sidecar.__version__` name one version.

The changelog's is that of its topmost numbered section; `[Unreleased]` may stand above it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from sidecar import __version__

ROOT = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\]", re.MULTILINE)


def changelog_version(text: str) -> str | None:
    """The newest version a changelog has a section for; None when it has none."""
    versions = [match["version"] for match in HEADING.finditer(text)]
    return next((version for version in versions if version != "Unreleased"), None)


def main() -> int:
    """0 when the three agree, else 1 and the three versions on standard error."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {
        "CHANGELOG.md": changelog_version((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
        "pyproject.toml": project["version"],
        "sidecar.__version__": __version__,
    }
    if len(set(versions.values())) == 1:
        return 0
    sys.stderr.write("The versions differ:\n")
    for place, version in versions.items():
        sys.stderr.write(f"  {place}: {version}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
