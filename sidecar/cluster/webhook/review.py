"""AdmissionReview v1, in and out (kubernetes.io: "Dynamic Admission Control"). No I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar.core.desired import Problem
from sidecar.core.redact import CONTROL

API_VERSION: Final = "admission.k8s.io/v1"
MAX_MESSAGE_CHARS: Final = 16_384
"""Of a refusal: what a person reads, and what goes into events and logs."""
MAX_WARNING_CHARS: Final = 256
MAX_WARNINGS_CHARS: Final = 4096
"""Longer ones, one or all together, are cut by the API server, which names these limits."""
INVALID: Final = 422

JsonView = Mapping[str, Any]


class BadReview(Exception):
    """The request is no AdmissionReview of this API; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What the API server asks about."""

    uid: str
    kind: str
    """Group and kind: ``Pod``, ``apps/Deployment``."""
    operation: str
    namespace: str = ""
    name: str = ""
    """Empty where the API server is yet to choose it."""
    object: JsonView = field(default_factory=dict)
    old: JsonView = field(default_factory=dict)
    """What it was before; empty for CREATE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is answered."""

    message: str = ""
    """Why it is refused; empty where it is not."""
    patch: tuple[Mapping[str, Any], ...] = ()
    """JSON patch (RFC 6902), for what is not refused."""
    warnings: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """Tell whether it is admitted."""
        return not self.message


def parse_review(body: bytes) -> Review:
    """Return what is asked. Raises ``BadReview``."""
    try:
        text = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadReview("the body is not JSON") from error
    review = text if isinstance(text, dict) else {}
    if (review.get("apiVersion"), review.get("kind")) != (API_VERSION, "AdmissionReview"):
        raise BadReview(f"the body is no AdmissionReview of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, dict):
        raise BadReview("the AdmissionReview has no request")
    kind = _mapping(request, "kind")
    group, name = _text(kind, "group"), _text(kind, "kind")
    if not (uid := _text(request, "uid")):
        raise BadReview("the request has no uid")
    return Review(
        uid=uid,
        kind=f"{group}/{name}" if group else name,
        operation=_text(request, "operation"),
        namespace=_text(request, "namespace"),
        name=_text(request, "name"),
        object=_mapping(request, "object"),
        old=_mapping(request, "oldObject"),
    )


def render(review: Review, verdict: Verdict) -> bytes:
    """Return the answer as the API server reads it."""
    response: dict[str, Any] = {"uid": review.uid, "allowed": verdict.allowed}
    if not verdict.allowed:
        response["status"] = {"code": INVALID, "reason": "Invalid", "message": verdict.message}
    elif verdict.patch:
        response["patchType"] = "JSONPatch"
        # A string of bytes: base64, as Go writes []byte.
        response["patch"] = _base64(json.dumps(verdict.patch).encode())
    if verdict.warnings:
        response["warnings"] = verdict.warnings
    document = {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
    return json.dumps(document).encode()


def problem_line(problem: Problem) -> str:
    """Return a problem as one line that is plainly visible."""
    return _visible(problem.line)


def bounded_message(head: str, lines: Sequence[str]) -> str:
    """Return ``head`` and the lines below it, as many as fit, and how many do not."""
    kept: list[str] = []
    size = len(head)
    for line in lines:
        size += len(line) + 3
        if size > MAX_MESSAGE_CHARS:
            break
        kept.append(f"- {line}")
    if len(kept) < len(lines):
        kept.append(f"- and {len(lines) - len(kept)} more")
    return "\n".join([head, *kept])


def bounded_warnings(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the warnings that the API server passes on whole, and how many are left out."""
    lines = [_cut(_visible(line)) for line in lines]
    room = MAX_WARNINGS_CHARS - MAX_WARNING_CHARS
    kept: list[str] = []
    for line in lines:
        room -= len(line)
        if room < 0:
            break
        kept.append(line)
    if len(kept) < len(lines):
        kept.append(f"and {len(lines) - len(kept)} more")
    return tuple(kept)


def _cut(line: str) -> str:
    return line if len(line) <= MAX_WARNING_CHARS else line[: MAX_WARNING_CHARS - 3] + "..."


def _visible(text: str) -> str:
    """Return one line without what could steer a terminal or end an HTTP header."""
    return "".join(one if one.isprintable() else CONTROL for one in text)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _mapping(found: JsonView, name: str) -> dict[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _text(found: JsonView, name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""
