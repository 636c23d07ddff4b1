"""Applies a JSON patch (RFC 6902): the three operations that ours has."""

from __future__ import annotations

from typing import Any


def apply_patch(document: Any, patch: list[dict[str, Any]]) -> Any:
    """Return ``document``, changed in place, after each operation."""
    for one in patch:
        names = [part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]]
        if not names:
            assert one["op"] == "replace"
            document = one["value"]
            continue
        place = document
        for name in names[:-1]:
            place = place[int(name)] if isinstance(place, list) else place[name]
        _apply_one(place, names[-1], one)
    return document


def _apply_one(place: Any, name: str, one: dict[str, Any]) -> None:
    key: Any = name
    if isinstance(place, list):
        key = len(place) if name == "-" else int(name)
    match one["op"]:
        case "add" if isinstance(place, list):
            place.insert(key, one["value"])
        case "add":
            place[key] = one["value"]
        case "replace":
            assert isinstance(place, list) or key in place
            place[key] = one["value"]
        case "remove":
            del place[key]
        case other:
            raise AssertionError(f"unknown operation {other}")
