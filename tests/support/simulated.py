"""A store and an engine in memory, with the manners of the real ones; and values made short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from adapters.base import Capabilities, EngineState, Kind, Limits, Residency, Resident
from sidecar.core.actions import Fetch, Load
from sidecar.core.backoff import Severity
from sidecar.core.desired import Desired, DropOut, Entry, Format, Readiness
from sidecar.core.inventory import Inventory, Revision
from sidecar.core.outcome import Done, Failed, Outcome
from sidecar.core.redact import redact_source
from sidecar.core.status import Reason

STORE = "/store"
START = 1_000_000.0

VLLM = Capabilities(
    kinds=frozenset({Kind.LORA}),
    serves_alone=True,
    replaces_in_place=False,
    reports_paths=True,
    warms=True,
    sleeps=True,
)
TRITON = Capabilities(
    kinds=frozenset({Kind.MODEL}),
    serves_alone=False,
    replaces_in_place=True,
    reports_paths=False,
)


def kind_of(capabilities: Capabilities) -> Kind:
    """Return the one kind that the engine holds."""
    (kind,) = capabilities.kinds
    return kind


def entry(
    name: str,
    source: str | None = None,
    *,
    digest: str | None = None,
    kind: Kind | None = None,
    readiness: Readiness = Readiness.INITIAL,
    warmup: bool = False,
    pinned: bool = False,
    parameters: Mapping[str, object] | None = None,
    drop_out: DropOut = DropOut.UNLOAD,
    unload_grace_seconds: float = 0.0,
    everywhere: bool = True,
    credentials: str | None = None,
    refresh_seconds: float | None = None,
) -> Entry:
    """Return one target of a native document; its source is ``s3://NAME`` unless told."""
    return Entry(
        name=name,
        source=source or f"s3://{name}",
        format=Format.NATIVE,
        where=f"models[{name}]",
        digest=digest,
        kind=kind,
        readiness=readiness,
        warmup=warmup,
        pinned=pinned,
        parameters=parameters or {},
        drop_out=drop_out,
        unload_grace_seconds=unload_grace_seconds,
        everywhere=everywhere,
        credentials=credentials,
        refresh_seconds=refresh_seconds,
    )


def document(
    *entries: Entry,
    generation: int = 1,
    absent: Iterable[str] = (),
    undecided: Iterable[str] = (),
    elsewhere: Iterable[str] = (),
    incomplete: bool = False,
    drop_out: DropOut = DropOut.UNLOAD,
) -> Desired:
    """Return what accepted documents ask for."""
    return Desired(
        generation=generation,
        digest=f"{generation:064x}",
        entries={one.name: one for one in entries},
        absent=frozenset(absent),
        undecided=frozenset(undecided),
        elsewhere=frozenset(elsewhere),
        incomplete=incomplete,
        formats=(Format.NATIVE,),
        drop_out=drop_out,
    )


def revision(
    name: str,
    number: str = "v1",
    *,
    kind: Kind = Kind.LORA,
    parts: tuple[str, ...] = (),
    used_at: float = 0.0,
    size: int = 100,
    source: str = "",
    verified: bool = True,
) -> Revision:
    """Return a revision at its place in the store."""
    path = f"{STORE}/{kind}/{name}/{number}" if verified else source
    return Revision(
        name=name,
        kind=kind,
        revision=number,
        path=path,
        bytes=size,
        source=source,
        used_at=used_at,
        verified=verified,
        parts=parts,
    )


def lora(name: str, path: str, state: Residency = Residency.RESIDENT) -> Resident:
    """Return one LoRA in the engine's account."""
    return Resident(name=name, kind=Kind.LORA, state=state, paths=frozenset({path}))


def failure(
    reason: Reason = Reason.ENGINE_REJECTED, severity: Severity = Severity.TRANSIENT
) -> Failed:
    """Return a failure with a message made of its reason."""
    return Failed(reason=reason, message=f"it failed: {reason}", severity=severity)


REJECTED = failure(Reason.ENGINE_REJECTED, Severity.REJECTED)
BUSY = failure(Reason.ENGINE_UNAVAILABLE)
TIMEOUT = failure(Reason.ENGINE_TIMEOUT)


@dataclass
class Disk:
    """Sources and the store. A source is a label of what it holds now."""

    kind: Kind
    sources: dict[str, str] = field(default_factory=dict)
    """Source -> the revision that it holds; one that is not here cannot be fetched."""
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    whole: dict[str, Revision] = field(default_factory=dict)
    """Path -> complete revision."""
    max_bytes: int | None = None

    def make(self, name: str, number: str, *, used_at: float = 0.0, source: str = "") -> Revision:
        """Put a complete revision on the disk."""
        one = revision(
            name,
            number,
            kind=self.kind,
            used_at=used_at,
            parts=self.parts.get(name, ()),
            source=source,
        )
        one = self.whole[one.path] = replace(one, digest=f"sha256:{number}")
        return one

    def fetch(self, action: Fetch, now: float) -> Outcome:
        """Answer as a store does that finds what it has, and restores what it is asked to."""
        number = self.sources.get(action.entry.source)
        if action.restore is not None:
            number = action.restore.revision
        if number is None:
            return failure(Reason.NOT_FOUND)
        source = redact_source(action.entry.source)
        return Done(revision=self.make(action.name, number, used_at=now, source=source))

    def inventory(self) -> Inventory:
        """Return every complete revision."""
        found: dict[str, tuple[Revision, ...]] = {}
        for one in self.whole.values():
            found[one.name] = (*found.get(one.name, ()), one)
        return Inventory(revisions=found, max_bytes=self.max_bytes)


@dataclass
class Engine:
    """What an engine holds, rank by rank, and how it answers."""

    capabilities: Capabilities
    disk: Disk
    ranks: int = 1
    capacity: int | None = None
    started_at: float | None = START
    asleep: bool = False
    base_names: frozenset[str] = frozenset()
    serving: list[dict[str, str]] = field(default_factory=list)
    """By rank: name -> path that answers."""
    links: dict[str, str] = field(default_factory=dict)
    """Of an engine with a repository: name -> what its directory leads to."""
    failed: dict[str, str] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    """Paths that it cannot load."""
    last_refuses: set[str] = field(default_factory=set)
    """Paths that the last rank alone cannot load."""
    numb: set[str] = field(default_factory=set)
    """Names whose requests fail although they are resident."""
    may_read: dict[str, float | None] = field(default_factory=dict)
    """Path -> when it was unloaded in this incarnation; None while it is resident."""
    loaded_over: list[str] = field(default_factory=list)
    """Names that were loaded over another revision of theirs where that mixes weights."""

    def __post_init__(self) -> None:
        self.serving = self.serving or [{} for _ in range(self.ranks)]

    def restart(self, now: float) -> None:
        """Lose everything but the directory of links."""
        self.serving = [{} for _ in range(self.ranks)]
        self.failed.clear()
        self.may_read.clear()
        self.numb.clear()
        self.asleep = False
        if self.started_at is not None:
            self.started_at = now

    def names(self) -> set[str]:
        """Return the names that some rank answers for."""
        return {name for rank in self.serving for name in rank}

    def load(self, action: Load, now: float) -> Outcome:
        """Load as vLLM does (no name twice) or as Triton does (in place, through a link)."""
        name, path = action.name, action.revision.path
        if path not in self.disk.whole and action.revision.verified:
            return REJECTED
        if self.capabilities.replaces_in_place:
            self.links[name] = path
            if path in self.refuses:
                if name not in self.names():
                    self.failed[name] = "it cannot be loaded"
                return REJECTED
            self.failed.pop(name, None)
        elif any(rank.get(name, path) != path for rank in self.serving):
            self.loaded_over.append(name)
            return REJECTED
        if path in self.refuses:
            return REJECTED
        if self.capacity is not None and len(self.names() | {name}) > self.capacity:
            return REJECTED
        refused = path in self.last_refuses
        for rank in self.serving[:-1] if refused else self.serving:
            if (before := rank.get(name)) is not None and before != path:
                self.may_read[before] = now
            rank[name] = path
        self.may_read[path] = None
        self.numb.discard(name)
        return REJECTED if refused else Done()

    def unload(self, name: str, now: float) -> Outcome:
        """Forget a name; one that is not known is no error."""
        for rank in self.serving:
            if (before := rank.pop(name, None)) is not None:
                self.may_read[before] = now
        self.failed.pop(name, None)
        return Done()

    def observe(self) -> EngineState:
        """Return the engine's own account."""
        residents = []
        for name in sorted(self.names() | set(self.failed)):
            paths = frozenset(rank[name] for rank in self.serving if name in rank)
            state = Residency.RESIDENT
            if not paths:
                state = Residency.FAILED
            elif len(paths) > 1 or any(name not in rank for rank in self.serving):
                state = Residency.PARTIAL
            if not self.capabilities.reports_paths:
                paths = frozenset({self.links[name]} if name in self.links else ())
            kind = kind_of(self.capabilities)
            residents.append(Resident(name=name, kind=kind, state=state, paths=paths))
        return EngineState(
            residents=tuple(residents),
            base_names=self.base_names,
            started_at=self.started_at,
            ranks=len(self.serving),
            asleep=self.asleep,
            limits=Limits(max_residents=self.capacity),
        )
