"""Archives made by hand, honest and otherwise, and what may be on disk after unpacking one."""

from __future__ import annotations

import gzip
import stat
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from sidecar.artifacts.archive import unpack
from sidecar.artifacts.manifest import FileRecord
from sidecar.artifacts.remote.port import Packing
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import StoreFull

TAR_END = bytes(1024)
WHERE = "s3://bucket/model"


@dataclass
class Place:
    """A workspace in a directory, with neighbours that nothing may touch."""

    base: Path
    room: int = 1 << 40
    granted: int = 0
    read: int = 0
    stop: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        for name in ("new", "scratch", "outside"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        (self.base / "outside" / "secret").write_text("secret")

    @property
    def new(self) -> Path:
        return self.base / "new"

    @property
    def workspace(self) -> Workspace:
        return Workspace(
            directory=self.new,
            scratch=self.base / "scratch",
            report=lambda _: None,
            grow=self._grow,
            stop=self.stop,
        )

    def unpack(
        self,
        data: bytes,
        packing: Packing = Packing.TAR,
        *,
        max_files: int = 1000,
        max_bytes: int | None = None,
    ) -> tuple[FileRecord, ...]:
        file = self.base / "archive"
        file.write_bytes(data)
        return unpack(
            file,
            packing,
            self.workspace,
            where=WHERE,
            max_files=max_files,
            max_bytes=max_bytes,
            report=self._count_read,
        )

    def files(self) -> dict[str, bytes]:
        """Return what was unpacked, once it is certain that it is harmless."""
        found = {}
        for path in self.new.rglob("*"):
            info = path.lstat()
            assert stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode), path
            is_file = stat.S_ISREG(info.st_mode)
            assert stat.S_IMODE(info.st_mode) == (0o644 if is_file else 0o755), path
            if is_file:
                assert info.st_nlink == 1, path
                found[str(path.relative_to(self.new))] = path.read_bytes()
        outside = {str(p.relative_to(self.base)) for p in self.base.rglob("*")}
        outside = {one for one in outside if not one.startswith("new/")}
        assert outside <= {"new", "scratch", "outside", "outside/secret", "archive"}
        assert (self.base / "outside" / "secret").read_text() == "secret"
        assert sum(map(len, found.values())) <= self.granted
        return found

    def _grow(self, size: int) -> None:
        if self.granted + size > self.room:
            raise StoreFull("no room")
        self.granted += size

    def _count_read(self, size: int) -> None:
        self.read += size


# tar


def tar_header(
    name: str | bytes,
    *,
    kind: bytes = b"0",
    size: int = 0,
    target: str = "",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """Return one block that says all this, true or not."""
    block = bytearray(512)
    raw, link = _raw(name)[:100], _raw(target)[:100]
    block[: len(raw)] = raw
    block[100:108] = b"0004777\0"
    block[108:124] = b"0000000\0" * 2
    number = b"%011o\0" % size if 0 <= size < 8**11 else _binary(size)
    block[124:136] = number
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_member(
    name: str | bytes, data: bytes = b"", *, kind: bytes = b"0", target: str = ""
) -> bytes:
    """Return a header and its content, filled up to whole blocks."""
    return tar_header(name, kind=kind, size=len(data), target=target) + padded(data)


def tar(*members: bytes) -> bytes:
    """Return members with an end behind them."""
    return b"".join(members) + TAR_END


def pax(records: dict[str, str | bytes], kind: bytes = b"x") -> bytes:
    """Return a pax header for the member that follows."""
    data = b"".join(pax_record(key, value) for key, value in records.items())
    return tar_member("PaxHeaders/x", data, kind=kind)


def pax_record(key: str, value: str | bytes) -> bytes:
    text = _raw(value)
    rest = b" %s=%s\n" % (key.encode(), text)
    size = len(rest)
    while size != len(rest) + len(str(size)):
        size = len(rest) + len(str(size))
    return str(size).encode() + rest


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _binary(size: int) -> bytes:
    return (size % (1 << 95) | 1 << 95).to_bytes(12, "big") if size >= 0 else b"\xff" * 12


# zip


@dataclass
class ZipMember:
    """One file of a zip; what is not None replaces what would be true."""

    name: str | bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0
    crc: int | None = None
    size: int | None = None
    packed: bytes | None = None
    packed_size: int | None = None
    offset: int | None = None
    local_name: str | bytes | None = None
    local_size: int | None = None
    local_method: int | None = None
    extra: bytes = b""

    @property
    def raw_name(self) -> bytes:
        return _raw(self.name)

    @property
    def content(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflated(self.data) if self.method == 8 else self.data

    def local(self) -> bytes:
        name = self.raw_name if self.local_name is None else _raw(self.local_name)
        crc, packed, size = self._sizes()
        size = size if self.local_size is None else self.local_size
        method = self.method if self.local_method is None else self.local_method
        head = struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, self.flags, method, 0, 33, crc, packed, size, len(name), 0
        )
        return head + name + self.content

    def central(self, offset: int) -> bytes:
        crc, packed, size = self._sizes()
        offset = offset if self.offset is None else self.offset
        head = struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\1\2", 0x031E, 20, self.flags, self.method, 0, 33, crc, packed, size),
            *(len(self.raw_name), len(self.extra), 0, 0, 0, self.mode << 16, offset),
        )
        return head + self.raw_name + self.extra

    def _sizes(self) -> tuple[int, int, int]:
        return (
            zlib.crc32(self.data) if self.crc is None else self.crc,
            len(self.content) if self.packed_size is None else self.packed_size,
            len(self.data) if self.size is None else self.size,
        )


def zipped(*members: ZipMember, before: bytes = b"", comment: bytes = b"") -> bytes:
    """Return an archive of members."""
    body, listing = before, b""
    for one in members:
        listing += one.central(len(body))
        body += one.local()
    end = zip_end(len(members), len(listing), len(body), comment)
    return body + listing + end


def zip_end(count: int, size: int, start: int, comment: bytes = b"", *, disk: int = 0) -> bytes:
    fields = (b"PK\5\6", disk, 0, count, count, size, start, len(comment))
    return struct.pack("<4s4H2LH", *fields) + comment


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _raw(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def pack(files: dict[str, bytes], packing: Packing) -> bytes:
    """Return an honest archive of files."""
    if packing is Packing.ZIP:
        return zipped(
            *(ZipMember(n, d, method=8 * (i % 2)) for i, (n, d) in enumerate(files.items()))
        )
    data = tar(*(_tar_file(name, content) for name, content in files.items()))
    return gzip.compress(data, 1, mtime=0) if packing is Packing.TAR_GZIP else data


def _tar_file(name: str, data: bytes) -> bytes:
    head = pax({"path": name}) if len(_raw(name)) > 100 else b""
    return head + tar_member(name, data)
