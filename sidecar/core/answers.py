"""What the read-only HTTP surface says, as plain values made of the published status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from adapters.base import Kind
from sidecar.core.status import EngineCondition, State, Status, TargetStatus

_TRITON_STATES: Final[Mapping[State, str]] = {
    State.RESIDENT: "READY",
    State.FETCHING: "LOADING",
    State.STAGED: "LOADING",
    State.LOADING: "LOADING",
    State.UNLOADING: "UNLOADING",
    State.ABSENT: "UNAVAILABLE",
    State.ASLEEP: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}


def openai_models(status: Status) -> dict[str, object]:
    """Return the OpenAI list of models: base models and what is resident beside them, and none
    while the engine is not up."""
    engine = status.engine
    started = int(engine.started_at or 0)
    data: list[dict[str, object]] = []
    if engine.state is not EngineCondition.UP:
        return {"object": "list", "data": data}
    data += [_model(name, started, root=name, parent=None) for name in engine.base_names]
    for one in sorted(status.targets.values(), key=lambda target: target.name):
        if one.state is State.RESIDENT and one.name not in engine.base_names:
            parent = engine.base_model or None if one.kind is Kind.LORA else None
            root = one.path or one.name
            data.append(_model(one.name, int(one.since), root=root, parent=parent))
    return {"object": "list", "data": data}


def repository_index(status: Status, *, ready_only: bool) -> list[dict[str, str]]:
    """Return Triton's repository index for any engine: base models and every target."""
    up = status.engine.state is EngineCondition.UP
    silence = f"the engine is {status.engine.state}"
    rows = [
        {
            "name": name,
            "version": "1",
            "state": "READY" if up else "UNAVAILABLE",
            "reason": "" if up else silence,
        }
        for name in status.engine.base_names
        if name not in status.targets
    ]
    rows += [
        {
            "name": one.name,
            "version": "1",
            # Unseen is not failed: controllers roll back at UNAVAILABLE, and wait at LOADING.
            "state": "LOADING" if not up and _is_served(one) else _TRITON_STATES[one.state],
            "reason": _reason(one) if up or not _is_served(one) else silence,
        }
        for one in sorted(status.targets.values(), key=lambda target: target.name)
    ]
    return [row for row in rows if not ready_only or row["state"] == "READY"]


def is_model_ready(status: Status, name: str) -> bool:
    """Tell whether a request for ``name`` would be answered."""
    if status.engine.state is not EngineCondition.UP:
        return False
    one = status.targets.get(name)
    return _is_served(one) if one is not None else name in status.engine.base_names


def _is_served(one: TargetStatus) -> bool:
    return one.state is State.RESIDENT


def is_settled(status: Status, name: str) -> bool:
    """Tell whether one target is as the document asks, whatever becomes of the others."""
    one = status.targets.get(name)
    return status.converged or (one is not None and one.converged)


def _model(name: str, created: int, *, root: str, parent: str | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "model-sidecar",
        "root": root,
        "parent": parent,
    }


def _reason(one: TargetStatus) -> str:
    if one.reason:
        return f"{one.reason}: {one.message}" if one.message else one.reason
    return "" if one.state is State.RESIDENT else one.message or _WORDS[one.state]


_WORDS: Final[Mapping[State, str]] = {
    State.ABSENT: "unloaded",
    State.FETCHING: "its files are being fetched",
    State.STAGED: "its files are here, the load is due",
    State.LOADING: "the engine is loading it",
    State.UNLOADING: "the engine is unloading it",
    State.ASLEEP: "the engine is asleep",
    State.FAILED: "failed",
}
