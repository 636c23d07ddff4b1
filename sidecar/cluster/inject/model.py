"""What injection is asked for and what it answers. Plain values, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidecar import __version__
from sidecar.core.desired import Problem

Json = dict[str, Any]
JsonView = Mapping[str, Any]

PREFIX: Final = "model-sidecar.io/"
"""Of every annotation that is read or written here."""
RECORD: Final = PREFIX + "injected"
"""Annotation that says what was added, so that it can be changed and taken away again."""
CONTAINER: Final = "model-sidecar"
"""Name of the agent's container; names of volumes begin with it."""
INJECT_LABEL: Final = PREFIX + "inject"
"""Label of pods; `false` leaves one alone, whoever injects."""
DEFAULT_IMAGE: Final = f"model-sidecar:{__version__}"
DEFAULT_STORE_SIZE: Final = "50Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the one who injects says. A pod's annotations win over it, one by one."""

    configmap: str = ""
    """Name of the ConfigMap with the documents, in the pod's namespace. It has no default."""
    api: bool = False
    """Watch it through the API server instead of mounting it: a token is mounted, and the pod's
    ServiceAccount needs get, list and watch on it."""
    image: str = DEFAULT_IMAGE
    store_size: str = DEFAULT_STORE_SIZE
    """Size of the shared volume, a Kubernetes quantity; the agent uses nine tenths of it."""
    flags: tuple[str, ...] = ()
    """Further flags of ``model-sidecar run``; those of the pod's annotation come after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """A pod with the agent in it."""

    pod: Json
    """``metadata`` and ``spec``, nothing shared with the input."""
    notes: tuple[str, ...] = ()
    """What people should know of it, one sentence each."""


class InjectError(Exception):
    """The agent cannot be injected; nothing was changed.

    ``problems`` has each reason with its place below the pod (``spec.containers[0].args``), what is
    wrong, and what to do. The message is all of them, one a line.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(one.line for one in self.problems))


class NoEngineError(InjectError):
    """No container of the pod is known to be an engine: a router, say, and nothing is wrong.

    ``image`` tells of a container that has an engine's image, and is not seen to start it.
    """

    def __init__(self, problems: Iterable[Problem], *, image: bool = False) -> None:
        super().__init__(problems)
        self.image = image


def refusal(where: str, what: str, hint: str) -> InjectError:
    """Return the error with one problem."""
    return InjectError([Problem(where=where, what=what, hint=hint)])


def unshared(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """Return a copy in which no part is another part's: YAML's aliases are shared objects."""
    if isinstance(value, Mapping):
        return {key: unshared(one) for key, one in value.items()}
    if isinstance(value, list):
        return [unshared(one) for one in value]
    return value


def mapping(value: object, where: str) -> Json:
    """Return an object of the manifest; none is an empty one. Raises ``InjectError``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refusal(where, "it must be an object", "see the Kubernetes API reference")
    return value


def objects(value: object, where: str) -> list[Json]:
    """Return a list of objects; none is an empty one. Raises ``InjectError``."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise refusal(where, "it must be a list of objects", "see the Kubernetes API reference")
    return value
