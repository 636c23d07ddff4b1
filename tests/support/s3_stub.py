"""S3 as far as listing and reading go, with every mistake a listing can have.

It checks signatures as AWS does (Signature Version 4), so that a wrong key is refused.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from tests.support.stub_http import Asked, StubHttp, Told

MODIFIED = "2026-05-09T12:00:00.000Z"
MODIFIED_HTTP = "Sat, 09 May 2026 12:00:00 GMT"


def etag_of(data: bytes) -> str:
    """Return what identifies the bytes, without quotes."""
    return hashlib.md5(data).hexdigest()


@dataclass(kw_only=True)
class S3Stub:
    """One bucket, ``models``. Fields may be changed at any time."""

    objects: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Secrets by access key; empty: everybody may read."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Session tokens by access key, where one is needed."""
    page: int = 1000
    has_etags: bool = True
    knows_if_match: bool = True
    before: Callable[[Asked], Told | None] = lambda _: None
    """Answers instead, where it answers."""

    def serve(self) -> StubHttp:
        """Return the server; a context manager."""
        return StubHttp(self._answer)

    def _answer(self, asked: Asked) -> Told:
        if (told := self.before(asked) or self._refuse(asked)) is not None:
            return told
        _, _, rest = asked.path.partition("/")
        bucket, _, key = unquote(rest).partition("/")
        if bucket != "models":
            return refusal(404, "NoSuchBucket")
        if "list-type" in asked.query:
            return self._list(asked.query)
        return self._get(key, asked)

    def _list(self, query: dict[str, str]) -> Told:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        names = sorted(one for one in self.objects if one.startswith(prefix) and one > after)
        shown, rest = names[: self.page], names[self.page :]
        text = "".join(self._entry(name) for name in shown)
        if rest:
            text += f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>"
        truncated = str(bool(rest)).lower()
        return xml(
            f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{text}</ListBucketResult>"
        )

    def _entry(self, name: str) -> str:
        data = self.objects[name]
        etag = f'"{etag_of(data)}"' if self.has_etags else ""
        return (
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
            f"<LastModified>{MODIFIED}</LastModified><ETag>{escape(etag)}</ETag></Contents>"
        )

    def _get(self, key: str, asked: Asked) -> Told:
        if key not in self.objects:
            return refusal(404, "NoSuchKey")
        data = self.objects[key]
        etag = f'"{etag_of(data)}"'
        if self.knows_if_match and asked.headers.get("if-match", etag) != etag:
            return refusal(412, "PreconditionFailed")
        headers = {"Last-Modified": MODIFIED_HTTP, **({"ETag": etag} if self.has_etags else {})}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
        if found is None:
            return Told(body=data, headers=headers)
        start, end = int(found[1]), int(found[2] or len(data) - 1) + 1
        if start >= len(data):
            return refusal(416, "InvalidRange")
        part = data[start:end]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return Told(status=206, body=part, headers=headers)

    def _refuse(self, asked: Asked) -> Told | None:
        if not self.keys:
            return None
        given = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\S+), ?SignedHeaders=(\S+), ?Signature=(\w+)",
            asked.headers.get("authorization", ""),
        )
        if given is None:
            return refusal(403, "AccessDenied")
        key, scope, names, signature = given.groups()
        if key not in self.keys:
            return refusal(403, "InvalidAccessKeyId")
        if self.tokens.get(key) != asked.headers.get("x-amz-security-token"):
            return refusal(400, "InvalidToken")
        if not hmac.compare_digest(_sign(asked, self.keys[key], scope, names), signature):
            return refusal(403, "SignatureDoesNotMatch", f"<AWSAccessKeyId>{key}</AWSAccessKeyId>")
        return None


def refusal(status: int, code: str, more: str = "") -> Told:
    """Return an answer as S3 refuses."""
    told = xml(f"<Error><Code>{code}</Code><Message>no</Message>{more}</Error>")
    return Told(status=status, body=told.body)


def xml(text: str) -> Told:
    """Return a document."""
    return Told(body=f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode())


def _sign(asked: Asked, secret: str, scope: str, names: str) -> str:
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(asked.query.items())
    )
    path = asked.target.partition("?")[0]
    lines = [f"{name}:{asked.headers.get(name, '').strip()}" for name in names.split(";")]
    content = asked.headers.get("x-amz-content-sha256", "")
    canonical = "\n".join([asked.method, path, query, *lines, "", names, content])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{asked.headers.get('x-amz-date', '')}\n{scope}\n{digest}"
    signing = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        signing = hmac.new(signing, part.encode(), "sha256").digest()
    return signing.hex()
