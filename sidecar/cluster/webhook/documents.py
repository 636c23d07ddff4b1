"""What is answered for a ConfigMap with documents. No I/O.

A person's broken document is refused with every problem. A controller is never stopped: what
Michelangelo's and KServe's controllers can write is admitted, and what is wrong with it is a
warning, for one bad entry hurts itself alone in the agent too.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.cluster.webhook.review import (
    BadReview,
    Review,
    Verdict,
    bounded_message,
    bounded_warnings,
    problem_line,
)
from sidecar.core.desired import Problem
from sidecar.core.documents import ParsedDocument, is_known_key, parse_document
from sidecar.core.documents.merge import claim_names
from sidecar.core.documents.recognise import MODEL_LIST_KEY
from sidecar.errors import DocumentError

_MICHELANGELO_FIELDS = ("name", "storage_path", "deployment_name", "phase", "canary_pod")
_KSERVE_KEY = "models.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """One key of a ConfigMap."""

    document: ParsedDocument | None
    problems: tuple[Problem, ...] = ()


def review_configmap(review: Review) -> Verdict:
    """Refuse documents that are broken by this request, with the places of all problems.

    What was broken before and is not touched is a warning: others may set labels meanwhile. Raises
    ``BadReview``.
    """
    if review.kind != "ConfigMap":
        raise BadReview(f"only ConfigMaps are checked, not {review.kind}")
    if review.operation not in ("CREATE", "UPDATE"):
        return Verdict()
    before, texts = _texts(review.old), _texts(review.object)
    checked = {key: _check(key, text) for key, text in texts.items()}
    # A person answers for what this request writes, unless a controller may have written it.
    owned = {
        key
        for key, text in texts.items()
        if text != before.get(key) and not _may_be_a_controllers(key, text)
    }
    refused: list[Problem] = []
    told: list[Problem] = []
    for key, one in checked.items():
        (refused if key in owned else told).extend(one.problems)
    documents = {key: one.document for key, one in checked.items() if one.document is not None}
    for clash in claim_names(documents, {})[1]:
        claimants = {key for key, one in documents.items() if clash.name in one.names}
        (refused if claimants & owned else told).append(clash)
    if not refused:
        return Verdict(warnings=bounded_warnings(problem_line(one) for one in told))
    head = "the documents in it are broken" if len(refused) > 1 else "a document in it is broken"
    return Verdict(message=bounded_message(head, [problem_line(one) for one in refused]))


def _check(key: str, text: str | bytes) -> _Checked:
    if isinstance(text, bytes):
        what = "it is not UTF-8 text in base64"
        return _Checked(document=None, problems=(Problem(where=key, what=what),))
    try:
        document = parse_document(key, text)
    except DocumentError as error:
        problem = Problem(where=error.where or key, what=str(error), hint=error.hint)
        return _Checked(document=None, problems=(problem,))
    return _Checked(document=document, problems=document.problems if document else ())


def _texts(configmap: Mapping[str, Any]) -> dict[str, str | bytes]:
    """Return the text of each key; bytes where it is none, under a key that must have one."""
    texts: dict[str, str | bytes] = {}
    data, binary = configmap.get("data"), configmap.get("binaryData")
    texts |= data if isinstance(data, dict) else {}
    for key, encoded in (binary if isinstance(binary, dict) else {}).items():
        try:
            texts[key] = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            if is_known_key(key):
                texts[key] = encoded.encode()
    return texts


def _may_be_a_controllers(key: str, text: str | bytes) -> bool:
    """Tell whether a controller can have written this text, whatever the values are in it.

    Michelangelo's controllers marshal Go structs of texts: ``name`` and ``storage_path`` (once
    ``s3_path``) always, more in newer generations; no list at all is ``null``. KServe's writes
    ``modelName`` and ``modelSpec``.
    """
    if isinstance(text, bytes) or key not in (MODEL_LIST_KEY, _KSERVE_KEY):
        return False
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        return False
    if value is None:
        return key == MODEL_LIST_KEY
    if not isinstance(value, list):
        return False
    is_one = _is_michelangelos if key == MODEL_LIST_KEY else _is_kserves
    return all(isinstance(entry, dict) and is_one(entry) for entry in value)


def _is_michelangelos(entry: Mapping[str, object]) -> bool:
    complete = "name" in entry and ("storage_path" in entry or "s3_path" in entry)
    known = [entry[name] for name in (*_MICHELANGELO_FIELDS, "s3_path") if name in entry]
    return complete and all(isinstance(value, str) for value in known)


def _is_kserves(entry: Mapping[str, object]) -> bool:
    spec = entry.get("modelSpec")
    return (
        isinstance(entry.get("modelName"), str)
        and isinstance(spec, dict)
        and all(isinstance(spec.get(name), str) for name in ("storageUri", "framework", "memory"))
    )


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
