"""Symbolic links inside an archive: what they name, without asking the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping

from sidecar.artifacts.paths import shown
from sidecar.errors import InvalidArtifact, UnsafeArtifact

MAX_HOPS = 40
"""Links that lead to links; Linux gives up after as many."""


def follow(
    path: str,
    links: Mapping[str, str],
    files: Container[str],
    directories: Container[str],
    where: str,
) -> str:
    """Return the file or directory that a link names, all links on the way followed.

    Raises ``UnsafeArtifact`` for one that leads out or in a circle, ``InvalidArtifact`` for one
    that leads nowhere.
    """
    todo = deque(path.split("/"))
    at: list[str] = []
    hops = 0
    while todo:
        part = todo.popleft()
        if part in {"", "."}:
            continue
        if part == "..":
            if not at:
                raise _leads_out(path, where)
            at.pop()
            continue
        at.append(part)
        name = "/".join(at)
        target = links.get(name)
        if target is not None:
            hops += 1
            if hops > MAX_HOPS:
                raise circle(path, where)
            if target.startswith("/"):
                raise _leads_out(path, where)
            at.pop()
            todo.extendleft(reversed(target.split("/")))
        elif not (name in directories or (name in files and not todo)):
            raise InvalidArtifact(
                f"{where}: the link {shown(path)} names nothing in the archive; pack the file "
                "itself (tar --dereference)"
            )
    return "/".join(at)


def circle(path: str, where: str) -> UnsafeArtifact:
    """Return the error for a link that leads to where it is itself."""
    return UnsafeArtifact(f"{where}: the link {shown(path)} leads in a circle; remove it")


def _leads_out(path: str, where: str) -> UnsafeArtifact:
    return UnsafeArtifact(
        f"{where}: the link {shown(path)} leads out of the archive; pack the file itself "
        "(tar --dereference)"
    )
