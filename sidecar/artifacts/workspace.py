"""What a fetch is given to work in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event


def nobody(size: int) -> None:
    """Hear nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Directories of one fetch on the store's disk, seen by nobody else until they are complete."""

    directory: Path
    """Becomes the revision. Holds what an interrupted fetch of the same listing left."""
    scratch: Path
    """For files that are no part of the revision: archives, notes on what is complete."""
    report: Callable[[int], None]
    """Called from any thread with the bytes of each chunk that is in the workspace."""
    grow: Callable[[int], None]
    """Asks for room for so many bytes beyond those that the listing named. Raises ``StoreFull``."""
    stop: Event
    """Set when the fetch is to end soon; see ``files.raise_if_stopped``."""
    fetched: Callable[[int], None] = nobody
    """Called from any thread with the bytes of each chunk that was read from the source: unlike
    ``report``, not for what an interrupted fetch had left."""
    unpacked: Callable[[int], None] = nobody
    """Called with the bytes that were written of what ``grow`` asked room for: they take none of
    what is free any more."""
