"""Triton's command line. Source: ``tritonserver --help``."""

from __future__ import annotations

from urllib.parse import urlsplit

from sidecar.cluster.inject.engine_flags import OFF, EngineFlags
from sidecar.cluster.inject.facts import SAY_FLAGS, Facts

_HTTP, _METRICS = "8000", "8002"
_STRICT = "/v2/health/ready"


def read_triton(facts: Facts) -> None:
    """Collect what Triton's command line says."""
    if facts.invocation is None:
        for name in ("engine_url", "repository_dir"):
            if name not in facts.given:
                flag = "--" + name.replace("_", "-")
                facts.refuse("Triton's command line is not known", f"say {flag}=... {SAY_FLAGS}")
        return
    flags = facts.engine_flags()
    _check_mode(facts, flags)
    _read_repository(facts, flags)
    _read_ports(facts, flags)
    facts.loads_at_start = flags.has("--load-model")
    if not flags.has("--strict-readiness") or flags.last("--strict-readiness").lower() not in OFF:
        _note_strict_probes(facts)


def _check_mode(facts: Facts, flags: EngineFlags) -> None:
    mode = flags.last("--model-control-mode", default="none").lower()
    if mode == "explicit":
        return
    reasons = {
        "none": "loads everything at its start and nothing later",
        "poll": "loads and unloads whatever it finds, by itself",
    }
    why = reasons.get(mode, "is none that is known")
    facts.refuse(
        f"Triton runs with --model-control-mode={mode}, which {why}",
        "start it with --model-control-mode=explicit",
    )


def _read_repository(facts: Facts, flags: EngineFlags) -> None:
    found = flags.all("--model-repository", "--model-store")
    if "repository_dir" in facts.given:
        return
    if len(found) != 1:
        many = f"{len(found)} model repositories" if found else "no --model-repository"
        hint = f"say which is the agent's: --repository-dir=DIR {SAY_FLAGS}"
        facts.refuse(f"Triton is started with {many}", hint)
    elif urlsplit(found[0]).scheme or not found[0].startswith("/"):
        facts.refuse(
            f"the model repository {found[0]!r} is no directory of the container",
            "use a directory such as /models: the agent fetches the models into it",
        )
    else:
        facts.repository = found[0].rstrip("/") or "/"


def _read_ports(facts: Facts, flags: EngineFlags) -> None:
    if flags.last("--allow-http", default="true").lower() in OFF:
        facts.refuse("Triton serves no http", "start it with --allow-http=true")
    host = flags.last("--http-address")
    facts.derive_url("Triton", host, flags.last("--http-port", default=_HTTP))
    if flags.last("--allow-metrics", default="true").lower() in OFF:
        facts.notes.append("Triton serves no metrics: the picker gets no queue")
        return
    port = flags.last("--metrics-port", default=_METRICS)
    ours = facts.flags.get("engine_url")
    # Without an address of its own the metrics are where http is.
    address = flags.last("--metrics-address", default=host)
    if ours is None or "engine_metrics_url" in facts.given or address != host:
        return
    if not port.isdigit():
        facts.refuse(
            f"--metrics-port is {port!r}, which cannot be read here",
            f"say --engine-metrics-url=http://127.0.0.1:PORT/metrics {SAY_FLAGS}",
        )
        return
    facts.flags["engine_metrics_url"] = f"{ours.rpartition(':')[0]}:{port}/metrics"


def _note_strict_probes(facts: Facts) -> None:
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        held = facts.container.get(probe)
        asked = held.get("httpGet") if isinstance(held, dict) else None
        if isinstance(asked, dict) and asked.get("path") == _STRICT:
            facts.notes.append(
                f"{probe} of {facts.container.get('name')!r} asks {_STRICT}, which one failed load "
                "turns off for good: ask /v2/health/live, or start Triton with "
                "--strict-readiness=false"
            )
