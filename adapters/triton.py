"""Triton under explicit model control: models over its repository API.

A revision is published as a link in the model repository and loaded over the old one, which serves
until the new one is up. Triton answers 200 and keeps the old model when the new tree is not newer
(see ``adapters.repository``), and its index forgets a model whose directory is gone even while it
serves: links are removed last.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from adapters.base import (
    Capabilities,
    EngineError,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineState,
    EngineTimeout,
    EngineUnavailable,
    EngineUnsupported,
    Kind,
    Residency,
    Resident,
    Target,
    agent_path,
    engine_path,
    load_timeout_seconds,
    path_aliases,
)
from adapters.http import MAX_PAGE_BYTES, EngineHttp, check_status, cut
from adapters.repository import Link, LinkRepository
from adapters.triton_client import ENGINE, TritonClient
from adapters.triton_metrics import TRITON_METRICS

METRICS_PORT = 8002
NAME = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*")
"""Triton decodes no percent escapes in a URL, so other names cannot be asked for."""
FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.25

_STATES = {
    "READY": Residency.RESIDENT,
    "LOADING": Residency.LOADING,
    "UNLOADING": Residency.UNLOADING,
    "UNAVAILABLE": Residency.FAILED,
}
_RANKING = tuple(_STATES.values())
"""Of several versions of one name the first of these tells."""


class TritonAdapter:
    """One Triton server and the repository it polls."""

    capabilities = Capabilities(
        kinds=frozenset({Kind.MODEL}),
        serves_alone=False,
        replaces_in_place=True,
        reports_paths=False,
    )
    metric_map = TRITON_METRICS

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._http = EngineHttp(ENGINE, options)
        self._metrics_url = options.metrics_url or _metrics_url(options.url)
        self._client = TritonClient(options)
        self._repository = (
            LinkRepository(options.repository_dir, options.path_prefix)
            if options.repository_dir is not None
            else None
        )

    @classmethod
    def open(cls, options: EngineOptions) -> TritonAdapter:
        """Open an adapter; nothing is sent yet."""
        return cls(options)

    async def observe(self) -> EngineState:
        """List what Triton says about every name of its repository."""
        async with self._client.asking("a look at it", self._options.observe_timeout_seconds):
            # The strict readiness fails for good after one failed load; liveness does not.
            if not await self._client.is_live():
                raise EngineUnavailable("Triton says that it is not live")
            residents = await self._index()
        links = await asyncio.to_thread(self._links, residents)
        return EngineState(
            residents=tuple(
                self._resident(name, state, reason, links.get(name))
                for name, (state, reason) in sorted(residents.items())
            )
        )

    async def load(self, target: Target, path: str) -> None:
        """Link the revision, and load it over what serves under this name, if anything does.

        When Triton refuses and an old one serves on, the link leads to that again. Otherwise the
        new one stays: after a timeout nobody knows, and a refused load is told by the index, with
        its reason, only while the name is in the repository.
        """
        repository = self._checked(target)
        config = _config(target)
        with _disk_errors():
            previous = await asyncio.to_thread(
                repository.publish, target.name, path, engine_path(self._options, path)
            )
        try:
            await self._load(target.name, config)
        except (EngineTimeout, EngineUnavailable):
            raise
        except EngineError as error:
            if isinstance(error, EngineUnsupported) or await self._may_serve(target.name):
                with _disk_errors():
                    await asyncio.to_thread(repository.restore, target.name, previous)
            raise

    async def unload(self, target: Target) -> None:
        """Unload, wait until running requests are answered, then remove the link."""
        repository = self._checked(target)
        what = f"the unloading of {target.name!r}"
        async with self._client.asking(what, self._load_seconds):
            await self._client.unload(target.name)
            await self._wait_gone(target.name)
        with _disk_errors():
            await asyncio.to_thread(repository.remove, target.name)

    async def warm(self, target: Target) -> None:
        """Raise: a request needs tensors that only the model's owner knows."""
        raise EngineUnsupported(
            f"Triton cannot warm {target.name!r} from outside: use model_warmup in its config"
        )

    async def scrape(self) -> tuple[bytes, ...]:
        """Return the page of this server."""
        answer = await self._http.get(
            self._metrics_url,
            timeout=self._options.observe_timeout_seconds,
            max_bytes=MAX_PAGE_BYTES,
        )
        check_status(ENGINE, "GET /metrics", answer)
        return (answer.body,)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._client.aclose()

    @property
    def _load_seconds(self) -> float:
        return load_timeout_seconds(self._options, Kind.MODEL)

    async def _load(self, name: str, config: str | None) -> None:
        async with self._client.asking(f"the loading of {name!r}", self._load_seconds):
            await self._client.load(name, config)

    async def _may_serve(self, name: str) -> bool:
        try:
            async with self._client.asking("a look at it", self._options.observe_timeout_seconds):
                state, _ = (await self._index()).get(name, (Residency.FAILED, ""))
        except EngineError:
            return True
        return state is not Residency.FAILED

    async def _wait_gone(self, name: str) -> None:
        pause = FIRST_PAUSE_SECONDS
        while (await self._index()).get(name, (Residency.FAILED, ""))[0] is not Residency.FAILED:
            await asyncio.sleep(pause)  # noqa: TID251 - Triton tells nobody: one can only ask.
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _index(self) -> dict[str, tuple[Residency, str]]:
        return parse_index(await self._client.index())

    def _links(self, names: Mapping[str, tuple[Residency, str]]) -> dict[str, Link]:
        if self._repository is None:
            return {}
        links = {
            name: self._repository.target(name)
            for name, (state, _) in names.items()
            if state is Residency.RESIDENT
        }
        return {name: link for name, link in links.items() if link is not None}

    def _resident(self, name: str, state: Residency, reason: str, link: Link | None) -> Resident:
        resident = Resident(name=name, kind=Kind.MODEL, state=state, reason=reason)
        if link is None:
            return resident
        if link.relative:
            return replace(resident, paths=frozenset({link.path}))
        return replace(
            resident,
            paths=frozenset({agent_path(self._options, link.path)}),
            aliases=path_aliases(self._options, link.path),
        )

    def _checked(self, target: Target) -> LinkRepository:
        if target.kind is not Kind.MODEL:
            raise EngineUnsupported(f"Triton loads models only; {target.name!r} is a {target.kind}")
        if NAME.fullmatch(target.name) is None:
            raise EngineRejected(
                f"Triton cannot be asked for the name {target.name!r}:"
                " use letters, digits, and _ - . ~ only, with no dot in front"
            )
        if self._repository is None:
            raise EngineUnsupported(
                "Triton needs --repository-dir: the directory of its --model-repository"
            )
        return self._repository


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise EngineRejected(f"the model repository cannot be changed: {exc}") from exc


def _config(target: Target) -> str | None:
    """Return the configuration that replaces the one on disk, as JSON."""
    for name in target.parameters:
        if name != "config":
            raise EngineRejected(f"{ENGINE} takes no parameter {name!r}; it takes: config")
    config = target.parameters.get("config")
    if config is None:
        return None
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except ValueError as exc:
            raise EngineRejected(f"parameter 'config' is no JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise EngineRejected("parameter 'config' must be a mapping, or JSON text of one")
    try:
        return json.dumps(config)
    except (TypeError, ValueError) as exc:
        raise EngineRejected(f"parameter 'config' cannot be written as JSON: {exc}") from exc


def parse_index(answer: object) -> dict[str, tuple[Residency, str]]:
    """Return state and reason of every name that Triton holds, or failed to hold.

    Raises ``EngineProtocolError`` for anything that is no index.
    """
    if not isinstance(answer, list):
        raise EngineProtocolError(f"{ENGINE} answered with no repository index")
    found: dict[str, tuple[Residency, str]] = {}
    for entry in answer:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise EngineProtocolError(f"{ENGINE} answered with a repository index without names")
        word, reason = entry.get("state"), str(entry.get("reason", ""))
        # A directory that was never loaded has no state; one that was, the reason "unloaded".
        if not word or (word == "UNAVAILABLE" and reason in ("", "unloaded")):
            continue
        if word not in _STATES:
            raise EngineProtocolError(f"{ENGINE} calls the state of {name!r} {cut(str(word))!r}")
        state = _STATES[word]
        if name not in found or _RANKING.index(state) < _RANKING.index(found[name][0]):
            found[name] = (state, "" if state is Residency.RESIDENT else cut(reason))
    return found


def _metrics_url(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    literal = f"[{host}]" if ":" in host else host
    return f"http://{literal}:{METRICS_PORT}/metrics"
