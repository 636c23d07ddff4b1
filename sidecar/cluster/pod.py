"""The agent's own pod, and what both ways of telling the cluster about it share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

COMPONENT = "model-sidecar"
REQUEST_SECONDS = 5.0
"""Deadline of one request."""
RETRY_SECONDS = 30.0
"""After a request that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodIdentity:
    """As the downward API says."""

    name: str
    namespace: str
    """Empty: the ServiceAccount's."""
    uid: str


async def wait_for_ever() -> None:
    """Return never: for a task that is off."""
    await asyncio.Event().wait()
