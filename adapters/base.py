"""The engine port: what every engine can be asked, and the words for what it answers.

One attempt a call, always with a deadline, never a retry, never a swallowed error. What an engine
cannot do is said by ``Capabilities``, where its figures stand by ``MetricMap``: differences are
data, and nobody outside this package asks which engine it is.

Errors, and the reaction each calls for::

    EngineError
    |-- EngineUnavailable    nobody answers                  -> retry
    |-- EngineTimeout        the outcome is unknown          -> observe first
    |-- EngineBusy           it asks to come back later      -> retry later
    |-- EngineRejected       it read the request and said no -> retry when something changed
    |   `-- EngineUnsupported  it cannot do this as started  -> the same; the message says what
    `-- EngineProtocolError  it answered something else      -> loud, slow retry
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable


class EngineError(Exception):
    """Something between us and the engine went wrong; the message is one plain sentence."""

    retryable: ClassVar[bool] = True


class EngineUnavailable(EngineError):
    """The engine does not answer (refused, reset, 502, 503 while starting)."""


class EngineTimeout(EngineError):
    """The deadline passed; what the engine did is unknown."""


class EngineBusy(EngineError):
    """The engine asks to come back later (429, or a lock it holds)."""


class EngineRejected(EngineError):
    """The engine understood and refused; the same request would be refused again."""

    retryable = False


class EngineUnsupported(EngineRejected):
    """The engine, as it was started, has no such call."""


class EngineProtocolError(EngineError):
    """The engine answered something that its documentation does not allow."""


class Kind(StrEnum):
    """What a target is."""

    LORA = "lora"
    MODEL = "model"


class Residency(StrEnum):
    """How the engine holds one target, in the engine's own account."""

    RESIDENT = "resident"
    LOADING = "loading"
    UNLOADING = "unloading"
    FAILED = "failed"
    PARTIAL = "partial"
    """Ranks disagree: some lack it, or hold another revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the engine is asked to load or unload."""

    name: str
    kind: Kind
    parameters: Mapping[str, object] = field(default_factory=dict)
    """The entry's ``parameters``, still unchecked; each adapter types its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One target in the engine's account."""

    name: str
    kind: Kind
    state: Residency = Residency.RESIDENT
    paths: frozenset[str] = frozenset()
    """Where it was loaded from, as the agent sees the path; one a rank at most. Empty where the
    engine does not say."""
    reason: str = ""
    """The engine's own words for a state that is not RESIDENT."""
    aliases: frozenset[tuple[str, str]] = frozenset()
    """One of ``paths``, and the engine's own name of it, where the agent may use either: a source
    can be told in the engine's view. See ``known_as``."""

    def known_as(self, *told: str) -> Resident:
        """Return it with each path as the agent was told it, where that is the same place."""
        paths = {own if own in told else path for path, own in self.aliases}
        either = {name for alias in self.aliases for name in alias}
        return replace(self, paths=(self.paths - either) | paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine said it can hold; None where it does not say."""

    max_loras: int | None = None
    """GPU slots."""
    max_cpu_loras: int | None = None
    max_lora_rank: int | None = None
    max_residents: int | None = None
    """Targets that can be resident at once, where the engine refuses more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """One successful look at the engine."""

    residents: tuple[Resident, ...] = ()
    base_names: frozenset[str] = frozenset()
    """Names that the engine serves by itself (base models); no target can take one."""
    base_model: str | None = None
    """The served base model's first name."""
    base_model_path: str | None = None
    """Where the base model was loaded from: a path or a hub name."""
    started_at: float | None = None
    """Unix time at which the engine process started, where it says so; the last one of ranks."""
    oldest_started_at: float | None = None
    """The start of the rank that lives longest, 0 where some rank does not say. None: there is one
    process, and ``started_at`` is its start."""
    ranks: int = 1
    asleep: bool = False
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can be asked to do."""

    kinds: frozenset[Kind]
    serves_alone: bool
    """It answers requests with no target of ours (a base model)."""
    replaces_in_place: bool
    """Loading over a resident target swaps revisions without a gap. Otherwise: unload, load."""
    reports_paths: bool
    """``observe`` says from which path each resident was loaded."""
    warms: bool = False
    """``warm`` is possible."""
    sleeps: bool = False
    loras_after_base: bool = False
    """Clients ask for a LoRA as ``<base model>:<LoRA>``; its name alone is not a model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A selection on the engine's metrics page: a family and label values that must match."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """An empty value is matched by a series without the label, too."""
    shared_by: tuple[str, ...] = ()
    """Labels that tell apart processes which report the same requests (tensor-parallel ranks): of
    series that are alike in every other label, the greatest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyTime:
    """Cumulative time that requests took, whose growth is the mean number of running requests.

    For engines with counters only (Little's law). All of it is added up.
    """

    microseconds: tuple[Series, ...] = ()
    seconds: tuple[Series, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """Where block size and block count of the KV cache stand.

    Either two labels of one info family, or two gauges.
    """

    info: Series | None = None
    block_size_label: str = "block_size"
    num_blocks_label: str = "num_gpu_blocks"
    block_size: Series | None = None
    num_blocks: Series | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricMap:
    """Where an engine's page says what the picker wants to know.

    Each tuple lists alternatives, newest name first; the first that is on the page is read, its
    matching series summed (``kv_usage``: the greatest). An empty tuple: the engine has no such
    figure and the picker page says 0.
    """

    queued: tuple[Series, ...] = ()
    running: tuple[Series, ...] = ()
    running_time: BusyTime | None = None
    """Used where none of ``running`` is on the page."""
    model_label: str = ""
    """The label that tells models apart, where one page is of several: ``queued``, ``running`` and
    ``running_time`` are then chosen for each model. Empty: the page is of one."""
    kv_usage: tuple[Series, ...] = ()
    """Fractions, 0 to 1."""
    cache: tuple[CacheInfo, ...] = ()
    lora_activity: Series | None = None
    """A family of vLLM's shape: labels ``running_lora_adapters``, ``waiting_lora_adapters``,
    ``max_lora``; the sample with the greatest value is the newest."""
    started_at: Series | None = None
    present: tuple[str, ...] = ()
    """Families on every page of this engine, also while it serves nothing: with one of them
    there, missing figures are zeros. A page with none of these and no figure is not understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Everything an adapter may need to reach one engine (one rank)."""

    url: str
    metrics_url: str | None = None
    """None: the engine's usual place."""
    api_key_file: str | None = None
    """Read again at each use, so that it may rotate."""
    ca_file: str | None = None
    observe_timeout_seconds: float = 5.0
    load_timeout_seconds: float | None = None
    """None: 120 for a LoRA, 1800 for a model."""
    repository_dir: str | None = None
    """Where an engine with a model repository looks for models."""
    path_prefix: tuple[str, str] | None = None
    """(FROM, TO): a path below FROM in the agent is below TO in the engine."""


class EngineAdapter(Protocol):
    """One engine process, or the ranks of one. Every method raises ``EngineError`` only."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def metric_map(self) -> MetricMap: ...

    async def observe(self) -> EngineState:
        """Look once; raise when it cannot see (an empty state is a statement)."""
        ...

    async def load(self, target: Target, path: str) -> None:
        """Make the engine hold ``target`` from ``path`` (as the agent sees it)."""
        ...

    async def unload(self, target: Target) -> None:
        """Make the engine forget ``target``; a name it does not know is no error."""
        ...

    async def warm(self, target: Target) -> None:
        """Send one tiny request for ``target`` and return when it was answered."""
        ...

    async def scrape(self) -> tuple[bytes, ...]:
        """Return the engine's metrics page, one a rank."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class FiguresAdapter(Protocol):
    """An adapter of an engine that can be asked for less than its whole page; optional."""

    async def scrape_figures(self) -> tuple[bytes, ...]:
        """Return, one a rank, a page with at least the families that ``metric_map`` names."""
        ...


@runtime_checkable
class RanksAdapter(Protocol):
    """An adapter of several processes, which do not answer at the same time."""

    @property
    def answered_at(self) -> float:
        """When the first of the pages that the last scrape returned was complete, on the event
        loop's clock."""
        ...


class EngineFactory(Protocol):
    """What the engine table and entry points name: a class that opens adapters."""

    def open(self, options: EngineOptions) -> EngineAdapter: ...


def load_timeout_seconds(options: EngineOptions, kind: Kind) -> float:
    """Return the deadline of one load call."""
    if options.load_timeout_seconds is not None:
        return options.load_timeout_seconds
    return 120.0 if kind is Kind.LORA else 1800.0


def engine_path(options: EngineOptions, path: str) -> str:
    """Translate a path of the agent into one of the engine."""
    return _translate(path, options.path_prefix)


def agent_path(options: EngineOptions, path: str) -> str:
    """Translate a path of the engine into one of the agent."""
    prefix = options.path_prefix
    return _translate(path, (prefix[1], prefix[0]) if prefix else None)


def path_aliases(options: EngineOptions, path: str) -> frozenset[tuple[str, str]]:
    """Return what ``Resident.aliases`` says of one path of the engine.

    A path that ``engine_path`` leaves alone may have been told as it is.
    """
    ours = agent_path(options, path)
    ambiguous = ours != path and engine_path(options, path) == path
    return frozenset({(ours, path)} if ambiguous else ())


def _translate(path: str, prefix: tuple[str, str] | None) -> str:
    if prefix is None:
        return path
    source, target = prefix[0].rstrip("/"), prefix[1].rstrip("/")
    if path == source or path.startswith(source + "/"):
        return target + path[len(source) :]
    return path
