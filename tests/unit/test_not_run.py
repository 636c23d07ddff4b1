"""Tests without their component are left out, and that is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tools.not_run import NotRun

def pytest_configure(config):
    config.addinivalue_line("markers", "rare: needs what is rare")
    if {missing}:
        config.pluginmanager.register(NotRun("rare", "there is no rare thing"))
"""
TESTS = """
import pytest

@pytest.mark.rare
def test_one(): pass

@pytest.mark.rare
@pytest.mark.parametrize("number", [1, 2])
def test_two(number): pass

def test_plain(): pass

def test_skipped():
    pytest.skip("no engine")
"""


@pytest.fixture
def run(tmp_path):
    def run(*arguments: str, missing: bool = True) -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(CONFTEST.format(missing=missing))
        (tmp_path / "test_some.py").write_text(TESTS)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "-p", "tools.no_skips", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, *arguments, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_what_cannot_run_is_counted_with_its_reason(run):
    done = run("-k", "not skipped")
    assert done.returncode == 0
    assert "NOT RUN: 3 tests: there is no rare thing" in done.stdout
    assert "3 in " in done.stdout
    assert "1 passed" in done.stdout


def test_one_is_one(run):
    assert "NOT RUN: 1 test: " in run("-k", "test_one").stdout


def test_a_run_of_nothing_else_is_no_error(run):
    done = run("-m", "rare")
    assert done.returncode == 0
    assert "NOT RUN: 3 tests" in done.stdout


def test_a_run_that_asks_for_nothing_at_all_stays_an_error(run):
    done = run("-k", "nobody_has_this_name")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "NOT RUN" not in done.stdout


def test_what_was_not_asked_for_is_not_counted(run):
    done = run("-k", "plain")
    assert done.returncode == 0
    assert "NOT RUN" not in done.stdout


def test_with_the_thing_everything_runs(run):
    done = run("-m", "rare", missing=False)
    assert "3 passed" in done.stdout
    assert "NOT RUN" not in done.stdout


def test_any_other_skip_stays_a_failure(run):
    done = run("-k", "skipped or test_one")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "Skipped, and skipping counts as failing here." in done.stdout
    assert "NOT RUN: 1 test: " in done.stdout
