"""A model repository whose entries are links to revisions elsewhere on disk. Blocking; no engine.

An engine that compares times keeps what it holds unless the new tree is newer than the old one, so
a revision is stamped before it is linked: every file and directory, with one strictly growing time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARGIN_NANOSECONDS = (1_000_000, 4_000_000_000)
"""How much newer than all before: the second is for file systems that keep whole seconds."""


class NotALinkError(OSError):
    """Something that we did not put there has the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where a link points."""

    path: str
    """Absolute."""
    relative: bool
    """The path is the agent's; of an absolute link it is the engine's."""


class LinkRepository:
    """Links in one directory. Calls come from several threads."""

    def __init__(self, directory: str, path_prefix: tuple[str, str] | None = None) -> None:
        self._directory = Path(os.path.abspath(directory))
        self._prefix = path_prefix
        self._lock = threading.Lock()
        self._newest = 0

    def publish(self, name: str, path: str, text: str) -> str | None:
        """Stamp the tree at ``path``, and point ``name`` at it.

        ``text`` is what an absolute link says: the path as the engine sees it. Returns the text of
        the link that was there, for ``restore``. Raises ``NotALinkError`` and ``OSError``.
        """
        with self._lock:
            previous = self._read(name)
            self._stamp(Path(path), floor=self._newest_of(name) if previous is not None else 0)
            self._swap(name, self._relative(path) or text)
            return previous

    def restore(self, name: str, previous: str | None) -> None:
        """Put back what ``publish`` found."""
        with self._lock:
            if previous is None:
                self._remove(name)
            else:
                self._swap(name, previous)

    def remove(self, name: str) -> None:
        """Remove the link; a name without one is no error, and a real directory stays."""
        with self._lock:
            self._remove(name)

    def target(self, name: str) -> Link | None:
        """Return where the link points, None where there is no link."""
        try:
            text = os.readlink(self._directory / name)
        except OSError:
            return None
        path = os.path.normpath(self._directory / text)
        return Link(path=path, relative=not os.path.isabs(text))

    def _read(self, name: str) -> str | None:
        place = self._directory / name
        if place.is_symlink():
            return os.readlink(place)
        if os.path.lexists(place):
            raise NotALinkError(
                f"{place} is not a link of ours: move it away, or give the entry another name"
            )
        return None

    def _remove(self, name: str) -> None:
        place = self._directory / name
        if place.is_symlink():
            place.unlink()

    def _swap(self, name: str, text: str) -> None:
        # One link a name, so that one left by a crash is overwritten by the next attempt.
        temporary = self._directory / f".{name}.model-sidecar"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(text)
        temporary.replace(self._directory / name)

    def _relative(self, path: str) -> str | None:
        """Return a relative link text where the engine surely sees both at the same distance."""
        parent = self._directory.parent
        together = parent != Path("/") and Path(path).is_relative_to(parent)
        if not together or Path(os.path.realpath(self._directory)) != self._directory:
            return None
        if self._prefix is not None and not parent.is_relative_to(self._prefix[0]):
            return None
        return os.path.relpath(path, self._directory)

    def _newest_of(self, name: str) -> int:
        try:
            return newest_nanoseconds(self._directory / name)
        except OSError:
            # The linked revision is gone: the clock alone is newer than it was.
            return 0

    def _stamp(self, tree: Path, floor: int) -> None:
        floor = max(floor, self._newest)
        now = time.time_ns()
        for margin in MARGIN_NANOSECONDS:
            stamp = max(now, floor + margin)
            for path in _tree(tree):
                os.utime(path, ns=(stamp, stamp))
            self._newest = newest_nanoseconds(tree)
            if _oldest_nanoseconds(tree) > floor:
                return
        raise OSError(f"times in {tree} do not stick: the engine would keep the old revision")


def newest_nanoseconds(tree: Path) -> int:
    """Return the greatest modification or change time in a tree, itself included."""
    return max(max(s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, _tree(tree)))


def _oldest_nanoseconds(tree: Path) -> int:
    return min(os.stat(path).st_mtime_ns for path in _tree(tree))


def _tree(root: Path) -> Iterator[Path]:
    yield root
    for directory, directories, files in os.walk(root, onerror=_raise):
        for name in (*directories, *files):
            yield Path(directory, name)


def _raise(error: OSError) -> None:
    raise error
