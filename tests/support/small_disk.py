"""A real agent whose store is a small disk of its own, which really runs full.

The disk is a tmpfs in a mount namespace that only the agent lives in, so that no other process is
disturbed and nothing is left mounted.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.support.agent_process import AgentProcess

MOUNT = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'
TRY_SECONDS = 10.0


class SmallDiskAgent(AgentProcess):
    """An agent with a disk of ``disk_bytes`` for its store, which is empty after each start."""

    def __init__(self, work: Path, *, disk_bytes: int, **more: object) -> None:
        super().__init__(work, **more)  # type: ignore[arg-type]
        self.store.mkdir()
        mount = ["sh", "-c", MOUNT, "sh", str(disk_bytes), str(self.store)]
        self._process.command[:0] = [*namespace(), *mount]

    @property
    def disk(self) -> Path:
        """The store's disk as it is seen from here."""
        return Path(f"/proc/{self.pid}/root{self.store}")


@cache
def namespace() -> tuple[str, ...]:
    """The command that runs another one where it may mount; fails the test where there is none."""
    shapes = (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount"))
    said = []
    for shape in shapes[os.geteuid() != 0 :]:
        try:
            done = subprocess.run(
                [*shape, "mount", "-t", "tmpfs", "none", "/tmp"],
                capture_output=True,
                timeout=TRY_SECONDS,
                text=True,
            )
        except OSError as error:
            said.append(str(error))
        else:
            if done.returncode == 0:
                return shape
            said.append(done.stderr.strip())
    pytest.fail(
        "a disk that runs full needs a mount namespace, and this machine gives none, neither to "
        f"root nor with user namespaces (kernel.unprivileged_userns_clone): {'; '.join(said)}"
    )
