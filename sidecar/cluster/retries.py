"""Tries again what others were faster with, and what the API server did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from sidecar.kube.errors import KubeConflict, KubeUnavailable

ATTEMPTS = 20
"""Of one operation, where others were faster: 20 writers at once needed 8, 60 writers 16."""
UNAVAILABLE_ATTEMPTS = 6
"""Of one operation, where the API server did not answer, or not well."""
PAUSE_FIRST_SECONDS = 0.1
PAUSE_MAX_SECONDS = 5.0
"""Before each attempt but the first: a random part of a time that doubles from one to the other."""
DEADLINE_SECONDS = 60.0
"""Of one operation, all attempts and pauses included."""

Answer = TypeVar("Answer")


async def persist(attempt: Callable[[], Awaitable[Answer]], place: str, random: Random) -> Answer:
    """Return what ``attempt`` does; each reads ``place`` before it writes there.

    Raises ``KubeConflict`` and ``KubeUnavailable`` when the limits are reached, and every other
    error at once.
    """
    trouble: KubeConflict | KubeUnavailable | None = None
    unavailable = 0
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for number in range(ATTEMPTS):
                if number:
                    most = min(PAUSE_MAX_SECONDS, PAUSE_FIRST_SECONDS * 2.0 ** (number - 1))
                    await _pause(most * random.random())
                try:
                    return await attempt()
                except KubeConflict as error:
                    trouble = error
                except KubeUnavailable as error:
                    trouble = error
                    unavailable += 1
                    if unavailable == UNAVAILABLE_ATTEMPTS:
                        break
    except TimeoutError as error:
        why = f": {trouble}" if trouble is not None else ""
        raise KubeUnavailable(f"not done within {DEADLINE_SECONDS:g} s{why}") from error
    assert trouble is not None
    if isinstance(trouble, KubeConflict):
        what = f"others changed {place} before each of {ATTEMPTS} attempts"
        raise KubeConflict(f"{what}; try again") from trouble
    raise trouble


async def _pause(seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
    except TimeoutError:
        return
