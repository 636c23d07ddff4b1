"""What the Kubernetes API says of a ConfigMap, as values: bytes in, snapshots out; no I/O."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.core.snapshot import Presence, Snapshot
from sidecar.kube.answers import MAX_BODY_BYTES, error_for, parse_object
from sidecar.kube.errors import KubeProtocolError, KubeUnavailable
from sidecar.sources.base import absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The ConfigMap as of ``resource_version``."""

    resource_version: str
    configmap: Mapping[str, Any] | None
    """None where it does not exist."""
    bookmark: bool = False
    """Only the version is news."""


def parse_list(answer: Mapping[str, Any], name: str) -> Seen:
    """Find the ConfigMap ``name`` in a ConfigMapList. Raises ``KubeProtocolError``."""
    items = answer.get("items") or []
    if not isinstance(items, list):
        raise KubeProtocolError("the API server sent a list without items")
    found = next((item for item in items if _metadata(item).get("name") == name), None)
    return Seen(resource_version=_version(answer), configmap=found)


def parse_event(line: bytes) -> Seen:
    """Parse one event of a watch.

    Raises what its ERROR event stands for (``KubeGone`` and others), or ``KubeProtocolError``.
    """
    event = parse_object(line)
    kind, subject = event.get("type"), event.get("object")
    if not isinstance(subject, dict):
        raise KubeProtocolError("the API server sent an event without an object")
    match kind:
        case "ADDED" | "MODIFIED":
            return Seen(resource_version=_version(subject), configmap=subject)
        case "DELETED":
            return Seen(resource_version=_version(subject), configmap=None)
        case "BOOKMARK":
            return Seen(resource_version=_version(subject), configmap=None, bookmark=True)
        case "ERROR":
            code = subject.get("code")
            message = str(subject.get("message") or subject.get("reason"))
            raise error_for(code if isinstance(code, int) else 0, message)
        case _:
            raise KubeProtocolError("the API server sent an event of an unknown type")


def snapshot_of(seen: Seen, source: str, *, seen_at: float) -> Snapshot:
    """Build the snapshot of what was seen.

    Raises ``KubeProtocolError`` where ``data`` or ``binaryData`` do not map keys to text.
    """
    if seen.configmap is None:
        return absent(source, f"{source} does not exist", seen_at=seen_at)
    texts = dict(_section(seen.configmap, "data"))
    unreadable = {}
    for key, encoded in _section(seen.configmap, "binaryData").items():
        try:
            texts[key] = base64.b64decode(encoded, validate=True).decode()
        except UnicodeDecodeError as error:
            unreadable[key] = f"not UTF-8 text (byte {error.start})"
        except binascii.Error:
            unreadable[key] = "not base64"
    return Snapshot(
        presence=Presence.PRESENT,
        source=source,
        files=dict(sorted(texts.items())),
        unreadable=unreadable,
        seen_at=seen_at,
    )


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Join chunks and cut them at newlines; empty lines are left out.

    Raises ``KubeProtocolError`` for a line without end, and ``KubeUnavailable`` where the stream
    ends within a line.
    """
    rest = b""
    async for chunk in chunks:
        *lines, tail = chunk.split(b"\n")
        if lines:
            lines[0] = rest + lines[0]
            rest = tail
        else:
            rest += tail
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > MAX_BODY_BYTES:
            raise KubeProtocolError(f"an event is larger than {MAX_BODY_BYTES} bytes")
    if rest.strip():
        raise KubeUnavailable("the API server closed the connection within an event")


def _section(configmap: Mapping[str, Any], name: str) -> Mapping[str, str]:
    section = configmap.get(name) or {}
    if not isinstance(section, dict) or not all(isinstance(one, str) for one in section.values()):
        raise KubeProtocolError(f"the API server sent a ConfigMap whose {name} is not text")
    return section


def _metadata(thing: object) -> Mapping[str, Any]:
    found = thing.get("metadata") if isinstance(thing, dict) else None
    return found if isinstance(found, dict) else {}


def _version(thing: Mapping[str, Any]) -> str:
    version = _metadata(thing).get("resourceVersion")
    if not isinstance(version, str) or not version:
        raise KubeProtocolError("the API server sent an object without a resourceVersion")
    return version
