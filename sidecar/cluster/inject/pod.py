"""The agent into a pod."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Final

from sidecar.cluster.inject import agent, engines
from sidecar.cluster.inject.asked import Asked, parse_flags, parse_settings, read_asked, read_named
from sidecar.cluster.inject.cover import covers
from sidecar.cluster.inject.facts import Facts
from sidecar.cluster.inject.follow import follow
from sidecar.cluster.inject.model import (
    CONTAINER,
    RECORD,
    Injected,
    InjectError,
    Json,
    JsonView,
    Options,
    mapping,
    objects,
    refusal,
    unshared,
)
from sidecar.cluster.inject.qos import agent_resources
from sidecar.cluster.inject.record import Record, ensure, read_record
from sidecar.cluster.inject.removal import remove_pod
from sidecar.cluster.inject.security import check_level
from sidecar.cluster.inject.store import size_of
from sidecar.cluster.inject.volumes import Engine, share_repository, share_sources, share_store
from sidecar.flags import UsageError, flags, parse_bytes
from sidecar.settings import Settings

DEFAULT_STORE_DIR: Final[str] = flags(Settings)["store_dir"][2]
_ANNOTATIONS = "metadata.annotations"
_FLAGS = f"{_ANNOTATIONS}[model-sidecar.io/flags]"


def inject_pod(pod: JsonView, options: Options, *, namespace: str = "") -> Injected:
    """Return a pod, or a pod template, with the agent in it; the input is not changed.

    A pod that has it already gets the agent of these options; nothing changes when that is the one
    it has. ``namespace`` is told in notes only.

    Raises ``InjectError`` where something has to be known or changed first, and ``NoEngineError``
    where no container is known to be an engine.
    """
    fresh = _inject(remove_pod(pod), options, namespace)
    # What others added to the agent's container since (a mesh, the API server) stays.
    return Injected(pod=unshared(pod), notes=fresh.notes) if _has(pod, fresh.pod) else fresh


def follow_pod(pod: JsonView, options: Options, *, namespace: str = "") -> Injected:
    """Return an injected pod that follows what others changed in its engine since.

    What they changed in the agent's container stays, but for its arguments and mounts where these
    are others now: whoever comes after an injection has its reasons. Raises as ``inject_pod``.
    """
    fresh = _inject(remove_pod(pod), options, namespace)
    kept = follow(pod, fresh.pod)
    return Injected(pod=unshared(pod) if _has(pod, kept) else kept, notes=fresh.notes)


def _has(pod: JsonView, fresh: Json) -> bool:
    """Tell whether the pod has the agent as a new injection would write it."""
    held, written = read_record(pod), read_record(fresh)
    if held is None or written is None:
        return False
    # What was empty at the first injection may have got something of others since.
    written.made = held.made
    wanted: Json = unshared(fresh)
    wanted["metadata"]["annotations"][RECORD] = written.text()
    return covers(pod, wanted)


def _inject(pod: Json, options: Options, namespace: str) -> Injected:
    spec = mapping(pod.get("spec"), "spec")
    # First of all: most pods of a namespace have no engine, and nothing is wrong with them.
    choice = engines.find_engine(spec, read_named(pod))
    if mapping(spec.get("os"), "spec.os").get("name") == "windows":
        raise refusal("spec.os", "the agent runs on Linux only", "leave this pod out")
    _check_unused_names(spec)
    asked = read_asked(pod, options)
    container, facts = choice.container, engines.read_engine(choice, asked)
    before = unshared(pod)
    record = Record(container=str(container["name"]), configmap=asked.configmap, api=asked.api)
    engine = Engine(container=container, where=facts.where, spec=spec, record=record, facts=facts)
    parts = agent.Parts()

    store = _store_dir(asked)
    share_store(engine, parts, asked, store)
    if facts.repository is not None:
        share_repository(engine, parts, facts.repository)
    share_sources(engine, parts, asked.sources)
    agent.add_document(parts, asked)
    agent.add_secrets(parts, asked, facts.api_key)
    if facts.problems:
        raise InjectError(facts.problems)
    engine.set_env(facts.env)

    size = _store_size(asked, engine)
    arguments = _arguments(asked, facts, store, size)
    settings = _parsed(arguments)
    _check_store_size(settings, size)
    port = _port(settings, spec)
    user = agent.agent_user(spec, asked)
    added = agent.agent_container(
        asked,
        arguments=arguments,
        settings=settings,
        port=port,
        mounts=parts.mounts,
        resources=agent_resources(
            spec, store_size=None if asked.store_volume else asked.store_size
        ),
        user=user,
    )
    check_level(before, user)
    ensure(spec, "initContainers", "spec.initContainers", [], record).append(added)
    _move_last(spec, "containers")
    if parts.volumes:
        ensure(spec, "volumes", "spec.volumes", [], record).extend(parts.volumes)
    record.volumes = [str(one["name"]) for one in parts.volumes]
    record.digest = _digest([added, parts.volumes])
    metadata = ensure(pod, "metadata", "metadata", {}, record)
    annotations = ensure(metadata, "annotations", _ANNOTATIONS, {}, record)
    annotations[RECORD] = record.text()
    return Injected(pod=pod, notes=(*facts.notes, *_notes(asked, spec, user, namespace)))


def _store_dir(asked: Asked) -> str:
    said = getattr(parse_flags(asked.flags), "store_dir", None)
    path = posixpath.normpath(said or DEFAULT_STORE_DIR)
    if not path.startswith("/") or path == "/" or ":" in path:
        raise refusal(_FLAGS, f"--store-dir={said} is no directory to mount at", "write /DIR")
    return path


def _check_unused_names(spec: Json) -> None:
    for part in ("initContainers", "containers", "volumes"):
        for index, one in enumerate(objects(spec.get(part), f"spec.{part}")):
            name = str(one.get("name"))
            if name == CONTAINER or (part == "volumes" and name.startswith(f"{CONTAINER}-")):
                raise refusal(
                    f"spec.{part}[{index}]",
                    f"{name!r} is there, and was not put there by an injection",
                    "take the agent out that was written by hand, or rename it",
                )


def _store_size(asked: Asked, engine: Engine) -> int | None:
    """Return how many bytes the store's volume may hold; None where nobody counts them."""
    if asked.store_volume:
        return size_of(engine.volume(asked.store_volume))
    return parse_bytes(asked.store_size)


def _arguments(asked: Asked, facts: Facts, store: str, size: int | None) -> list[str]:
    """Return the agent's command line: what was found out, then what was said."""
    where = f"--configmap={asked.configmap}" if asked.api else f"--config-dir={agent.CONFIG_DIR}"
    arguments = ["run", f"--engine={engines.engine_of(facts, asked)}", where]
    if "store_dir" not in asked.given:
        arguments.append(f"--store-dir={store}")
    if "store_max_bytes" not in asked.given and size is not None:
        arguments.append(f"--store-max-bytes={_most_of(size)}")
    if facts.repository is not None:
        arguments.append(f"--repository-dir={facts.repository}")
    if facts.api_key is not None:
        arguments.append(f"--engine-api-key-file={agent.KEY_DIR}/{agent.KEY_FILE}")
    arguments += [f"--{name.replace('_', '-')}={value}" for name, value in facts.flags.items()]
    return [*arguments, *asked.flags]


def _most_of(size: int) -> str:
    """Return nine tenths of a size: what is over is for what the volume holds beside revisions."""
    most = size * 9 // 10
    return str(most) if most < 2**20 else f"{most // 2**20}Mi"


def _parsed(arguments: list[str]) -> Settings:
    try:
        return parse_settings(arguments[1:])
    except UsageError as error:
        raise refusal(_FLAGS, str(error), "docs/flags.md has the agent's flags") from error


def _check_store_size(settings: Settings, size: int | None) -> None:
    limit = settings.store_max_bytes
    if size is not None and limit is not None and limit >= size:
        raise refusal(
            _FLAGS,
            f"--store-max-bytes is not below the volume's size, {size} bytes: the pod would "
            "be evicted before the store is full",
            "say less, or give the volume more: model-sidecar.io/store-size",
        )


def _port(settings: Settings, spec: Json) -> int:
    host, _, text = settings.listen.rpartition(":")
    port = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < port < 65536 or host not in ("", "0.0.0.0", "[::]"):
        raise refusal(
            _FLAGS,
            f"--listen={settings.listen} is nothing that the kubelet's probes reach",
            "write :PORT, such as :9110",
        )
    for part in ("containers", "initContainers"):
        for index, one in enumerate(objects(spec.get(part), f"spec.{part}")):
            for held in objects(one.get("ports"), f"spec.{part}[{index}].ports"):
                if held.get("containerPort") == port:
                    raise refusal(
                        f"spec.{part}[{index}].ports",
                        f"port {port} is the agent's, too",
                        "say another for the agent: --listen=:PORT by annotation "
                        "model-sidecar.io/flags",
                    )
    return port


def _move_last(spec: Json, name: str) -> None:
    """Let what was added stand above what people look for; nothing else reads the order."""
    for key in list(spec)[list(spec).index(name) :]:
        if key != "initContainers":
            spec[key] = spec.pop(key)


def _digest(written: object) -> str:
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


def _notes(asked: Asked, spec: Json, user: int | None, namespace: str) -> list[str]:
    notes = []
    rights = [agent.API_FLAGS[name] for name in sorted(asked.given & agent.API_FLAGS.keys())]
    if asked.api:
        rights.insert(0, f"get, list and watch on ConfigMap {asked.configmap!r}")
    if rights:
        account = agent.account_of(spec)
        place = f" in {namespace}" if namespace else ""
        notes.append(f"ServiceAccount {account!r}{place} needs {'; '.join(rights)}")
    if asked.store_volume:
        who = f"user {user}" if user is not None else f"the pod's user, or {agent.USER}"
        notes.append(f"the agent ({who}) must be able to write to volume {asked.store_volume!r}")
    if spec.get("hostNetwork") is True:
        notes.append(
            "the pod is in the node's network: two such pods on one node need two --listen"
        )
    return notes
