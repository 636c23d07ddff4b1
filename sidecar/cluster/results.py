"""What operations on a model-config ConfigMap lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.desired import Problem
from sidecar.core.documents import ParsedDocument
from sidecar.errors import SidecarError


class ModelConfigError(SidecarError):
    """The operation makes no sense for this ConfigMap; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an operation led to."""

    changed: bool
    """False where it was so already."""
    key: str = ""
    """Of the document that was edited, where one was."""
    digest: str | None = None
    """By which agents name the documents of the ConfigMap as they are now (``/status``); None
    where there are none."""
    comments_lost: bool = False
    """Comments of a YAML document could not be kept: its list is not written one entry below the
    other."""
    problems: tuple[Problem, ...] = ()
    """``add``: why agents cannot use the entry as it stands there now: a field that was there and
    that this version does not know, or another document that decides on its name."""
    others: tuple[str, ...] = ()
    """``remove``: deployments that have an entry of that name, which was left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the ConfigMap holds."""

    documents: Mapping[str, ParsedDocument]
    """By key."""
    problems: tuple[Problem, ...]
    """Also those of documents that cannot be read, which are not among ``documents``."""
    valid: bool
    """Every document could be read; entries in it may still be spoiled."""
    digest: str | None
    resource_version: str
