"""The demos end by themselves, say that every step happened, and read well."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600.0
LINES = 70
LOG_END = 6000


@pytest.fixture
def work() -> Iterator[Path]:
    """An empty directory with a path so short that an engine can have its sockets in it."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def perform(work: Path, *module: str) -> str:
    """Run a demo as make does, with ``work`` for temporary files; return its account."""
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(work)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + _ends_of_logs(work)
    assert done.stderr == ""
    assert "All 5 steps happened" in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) < LINES
    assert max(map(len, lines)) <= 100
    assert os.listdir(work) == []
    return done.stdout


def _ends_of_logs(work: Path) -> str:
    """What the components said last: their logs go with the directory."""
    logs = sorted(work.rglob("*.log"))
    return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-LOG_END:]}" for log in logs)


@pytest.mark.triton
def test_the_demo_on_a_real_triton(work: Path):
    account = perform(work, "demo.triton")
    assert "Triton 2.51 at http://127.0.0.1:" in account
    assert "greeter (v2) says 'Good evening'" in account
    assert "this model is broken on purpose" in " ".join(account.split())


@pytest.mark.triton
def test_the_demo_where_there_is_no_triton(work: Path):
    account = perform(work, "demo.triton", "--fake")
    assert "the fake engine takes Triton's part" in account


@pytest.mark.vllm
def test_the_demo_on_a_real_vllm(work: Path):
    account = perform(work, "demo.vllm_lora")
    assert "the engine cannot be seen" in account
    assert "as before it died" in account
