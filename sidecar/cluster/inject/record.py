"""What was added to a pod, written down in an annotation of it: enough to take it away again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sidecar.cluster.inject.model import RECORD, Json, JsonView, mapping, refusal

_ABSENT: Final = "absent"
_WHERE = f"metadata.annotations[{RECORD}]"


@dataclass(slots=True, kw_only=True)
class Record:
    """Names of what was added; ``made`` are lists and objects that were not there, or empty."""

    container: str
    """The engine's."""
    configmap: str = ""
    api: bool = False
    store: str = ""
    """Where the store is mounted."""
    store_volume: str = ""
    env: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    """Paths in the engine."""
    volumes: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    """Path in the engine: the mount that was there, in JSON."""
    made: dict[str, str] = field(default_factory=dict)
    """Place: what was there, in JSON; ``absent`` for nothing at all."""
    digest: str = ""
    """Of the agent's container and volumes, as they were written."""

    def text(self) -> str:
        """Return it as the annotation's value."""
        return json.dumps(
            {key: value for key, value in asdict(self).items() if value}, sort_keys=True
        )


def read_record(pod: JsonView) -> Record | None:
    """Return what an earlier injection wrote down. Raises ``InjectError`` where it is damaged."""
    annotations = mapping(
        mapping(pod.get("metadata"), "metadata").get("annotations"), "metadata.annotations"
    )
    text = annotations.get(RECORD)
    if text is None:
        return None
    try:
        record = Record(**json.loads(text))
        _check(record)
    except (TypeError, ValueError, RecursionError) as error:
        hint = "take the agent's container, volumes and mounts out by hand, and this annotation"
        raise refusal(_WHERE, "it is not as the injection wrote it", hint) from error
    return record


def _check(record: Record) -> None:
    """Raise ``TypeError`` or ``ValueError`` where a part is not as ``text`` writes it."""
    for name, kind in asdict(Record(container="")).items():
        value = getattr(record, name)
        if type(value) is not type(kind):
            raise TypeError(name)
        held = [*value, *value.values()] if isinstance(value, dict) else value
        if not isinstance(held, bool) and not all(isinstance(one, str) for one in held):
            raise TypeError(name)
    if not all(isinstance(json.loads(one), dict) for one in record.moved.values()):
        raise TypeError("moved")
    if any(one != _ABSENT and json.loads(one) for one in record.made.values()):
        raise ValueError("made")


def ensure(
    parent: Json,
    name: str,
    where: str,
    empty: Any,  # noqa: ANN401 - a list or an object
    record: Record,
) -> Any:  # noqa: ANN401 - what the first one is
    """Return a list or object to add to, and note what was there when there was nothing in it."""
    held = parent.get(name)
    if not held:
        record.made[where] = json.dumps(held) if name in parent else _ABSENT
        parent[name] = empty
    return parent[name]


def restore(parent: Json, name: str, where: str, record: Record) -> None:
    """Put back what was there before anything was added, where nothing of others is left in it."""
    before = record.made.get(where)
    if before is None or parent.get(name):
        return
    if before == _ABSENT:
        parent.pop(name, None)
    else:
        parent[name] = json.loads(before)
