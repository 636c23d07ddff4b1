"""What an HTTP answer says of a file: its size, its version, its kind, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime

from sidecar.artifacts.archive import packing_of
from sidecar.artifacts.remote.port import Packing
from sidecar.errors import (
    AccessDenied,
    ArtifactError,
    FetchFailed,
    InvalidArtifact,
    NotFound,
)

MAX_WORDS = 100
_PACKED_TYPES: Mapping[str, Packing] = {
    "application/x-tar": Packing.TAR,
    "application/x-gtar": Packing.TAR,
    "application/gzip": Packing.TAR_GZIP,
    "application/x-gzip": Packing.TAR_GZIP,
    "application/x-compressed-tar": Packing.TAR_GZIP,
    "application/x-tgz": Packing.TAR_GZIP,
    "application/zip": Packing.ZIP,
    "application/x-zip-compressed": Packing.ZIP,
}
_CLOCK_SECONDS = 2.0
_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_WEAK = re.compile(r'W/"[^"]*"\Z')
_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(
    r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A Content-Range: bytes from ``start`` to before ``end``, of ``total``."""

    start: int
    end: int
    total: int | None


def parse_span(headers: Mapping[str, str]) -> Span | None:
    """Parse Content-Range; None where it is missing or makes no sense."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if not found:
        return None
    total = None if found[3] == "*" else int(found[3])
    if found[1] is None:
        return Span(start=0, end=0, total=total)
    span = Span(start=int(found[1]), end=int(found[2]) + 1, total=total)
    if span.start >= span.end or (total is not None and span.end > total):
        return None
    return span


def parse_length(headers: Mapping[str, str]) -> int | None:
    """Parse Content-Length; None where it is missing or makes no sense."""
    text = headers.get("content-length", "")
    return int(text) if _LENGTH.fullmatch(text) else None


def version_of(headers: Mapping[str, str]) -> str:
    """Return what tells one version of the bytes from another; empty where nothing does.

    A strong etag (RFC 9110, 8.8.3) alone; else the time of the last change, with a weak etag where
    there is one. A time counts once the server's clock is past it: until then there may be another
    change that bears the same time (8.8.2.2). A weak etag alone promises no equal bytes.
    """
    etag = headers.get("etag", "").strip()
    if _STRONG.fullmatch(etag):
        return etag
    changed = headers.get("last-modified", "").strip()
    changed_at, answered_at = _time(changed), _time(headers.get("date", ""))
    if changed_at is None or answered_at is None:
        return ""
    if (answered_at - changed_at).total_seconds() < _CLOCK_SECONDS:
        return ""
    return f"{changed} {etag}" if _WEAK.fullmatch(etag) else changed


def conditions(version: str) -> dict[str, str]:
    """Return the request headers that ask for this version and no other."""
    if version.startswith('"'):
        return {"if-match": version}
    changed, _ = _split(version)
    return {"if-unmodified-since": changed} if changed else {}


def has_moved(headers: Mapping[str, str], version: str) -> bool:
    """Tell whether an answer says it is of another version; what it leaves out says nothing."""
    changed, etag = _split(version)
    etag_now = headers.get("etag", "").strip()
    changed_now = headers.get("last-modified", "").strip()
    return bool(etag and etag_now and etag != etag_now) or bool(
        changed and changed_now and changed != changed_now
    )


def says_version(headers: Mapping[str, str], version: str) -> bool:
    """Tell whether an answer says that it is of this version.

    One to a GET must, of a part too, as the answer to HEAD did (RFC 9110, 9.3.2 and 15.3.7).
    """
    changed, etag = _split(version)
    if changed:
        return headers.get("last-modified", "").strip() == changed
    return headers.get("etag", "").strip() == etag


def file_name(headers: Mapping[str, str], url_name: str) -> str:
    """Return the name of the file: that of the URL, unless it has no suffix and another is told."""
    told = _told_name(headers)
    return told if told and "." not in url_name.strip(".") else url_name


def find_packing(headers: Mapping[str, str], url_name: str, *, where: str) -> Packing | None:
    """Return how the file is packed: by the URL's name, else the name it is told to be saved under,
    else the type of the content.

    Raises ``InvalidArtifact`` when the bytes are compressed on top of that.
    """
    told = _told_name(headers)
    packing = packing_of(url_name) or packing_of(told)
    if packing is None and not (told or url_name).lower().endswith(".gz"):
        packing = _PACKED_TYPES.get(content_type(headers))
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return packing
    if encoding in {"gzip", "x-gzip"} and packing in {Packing.TAR, Packing.TAR_GZIP}:
        # Apache's AddEncoding calls a .tar.gz so; the bytes are those of the file.
        return Packing.TAR_GZIP
    raise InvalidArtifact(
        f"{where}: the server sends it compressed ({_cut(encoding)}) although it was asked not to; "
        "have it serve the file as it is"
    )


def refuse_page(headers: Mapping[str, str], *, where: str) -> None:
    """Raise ``InvalidArtifact`` for a web page: no file of an artifact is one."""
    if content_type(headers) in {"text/html", "application/xhtml+xml"}:
        raise InvalidArtifact(
            f"{where}: the server answers with a web page, as for a login or an error, and not "
            "with the file; name the URL of the file itself, and credentials if it needs them"
        )


def content_type(headers: Mapping[str, str]) -> str:
    """Return the type without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def status_error(
    status: int, headers: Mapping[str, str], *, where: str, refused: str
) -> ArtifactError:
    """Return what a status means that is neither 200 nor 206.

    ``refused`` is what there is to say about credentials.
    """
    text = f"{status} from {where}"
    match status:
        case 401 | 403:
            return AccessDenied(f"{text}: {refused}")
        case 404 | 410:
            return NotFound(f"{text}: there is no such file; correct the URL, or put it there")
        case 407:
            return AccessDenied(
                f"{text}: the proxy wants credentials; write user:password@ into the proxy's URL"
            )
        case 408 | 425 | 429:
            return FetchFailed(f"{text}: the server asks to come back later{_later(headers)}")
        case _ if status >= 500:
            return FetchFailed(f"{text}: the server has a problem{_later(headers)}")
        case _:
            return FetchFailed(f"{text}: the server does not hand out this file")


def _later(headers: Mapping[str, str]) -> str:
    after = headers.get("retry-after", "").strip()
    if not after:
        return ""
    return f" (in {_cut(after)} s)" if after.isdecimal() else f" (after {_cut(after)})"


def _told_name(headers: Mapping[str, str]) -> str:
    """Return the file name of Content-Disposition (RFC 6266), without directories."""
    message = Message()
    try:
        message["content-disposition"] = headers.get("content-disposition", "")
        name = message.get_filename("")
    except (ValueError, LookupError, TypeError):
        # The library raises all of these for parameters that contradict each other.
        return ""
    return name.replace("\\", "/").rpartition("/")[2]


def _split(version: str) -> tuple[str, str]:
    """Return the time of the last change, and the etag; either may be empty."""
    if version.startswith('"'):
        return "", version
    found = _WEAK.search(version)
    return (version[: found.start()].rstrip(), found[0]) if found else (version, "")


def _time(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else None


def _cut(text: str) -> str:
    return ascii(text[:MAX_WORDS])[1:-1]
