"""The fake engine itself: what it holds, what it can be told to do wrong, and its deaths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from adapters.base import Kind
from adapters.fake.files import UnreadableError, newest_nanoseconds, read_lora, read_model


class Refusal(Enum):
    """Why a fake engine says no; each face has its own status for it."""

    NO_FILES = "no files"
    HELD = "held"
    BASE_NAME = "base name"
    UNKNOWN = "unknown"
    FAILED = "failed"
    BROKEN = "broken"


class RefusedError(Exception):
    """The engine answers no, with these words."""

    def __init__(self, refusal: Refusal, words: str) -> None:
        super().__init__(words)
        self.refusal = refusal


class DownError(Exception):
    """The engine process is gone: nobody answers."""


@dataclass
class Faults:
    """What the engine is told to do wrong; change it at any time."""

    load_seconds: float = 0.0
    """How long each load takes."""
    unload_seconds: float = 0.0
    """How long a model is unloading after the answer."""
    reject: dict[str, str] = field(default_factory=dict)
    """Name to words: a load of it is refused."""
    hidden: set[str] = field(default_factory=set)
    """Residents that the engine serves and does not list."""
    broken: bool = False
    """Every answer is an error without words."""
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """One target in the engine's memory."""

    name: str
    kind: Kind
    path: str
    digest: str
    """Of the files as they were when they were read."""
    newest: int = 0


class FakeEngine:
    """One engine process after another, in the memory of this one."""

    def __init__(
        self,
        *,
        base_model: str = "base",
        base_model_path: str = "/models/base",
        max_loras: int = 4,
        max_cpu_loras: int = 16,
        max_lora_rank: int = 64,
        faults: Faults | None = None,
    ) -> None:
        self.base_model = base_model
        self.base_model_path = base_model_path
        self.max_loras = max_loras
        self.max_cpu_loras = max_cpu_loras
        self.max_lora_rank = max_lora_rank
        self.faults = faults or Faults()
        self.rereads = True
        """It reads a LoRA again that gave way to others in host memory, as vLLM does."""
        self.held: dict[str, Held] = {}
        self.loading: set[str] = set()
        self.failed: dict[str, str] = {}
        self.unloaded: dict[str, float] = {}
        """Models that were held: until when (monotonic) they are unloading."""
        self.lora_activity: dict[tuple[str, ...], float] = {}
        """Combinations of LoRAs that had requests at once, with the time of the last change."""
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.calls: list[str] = []
        """Every load and unload that was asked for, in order, as ``load name``."""
        self.alive = True
        self.started_at = time.time_ns() / 1e9
        self.on_death: list[Callable[[], None]] = []
        self._active: list[str] = []
        self._cached: list[str] = []
        self._answering = asyncio.Event()
        self._answering.set()

    def hang(self) -> None:
        """From now on answer nothing, until ``release``."""
        self._answering.clear()

    def release(self) -> None:
        """Answer again, also what was asked meanwhile."""
        self._answering.set()

    def kill(self) -> None:
        """End the process: what it held is gone."""
        self.alive = False
        self.held.clear()
        self.loading.clear()
        self.failed.clear()
        self.unloaded.clear()
        self.lora_activity.clear()
        self._active.clear()
        self._cached.clear()
        for notify in self.on_death:
            notify()

    def restart(self) -> None:
        """Start the next process, later than any before."""
        if self.alive:
            self.kill()
        self.started_at = max(time.time_ns() / 1e9, self.started_at + 0.01)
        self.alive = True

    async def answer(self) -> None:
        """Wait until the engine answers at all; raise ``DownError``, or ``RefusedError``."""
        await self._answering.wait()
        if not self.alive:
            raise DownError("connection refused")
        if self.faults.broken:
            raise RefusedError(Refusal.BROKEN, "Internal Server Error")

    async def load_lora(self, name: str, path: str) -> None:
        """Load a LoRA, as vLLM does: never over one that is held."""
        await self._begin("load", name)
        if name == self.base_model:
            raise RefusedError(
                Refusal.BASE_NAME, f"The lora adapter '{name}' conflicts with a served base model."
            )
        if name in self.held:
            raise RefusedError(Refusal.HELD, f"The lora adapter '{name}' has already been loaded.")
        digest = await self._read(name, lambda: read_lora(Path(path), self.max_lora_rank))
        self.held[name] = Held(name, Kind.LORA, path, digest)
        self._use_cache(name)

    async def load_model(self, name: str, path: str) -> None:
        """Load a model over the one that is held, as Triton does: only from a newer tree."""
        await self._begin("load", name)
        directory = Path(path)
        try:
            newest = await asyncio.to_thread(newest_nanoseconds, directory)
        except OSError as exc:
            raise RefusedError(
                Refusal.NO_FILES, f"failed to load '{name}', failed to poll from model repository"
            ) from exc
        held = self.held.get(name)
        if held is not None and newest <= held.newest:
            return
        self.loading.add(name)
        try:
            digest = await self._read(name, lambda: read_model(directory))
        except RefusedError as exc:
            self.failed[name] = str(exc)
            raise
        finally:
            self.loading.discard(name)
        self.failed.pop(name, None)
        self.unloaded.pop(name, None)
        self.held[name] = Held(name, Kind.MODEL, path, digest, newest)

    async def unload(self, name: str) -> None:
        """Forget a target; ``RefusedError`` when the name is unknown."""
        await self._begin("unload", name)
        held = self.held.pop(name, None)
        if held is None:
            raise RefusedError(Refusal.UNKNOWN, f"The lora adapter '{name}' cannot be found.")
        if held.kind is Kind.MODEL:
            self.unloaded[name] = time.monotonic() + self.faults.unload_seconds

    async def serve(self, name: str) -> str:
        """Answer one request with the digest of the bytes that answer it."""
        await self.answer()
        if name == self.base_model:
            return f"base {name}"
        held = self.held.get(name)
        if held is None:
            raise RefusedError(Refusal.UNKNOWN, f"The model `{name}` does not exist.")
        if held.kind is Kind.LORA:
            self._active.append(name)
            self._note_activity()
            try:
                await self._bring_back(held)
            finally:
                if name in self._active:
                    self._active.remove(name)
                    self._note_activity()
        return self.held[name].digest

    def listed(self) -> tuple[Held, ...]:
        """Return what the engine says it holds."""
        return tuple(one for one in self.held.values() if one.name not in self.faults.hidden)

    def is_unloading(self, name: str) -> bool:
        """Tell whether a model still drains after its unload was answered."""
        return time.monotonic() < self.unloaded.get(name, 0.0)

    async def _begin(self, call: str, name: str) -> None:
        self.calls.append(f"{call} {name}")
        await self.answer()

    async def _read(self, name: str, read: Callable[[], str]) -> str:
        started_at = self.started_at
        if self.faults.load_seconds > 0:
            await asyncio.sleep(self.faults.load_seconds)  # noqa: TID251 - the load is to be slow
        if name in self.faults.reject:
            raise RefusedError(Refusal.FAILED, self.faults.reject[name])
        try:
            digest = await asyncio.to_thread(read)
        except FileNotFoundError as exc:
            raise RefusedError(
                Refusal.NO_FILES, f"Loading lora {name} failed: No adapter found for <path>"
            ) from exc
        except (UnreadableError, OSError) as exc:
            raise RefusedError(Refusal.FAILED, str(exc)) from exc
        if not self.alive or self.started_at != started_at:
            raise DownError("the engine died while it loaded")
        return digest

    async def _bring_back(self, held: Held) -> None:
        """Read an evicted LoRA again; without its files the whole engine dies, as vLLM's does."""
        if held.name not in self._cached and self.rereads:
            try:
                await asyncio.to_thread(read_lora, Path(held.path), self.max_lora_rank)
            except (OSError, UnreadableError) as exc:
                self.kill()
                raise DownError("EngineCore encountered an issue") from exc
        self._use_cache(held.name)

    def _use_cache(self, name: str) -> None:
        if name in self._cached:
            self._cached.remove(name)
        self._cached.append(name)
        del self._cached[: -self.max_cpu_loras]

    def _note_activity(self) -> None:
        self.lora_activity[tuple(sorted(set(self._active)))] = time.time_ns() / 1e9
