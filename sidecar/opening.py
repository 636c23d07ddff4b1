"""Opens what the flags name, and says in plain values what they mean to other rooms."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

from adapters import open_engine
from adapters.base import EngineAdapter, EngineOptions
from adapters.base import Limits as EngineLimits
from sidecar import __version__
from sidecar.artifacts.fetch import SourceOptions
from sidecar.artifacts.listing import MAX_FILES, Limits
from sidecar.core.accept import AcceptOptions
from sidecar.core.redact import redact_source
from sidecar.core.status import DocumentStatus, EngineStatus, Status, StoreStatus
from sidecar.drives import Clock
from sidecar.flags import UsageError
from sidecar.settings import Settings
from sidecar.sources.base import Source

log = logging.getLogger("model_sidecar.agent")


def open_adapter(settings: Settings) -> EngineAdapter:
    """Open the engine's adapter. Raises ``UsageError``."""
    metrics = settings.engine_metrics_url or (None,) * len(settings.engine_url)
    options = tuple(
        EngineOptions(
            url=url,
            metrics_url=metrics_url,
            api_key_file=settings.engine_api_key_file,
            ca_file=settings.engine_ca_file,
            load_timeout_seconds=settings.load_timeout_seconds,
            repository_dir=settings.repository_dir,
            path_prefix=settings.engine_path_prefix,
        )
        for url, metrics_url in zip(settings.engine_url, metrics, strict=True)
    )
    try:
        return open_engine(settings.engine, options)
    except (ValueError, LookupError) as error:
        raise UsageError(str(error)) from error


def open_source(settings: Settings) -> Source:
    """Open the source that the flags name. Raises ``UsageError``."""
    place = settings.config_dir or settings.config_file
    if place is not None:
        from sidecar.sources.file import FileSource

        return FileSource(
            Path(place),
            single=settings.config_file is not None,
            resync_seconds=settings.resync_seconds,
        )
    # The Kubernetes client costs half a second and 30 MB: only those who watch pay for it.
    from sidecar.sources.kube import KubeSource

    assert settings.configmap is not None
    kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig is not None else None
    try:
        return KubeSource(
            settings.configmap,
            settings.namespace or settings.pod_namespace or None,
            kubeconfig=kubeconfig,
            random=random.Random(),
        )
    except ValueError as error:
        raise UsageError(f"--configmap, --namespace: {error}") from error


def source_options(settings: Settings) -> SourceOptions:
    """Return what the flags say of the sources of artifacts."""
    return SourceOptions(
        allowed=settings.allow_source,
        allow_pickle=settings.allow_pickle,
        limits=Limits(max_files=MAX_FILES, max_bytes=settings.max_artifact_bytes),
        credentials_dir=Path(settings.credentials_dir),
        environment=settings.environment,
    )


def shown_urls(settings: Settings) -> tuple[str, ...]:
    """Return the engine's URLs without what grants access."""
    return tuple(redact_source(url) for url in settings.engine_url)


def accept_options(settings: Settings) -> AcceptOptions:
    """Return what the flags say of documents; a single file is a document whatever its name."""
    single = Path(settings.config_file).name if settings.config_file else None
    return AcceptOptions(
        config_key=settings.config_key or single,
        default_warmup=settings.warmup,
        unload_grace_seconds=settings.unload_grace_seconds,
    )


def limits(settings: Settings, said: EngineLimits) -> EngineLimits:
    """Return the engine's limits: what the flags say wins over what the engine said."""
    return replace(
        said,
        max_loras=settings.max_loras or said.max_loras,
        max_cpu_loras=settings.max_cpu_loras or said.max_cpu_loras,
        max_lora_rank=settings.max_lora_rank or said.max_lora_rank,
    )


def first_status(settings: Settings, source: str) -> Status:
    """Return what is published before the first cycle."""
    return Status(
        version=__version__,
        pod=settings.pod_name,
        ready=False,
        converged=False,
        reasons=("The agent has just started.",),
        cycle="",
        document=DocumentStatus(source=source),
        engine=EngineStatus(kind=settings.engine, urls=shown_urls(settings)),
        store=StoreStatus(max_bytes=settings.store_max_bytes),
    )


def open_clock() -> Clock:
    """Unix seconds that go on evenly whatever happens to the wall clock meanwhile."""
    offset = time.time() - time.monotonic()
    return Clock(
        now=lambda: time.monotonic() + offset,
        monotonic=time.monotonic,
        chance=random.random,
    )


def stop_on_signals() -> asyncio.Event:
    """Return an event that the first signal sets; the second ends the process at once."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            log.error("a second signal: ending at once")
            os._exit(1)
        log.info("%s: stopping", signal.Signals(number).name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop
