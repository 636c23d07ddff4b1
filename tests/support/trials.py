"""Trials made short: a document, an engine that holds it, and the usual questions."""

from __future__ import annotations

from adapters.base import Capabilities
from sidecar.core.actions import Wait
from sidecar.core.desired import Entry
from tests.support.simulated import VLLM, document
from tests.support.world import Trial


def trial_of(
    *entries: Entry, capabilities: Capabilities = VLLM, settle: bool = True, **options
) -> Trial:
    """Return a trial with a document; each source holds v1."""
    words = {
        key: options.pop(key)
        for key in ("absent", "undecided", "incomplete", "drop_out")
        if key in options
    }
    trial = Trial(capabilities, **options)
    trial.disk.sources = {one.source: "v1" for one in entries}
    trial.accept(document(*entries, **words))
    if settle:
        trial.settle()
    else:
        trial.look()
    return trial


def kinds(steps) -> list[type]:
    """Return what kinds of steps these are."""
    return [type(step) for step in steps]


def wait_of(trial: Trial, name: str = "a") -> Wait:
    """Return the one wait of a name."""
    (wait,) = (step for step in trial.steps(name) if isinstance(step, Wait))
    return wait


def stay(trial: Trial, name: str, path: str) -> None:
    """Let the engine hold a name that it was started with."""
    for rank in trial.engine.serving:
        rank[name] = path
    trial.strangers |= {name}
    trial.look()
