"""From one read of the documents to what is desired: unknown is not empty (P1).

A key that cannot be read, does not parse or is gone keeps its last good text; an entry that is
spoiled keeps what it asked for before. Only a text that says so empties anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from sidecar.core.desired import Desired, DropOut, Entry, Format, Problem
from sidecar.core.documents import (
    ParsedDocument,
    Pod,
    format_of_key,
    is_known_key,
    parse_document,
)
from sidecar.core.documents.merge import Before, Habits, Merged, claim_names, formats, merge
from sidecar.core.snapshot import Presence, Snapshot
from sidecar.errors import DocumentError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["KEPT_KEY", "AcceptOptions", "Accepted", "Pod", "accept", "restore"]

KEPT_KEY = "#kept"
"""In ``Accepted.last_good``, beside the texts: what they no longer say. No ConfigMap key can be
named so."""

_GONE_HINT = "write an empty list to unload what it asked for"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptOptions:
    """Flags that change what documents mean."""

    config_key: str | None = None
    """The only key to read; None: every key that is a known format."""
    default_warmup: bool = False
    """For entries that do not say ``warmup``."""
    unload_grace_seconds: float | None = None
    """None: as each format has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What all reads so far led to."""

    desired: Desired | None = None
    """None until a first document was accepted."""
    last_good: Mapping[str, str] = field(default_factory=dict)
    """Key -> text that was accepted, and ``KEPT_KEY``; all that ``restore`` needs."""
    problems: tuple[Problem, ...] = ()
    valid: bool = False
    """Every document that there should be was read and parsed; entries may still be spoiled."""
    absent: bool = False
    """This read found no document at all."""
    formats_seen: frozenset[Format] = frozenset()
    """Formats of this read's keys, also of those that did not parse, where the key tells."""
    documents: Mapping[str, ParsedDocument] = field(default_factory=dict)
    """What the texts of ``last_good`` say."""
    vanished: frozenset[str] = frozenset()
    """Keys of ``documents`` that are no longer there."""
    before: Before = field(default_factory=Before)
    """What the next read holds on to where it knows no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What an agent restart would forget, were only the texts written down."""

    entries: Mapping[str, Entry]
    origins: Mapping[str, str]
    vanished: frozenset[str]


@cache
def _kept_adapter() -> TypeAdapter[_Kept]:
    # It costs 10 MB and 0.2 s, and most agents never hold on to anything.
    from pydantic import TypeAdapter

    return TypeAdapter(_Kept)


@dataclass(slots=True)
class _Reading:
    """One snapshot, key by key."""

    texts: dict[str, str] = field(default_factory=dict)
    standing: dict[str, ParsedDocument] = field(default_factory=dict)
    vanished: dict[str, ParsedDocument] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    seen: set[Format] = field(default_factory=set)
    absent: bool = False
    failed: bool = False

    def report(self, problem: Problem) -> None:
        """Write down what is wrong with a whole document."""
        self.failed = True
        self.problems.append(problem)

    def fail(self, previous: Accepted, key: str, problem: Problem) -> None:
        """Report a key that cannot be used and let its last good text stand."""
        self.report(problem)
        self.hold(previous, key)
        found = format_of_key(key)
        if found is not None:
            self.seen.add(found)

    def hold(self, previous: Accepted, key: str) -> None:
        """Let the last good text of ``key`` stand, if there is one."""
        if key not in previous.documents:
            return
        self.texts[key] = previous.last_good[key]
        # One that vanished before is no better known now.
        place = self.vanished if key in previous.vanished else self.standing
        place[key] = previous.documents[key]


def accept(
    previous: Accepted | None, snapshot: Snapshot, pod: Pod, options: AcceptOptions
) -> Accepted:
    """Return what is desired after ``snapshot``, given what was desired before it."""
    previous = previous if previous is not None else Accepted()
    return _settle(previous, _read(previous, snapshot, options), pod, options)


def restore(
    last_good: Mapping[str, str], pod: Pod, options: AcceptOptions, *, generation: int = 1
) -> Accepted:
    """Rebuild what was accepted before the agent restarted, from ``Accepted.last_good``.

    ``generation`` is the one it had. A text that this version no longer parses is a problem.
    """
    kept = _read_kept(last_good.get(KEPT_KEY))
    previous = Accepted(before=Before(entries=kept.entries, origins=kept.origins))
    reading = _Reading()
    for key, text in sorted(last_good.items()):
        if key != KEPT_KEY and options.config_key in (None, key):
            _read_key(reading, previous, key, text, expected=True)
    for key in kept.vanished & reading.standing.keys():
        reading.vanished[key] = reading.standing.pop(key)
    restored = _settle(previous, reading, pod, options)
    if restored.desired is None:
        return restored
    return replace(restored, desired=replace(restored.desired, generation=max(generation, 1)))


def _read(previous: Accepted, snapshot: Snapshot, options: AcceptOptions) -> _Reading:
    if snapshot.presence is not Presence.PRESENT:
        return _read_nothing(previous, snapshot)
    reading = _Reading()
    asked = options.config_key
    for key, text in sorted(snapshot.files.items()):
        if asked in (None, key):
            _read_key(reading, previous, key, text, expected=key == asked)
    for key, why in sorted(snapshot.unreadable.items()):
        if key == asked or (asked is None and (key in previous.documents or is_known_key(key))):
            reading.fail(previous, key, Problem(where=key, what=f"it cannot be read: {why}"))
    reading.absent = not reading.standing and not reading.vanished and not reading.failed
    for key in previous.documents.keys() - reading.texts.keys():
        reading.texts[key] = previous.last_good[key]
        reading.vanished[key] = previous.documents[key]
    if asked is not None and asked not in reading.texts and reading.absent:
        found = ", ".join(sorted(snapshot.files)) or "none"
        what, hint = f"the key {asked} is missing", f"keys that are there: {found}"
        reading.report(Problem(where=snapshot.source, what=what, hint=hint))
    return reading


def _read_key(
    reading: _Reading, previous: Accepted, key: str, text: str, *, expected: bool
) -> None:
    known = key in previous.documents
    if known and previous.last_good[key] == text:
        document: ParsedDocument | None = previous.documents[key]
    else:
        try:
            document = parse_document(key, text, expected=expected or known)
        except DocumentError as exc:
            where = exc.where or key
            reading.fail(previous, key, Problem(where=where, what=str(exc), hint=exc.hint))
            return
    if document is not None:
        reading.seen.add(document.format)
        reading.texts[key] = text
        reading.standing[key] = document


def _read_nothing(previous: Accepted, snapshot: Snapshot) -> _Reading:
    reading = _Reading()
    for key in previous.documents:
        reading.hold(previous, key)
    why = f": {snapshot.reason}" if snapshot.reason else ""
    if snapshot.presence is Presence.UNREADABLE:
        what = f"the documents cannot be read{why}"
        reading.report(Problem(where=snapshot.source, what=what))
        return reading
    reading.absent = True
    if any(_says_something(document) for document in previous.documents.values()):
        what = f"there is nothing here any more{why}; what it last asked for is kept"
        reading.report(Problem(where=snapshot.source, what=what, hint=_GONE_HINT))
    return reading


def _settle(previous: Accepted, reading: _Reading, pod: Pod, options: AcceptOptions) -> Accepted:
    claims, clashes = claim_names(reading.standing, reading.vanished)
    _settle_vanished(reading, claims)
    documents = {
        key: place[key] for place in (reading.standing, reading.vanished) for key in sorted(place)
    }
    spoiled = (problem for document in documents.values() for problem in document.problems)
    problems = (*reading.problems, *spoiled, *clashes)
    if not documents:
        return replace(
            previous,
            problems=problems,
            valid=not reading.failed,
            absent=reading.absent,
            formats_seen=frozenset(reading.seen),
        )
    habits = Habits(
        default_warmup=options.default_warmup,
        unload_grace_seconds=options.unload_grace_seconds,
    )
    merged = merge(documents, claims, previous.before, pod, habits)
    elsewhere = frozenset(merged.elsewhere)
    return Accepted(
        desired=_desired(previous.desired, reading.texts, documents.values(), merged, problems),
        last_good={**reading.texts, **_write_kept(merged, reading.vanished)},
        problems=problems,
        valid=not reading.failed,
        absent=reading.absent,
        formats_seen=frozenset(reading.seen),
        documents=documents,
        vanished=frozenset(reading.vanished),
        before=Before(entries=merged.entries, elsewhere=elsewhere, origins=merged.origins),
    )


def _settle_vanished(reading: _Reading, claims: Mapping[str, str]) -> None:
    """Forget keys whose names all moved to others; report the rest."""
    for key in sorted(reading.vanished):
        document = reading.vanished[key]
        names = sorted(name for name in document.names if claims[name] == key)
        if not names and not document.incomplete:
            if reading.standing:
                del reading.vanished[key], reading.texts[key]
        else:
            what = f"the key is gone; what it last asked for is kept ({len(names)} names)"
            reading.report(Problem(where=key, what=what, hint=_GONE_HINT))


def _desired(
    previous: Desired | None,
    texts: Mapping[str, str],
    documents: Iterable[ParsedDocument],
    merged: Merged,
    problems: tuple[Problem, ...],
) -> Desired:
    listed = formats(documents)
    desired = Desired(
        generation=previous.generation if previous is not None else 1,
        digest=_digest(texts),
        entries=merged.entries,
        elsewhere=frozenset(merged.elsewhere),
        absent=frozenset(merged.absent),
        undecided=frozenset(merged.undecided),
        incomplete=merged.incomplete,
        formats=listed,
        # Whoever left alone what it forgot cannot be told from the others any more.
        drop_out=DropOut.KEEP if Format.LORA_SYNCER in listed else DropOut.UNLOAD,
        problems=problems,
    )
    if previous is None or replace(desired, problems=()) == replace(previous, problems=()):
        return desired
    return replace(desired, generation=previous.generation + 1)


def _digest(texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in sorted(texts):
        for part in (key.encode(), texts[key].encode()):
            digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def _says_something(document: ParsedDocument) -> bool:
    return bool(document.names) or document.incomplete


def _write_kept(merged: Merged, vanished: Iterable[str]) -> dict[str, str]:
    kept = _Kept(
        entries={name: merged.entries[name] for name in sorted(merged.kept)},
        origins={name: merged.origins[name] for name in sorted(merged.kept)},
        vanished=frozenset(vanished),
    )
    if not kept.entries and not kept.vanished:
        return {}
    return {KEPT_KEY: _kept_adapter().dump_json(kept).decode()}


def _read_kept(text: str | None) -> _Kept:
    nothing = _Kept(entries={}, origins={}, vanished=frozenset())
    if text is None:
        return nothing
    try:
        return _kept_adapter().validate_json(text)
    except ValueError:  # pydantic's ValidationError is one
        return nothing
