"""What the API server answers, as values and errors; no I/O."""

from __future__ import annotations

import json
from typing import Any

from sidecar.kube.errors import (
    KubeConflict,
    KubeDenied,
    KubeError,
    KubeGone,
    KubeInvalid,
    KubeNotFound,
    KubeProtocolError,
    KubeRedirected,
    KubeUnavailable,
)

MAX_BODY_BYTES = 16 * 1024 * 1024
"""A ConfigMap holds 1 MiB; JSON escapes can make six of each byte, annotations add to it."""
MAX_MESSAGE_CHARS = 256


def error_for(code: int, message: str) -> KubeError:
    """Translate the HTTP status, or the code of a Status object, of a refused request."""
    said = message[:MAX_MESSAGE_CHARS]
    match code:
        case 401:
            text = f"the API server does not accept the credentials: 401 {said}"
            return KubeDenied(text, forbidden=False)
        case 403:
            return KubeDenied(f"the API server refuses: 403 {said}", forbidden=True)
        case 404:
            return KubeNotFound(f"the API server knows no such object: 404 {said}")
        case 409:
            return KubeConflict(f"the API server refuses: 409 {said}")
        case 400 | 413 | 422:
            return KubeInvalid(f"the API server does not take it: {code} {said}")
        case 410:
            return KubeGone(f"the resource_version is too old: 410 {said}")
        case _ if 300 <= code < 400:
            return KubeRedirected(
                f"the API server sends us elsewhere, never followed: {code} {said}"
            )
        case _:
            return KubeUnavailable(f"the API server answered {code} {said}")


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse one JSON object. Raises ``KubeProtocolError``."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KubeProtocolError("the API server sent what is not JSON") from error
    if not isinstance(value, dict):
        raise KubeProtocolError("the API server sent JSON that is not an object")
    return value
