"""The admission server from start to end: sockets, certificate, signals, an ordered stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from sidecar import __version__, logs
from sidecar.cluster.inject import Options
from sidecar.cluster.webhook.app import WebhookApp
from sidecar.cluster.webhook.documents import review_configmap
from sidecar.cluster.webhook.files import PairFiles
from sidecar.cluster.webhook.pairs import CertificateError, Pair, make_pair
from sidecar.cluster.webhook.pods import review_pod
from sidecar.cluster.webhook.self_signed import SelfSigned, Timing
from sidecar.cluster.webhook.settings import WebhookSettings
from sidecar.flags import UsageError
from sidecar.opening import open_clock, stop_on_signals
from sidecar.server import HttpServer, Tls, bound_port, http_config, open_sockets

INJECT_PATH: Final = "/inject"
VALIDATE_PATH: Final = "/validate"
REVIEW_SECONDS: Final = 9.0
"""Less than the configurations' ``timeoutSeconds``, so that the reason is told."""
LOOK_SECONDS: Final = 1.0
"""How often certificate files are looked at."""

log = logging.getLogger("model_sidecar.webhook")


async def run(settings: WebhookSettings) -> int:
    """Serve until asked to stop; return the exit code. Raises ``UsageError``."""
    logs.configure(form=settings.log_format, level=settings.log_level, pod="", engine="")
    options = inject_options(settings)
    app = WebhookApp(
        {INJECT_PATH: lambda review: review_pod(review, options), VALIDATE_PATH: review_configmap},
        review_seconds=REVIEW_SECONDS,
    )
    with contextlib.ExitStack() as ends:
        ends.callback(app.close)
        files = None
        if settings.self_signed is not None:
            files = await _first_pair(Path(ends.enter_context(tempfile.TemporaryDirectory())))
        try:
            tls = _open_tls(settings, files)
            sockets = open_sockets(settings.listen)
        except (ValueError, OSError) as error:
            raise UsageError(f"--listen, --tls-cert-file, --tls-key-file: {error}") from error
        stop = stop_on_signals()
        log.info("model-sidecar %s: webhook on port %d", __version__, bound_port(sockets))
        await _serve(settings, app, tls, files, sockets, stop)
    log.info("stopped")
    return 0


def inject_options(settings: WebhookSettings) -> Options:
    """Return what the flags say of every pod; what they leave out is injection's own default."""
    options = Options(configmap=settings.configmap or "")
    return options if settings.image is None else replace(options, image=settings.image)


async def _first_pair(directory: Path) -> PairFiles:
    """Write a pair that nobody trusts: with it the kubelet is answered until there is another."""
    files = PairFiles(directory)
    try:
        files.write(await make_pair(["localhost"], days=1))
    except CertificateError as error:
        raise UsageError(f"--self-signed: {error}") from error
    return files


def _open_tls(settings: WebhookSettings, files: PairFiles | None) -> Tls:
    if files is not None:
        return Tls(str(files.certificate), str(files.key))
    assert settings.tls_cert_file is not None
    assert settings.tls_key_file is not None
    return Tls(settings.tls_cert_file, settings.tls_key_file)


async def _serve(
    settings: WebhookSettings,
    app: WebhookApp,
    tls: Tls,
    files: PairFiles | None,
    sockets: list[socket.socket],
    stop: asyncio.Event,
) -> None:
    server = HttpServer(http_config(app, tls))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve(sockets))
        if files is None:
            app.not_ready = ""
            others = [group.create_task(_follow_files(tls, stop))]
        else:
            keeper = _open_keeper(settings, files, tls)
            others = [
                group.create_task(keeper.run(stop)),
                group.create_task(_tell_ready(keeper, app)),
            ]
        await stop.wait()
        # 1. No Service leads here any more; 2. who still calls is answered, and asked to leave.
        app.not_ready, app.ending = "it is stopping", True
        for task in others:
            task.cancel()
        await asyncio.wait([serving], timeout=settings.shutdown_grace_seconds)
        # 3. The doors close; what is being answered ends first.
        server.end()
        await serving


def _open_keeper(settings: WebhookSettings, files: PairFiles, tls: Tls) -> SelfSigned:
    clock = open_clock()
    assert settings.self_signed is not None

    def use(pair: Pair) -> None:
        files.write(pair)
        tls.reload_changed()

    return SelfSigned(
        settings.self_signed,
        settings.namespace,
        kubeconfig=Path(settings.kubeconfig) if settings.kubeconfig is not None else None,
        use=use,
        timing=Timing(now=clock.now, chance=clock.chance, resync_seconds=settings.resync_seconds),
    )


async def _tell_ready(keeper: SelfSigned, app: WebhookApp) -> None:
    app.not_ready = "no certificate that the API server trusts is in use yet"
    await keeper.settled.wait()
    app.not_ready = ""
    log.info("ready: the API server trusts the certificate")


async def _follow_files(tls: Tls, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await stop.wait()
        tls.reload_changed()
