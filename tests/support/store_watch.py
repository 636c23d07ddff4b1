"""Looks at a store all the time, as an engine could, and notes whatever is there in part."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from sidecar.artifacts.manifest import MARKER, parse_manifest

PAUSE_SECONDS = 0.005
JOIN_SECONDS = 30.0


class StoreWatch:
    """A context manager; ``faults`` is empty as long as every revision was seen whole."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._closing = Event()
        self._thread = Thread(target=self._run, name="store watch", daemon=True)
        self.looks = 0
        self.seen: set[str] = set()
        """Revisions that were seen, as kind/name/revision."""
        self.faults: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._closing.wait(PAUSE_SECONDS):
            for kind in ("lora", "model"):
                for revision in self._store.glob(f"{kind}/*/*"):
                    self._look(revision)
            self.looks += 1

    def _look(self, revision: Path) -> None:
        name = str(revision.relative_to(self._store))
        try:
            manifest = parse_manifest((revision / MARKER).read_bytes())
            wrong = [
                one.path
                for one in manifest.files
                if (revision / one.path).stat().st_size != one.size
            ]
        except (OSError, ValueError) as error:
            # It may have been evicted between two looks at it; nothing of it is there then.
            with suppress(OSError):
                revision.stat()
                self.faults.append(f"{name}: {error}")
            return
        self.seen.add(name)
        if wrong:
            self.faults.append(f"{name}: {', '.join(wrong)}")
