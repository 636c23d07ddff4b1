"""Requests to S3 and to its IAM, signed by hand: a client that shares nothing with the product.

Rule: AWS Signature Version 4,
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from lab.web import Answer, send

UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Who asks: long-lived keys, or temporary ones with their session token."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    def environment(self) -> dict[str, str]:
        """The variables by which AWS' tools and libraries take them."""
        named = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        if self.session_token is not None:
            named["AWS_SESSION_TOKEN"] = self.session_token
        return named


def send_signed(
    method: str,
    url: str,
    keys: Keys,
    *,
    region: str,
    service: str = "s3",
    query: Mapping[str, str] | None = None,
    body: bytes | Path = b"",
    headers: Mapping[str, str] | None = None,
    authority: Path | None = None,
    timeout: float = 60.0,
) -> Answer:
    """Send one request; its host, date, payload and token are signed, other headers are not."""
    parts = urlsplit(url)
    path = quote(parts.path, safe="/-_.~") or "/"
    asked = urlencode(sorted((query or {}).items()), quote_via=quote, safe="-_.~")
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    signed = {
        "host": parts.netloc,
        "x-amz-content-sha256": (
            hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else UNSIGNED
        ),
        "x-amz-date": moment,
    }
    if keys.session_token is not None:
        signed["x-amz-security-token"] = keys.session_token
    names = ";".join(sorted(signed))
    lines = [f"{name}:{signed[name]}" for name in sorted(signed)]
    canonical = "\n".join([method, path, asked, *lines, "", names, signed["x-amz-content-sha256"]])
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
    key = f"AWS4{keys.secret_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), "sha256").digest()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={key.hex()}"
    )
    return send(
        method,
        f"{parts.scheme}://{parts.netloc}{path}" + (f"?{asked}" if asked else ""),
        body=body,
        headers={**(headers or {}), **signed, "Authorization": authorization},
        authority=authority,
        timeout=timeout,
    )
