"""A mounted ConfigMap, changed as the kubelet's atomic writer changes it."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class MountedConfigMap:
    """The directory of a ConfigMap volume.

    A version is a directory of its own (``..2026_11_21_01_26_00.1``) that the symlink ``..data``
    leads to; users see symlinks ``KEY -> ..data/KEY``. The swap of ``..data`` is one rename.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count(1)

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Make ``files`` the content, in the order of steps that the kubelet takes."""
        link = self.path / "..data"
        before = os.readlink(link) if link.is_symlink() else None
        version = self.path / f"..2026_11_21_01_26_00.{next(self._numbers)}"
        version.mkdir()
        for key, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (version / key).write_bytes(data)
        fresh = self.path / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(link)
        for key in files:
            if not (self.path / key).is_symlink():
                (self.path / key).symlink_to(f"..data/{key}")
        for shown in self.path.iterdir():
            if not shown.name.startswith("..") and shown.name not in files:
                shown.unlink()
        if before is not None:
            shutil.rmtree(self.path / before)

    def delete(self) -> None:
        """Show what an optional volume shows after its ConfigMap is deleted: no keys."""
        self.write({})
