"""Several documents become what one pod shall hold; unknown is not empty, name by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sidecar.core.desired import Entry, Format, Problem
from sidecar.core.documents.fields import shown
from sidecar.core.documents.parsed import ParsedDocument, ParsedEntry
from sidecar.core.documents.resolve import Pod, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What was held when these documents came."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    origins: Mapping[str, str] = field(default_factory=dict)
    """Name of an entry -> key of its document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What flags say about every entry; see ``resolve``."""

    default_warmup: bool = False
    unload_grace_seconds: float | None = None


@dataclass(slots=True)
class Merged:
    """What all documents together ask of one pod."""

    entries: dict[str, Entry] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    undecided: set[str] = field(default_factory=set)
    incomplete: bool = False
    origins: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    """Names whose entry is not in the documents as it stands here: it was held before."""

    def keep(self, name: str, entry: Entry, key: str) -> None:
        """Hold on to what was held before."""
        self.put(name, entry, key)
        self.kept.add(name)

    def put(self, name: str, entry: Entry, key: str) -> None:
        """Hold an entry."""
        self.entries[name] = entry
        self.origins[name] = key


def claim_names(
    standing: Mapping[str, ParsedDocument], vanished: Mapping[str, ParsedDocument]
) -> tuple[dict[str, str], list[Problem]]:
    """Return name -> key of the document that decides on it, and the clashes.

    The first key in sorted order has the name; keys that vanished stand behind all others.
    """
    claims: dict[str, str] = {}
    problems: list[Problem] = []
    for key in sorted(standing):
        document = standing[key]
        for name in _in_order(document):
            winner = claims.setdefault(name, key)
            if winner != key:
                problems.append(_clash(name, document, winner))
    for key in sorted(vanished):
        for name in _in_order(vanished[key]):
            claims.setdefault(name, key)
    return claims, problems


def merge(
    documents: Mapping[str, ParsedDocument],
    claims: Mapping[str, str],
    before: Before,
    pod: Pod,
    habits: Habits,
) -> Merged:
    """Return what ``documents`` ask of ``pod``, spoiled entries held as they were ``before``."""
    merged = Merged()
    for key, document in documents.items():
        for name in _in_order(document):
            if claims[name] == key:
                _decide(merged, document, name, before, pod, habits)
        if document.incomplete:
            merged.incomplete = True
            _keep_missing(merged, key, claims, before)
    return merged


def formats(documents: Iterable[ParsedDocument]) -> tuple[Format, ...]:
    """Return each format once, in the order of the documents."""
    return tuple(dict.fromkeys(document.format for document in documents))


def _decide(
    merged: Merged,
    document: ParsedDocument,
    name: str,
    before: Before,
    pod: Pod,
    habits: Habits,
) -> None:
    held = before.entries.get(name)
    spoiled = name in document.undecided
    parsed = document.entries.get(name)
    if parsed is None and not spoiled:
        merged.absent.add(name)
        return
    entry = None
    if parsed is not None:
        entry = resolve(
            parsed,
            document.format,
            pod,
            previous=held,
            default_warmup=habits.default_warmup,
            unload_grace_seconds=habits.unload_grace_seconds,
        )
    if spoiled and held is not None and not _is_same(held, entry):
        merged.undecided.add(name)
        merged.keep(name, held, document.key)
    elif entry is not None:
        merged.put(name, entry, document.key)
        if parsed is not None and _has_several_sources(parsed):
            merged.kept.add(name)
    else:
        if parsed is not None or name in before.elsewhere:
            merged.elsewhere.add(name)
        if spoiled:
            merged.undecided.add(name)


def _keep_missing(merged: Merged, key: str, claims: Mapping[str, str], before: Before) -> None:
    """Keep what the document listed before: the entry without a name may be any of them."""
    for name, origin in before.origins.items():
        held = before.entries.get(name)
        if origin == key and name not in claims and held is not None:
            merged.keep(name, held, key)


def _in_order(document: ParsedDocument) -> Iterable[str]:
    rest = (document.absent | document.undecided) - document.entries.keys()
    return (*document.entries, *sorted(rest))


def _clash(name: str, document: ParsedDocument, winner: str) -> Problem:
    entry = document.entries.get(name)
    return Problem(
        where=entry.where if entry is not None else document.key,
        what=f"{shown(name)} is also in {winner}, which comes first and decides on it",
        hint="remove it from one of the two, or choose another name",
        name=name,
        conflict=True,
    )


def _is_same(held: Entry, entry: Entry | None) -> bool:
    return entry is not None and replace(held, where=entry.where) == entry


def _has_several_sources(parsed: ParsedEntry) -> bool:
    return any(place.source != parsed.source for place in parsed.placements)
