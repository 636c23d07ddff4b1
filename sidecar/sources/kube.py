"""Documents from one ConfigMap, through the Kubernetes API: list it, then watch it.

A plain list, not a streaming one (``sendInitialEvents``): for one object it is one cheap request
that every server knows. Every failure and every watch that ends before its time leads to a new
list, so nothing depends on having seen each event. A ConfigMap counts as UNREADABLE when reading
it has failed for ``GRACE_SECONDS``, or when it was never read: a blip of an established watch says
nothing about the document. Where only the watch fails, the list is repeated with backoff.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import aclosing
from pathlib import Path
from random import Random

from sidecar.core.snapshot import Snapshot
from sidecar.kube.client import KubeClient, open_client
from sidecar.kube.errors import KubeDenied, KubeError
from sidecar.sources.base import ChangesOnly, Publish, backoff_seconds, unreadable
from sidecar.sources.configmap import Seen, parse_event, parse_list, snapshot_of, split_lines

LIST_TIMEOUT_SECONDS = 15.0
WATCH_SECONDS = 300.0
"""The longest watch; each takes a random part between 0.8 and 1 of it, and then reads its
credentials anew."""
WATCH_MARGIN_SECONDS = 15.0
"""The server ends a watch by itself; one that goes on for longer than this is half open."""
STEADY_SECONDS = 10.0
"""A turn of this length ends a row of failures: the next backoff begins at its shortest."""
GRACE_SECONDS = 10.0

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

_log = logging.getLogger(__name__)


class KubeSource:
    """``--configmap NAME``, with get, list and watch on that one ConfigMap and nothing more.

    ``namespace`` None means the ServiceAccount's own, or the kubeconfig context's. ``random``
    spreads watches and retries of many pods. Raises ``ValueError`` for impossible names.
    """

    def __init__(
        self, name: str, namespace: str | None, *, kubeconfig: Path | None, random: Random
    ) -> None:
        for one in (name, namespace):
            if one is not None and not NAME.fullmatch(one):
                raise ValueError(f"{one!r} cannot be the name of a ConfigMap or namespace")
        self._name = name
        self._namespace = namespace
        self._kubeconfig = kubeconfig
        self._random = random
        self._troubled_since: float | None = None
        self._last_trouble = ""

    def describe(self) -> str:
        """Return ``configmap NAMESPACE/NAME``; without the namespace until it is known."""
        place = f"{self._namespace}/{self._name}" if self._namespace else self._name
        return f"configmap {place}"

    async def read_once(self) -> Snapshot:
        """List once."""
        started = time.monotonic()
        try:
            async with open_client(self._kubeconfig) as client:
                return self._snapshot(await self._list(client), started)
        except KubeError as error:
            return unreadable(self.describe(), self._explain(error), seen_at=started)

    async def run(self, publish: Publish) -> None:
        """Publish the first read and every one that differs, until cancelled."""
        tell = ChangesOnly(publish)
        version: str | None = None
        failures = 0
        while True:
            started = time.monotonic()
            try:
                version = await self._turn(tell, version)
            except KubeError as error:
                version = None
                self._report(tell, error)
            steady = time.monotonic() - started >= STEADY_SECONDS
            if steady:
                self._last_trouble = ""
            if version is not None:
                failures = 0
                continue
            failures = 1 if steady else failures + 1
            await _pause(backoff_seconds(failures, self._random.random()))

    async def _turn(self, tell: ChangesOnly, version: str | None) -> str | None:
        """Read unless ``version`` is known, then watch; return where the next watch may begin."""
        async with open_client(self._kubeconfig) as client:
            if version is None:
                started = time.monotonic()
                seen = await self._list(client)
                tell(self._snapshot(seen, started))
                self._troubled_since = None
                version = seen.resource_version
            return await self._watch(client, tell, version)

    async def _list(self, client: KubeClient) -> Seen:
        query = {"fieldSelector": f"metadata.name={self._name}"}
        answer = await client.get_json(self._path(client), query, timeout=LIST_TIMEOUT_SECONDS)
        return parse_list(answer, self._name)

    async def _watch(self, client: KubeClient, tell: ChangesOnly, version: str) -> str | None:
        """Follow events until the watch ends; None when it ended early and proves nothing."""
        seconds = max(1, int(WATCH_SECONDS * (0.8 + 0.2 * self._random.random())))
        query = {
            "fieldSelector": f"metadata.name={self._name}",
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        started = time.monotonic()
        deadline = seconds + WATCH_MARGIN_SECONDS
        async with (
            client.open_stream(self._path(client), query, timeout=deadline) as chunks,
            aclosing(split_lines(chunks)) as lines,
        ):
            async for line in lines:
                seen_at = time.monotonic()
                seen = parse_event(line)
                version = seen.resource_version
                if not seen.bookmark:
                    tell(self._snapshot(seen, seen_at))
        return version if time.monotonic() - started >= seconds * 0.9 else None

    def _path(self, client: KubeClient) -> str:
        self._namespace = self._namespace or client.namespace
        return f"/api/v1/namespaces/{self._namespace}/configmaps"

    def _snapshot(self, seen: Seen, seen_at: float) -> Snapshot:
        return snapshot_of(seen, self.describe(), seen_at=seen_at)

    def _report(self, tell: ChangesOnly, error: KubeError) -> None:
        """Log a new trouble, and publish one that keeps us from reading."""
        now = time.monotonic()
        reason = self._explain(error)
        if reason != self._last_trouble:
            self._last_trouble = reason
            _log.warning("%s: %s", self.describe(), reason)
        if self._troubled_since is None:
            self._troubled_since = now
        if not tell.started or now - self._troubled_since >= GRACE_SECONDS:
            tell(unreadable(self.describe(), reason, seen_at=now))

    def _explain(self, error: KubeError) -> str:
        if isinstance(error, KubeDenied) and error.forbidden:
            place = f"configmaps/{self._name} in namespace {self._namespace}"
            return f"{error}; needs get, list, watch on {place}"
        return str(error)


async def _pause(seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()
    except TimeoutError:
        return
