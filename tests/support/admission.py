"""AdmissionReviews as an API server sends them, and what it reads of the answer."""

from __future__ import annotations

import base64
import json
from typing import Any

Json = dict[str, Any]


def admission(
    object: Json | None, *, operation: str = "CREATE", old: Json | None = None, **more: Any
) -> Json:
    """A review of one object; ``more`` are further fields of the request."""
    shown = object or old or {}
    metadata = shown.get("metadata", {})
    request = {
        "uid": "5b9f3c1e",
        "kind": {"group": "", "version": "v1", "kind": shown.get("kind", "Pod")},
        "operation": operation,
        "namespace": "team-a",
        "name": metadata.get("name", ""),
        "object": object,
        "oldObject": old,
        "dryRun": False,
        "options": None,
        **more,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def response(body: bytes) -> Json:
    """The answer's response, checked as the API server checks it."""
    answer = json.loads(body)
    assert answer["apiVersion"] == "admission.k8s.io/v1"
    assert answer["kind"] == "AdmissionReview"
    found: Json = answer["response"]
    assert found["uid"] == "5b9f3c1e"
    assert isinstance(found["allowed"], bool)
    assert ("patch" in found) == ("patchType" in found)
    return found


def patch_of(found: Json) -> list[Json]:
    """The JSON patch of a response; empty where there is none."""
    if "patch" not in found:
        return []
    assert found["patchType"] == "JSONPatch"
    patch: list[Json] = json.loads(base64.b64decode(found["patch"]))
    return patch


def configmap(data: Json | None, **more: Any) -> Json:
    """A ConfigMap; with None it has no ``data`` at all."""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "chat-models"}, **more}
    return made if data is None else made | {"data": data}
