"""Every flag of ``run``, once: its name, its environment variable, its default and its words.

``docs/flags.md`` is generated from here. No other module reads the environment, and ``Settings``
ends at the composition root: other rooms are given plain values.
"""

from __future__ import annotations

import argparse
import dataclasses
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from adapters import engine_names
from sidecar.core.redact import redact_source
from sidecar.flags import (
    UsageError,
    define,
    parse_bytes,
    parse_count,
    parse_positive_seconds,
    parse_prefix,
    parse_seconds,
    parse_switch,
    read_flags,
)

ENGINE, DOCUMENT, DISK, BEHAVIOUR, READING, TELLING, PROCESS = (
    "engine",
    "document",
    "disk",
    "behaviour",
    "reading us",
    "telling the cluster",
    "process",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one agent."""

    engine: str = define("vllm", ENGINE, "Engine beside the agent.", metavar="NAME")
    engine_url: tuple[str, ...] = define(
        ("http://127.0.0.1:8000",),
        ENGINE,
        "Where the engine listens. Repeat it for data-parallel ranks of one engine.",
        metavar="URL",
        repeatable=True,
    )
    engine_metrics_url: tuple[str, ...] = define(
        (),
        ENGINE,
        "Where its metrics are: one for each --engine-url, in order. "
        "Default: the engine URL and /metrics; Triton: port 8002.",
        metavar="URL",
        repeatable=True,
    )
    engine_api_key_file: str | None = define(
        None,
        ENGINE,
        "File with the engine's API key, sent as bearer token and read at each use.",
        metavar="FILE",
    )
    engine_ca_file: str | None = define(
        None,
        ENGINE,
        "PEM bundle that an https engine's certificate is checked against.",
        metavar="FILE",
    )
    load_timeout_seconds: float | None = define(
        None,
        ENGINE,
        "Deadline of one load. Default: 120 for a LoRA, 1800 for a model.",
        metavar="SECONDS",
        parse=parse_positive_seconds,
    )
    max_loras: int | None = define(
        None,
        ENGINE,
        "GPU slots for LoRAs, as the engine was started with; read from the engine where it says.",
        metavar="N",
        parse=parse_count,
    )
    max_cpu_loras: int | None = define(
        None,
        ENGINE,
        "LoRAs that the engine keeps in host memory, as it was started with.",
        metavar="N",
        parse=parse_count,
    )
    max_lora_rank: int | None = define(
        None,
        ENGINE,
        "Greatest rank that the engine takes: LoRAs above it never reach it.",
        metavar="N",
        parse=parse_count,
    )
    engine_path_prefix: tuple[str, str] | None = define(
        None,
        ENGINE,
        "When the engine sees the store at another path: ours=theirs.",
        metavar="FROM=TO",
        parse=parse_prefix,
    )
    config_dir: str | None = define(
        None, DOCUMENT, "Directory of a mounted ConfigMap; every key is read.", metavar="DIR"
    )
    config_file: str | None = define(None, DOCUMENT, "One document on disk.", metavar="FILE")
    configmap: str | None = define(
        None, DOCUMENT, "ConfigMap to watch through the API server.", metavar="NAME"
    )
    namespace: str | None = define(
        None,
        DOCUMENT,
        "Its namespace. Default: the pod's, or the kubeconfig's.",
        metavar="NAMESPACE",
    )
    kubeconfig: str | None = define(
        None, DOCUMENT, "How to reach the API server. Default: as a pod does.", metavar="FILE"
    )
    config_key: str | None = define(
        None,
        DOCUMENT,
        "The one key to read. Default: every key that is a known format.",
        metavar="KEY",
    )
    store_dir: str = define(
        "/var/lib/model-sidecar",
        DISK,
        "Where revisions are kept; the engine must see it too.",
        metavar="DIR",
    )
    repository_dir: str | None = define(
        None, DISK, "Triton's model repository; required with --engine triton.", metavar="DIR"
    )
    store_max_bytes: int | None = define(
        None,
        DISK,
        "Size the store may have. With it, files that nobody needs stay until their "
        "room is needed; without it, they go once the retention ended.",
        metavar="SIZE",
        parse=parse_bytes,
    )
    retain_seconds: float = define(
        3600.0,
        DISK,
        "How long the files of an unloaded revision stay: the engine may read them again.",
        metavar="SECONDS",
        parse=parse_seconds,
    )
    fetch_concurrency: int = define(
        4,
        DISK,
        "Fetches at once from the network, and as many from local paths.",
        metavar="N",
        parse=parse_count,
    )
    spread_seconds: float = define(
        0.0,
        DISK,
        "Many pods, one edit: fetches for replacements, and so the replacements, start within this "
        "window, by a hash of the pod's UID. First loads and unloads are not delayed.",
        metavar="SECONDS",
        parse=parse_seconds,
    )
    allow_source: tuple[str, ...] = define(
        (),
        DISK,
        "Sources must begin with this path or URL prefix; repeatable. Default: all are allowed.",
        metavar="PREFIX",
        repeatable=True,
    )
    max_artifact_bytes: int | None = define(
        None,
        DISK,
        "Size that one artifact may have, archives unpacked. Default: what the store has room for.",
        metavar="SIZE",
        parse=parse_bytes,
    )
    allow_pickle: bool = define(
        False,
        DISK,
        "Take LoRAs with pickled weights, which can run code in the engine when they are read.",
        parse=parse_switch,
    )
    credentials_dir: str = define(
        "/etc/model-sidecar/credentials",
        DISK,
        "Where secrets are mounted: one directory for each name that entries give as credentials.",
        metavar="DIR",
    )
    prune: str = define(
        "owned",
        BEHAVIOUR,
        "Residents that no document lists: unload ours, all, or none.",
        choices=("owned", "all", "none"),
    )
    unload_grace_seconds: float | None = define(
        None,
        BEHAVIOUR,
        "Between a name's leaving the document and its unload. "
        "Default by format: native 0, Michelangelo 150.",
        metavar="SECONDS",
        parse=parse_seconds,
    )
    warmup: bool = define(
        False,
        BEHAVIOUR,
        "Warm up every LoRA whose entry does not say otherwise.",
        parse=parse_switch,
    )
    resync_seconds: float = define(
        5.0,
        BEHAVIOUR,
        "Look at engine and documents at least this often.",
        metavar="SECONDS",
        parse=parse_positive_seconds,
    )
    readiness: str = define(
        "initial",
        BEHAVIOUR,
        "What gates /ready: the initial pass; also required targets for ever; or the engine only.",
        choices=("initial", "required", "none"),
    )
    initial_timeout_seconds: float = define(
        600.0,
        BEHAVIOUR,
        "The initial pass ends after this at the latest, counted from the engine's first answer; "
        "required targets still gate.",
        metavar="SECONDS",
        parse=parse_seconds,
    )
    listen: str = define(
        ":9110",
        READING,
        "Address and port to serve on; without an address: all, both families.",
        metavar="[ADDRESS]:PORT",
    )
    tls_cert_file: str | None = define(
        None,
        READING,
        "Certificate chain to serve https with; read again when it changes.",
        metavar="FILE",
    )
    tls_key_file: str | None = define(None, READING, "Its private key.", metavar="FILE")
    lora_labels: str = define(
        "auto",
        READING,
        "What the LoRA labels on /metrics list beside the slots.",
        choices=("auto", "residency", "registered"),
    )
    scrape_interval_seconds: float = define(
        0.1,
        READING,
        "The engine is sampled never more often than this, only while someone asks, and more "
        "seldom where that costs it too much or its figures do not change.",
        metavar="SECONDS",
        parse=parse_positive_seconds,
    )
    stale_after_seconds: float = define(
        1.0,
        READING,
        "A sample older than this turns /metrics into 503.",
        metavar="SECONDS",
        parse=parse_positive_seconds,
    )
    events: bool = define(
        False,
        TELLING,
        "Write Kubernetes Events on the pod: a target loaded or failed, an engine that restarted "
        "and was healed. Needs create and patch on events.",
        parse=parse_switch,
    )
    condition: tuple[str, ...] = define(
        (),
        TELLING,
        "Set the condition model-sidecar.io/NAME in the pod's status: ready, for a readinessGate, "
        "or converged; repeatable. Needs patch on pods/status.",
        metavar="NAME",
        choices=("ready", "converged"),
        repeatable=True,
    )
    log_format: str = define("text", PROCESS, "Log lines.", choices=("text", "json"))
    log_level: str = define(
        "info", PROCESS, "Least level to log.", choices=("debug", "info", "warning", "error")
    )
    shutdown_grace_seconds: float = define(
        10.0,
        PROCESS,
        "After SIGTERM, how long a running action may take to end.",
        metavar="SECONDS",
        parse=parse_seconds,
    )
    pod_name: str = ""
    pod_uid: str = ""
    pod_namespace: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """The process's own, for what libraries of sources are known to take from it."""


def from_flags(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Build the settings of parsed arguments. Raises ``UsageError``."""
    return Settings(
        **read_flags(Settings, arguments, environment),
        pod_name=environment.get("POD_NAME") or socket.gethostname(),
        pod_uid=environment.get("POD_UID", ""),
        pod_namespace=environment.get("POD_NAMESPACE", ""),
        environment=dict(environment),
    )


def check_for_run(settings: Settings) -> None:
    """Raise ``UsageError`` for flags that do not fit together."""
    if settings.engine not in engine_names():
        known = ", ".join(engine_names())
        raise UsageError(f"--engine: no engine {settings.engine!r}; known engines: {known}")
    for url in (*settings.engine_url, *settings.engine_metrics_url):
        _check_url(url)
    places = [settings.config_dir, settings.config_file, settings.configmap]
    if sum(place is not None for place in places) != 1:
        raise UsageError(
            "say where the document is: exactly one of --config-dir, --config-file, --configmap"
        )
    for prefix in settings.allow_source:
        if "?" in prefix or "#" in prefix:
            raise UsageError(
                f"--allow-source: {redact_source(prefix)!r} has a query or a fragment, by which "
                "nothing is admitted or refused; end it before"
            )
    if settings.configmap is None and settings.namespace:
        raise UsageError("--namespace goes with --configmap")
    if settings.kubeconfig and not (settings.configmap or settings.events or settings.condition):
        raise UsageError("--kubeconfig goes with --configmap, --events or --condition")
    metrics = len(settings.engine_metrics_url)
    if metrics and metrics != len(settings.engine_url):
        raise UsageError(
            f"--engine-metrics-url is given {metrics} times, --engine-url "
            f"{len(settings.engine_url)} times: give one for each"
        )
    if settings.stale_after_seconds <= settings.scrape_interval_seconds:
        raise UsageError(
            "--stale-after-seconds must be above --scrape-interval-seconds, or /metrics would "
            "answer 503 between two samples"
        )
    if bool(settings.tls_cert_file) != bool(settings.tls_key_file):
        raise UsageError("--tls-cert-file and --tls-key-file go together")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and url.isascii()
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"--engine-url, --engine-metrics-url: {redact_source(url)!r} is no address of an "
            "engine; write http://HOST:PORT"
        )
