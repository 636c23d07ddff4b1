"""The difference between two JSON values, as a JSON patch (RFC 6902). No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Operation = Mapping[str, Any]


def diff(before: object, after: object, path: str = "") -> Iterator[Operation]:
    """Yield the operations that turn ``before`` into ``after``, for the place ``path``.

    Of a list, elements that stand in both at the same index are compared, and what is longer is
    added or removed at its end: whoever puts something first changes the elements after it.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _diff_mappings(before, after, path)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _diff_lists(before, after, path)
    elif not _is_same(before, after):
        yield {"op": "replace", "path": path, "value": after}


def _diff_mappings(
    before: Mapping[str, object], after: Mapping[str, object], path: str
) -> Iterator[Operation]:
    for name in before.keys() - after.keys():
        yield {"op": "remove", "path": _below(path, name)}
    for name, value in after.items():
        if name in before:
            yield from diff(before[name], value, _below(path, name))
        else:
            yield {"op": "add", "path": _below(path, name), "value": value}


def _diff_lists(before: list[object], after: list[object], path: str) -> Iterator[Operation]:
    for index, (old, new) in enumerate(zip(before, after, strict=False)):
        yield from diff(old, new, f"{path}/{index}")
    for index in range(len(before) - 1, len(after) - 1, -1):
        yield {"op": "remove", "path": f"{path}/{index}"}
    for value in after[len(before) :]:
        yield {"op": "add", "path": f"{path}/-", "value": value}


def _is_same(before: object, after: object) -> bool:
    # To Python, true is 1.
    return type(before) is type(after) and before == after


def _below(path: str, name: str) -> str:
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
