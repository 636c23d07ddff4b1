"""tar: ustar, pax and GNU, read strictly and in constant memory.

Each header is parsed by ``tarfile``; what follows it is not. ``tarfile`` takes an archive that was
cut between two members, or that is damaged in a header, for whole; it reads a pax header of any
size into memory, and recurses for each of a row of them.
Format: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html and
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from sidecar.artifacts.archive_members import (
    CHUNK_BYTES,
    Member,
    MemberKind,
    Stream,
    cut_off,
    damaged,
    no_archive,
)
from sidecar.artifacts.paths import shown
from sidecar.errors import InvalidArtifact, UnsafeArtifact

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 1 << 20
"""Of one pax header or long name: paths are far shorter, extended attributes rarely longer."""
MAX_ALL_EXTENSIONS_BYTES = 64 << 20
"""Of all of them in one archive: compressed to nothing, they would keep a processor busy for days.
Those of 100,000 files take 10 to 30 MiB."""
MAX_EXTENSIONS = 8
"""Headers in a row that say something of one member; packers write one or two."""
MAX_PADDING_BYTES = 16 << 20
"""After the end: tar fills up to a record, 10 KiB unless someone asked for more."""
_ZEROS = bytes(BLOCK_BYTES)
_PAX, _PAX_GLOBAL, _PAX_SOLARIS = b"x", b"g", b"X"
_LONG_NAMES = {b"L": "path", b"K": "linkpath"}
_EXTENSIONS = frozenset({_PAX, _PAX_GLOBAL, _PAX_SOLARIS, *_LONG_NAMES})
_KINDS = {
    tarfile.REGTYPE: MemberKind.FILE,
    tarfile.AREGTYPE: MemberKind.FILE,
    tarfile.CONTTYPE: MemberKind.FILE,
    tarfile.DIRTYPE: MemberKind.DIRECTORY,
    tarfile.SYMTYPE: MemberKind.LINK,
    tarfile.LNKTYPE: MemberKind.HARD_LINK,
    tarfile.CHRTYPE: MemberKind.DEVICE,
    tarfile.BLKTYPE: MemberKind.DEVICE,
    tarfile.FIFOTYPE: MemberKind.PIPE,
}
_SPARSE_KEYS = ("GNU.sparse.", "SCHILY.realsize")


def read_tar(stream: Stream, where: str) -> Iterator[Member]:
    """Yield the members of a tar, then check that it ends as a tar does.

    Raises ``InvalidArtifact`` for one that is cut, damaged, or packed in a way that is not read.
    """
    return _Tar(stream, where).members()


def looks_like_tar(start: bytes) -> bool:
    """Tell whether a file that begins with these 512 bytes calls itself a tar."""
    return start[257:262] == b"ustar"


class _Tar:
    def __init__(self, stream: Stream, where: str) -> None:
        self._stream = stream
        self._where = where
        self._left = 0
        """Of the content of the member that was yielded last."""
        self._extensions_bytes = 0
        self._is_tar = False

    def members(self) -> Iterator[Member]:
        while (block := self._block()) != _ZEROS:
            extended: dict[str, str] = {}
            header = self._parse(block)
            for _ in range(MAX_EXTENSIONS):
                if header.type not in _EXTENSIONS:
                    break
                self._extend(extended, header)
                header = self._parse(self._block())
            member = self._member(header, extended)
            yield member
            for _ in member.chunks:
                pass
            self._read(-member.size % BLOCK_BYTES)
        self._check_end()

    def _parse(self, block: bytes) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not self._is_tar:
                raise no_archive(self._where, block) from error
            raise damaged(self._where, "a tar header is wrong") from error
        self._is_tar = True
        if header.size < 0:
            raise damaged(self._where, "a member has a negative size")
        # Not a directory by what its name ends with: here may be only the beginning of it.
        header.type = block[156:157]
        header.name = _text(block[:100].partition(b"\0")[0])
        if block[257:263] == b"ustar\0" and block[345]:
            # Only POSIX has the rest of a long name there; GNU has times.
            header.name = _text(block[345:500].partition(b"\0")[0]) + "/" + header.name
        return header

    def _member(self, header: tarfile.TarInfo, extended: dict[str, str]) -> Member:
        name = extended.get("path", header.name)
        size = self._size(header, extended)
        kind = _KINDS.get(header.type)
        if header.type == tarfile.GNUTYPE_SPARSE or any(
            k.startswith(_SPARSE_KEYS) for k in extended
        ):
            raise InvalidArtifact(
                f"{self._where}: {shown(name)} is a sparse file, which is not unpacked; pack it "
                "without --sparse (bsdtar: --no-read-sparse)"
            )
        if kind is None:
            raise InvalidArtifact(
                f"{self._where}: {shown(name)} is of the kind {header.type!r}, which is not "
                "unpacked; pack plain files and directories"
            )
        if kind is MemberKind.FILE and name.endswith("/"):
            # How tar named directories before it had a kind for them.
            kind = MemberKind.DIRECTORY
        if kind is not MemberKind.FILE and size:
            # Readers differ in whether content follows, so that one sees what another does not.
            raise damaged(self._where, f"{shown(name)} is {kind} with content")
        self._left = size
        return Member(
            name=name,
            kind=kind,
            size=size,
            target=extended.get("linkpath", header.linkname),
            chunks=self._content(),
        )

    def _size(self, header: tarfile.TarInfo, extended: dict[str, str]) -> int:
        text = extended.get("size")
        if text is None:
            return header.size
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise damaged(self._where, f"{shown(header.name)} has no size")
        return int(text)

    def _extend(self, extended: dict[str, str], header: tarfile.TarInfo) -> None:
        if header.size > MAX_EXTENSION_BYTES:
            raise damaged(self._where, f"a header is longer than {MAX_EXTENSION_BYTES} bytes")
        self._extensions_bytes += header.size
        if self._extensions_bytes > MAX_ALL_EXTENSIONS_BYTES:
            raise UnsafeArtifact(
                f"{self._where}: the archive has more than {MAX_ALL_EXTENSIONS_BYTES} bytes of "
                "pax headers and long names"
            )
        data = self._read(header.size)
        self._read(-header.size % BLOCK_BYTES)
        if header.type in _LONG_NAMES:
            records = {_LONG_NAMES[header.type]: _text(data.rstrip(b"\0"))}
        else:
            records = self._pax_records(data)
        if header.type == _PAX_GLOBAL:
            # git writes a comment there; a name for every file to come is not meant well.
            if records:
                raise damaged(self._where, f"a global header sets {min(records)}")
            return
        if extended.keys() & records.keys():
            raise damaged(self._where, "a member has two headers of one kind")
        extended.update(records)

    def _pax_records(self, data: bytes) -> dict[str, str]:
        """Return those of the records ``<length> <key>=<value>\\n`` that say how a file is read."""
        records = {}
        at = 0
        while at < len(data):
            digits, space, _ = data[at : at + 9].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            record = data[at + len(digits) + 1 : at + length]
            key, equals, value = record.partition(b"=")
            if not (equals and value.endswith(b"\n")) or at + length > len(data):
                raise damaged(self._where, "a pax header is wrong")
            at += length
            name = _text(key)
            if name in {"path", "linkpath", "size"} or name.startswith(_SPARSE_KEYS):
                records[name] = _text(value[:-1])
        return records

    def _content(self) -> Iterator[memoryview]:
        while self._left:
            chunk = self._stream.read(min(self._left, CHUNK_BYTES))
            if not chunk:
                raise cut_off(self._where)
            self._left -= len(chunk)
            yield chunk

    def _block(self) -> bytes:
        return self._read(BLOCK_BYTES)

    def _read(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        if len(chunk) == size:
            return bytes(chunk)
        found = bytearray(chunk)
        while len(found) < size:
            chunk = self._stream.read(size - len(found))
            if not chunk:
                raise (
                    cut_off(self._where) if self._is_tar else no_archive(self._where, bytes(found))
                )
            found += chunk
        return bytes(found)

    def _check_end(self) -> None:
        """Two blocks of zeros end a tar, and nothing but zeros follows."""
        padding = self._block()
        size = 0
        while padding:
            if padding.count(0) != len(padding):
                raise damaged(self._where, "other bytes follow after its end")
            size += len(padding)
            if size > MAX_PADDING_BYTES:
                raise damaged(self._where, f"more than {MAX_PADDING_BYTES} zeros after its end")
            padding = bytes(self._stream.read(CHUNK_BYTES))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
