"""What every test run needs."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings

# No test asserts a wall time: on a busy machine the first example alone takes too long.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_configure(config: pytest.Config) -> None:
    # A loop that nobody set is made, and never closed, by whoever asks for one outside a test.
    asyncio.set_event_loop(None)
