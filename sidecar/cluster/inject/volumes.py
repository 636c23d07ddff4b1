"""What the engine and the agent share: the store, Triton's repository, and sources on volumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.cluster.inject import agent
from sidecar.cluster.inject.agent import Parts
from sidecar.cluster.inject.asked import Asked
from sidecar.cluster.inject.facts import Facts
from sidecar.cluster.inject.model import PREFIX, Json, objects, refusal
from sidecar.cluster.inject.record import Record, ensure
from sidecar.cluster.inject.store import OF_THE_POD, check_writable, volume_of


@dataclass(slots=True, kw_only=True)
class Engine:
    """The engine's container, which is changed, and where each change is written down."""

    container: Json
    where: str
    spec: Json
    record: Record
    facts: Facts

    def mounts(self) -> list[Json]:
        return objects(self.container.get("volumeMounts"), f"{self.where}.volumeMounts")

    def mount_at(self, path: str) -> Json | None:
        """Return the mount whose directory is exactly this one."""
        return next((one for one in self.mounts() if _clean(one.get("mountPath")) == path), None)

    def mount_above(self, path: str) -> Json | None:
        """Return the mount that holds this directory."""
        above = [one for one in self.mounts() if _is_within(path, _clean(one.get("mountPath")))]
        return max(above, key=lambda one: len(_clean(one.get("mountPath"))), default=None)

    def add_mount(self, volume: str, path: str, *, read_only: bool) -> None:
        mount: Json = {"name": volume, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        ensure(self.container, "volumeMounts", "engine.volumeMounts", [], self.record).append(mount)
        self.record.mounts.append(path)

    def set_env(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            entries = ensure(self.container, "env", "engine.env", [], self.record)
            entries.append({"name": name, "value": value})
            self.record.env.append(name)

    def volume(self, name: object) -> Json | None:
        """Return a volume of the pod; a StatefulSet's claims are not among them."""
        return volume_of(self.spec, name)


def share_store(engine: Engine, parts: Parts, asked: Asked, path: str) -> None:
    """Mount the store at one path in both containers, read-only in the engine."""
    named = asked.store_volume
    known = named in {one.get("name") for one in engine.mounts()} or engine.volume(named)
    if named and not known:
        raise refusal(
            f"metadata.annotations[{PREFIX}store-volume]",
            f"the pod has no volume {named!r}",
            "name one of spec.volumes",
        )
    check_writable(engine.volume(named))
    held = engine.mount_at(path)
    # A part of the volume, where the engine has one there: else the two would see other files.
    sub_path = str(held.get("subPath") or "") if held is not None and named else ""
    if held is not None and held.get("subPathExpr"):
        raise refusal(
            f"{engine.where}.volumeMounts", "subPathExpr cannot be taken over", "use subPath"
        )
    volume = agent.add_store(parts, asked, path, sub_path=sub_path)
    engine.record.store, engine.record.store_volume = path, volume
    if held is None:
        engine.add_mount(volume, path, read_only=True)
    elif held.get("name") != volume:
        raise refusal(
            f"{engine.where}.volumeMounts",
            f"{path} is where the store goes, and {held.get('name')!r} is mounted there",
            f"let the store be in it, {PREFIX}store-volume: {held.get('name')}, or elsewhere, "
            "--store-dir=DIR by annotation model-sidecar.io/flags",
        )


def share_repository(engine: Engine, parts: Parts, path: str) -> None:
    """Give both a model repository that no other pod sees.

    It holds links into this pod's store: a directory that pods share (a claim, NFS, a directory of
    the node) would have those of all of them. Such a volume is mounted in the agent for its
    models, which documents can name as sources.
    """
    held = engine.mount_above(path)
    if held is None:
        agent.add_repository(parts, path)
        engine.add_mount(agent.REPOSITORY, path, read_only=False)
        return
    volume = engine.volume(held.get("name"))
    if volume is not None and any(kind in volume for kind in OF_THE_POD):
        if held.get("subPathExpr"):
            raise refusal(
                f"{engine.where}.volumeMounts", "subPathExpr cannot be taken over", "use subPath"
            )
        at, sub_path = str(held.get("mountPath")), str(held.get("subPath") or "")
        parts.mount(str(held["name"]), at, read_only=False, sub_path=sub_path)
        return
    _replace_repository(engine, parts, path, held)


def _replace_repository(engine: Engine, parts: Parts, path: str, held: Json) -> None:
    name = held.get("name")
    if engine.facts.loads_at_start:
        raise refusal(
            engine.facts.place,
            f"--load-model names models of {name!r}, which other pods see, too; the agent's links "
            "need a directory of this pod",
            "leave --load-model out, and list the models in the document",
        )
    agent.add_repository(parts, path)
    before = dict(held)
    if _clean(held.get("mountPath")) == path:
        engine.record.moved[str(held["mountPath"])] = json.dumps(before)
        held.clear()
        held.update({"name": agent.REPOSITORY, "mountPath": before["mountPath"]})
    else:
        engine.add_mount(agent.REPOSITORY, path, read_only=False)
    if "subPathExpr" not in before:
        below = path.removeprefix(_clean(before.get("mountPath"))).strip("/")
        sub_path = "/".join(one for one in (str(before.get("subPath") or ""), below) if one)
        parts.mount(str(name), agent.SOURCES_DIR, sub_path=sub_path)
    engine.facts.notes.append(
        f"{path} was in {name!r}, which other pods see, too: Triton gets a directory of its own "
        f"there, and documents can name the models that are in {name!r} as "
        f"{agent.SOURCES_DIR}/NAME"
    )


def share_sources(engine: Engine, parts: Parts, names: Sequence[str]) -> None:
    """Mount volumes of the engine in the agent, at the same paths, for documents that name them."""
    for name in names:
        found = [one for one in engine.mounts() if one.get("name") == name]
        if not found:
            raise refusal(
                f"metadata.annotations[{PREFIX}sources]",
                f"the engine mounts no volume {name!r}",
                "name one that it mounts",
            )
        for one in found:
            path = str(one.get("mountPath"))
            if path not in {mount["mountPath"] for mount in parts.mounts}:
                parts.mount(name, path, sub_path=str(one.get("subPath") or ""))


def _clean(path: object) -> str:
    return str(path).rstrip("/") or "/"


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
