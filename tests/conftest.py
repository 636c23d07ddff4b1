"""What every test run needs."""

from __future__ import annotations

import asyncio

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # A loop that nobody set is made, and never closed, by whoever asks for one outside a test.
    asyncio.set_event_loop(None)
