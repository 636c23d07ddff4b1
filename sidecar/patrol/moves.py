"""What a look at a source means: whether it holds something else than what was fetched from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from sidecar.core.backoff import Severity
from sidecar.core.desired import Entry
from sidecar.core.inventory import Revision
from sidecar.core.progress import Progress, tries
from sidecar.errors import ArtifactError

log = logging.getLogger("model_sidecar.patrol")


class Sight(Protocol):
    """What one look at a source says."""

    @property
    def signature(self) -> str: ...

    @property
    def newest_change(self) -> float: ...


class Sources(Protocol):
    """What is asked of the store."""

    async def look_all(self, entries: Iterable[Entry]) -> Mapping[str, Sight | ArtifactError]: ...

    def held_as(self, entry: Entry, signature: str) -> Revision | None: ...

    def knows_source(self, revision: Revision) -> bool: ...


class Moved(Protocol):
    """Takes the names whose source holds something else, or may do so."""

    def __call__(self, names: Iterable[str], *, is_sure: bool) -> None: ...


class Moves:
    """Looks at the sources that it is told to, and remembers how they looked."""

    def __init__(
        self,
        sources: Sources,
        *,
        progress: Mapping[str, Progress],
        moved: Moved,
        looked: Callable[[str, str], None],
    ) -> None:
        """``looked`` is called with the name of each, and why it could not be looked at (empty: it
        could)."""
        self._sources = sources
        self._progress = progress
        self._moved = moved
        self._looked = looked
        self._seen: dict[str, tuple[str, str]] = {}
        """Source and signature of the last look, by name."""
        self._troubles: dict[str, str] = {}
        """Reason of the last look that failed, by name."""

    def keep(self, names: Collection[str]) -> None:
        """Forget all others: one that comes back is looked at anew."""
        for known in (self._seen, self._troubles):
            for name in known.keys() - names:
                del known[name]

    async def look(self, entries: Iterable[Entry], *, quiet_since: float) -> frozenset[str]:
        """Look at the sources of those that are worth it, and tell who moved.

        Returns the names for which there was no time: they were not looked at.

        One that changed after ``quiet_since``, in unix seconds, is left for another look: whoever
        copies files into it may not be done.
        """
        asked = [entry for entry in entries if self.is_watched(entry)]
        if not asked:
            return frozenset()
        sights = await self._sources.look_all(asked)
        news = [
            entry.name
            for entry in asked
            if (sight := sights.get(entry.name)) is not None
            and self._is_news(entry, sight, quiet_since)
        ]
        sure = [name for name in news if self._is_comparable(name)]
        for names, is_sure in ((sure, True), ([one for one in news if one not in sure], False)):
            if names:
                self._moved(names, is_sure=is_sure)
        return frozenset(entry.name for entry in asked if entry.name not in sights)

    def is_watched(self, entry: Entry) -> bool:
        """Tell whether a look can say anything new: of what was fetched, or refused for its bytes.

        A pinned entry asks for one content for ever, whatever its source holds.
        """
        progress = self._progress.get(entry.name)
        if progress is None or entry.digest is not None:
            return False
        return progress.answers(entry) or _is_refused(progress, entry)

    def _is_news(self, entry: Entry, sight: Sight | ArtifactError, quiet_since: float) -> bool:
        if isinstance(sight, ArtifactError):
            # A source that went away changes nothing for what was fetched from it.
            self._tell_trouble(entry.name, sight)
            return False
        self._tell_sight(entry.name)
        # Without a signature nobody can tell whether it moved.
        if not sight.signature or sight.newest_change > quiet_since:
            return False
        look = (entry.source, sight.signature)
        if self._seen.get(entry.name) == look or not self.is_watched(entry):
            return False
        self._seen[entry.name] = look
        return not self._is_current(entry, sight)

    def _is_current(self, entry: Entry, sight: Sight) -> bool:
        progress = self._progress[entry.name]
        revision = progress.revision
        if revision is None or not progress.answers(entry):
            return False
        if not revision.verified:
            # Nothing was brought of it, and its revision is how it looks.
            return sight.signature == revision.revision
        held = self._sources.held_as(entry, sight.signature)
        return held is not None and held.revision == revision.revision

    def _is_comparable(self, name: str) -> bool:
        """Tell whether it is known how the source looked when it was fetched.

        Files that were written just before may have changed once more within a tick of the clock.
        """
        revision = self._progress[name].revision
        return revision is not None and (
            not revision.verified or self._sources.knows_source(revision)
        )

    def _tell_trouble(self, name: str, error: ArtifactError) -> None:
        self._looked(name, str(error))
        if self._troubles.get(name) != error.reason:
            self._troubles[name] = error.reason
            log.warning(
                "could not look whether the source of %s moved: %s",
                name,
                error,
                extra={"target": name, "reason": error.reason},
            )

    def _tell_sight(self, name: str) -> None:
        self._looked(name, "")
        if self._troubles.pop(name, None) is not None:
            log.info("the source of %s can be looked at again", name, extra={"target": name})


def _is_refused(progress: Progress, entry: Entry) -> bool:
    attempt = progress.fetch_attempt
    refused = attempt is not None and attempt.severity is Severity.REJECTED
    return refused and progress.about == tries(entry)
