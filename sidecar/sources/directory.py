"""One consistent read of a directory of small text files, or of one such file. Blocking.

A mounted ConfigMap is a directory whose ``..data`` symlink leads to the directory of the present
version; the kubelet replaces all keys at once by replacing that link. Every read is framed by two
surveys of what is there, and repeated when they differ, so keys of two versions never mix.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_KEY_BYTES = 1024 * 1024
MAX_TOTAL_BYTES = 8 * 1024 * 1024
"""A ConfigMap holds 1 MiB at most; a projected volume can hold several."""
MAX_KEYS = 1000
READ_ATTEMPTS = 10
CURRENT = "..data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What one read saw: the text of each key, and why others have none."""

    texts: Mapping[str, str]
    unreadable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Survey:
    root: str
    marks: Mapping[str, tuple[int, ...]]


def read_directory(directory: Path) -> Files:
    """Read every regular file in ``directory``, or in what its ``..data`` leads to.

    Raises ``FileNotFoundError`` where the directory does not exist, other ``OSError`` where it
    cannot be listed, holds too much, or changed during every attempt.
    """
    reason = "it was replaced during each attempt to read it"
    for _ in range(READ_ATTEMPTS):
        try:
            before = _survey(directory)
            files = _read_keys(before)
            if _survey(directory) == before:
                return files
        except FileNotFoundError:
            if not directory.exists():
                raise
            reason = f"{CURRENT} leads nowhere"
    raise OSError(reason)


def read_file(path: Path) -> Files:
    """Read the one file ``path``; its key is its name.

    Raises ``FileNotFoundError`` where it does not exist, and other ``OSError`` where it is no
    regular file, may not be read, or changed during every attempt.
    """
    for _ in range(READ_ATTEMPTS):
        before = _mark(os.stat(path))
        text = _read_text(path, MAX_KEY_BYTES)
        if _mark(os.stat(path)) == before:
            if isinstance(text, str):
                return Files(texts={path.name: text}, unreadable={})
            return Files(texts={}, unreadable={path.name: text.why})
    raise OSError("it was replaced during each attempt to read it")


def _survey(directory: Path) -> _Survey:
    try:
        root = os.path.join(directory, os.readlink(directory / CURRENT))
    except OSError:
        root = os.fspath(directory)
    marks = {}
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(".."):
                continue
            try:
                found = entry.stat()
            except OSError:
                # A symlink that leads nowhere is a key that cannot be read, and spoils no other.
                found = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                marks[entry.name] = _mark(found)
            if len(marks) > MAX_KEYS:
                raise OSError(f"more than {MAX_KEYS} files are in it")
    return _Survey(root, marks)


def _mark(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    why: str


def _read_keys(survey: _Survey) -> Files:
    texts: dict[str, str] = {}
    failed: dict[str, str] = {}
    left = MAX_TOTAL_BYTES
    for key in sorted(survey.marks):
        try:
            text = _read_text(Path(survey.root, key), min(MAX_KEY_BYTES, left))
        except OSError as error:
            text = _Unreadable(error.strerror or str(error))
        if isinstance(text, _Unreadable):
            failed[key] = text.why
        else:
            texts[key] = text
            left -= len(text.encode())
    return Files(texts=texts, unreadable=failed)


def _read_text(path: Path, limit: int) -> str | _Unreadable:
    # Not to be held up by a FIFO that nobody writes to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        with open(descriptor, "rb", closefd=False) as opened:
            data = opened.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_KEY_BYTES:
        return _Unreadable(f"too large: at most {MAX_KEY_BYTES} bytes in one file")
    if len(data) > limit:
        return _Unreadable(f"too large: at most {MAX_TOTAL_BYTES} bytes in all files together")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return _Unreadable(f"not UTF-8 text (byte {error.start})")
