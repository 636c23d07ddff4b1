"""The store's directories: reading revisions, staging, committing and deleting them.

::

    <root>/<kind>/<name>/<revision>/...     complete revisions, each with its marker
    <root>/.staging/...                     incomplete ones and those being deleted, see ``areas``
    <root>/.locks/store                     see ``locks``
    <root>/.agent/<pod uid>.json            see ``memory``

Everything blocks and raises ``ArtifactError`` only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from adapters.base import Kind
from sidecar.artifacts.areas import Area, Areas
from sidecar.artifacts.files import (
    DIRECTORY_MODE,
    make_directories,
    raise_if_stopped,
    remove_tree,
    store_errors,
    sync_directory,
    sync_tree,
    write_file,
)
from sidecar.artifacts.layout import Held, children, directory_name, held_at, lock_key
from sidecar.artifacts.locks import LockFile
from sidecar.artifacts.manifest import MARKER, Manifest, parse_manifest, to_text
from sidecar.artifacts.neighbours import MEMORY_AGE_SECONDS, Neighbours
from sidecar.core.inventory import Revision
from sidecar.errors import ArtifactError, FetchFailed

LOCK_TRIES = 500
LOCK_PAUSE_SECONDS = 0.02
_TAKEN = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


class Disk:
    """One store on disk, as one agent uses it."""

    def __init__(self, root: Path, pod_uid: str) -> None:
        self.root = root
        self._pod_uid = pod_uid
        self._lock_path = root / ".locks" / "store"
        self._locks = LockFile(self._lock_path)
        self.areas = Areas(root, self._lock_path, self._locks)
        self._neighbours = Neighbours(root / ".agent", directory_name(pod_uid))

    def open(self) -> None:
        """Create the store's directories and delete what dead agents left unfinished."""
        with store_errors(self.root):
            make_directories(self.root)
            self._locks.acquire(f"agent {directory_name(self._pod_uid)}", exclusive=False)
            self.areas.open(self.now())
            self._collect_memories()

    def close(self) -> None:
        """Give up every lock."""
        self._locks.close()

    def read_all(self) -> dict[str, tuple[Held, ...]]:
        """Read every complete revision, by target name."""
        found: dict[str, tuple[Held, ...]] = {}
        with store_errors(self.root):
            for kind in Kind:
                for directory in children(self.root / kind):
                    for held in self._read_revisions(kind, directory):
                        name = held.manifest.name
                        found[name] = (*found.get(name, ()), held)
        return found

    def read_name(self, name: str) -> tuple[Held, ...]:
        """Read the complete revisions of one name."""
        directory = directory_name(name)
        with store_errors(self.root):
            return tuple(
                held
                for kind in Kind
                for held in self._read_revisions(kind, self.root / kind / directory)
            )

    def is_whole(self, held: Held) -> bool:
        """Tell by size whether all files and the marker of a revision are still there.

        A file that cannot be looked at is unknown, not gone.
        """
        base = held.revision.path
        try:
            os.lstat(f"{base}/{MARKER}")
            for one in held.manifest.files:
                info = os.lstat(f"{base}/{one.path}")
                if info.st_size != one.size or not stat.S_ISREG(info.st_mode):
                    return False
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def use(self, held: Held) -> Held | None:
        """Hold a revision and note that it is used now; None when it is not whole any more.

        A read-only store does without the lock and the note: nobody evicts from it.
        """
        path = Path(held.revision.path)
        with suppress(OSError):
            if not self._locks.acquire(lock_key(held.revision), exclusive=False):
                return None
            os.utime(path / MARKER)
        if not self.is_whole(held):
            return None
        with store_errors(self.root):
            return held_at(held.manifest, path)

    def collect(self) -> None:
        """Delete what interrupted fetches left for a day; another time if it fails."""
        with suppress(OSError):
            self.areas.collect(self.now())

    def hold(self, revisions: Iterable[Revision], held_before: Mapping[str, str]) -> dict[str, str]:
        """Share-lock revisions so that no other agent evicts them; return path -> lock key."""
        wanted = {one.path: lock_key(one) for one in revisions if one.verified}
        kept: dict[str, str] = {}
        with suppress(OSError):
            for path in held_before.keys() - wanted.keys():
                self._locks.release(held_before[path])
            kept = {
                path: key
                for path, key in wanted.items()
                if path in held_before or self._locks.acquire(key, exclusive=False)
            }
        return kept

    @contextmanager
    def fetching(self, key: str) -> Iterator[bool]:
        """Be the only one who fetches ``key``; yields False while somebody else does."""
        locks = LockFile(self._lock_path)
        try:
            with store_errors(self.root):
                is_ours = locks.acquire(f"fetch {key}", exclusive=True)
            yield is_ours
        finally:
            locks.close()

    def commit(self, area: Area, manifest: Manifest, stop: Event) -> Held:
        """Make a staged tree visible under its revision, whole or not at all.

        The same bytes already there are used instead; a damaged revision is mended in place,
        file by file, because an engine may be reading it.
        """
        path = self.root / manifest.kind / directory_name(manifest.name) / manifest.revision
        staged = area.new
        with store_errors(self.root):
            write_file(staged / MARKER, to_text(manifest).encode())
            sync_tree(staged)
            self._share(lock_key(held_at(manifest, staged).revision), stop)
            for _ in range(3):
                # An eviction may remove the empty parent between these two steps.
                make_directories(path.parent)
                with suppress(FileNotFoundError):
                    self._place(area.path, staged, path, manifest)
                    sync_directory(path.parent)
                    return held_at(manifest, path)
        raise FetchFailed(f"{path}: its directory is removed again and again by another agent")

    def evict(self, revision: Revision) -> None:
        """Delete a revision: out of sight first, then file by file.

        Raises ``ArtifactError`` while another agent of this store holds it, or wrote down that its
        engine may read it and went away.
        """
        path = self.root / revision.kind / directory_name(revision.name) / revision.revision
        key = lock_key(revision)
        with store_errors(self.root):
            if not self._locks.acquire(key, exclusive=True):
                raise ArtifactError(
                    f"{path}: not evicted, another pod that shares this store holds it"
                )
            try:
                # Under the lock: an agent writes its memory before it gives up what it holds.
                pod = self._neighbours.find_needing(path, self.now())
                if pod is not None:
                    raise ArtifactError(
                        f"{path}: not evicted, the engine of pod {pod}, which shares this store, "
                        "may read it"
                    )
                with self.areas.fresh() as area, suppress(FileNotFoundError):
                    path.rename(area.scratch / "evicted")
                    sync_directory(path.parent)
                    remove_tree(area.path)
                with suppress(OSError):
                    path.parent.rmdir()
            finally:
                self._locks.release(key)

    def _place(self, area: Path, staged: Path, path: Path, manifest: Manifest) -> None:
        try:
            staged.rename(path)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            found = self._read(manifest.kind, path)
            if found is None or not self.is_whole(found):
                _mend(area, staged, path, manifest)
            else:
                _add_directories(staged, path)
                write_file(path / MARKER, to_text(manifest).encode())

    def _share(self, key: str, stop: Event) -> None:
        for _ in range(LOCK_TRIES):
            if self._locks.acquire(key, exclusive=False):
                return
            raise_if_stopped(stop)
            stop.wait(LOCK_PAUSE_SECONDS)
        raise FetchFailed(f"another agent has been evicting {key!r} for too long")

    def _read_revisions(self, kind: Kind, directory: Path) -> Iterator[Held]:
        for path in children(directory):
            held = self._read(kind, path)
            if held is not None and self.is_whole(held):
                yield held

    def _read(self, kind: Kind, path: Path) -> Held | None:
        try:
            manifest = parse_manifest((path / MARKER).read_bytes())
            held = held_at(manifest, path)
        except (OSError, ValueError):
            return None
        place = (kind, path.parent.name, path.name)
        said = (manifest.kind, directory_name(manifest.name), manifest.revision)
        return held if place == said else None

    def _collect(self, key: str, path: Path) -> None:
        if self._locks.acquire(key, exclusive=True):
            try:
                remove_tree(path)
            finally:
                self._locks.release(key)

    def _collect_memories(self) -> None:
        now = self.now()
        for path in children(self.root / ".agent"):
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > MEMORY_AGE_SECONDS and path.stem != directory_name(
                    self._pod_uid
                ):
                    self._collect(f"agent {path.stem}", path)

    def now(self) -> float:
        """Return the unix time of the clock that stamps the files: on a network it is not ours."""
        os.utime(self._lock_path)
        return self._lock_path.stat().st_mtime


def _mend(area: Path, staged: Path, path: Path, manifest: Manifest) -> None:
    try:
        _add_directories(staged, path)
        for one in manifest.files:
            (staged / one.path).replace(path / one.path)
        (staged / MARKER).replace(path / MARKER)
        sync_tree(path)
    except (NotADirectoryError, IsADirectoryError, FileExistsError):
        # Something else lies where a file belongs, and part of the new files moved there already.
        path.rename(area / "damaged")
        raise FetchFailed(f"{path}: what lay there was no revision; it is fetched anew") from None


def _add_directories(source: Path, target: Path) -> None:
    for directory, names, _ in os.walk(source):
        for name in names:
            one = target / os.path.relpath(directory, source) / name
            if not one.is_dir():
                one.mkdir()
                one.chmod(DIRECTORY_MODE)
