"""zip, read strictly: what its end lists must be what its members say of themselves.

Not by ``zipfile``: it reads a listing of any size into memory, takes archives with other bytes
around them, cuts names at a NUL, gives a member that ends early for whole, and knows of members
that overlap (https://www.bamsoftware.com/hacks/zipbomb/) only in newer versions of Python.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.artifacts.archive_members import (
    CHUNK_BYTES,
    ArchiveFile,
    Member,
    MemberKind,
    cut_off,
    damaged,
)
from sidecar.artifacts.paths import MAX_PATH_BYTES, shown
from sidecar.errors import InvalidArtifact, UnsafeArtifact

MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
STORED, DEFLATED = 0, 8
MAX_LISTING_BYTES = 64 << 20
"""It is held in memory; 100,000 files take 10 to 20 MiB."""
_INPUT_BYTES = 256 << 10
_MAX_COMMENT_BYTES = 0xFFFF
_NOT_HERE = 0xFFFFFFFF
"""Of a size or an offset: it is in the zip64 field."""
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3
_RAW_DEFLATE = -15
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ODD = {
    stat.S_IFCHR: MemberKind.DEVICE,
    stat.S_IFBLK: MemberKind.DEVICE,
    stat.S_IFIFO: MemberKind.PIPE,
    stat.S_IFSOCK: MemberKind.SOCKET,
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member as the listing at the end of the archive has it."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int


@dataclass(frozen=True, slots=True)
class _Listing:
    start: int
    end: int
    count: int


def read_zip(file: ArchiveFile, *, max_members: int) -> Iterator[Member]:
    """Yield the members of a zip in the order of their bytes.

    Raises ``InvalidArtifact`` for one that is cut, damaged or packed in a way that is not read,
    and ``UnsafeArtifact`` for one that lists more than ``max_members``, or the same bytes twice.
    """
    listing = _find_listing(file)
    if listing.count > max_members:
        raise UnsafeArtifact(f"{file.where}: the archive lists more than {max_members} files")
    if listing.end - listing.start > MAX_LISTING_BYTES:
        raise UnsafeArtifact(
            f"{file.where}: the archive's listing is longer than {MAX_LISTING_BYTES} bytes"
        )
    entries = sorted(_entries(file, listing), key=lambda one: one.offset)
    free = 0
    for entry in entries:
        start = _content_start(file, entry)
        if entry.offset < free:
            raise UnsafeArtifact(
                f"{file.where}: {_shown(entry)} shares its bytes with another file of the archive"
            )
        free = start + entry.packed
        if free > listing.start:
            raise damaged(file.where, f"{_shown(entry)} reaches beyond the end")
        file.position = start
        yield _member(file, entry)


def _find_listing(file: ArchiveFile) -> _Listing:
    tail_start = max(0, file.size - _END.size - _MAX_COMMENT_BYTES)
    tail = file.read_at(tail_start, file.size - tail_start)
    at = len(tail)
    while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
        if len(tail) - at >= _END.size:
            _, disk, first, here, count, size, start, comment = _END.unpack_from(tail, at)
            if at + _END.size + comment == len(tail):
                break
    else:
        raise damaged(file.where, "no zip ends where it ends: it was cut off or added to")
    end = tail_start + at
    if (found := _find_zip64(file, end)) is not None:
        end, (disk, first, here, count, size, start) = found
    if disk or first or here != count:
        raise InvalidArtifact(f"{file.where}: one part of a split zip; join it before")
    if start + size != end:
        raise damaged(file.where, "its listing is not where it should be")
    return _Listing(start, end, count)


def _find_zip64(file: ArchiveFile, end: int) -> tuple[int, tuple[int, ...]] | None:
    at = end - _END64_LOCATOR.size
    if at < 0:
        return None
    magic, _, start, _ = _END64_LOCATOR.unpack(file.read_at(at, _END64_LOCATOR.size))
    if magic != b"PK\x06\x07":
        return None
    magic, length, _, _, *values = _END64.unpack(file.read_at(start, _END64.size))
    if magic != b"PK\x06\x06" or start + length + 12 != at:
        raise damaged(file.where, "its zip64 end is not where it should be")
    return start, tuple(values)


def _entries(file: ArchiveFile, listing: _Listing) -> Iterator[_Entry]:
    at = listing.start
    for _ in range(listing.count):
        if at + _CENTRAL.size > listing.end:
            raise damaged(file.where, "its listing is shorter than it says")
        fields = _CENTRAL.unpack(file.read_at(at, _CENTRAL.size))
        magic, _, _, flags, method, _, _, crc, packed, size = fields[:10]
        name_size, extra_size, comment_size, _, _, attributes, offset = fields[10:]
        at += _CENTRAL.size
        rest = file.read_at(at, name_size + extra_size)
        at += name_size + extra_size + comment_size
        if magic != b"PK\x01\x02" or at > listing.end:
            raise damaged(file.where, "its listing is wrong")
        size, packed, offset = _wide(rest[name_size:], size, packed, offset)
        name = rest[:name_size]
        yield _Entry(name, flags, method, crc, packed, size, offset, attributes >> 16)
    if at != listing.end:
        raise damaged(file.where, "its listing is longer than it says")


def _wide(extra: bytes, *values: int) -> list[int]:
    """Return the values, each that does not fit in 32 bits from the zip64 field."""
    field = b""
    while len(extra) >= 4 and not field:
        kind, size = struct.unpack_from("<2H", extra)
        field = extra[4 : 4 + size] if kind == 1 else b""
        extra = extra[4 + size :]
    found = []
    for value in values:
        if value == _NOT_HERE and len(field) >= 8:
            value, field = int.from_bytes(field[:8], "little"), field[8:]
        found.append(value)
    return found


def _content_start(file: ArchiveFile, entry: _Entry) -> int:
    """Return where a member's content begins, once its own header says what the listing does."""
    fields = _LOCAL.unpack(file.read_at(entry.offset, _LOCAL.size))
    magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = fields
    start = entry.offset + _LOCAL.size
    rest = file.read_at(start, name_size + extra_size)
    size, packed = _wide(rest[name_size:], size, packed)
    if (flags | entry.flags) & _ENCRYPTED:
        raise InvalidArtifact(f"{file.where}: {_shown(entry)} is encrypted; pack it without")
    is_same = (magic, method, rest[:name_size]) == (b"PK\x03\x04", entry.method, entry.name)
    if not flags & _SIZES_FOLLOW:
        is_same = is_same and (crc, packed, size) == (entry.crc, entry.packed, entry.size)
    if not is_same:
        raise damaged(file.where, f"{_shown(entry)} is not what the listing says of it")
    if method not in {STORED, DEFLATED}:
        raise InvalidArtifact(
            f"{file.where}: {_shown(entry)} is packed with method {method}; only stored and "
            "deflated files are unpacked"
        )
    return start + len(rest)


def _member(file: ArchiveFile, entry: _Entry) -> Member:
    name = _name(entry)
    content = _Content(file, entry)
    kind = stat.S_IFMT(entry.mode)
    if name.endswith("/") or kind == stat.S_IFDIR:
        if entry.size:
            raise damaged(file.where, f"{_shown(entry)} is a directory with content")
        return Member(name=name, kind=MemberKind.DIRECTORY)
    if kind == stat.S_IFLNK:
        if entry.size > MAX_PATH_BYTES:
            raise damaged(file.where, f"the link {_shown(entry)} is longer than any path")
        target = b"".join(bytes(chunk) for chunk in content.chunks())
        return Member(
            name=name, kind=MemberKind.LINK, target=target.decode("utf-8", "surrogateescape")
        )
    return Member(
        name=name,
        kind=_ODD.get(kind, MemberKind.FILE),
        size=entry.size,
        chunks=content.chunks(),
    )


def _name(entry: _Entry) -> str:
    # macOS writes UTF-8 without the flag for it; what else is not ASCII cannot be told.
    return entry.name.decode("utf-8", "surrogateescape")


def _shown(entry: _Entry) -> str:
    return shown(_name(entry))


class _Content:
    """The content of one member, from where the file's position is."""

    def __init__(self, file: ArchiveFile, entry: _Entry) -> None:
        self._file = file
        self._entry = entry
        self._left = entry.packed

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield it, and raise ``InvalidArtifact`` unless size and checksum are as listed."""
        crc = size = 0
        for chunk in self._stored() if self._entry.method == STORED else self._inflated():
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if size > self._entry.size:
                break
            yield chunk
        if size != self._entry.size or self._left:
            raise damaged(self._file.where, f"{_shown(self._entry)} is not as long as it says")
        if crc != self._entry.crc:
            raise damaged(self._file.where, f"the checksum of {_shown(self._entry)} is wrong")

    def _stored(self) -> Iterator[memoryview]:
        while self._left:
            yield self._read(CHUNK_BYTES)

    def _inflated(self) -> Iterator[bytes]:
        inflater = zlib.decompressobj(_RAW_DEFLATE)
        rest: bytes | memoryview = b""
        while not inflater.eof:
            if not rest and self._left:
                rest = self._read(_INPUT_BYTES)
            try:
                chunk = inflater.decompress(rest, CHUNK_BYTES)
            except zlib.error as error:
                raise damaged(
                    self._file.where, f"{_shown(self._entry)} does not inflate"
                ) from error
            rest = inflater.unconsumed_tail
            if chunk:
                yield chunk
            elif not rest and not self._left and not inflater.eof:
                raise cut_off(self._file.where)
        if inflater.unused_data:
            raise damaged(self._file.where, f"{_shown(self._entry)} is not as long as it says")

    def _read(self, limit: int) -> memoryview:
        chunk = self._file.read(min(limit, self._left))
        if not chunk:
            raise cut_off(self._file.where)
        self._left -= len(chunk)
        return chunk
