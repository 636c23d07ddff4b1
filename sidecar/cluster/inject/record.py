"""What was added to a pod, written down in an annotation of it: enough to take it away again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.cluster.inject.model import RECORD, Json, JsonView, mapping, refusal

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
    hint = "take the agent's container, volumes and mounts out by hand, and this annotation"
    try:
        held: Any = json.loads(text)
        record = Record(**held)
    except (TypeError, ValueError) as error:
        raise refusal(_WHERE, "it is not as the injection wrote it", hint) from error
    kinds = asdict(Record(container=""))
    if any(type(getattr(record, name)) is not type(kind) for name, kind in kinds.items()):
        raise refusal(_WHERE, "it is not as the injection wrote it", hint)
    return record


def ensure(parent: Json, name: str, where: str, empty: Any, record: Record) -> Any:  # noqa: ANN401
    """Return a list or object to add to, and note what was there when there was nothing in it."""
    held = parent.get(name)
    if not held:
        record.made[where] = json.dumps(held) if name in parent else "absent"
        parent[name] = empty
    return parent[name]


def restore(parent: Json, name: str, where: str, record: Record) -> None:
    """Put back what was there before anything was added, where nothing of others is left in it."""
    before = record.made.get(where)
    if before is None or parent.get(name):
        return
    if before == "absent":
        parent.pop(name, None)
    else:
        parent[name] = json.loads(before)
