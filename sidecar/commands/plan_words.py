"""A forecast as lines for people, as JSON, and as an exit code. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from adapters.base import EngineState
from sidecar.commands.forecast import Forecast, Foreseen
from sidecar.commands.foresight import Sight
from sidecar.commands.output import count, problems_json
from sidecar.commands.table import age
from sidecar.core.accept import Accepted
from sidecar.core.actions import Check, Evict, Fetch, Load, Unload, Wait
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.report import describe_action
from sidecar.core.sizes import size
from sidecar.core.targets import REFUSALS

CONVERGED, FAILED, CHANGES = 0, 1, 2
NOT_LOOKED: Final = (
    "not looked at: it is assumed to hold nothing, and nothing is evicted; name it with "
    "--engine-url to plan against what it holds"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a plan was made from."""

    source: str
    accepted: Accepted
    engine_name: str
    urls: tuple[str, ...]
    engine: EngineState | None
    looked: bool
    engine_trouble: str
    """Why the engine cannot be seen."""
    store: str
    inventory: Inventory
    troubles: tuple[str, ...]
    """Of the store; they change what is planned."""
    now: float


def exit_code(scene: Scene, forecast: Forecast) -> int:
    """Return 1 where something is wrong, 2 where something would change or waits, else 0."""
    refused = any(wait.until is None and wait.reason in REFUSALS for wait in forecast.waits)
    failed = any(step.failure is not None for step in forecast.steps)
    if scene.accepted.problems or scene.engine_trouble or scene.troubles or failed or refused:
        return FAILED
    asleep = scene.engine is not None and scene.engine.asleep
    return CHANGES if forecast.steps or forecast.waits or asleep else CONVERGED


def as_lines(scene: Scene, forecast: Forecast) -> list[str]:
    """Return what is printed."""
    lines = [_document_line(scene)]
    lines += [f"  {problem.line}" for problem in scene.accepted.problems]
    lines.append(f"engine {scene.engine_name} at {', '.join(scene.urls)}: {_engine_words(scene)}")
    revisions = sum(1 for _ in scene.inventory.all())
    held = size(scene.inventory.bytes)
    lines.append(f"store {scene.store}: {count(revisions, 'revision')}, {held}")
    lines += [f"  {trouble}" for trouble in scene.troubles]
    lines.append("")
    for step in forecast.steps:
        lines += _step_lines(step)
        if isinstance(step.action, Fetch) and step.action.name in forecast.open_ends:
            lines.append("  what follows depends on what it holds")
    # What failed is said beside its step.
    failed = {step.action.name for step in forecast.steps if step.failure is not None}
    waits = [wait for wait in forecast.waits if wait.name not in failed]
    lines += [_wait_line(wait, scene.now) for wait in waits]
    lines.append(_summary(scene, forecast, len(waits)))
    return lines


def as_json(scene: Scene, forecast: Forecast) -> dict[str, object]:
    """Return the same for machines."""
    code = exit_code(scene, forecast)
    return {
        "converged": code == CONVERGED,
        "exit_code": code,
        "document": {
            "source": scene.source,
            "entries": _entries(scene),
            "problems": problems_json(scene.accepted.problems),
        },
        "engine": {
            "kind": scene.engine_name,
            "urls": list(scene.urls),
            "looked": scene.looked,
            "message": scene.engine_trouble,
        },
        "store": {"path": scene.store, "problems": list(scene.troubles)},
        "actions": [_step_json(step) for step in forecast.steps],
        "waits": [
            {"target": one.name, "reason": str(one.reason), "message": one.message}
            | ({"until": one.until} if one.until is not None else {})
            for one in forecast.waits
        ],
    }


def _document_line(scene: Scene) -> str:
    desired = scene.accepted.desired
    if desired is None:
        return f"document {scene.source}: none, so nothing is asked for and nothing is unloaded"
    formats = ", ".join(desired.formats)
    return f"document {scene.source}: {count(_entries(scene), 'target')} ({formats})"


def _entries(scene: Scene) -> int:
    return len(scene.accepted.desired.entries) if scene.accepted.desired is not None else 0


def _engine_words(scene: Scene) -> str:
    if not scene.looked:
        return NOT_LOOKED
    if scene.engine is None:
        return f"cannot be seen, so nothing is asked of it: {scene.engine_trouble}"
    if scene.engine.asleep:
        return "asleep: nothing is loaded or unloaded before it wakes"
    return count(len(scene.engine.residents), "resident")


def _step_lines(step: Foreseen) -> list[str]:
    line = describe_action(step.action)
    if step.failure is not None:
        return [f"{line}: fails: {step.failure.reason}: {step.failure.message}"]
    if isinstance(step.action, Fetch) and step.sight is not None and step.sight.files:
        return [line, f"  {_sight_words(step.sight)}"]
    return [line]


def _sight_words(sight: Sight) -> str:
    revision = sight.revision
    held = f"{count(sight.files, 'file')}, {size(revision.bytes)}"
    return f"it holds a {revision.kind}, {held}, digest: {revision.digest}"


def _step_json(step: Foreseen) -> dict[str, object]:
    action = step.action
    shown: dict[str, object] = {
        "action": type(action).__name__.lower(),
        "target": action.name,
        "says": describe_action(action),
    }
    revision = _revision(step)
    if revision is not None:
        shown |= {"kind": str(revision.kind), "revision": revision.revision}
        shown |= {"digest": revision.digest} if revision.digest else {}
        shown |= {"bytes": revision.bytes} if revision.bytes else {}
    elif isinstance(action, Unload):
        shown["kind"] = str(action.target.kind)
    if step.failure is not None:
        shown |= {"reason": str(step.failure.reason), "message": step.failure.message}
    return shown


def _revision(step: Foreseen) -> Revision | None:
    match step.action:
        case Fetch():
            return step.sight.revision if step.sight is not None else None
        case Check(revision=revision) | Load(revision=revision) | Evict(revision=revision):
            return revision
        case _:
            return None


def _wait_line(wait: Wait, now: float) -> str:
    when = f" (in {age(max(0.0, wait.until - now))})" if wait.until is not None else ""
    return f"{wait.name} waits{when}: {wait.reason}: {wait.message}"


def _summary(scene: Scene, forecast: Forecast, waits: int) -> str:
    if exit_code(scene, forecast) == CONVERGED:
        return "Converged: nothing to do."
    parts = [count(len(forecast.steps), "step")]
    failed = sum(1 for step in forecast.steps if step.failure is not None)
    if failed:
        parts.append(f"{failed} of them would fail")
    if scene.accepted.problems:
        parts.append(count(len(scene.accepted.problems), "problem") + " in the document")
    if waits:
        parts.append(count(waits, "target") + (" waits" if waits == 1 else " wait"))
    return ", ".join(parts) + "."
