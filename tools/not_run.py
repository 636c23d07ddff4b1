"""A pytest plugin for tests that need what nobody can install: without it they are not run.

That is neither a skip, which counts as a failure in the end-to-end tiers, nor a success: they are
left out of the run, counted, and the closing lines say so.
"""

from __future__ import annotations

from collections import Counter

import pytest


class NotRun:
    """Leaves out the tests with one marker. Register an instance where the thing is missing."""

    def __init__(self, marker: str, reason: str) -> None:
        """``reason`` says what is missing, and what to do about it."""
        self._marker = marker
        self._reason = reason
        self._left: list[pytest.Item] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave them out, after ``-m`` and ``-k`` chose: what nobody asked for is not counted."""
        self._left = [item for item in items if item.get_closest_marker(self._marker)]
        if self._left:
            items[:] = [item for item in items if item not in self._left]
            config.hook.pytest_deselected(items=self._left)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run of nothing else is no error: nothing that could run failed."""
        if self._left and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many were not run, where they are, and why."""
        if not self._left:
            return
        terminalreporter.section(f"{self._marker}: not run", red=True)
        for path, count in sorted(Counter(item.location[0] for item in self._left).items()):
            terminalreporter.line(f"{count} in {path}")
        plural = "" if len(self._left) == 1 else "s"
        terminalreporter.line(
            f"NOT RUN: {len(self._left)} test{plural}: {self._reason}", red=True, bold=True
        )
