"""What ``faulty.FaultyServer`` serves of its own: ranges, etags and preconditions of RFC 9110."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import BinaryIO

from tests.support.faults import Answer, Request
from tests.support.faulty_wire import PIECE_BYTES, Head, read_body

_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})


@dataclass(frozen=True, kw_only=True)
class Content:
    """One thing that is served; see ``FaultyServer.put``."""

    data: memoryview
    headers: tuple[tuple[str, str], ...]
    etag: str
    has_ranges: bool
    is_chunked: bool

    def answer(self, request: Request) -> Answer:
        """Answer a GET or HEAD as RFC 9110 says."""
        asked = request.headers.get
        if "if-match" in request.headers and not _names(asked("if-match", ""), self.etag):
            return _short(412)
        if _names(asked("if-none-match", ""), self.etag):
            return _short(304)
        headers = [*self.headers]
        if self.etag:
            headers.append(("ETag", self.etag))
        start, end, size, status = 0, len(self.data), len(self.data), 200
        if self.has_ranges:
            headers.append(("Accept-Ranges", "bytes"))
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked("range", ""))
            if found and found[0] != "bytes=-" and asked("if-range", self.etag) == self.etag:
                start = int(found[1]) if found[1] else max(0, size - int(found[2]))
                end = min(int(found[2]) + 1, size) if found[1] and found[2] else size
                status = 206
                if start >= end:
                    return _short(416, ("Content-Range", f"bytes */{size}"))
                headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        return Answer(
            status=status,
            headers=tuple(headers),
            length=None if self.is_chunked else end - start,
            body=self._pieces(start, end) if request.method != "HEAD" else (),
        )

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        for at in range(start, end, PIECE_BYTES):
            yield self.data[at : min(at + PIECE_BYTES, end)]


def _names(listed: str, etag: str) -> bool:
    tags = {one.strip() for one in listed.split(",")} - {""}
    return bool(etag) and (etag in tags or "*" in tags)


def _short(status: int, *headers: tuple[str, str]) -> Answer:
    return Answer(status=status, headers=headers)


def passed_on(asked: Head, found: Head, back: BinaryIO) -> Answer:
    """Return the answer of a real server, its body still to be read."""
    status = int(found.words[1])
    length = found.get("content-length")
    is_empty = asked.words[0] == "HEAD" or status in {204, 304}
    return Answer(
        status=status,
        headers=tuple(one for one in found.headers if one[0].lower() not in _FRAMING),
        length=int(length) if length is not None else 0 if is_empty else None,
        body=() if is_empty else read_body(back, found, to_end=True),
    )


def head_of(answer: Answer) -> bytes:
    """Return status line and headers."""
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = "Faulty"
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if answer.length is None:
        lines.append("Transfer-Encoding: chunked")
    elif answer.status not in {204, 304}:
        lines.append(f"Content-Length: {answer.length}")
    if answer.is_last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
