"""The webhook's certificate without anybody's help: made by a replica, shared by all.

A Secret holds the pair and the bundle that the API server shall trust; whoever writes it first
wins (resourceVersion), and the others take what is there. A new certificate is trusted, beside the
one before, before anybody shows it; so a renewal stops no pod.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sidecar.cluster.webhook.pairs import CertificateError, Facts, Pair, make_pair, read_facts
from sidecar.core.backoff import Severity, retry_at
from sidecar.errors import SidecarError
from sidecar.kube.client import KubeClient, open_client
from sidecar.kube.errors import KubeConflict, KubeNotFound

CALL_SECONDS: Final = 10.0
RENEW_SECONDS: Final = 30 * 86400.0
"""Before its end a certificate is renewed; a third of its life."""
SETTLE_SECONDS: Final = 2.0
"""For which API servers may still hold the configurations as they were."""
CONFLICT_SECONDS: Final = 1.0
CONFIGURATIONS: Final = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"

log = logging.getLogger("model_sidecar.webhook")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the Secret holds."""

    pair: Pair
    bundle: str
    """PEM certificates to trust: the pair's own, and the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time and chance, as the composition root gives them."""

    now: Callable[[], float]
    """Unix seconds."""
    chance: Callable[[], float]
    """A number from [0, 1)."""
    resync_seconds: float


def why_renew(facts: Facts | None, names: tuple[str, ...], now: float) -> str:
    """Return why a certificate must be made anew; empty where it need not."""
    if facts is None:
        return "there is none that can be read"
    if not facts.names.issuperset(names):
        return "it is for another service"
    if facts.not_after - now < RENEW_SECONDS:
        return f"it ends in {max(0.0, facts.not_after - now) / 86400:.0f} days"
    return ""


def read_secret(secret: Mapping[str, Any]) -> Shared | None:
    """Return what a Secret holds; None where it is not all there."""
    data = secret.get("data") or {}
    try:
        crt, key, bundle = (
            base64.b64decode(data[name], validate=True).decode("ascii")
            for name in ("tls.crt", "tls.key", "ca.crt")
        )
    except (KeyError, TypeError, ValueError):  # of base64 and of UTF-8, too
        return None
    # An authority that somebody put beside it stays trusted only as long as it names this pair.
    return Shared(pair=Pair(certificate=crt, key=key), bundle=bundle) if crt in bundle else None


class SelfSigned:
    """Keeps pair, Secret and configurations together, one look at a time."""

    def __init__(
        self,
        name: str,
        namespace: str | None,
        *,
        kubeconfig: Path | None,
        use: Callable[[Pair], None],
        timing: Timing,
    ) -> None:
        """``name`` is that of the Service, of the Secret and of both configurations.

        ``use`` shows a pair to new connections, and raises ``CertificateError`` or ``OSError``
        where it cannot. Without ``namespace``: that of the credentials.
        """
        self._name = name
        self._namespace = namespace
        self._kubeconfig = kubeconfig
        self._use = use
        self._timing = timing
        self._in_use: Pair | None = None
        self._trusted = ""
        """The bundle that was in both configurations at the last look."""
        self._facts: tuple[Pair | None, Facts | None] = (None, None)
        self._trouble = ""
        self.settled = asyncio.Event()
        """Set for good when the API server trusts what is shown."""

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again until ``stop``; what fails is told once, and tried again."""
        failures = 0
        while not stop.is_set():
            try:
                delay = await self._keep_once()
                failures, self._trouble = 0, ""
            except KubeConflict:
                # Another replica was faster: what it wrote is read next.
                delay = CONFLICT_SECONDS * self._timing.chance()
            except (SidecarError, OSError) as error:
                failures += 1
                jitter = self._timing.chance()
                delay = retry_at(failures, Severity.TRANSIENT, now=0.0, jitter=jitter)
                # Pods wait for it: never later than the next look would be.
                delay = min(delay, self._timing.resync_seconds)
                self._tell(f"the certificate cannot be looked after: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await stop.wait()

    async def _keep_once(self) -> float:
        """Take one look; return the seconds until the next one. Raises ``SidecarError``."""
        async with open_client(self._kubeconfig) as client:
            namespace = self._namespace or client.namespace
            shared = await self._read_or_renew(client, namespace)
            trusted = await self._trust(client, shared.bundle)
        known = self._trusted == shared.bundle
        self._trusted = shared.bundle if trusted else ""
        if shared.pair != self._in_use and (known or self._in_use is None):
            await self._show(shared.pair)
            log.info("the certificate of secret %s/%s is in use", namespace, self._name)
        if not trusted or shared.pair != self._in_use:
            return SETTLE_SECONDS
        self.settled.set()
        return self._timing.resync_seconds

    async def _show(self, pair: Pair) -> None:
        try:
            await asyncio.to_thread(self._use, pair)
        except CertificateError:
            # The next look finds none that can be read, and makes another.
            self._facts = (pair, None)
            raise
        self._in_use = pair

    async def _read_or_renew(self, client: KubeClient, namespace: str) -> Shared:
        path = f"/api/v1/namespaces/{namespace}/secrets/{self._name}"
        secret = await client.get_json(path, {}, timeout=CALL_SECONDS)
        names = tuple(f"{self._name}.{namespace}.svc{end}" for end in ("", ".cluster.local"))
        found = read_secret(secret)
        facts = await self._read_facts(found)
        reason = why_renew(facts, names, self._timing.now())
        if found is not None and not reason:
            return found
        pair = await make_pair(names)
        # What replicas show until they look stays trusted.
        shown = [one for one in (self._in_use, found.pair if found and facts else None) if one]
        bundle = "".join(dict.fromkeys([pair.certificate, *(one.certificate for one in shown)]))
        texts = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": bundle}
        data = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
        body = {**secret, "data": {**(secret.get("data") or {}), **data}}
        await client.send_json("PUT", path, body, timeout=CALL_SECONDS)
        log.info("secret %s/%s: a new certificate, because %s", namespace, self._name, reason)
        return Shared(pair=pair, bundle=bundle)

    async def _read_facts(self, shared: Shared | None) -> Facts | None:
        if shared is None:
            return None
        if self._facts[0] != shared.pair:
            try:
                self._facts = (shared.pair, await read_facts(shared.pair.certificate))
            except CertificateError as error:
                self._tell(f"the secret's certificate cannot be used: {error}")
                self._facts = (shared.pair, None)
        return self._facts[1]

    async def _trust(self, client: KubeClient, bundle: str) -> bool:
        """Write the bundle into both configurations; tell whether it was in both before."""
        encoded = base64.b64encode(bundle.encode()).decode()
        trusted = True
        for kind in CONFIGURATIONS:
            path = f"{_ADMISSION}/{kind}/{self._name}"
            try:
                found = await client.get_json(path, {}, timeout=CALL_SECONDS)
            except KubeNotFound:
                # One of the two alone is a choice that people may make.
                log.debug("there is no %s %s", kind, self._name)
                continue
            webhooks = found.get("webhooks") or []
            if all(one["clientConfig"].get("caBundle") == encoded for one in webhooks):
                continue
            for one in webhooks:
                one["clientConfig"]["caBundle"] = encoded
            await client.send_json("PUT", path, found, timeout=CALL_SECONDS)
            trusted = False
        return trusted

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("%s", trouble)
