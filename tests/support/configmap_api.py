"""ConfigMaps of one namespace behind a real socket, with the API's rules for writers, and faults.

Only what writers meet: resource_version, "already exists", preconditions of a delete.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.kube_api import CUT, Answer, Request, refused, scripted_kube, stream

PATH = "/api/v1/namespaces/chat/configmaps"


@dataclass
class ConfigMaps:
    """What is stored, and what shall go wrong."""

    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    before_write: list[Callable[[], None]] = field(default_factory=list)
    """One a write, run before it: another writer."""
    faults: dict[str, list[Answer]] = field(default_factory=dict)
    """Method -> answers that are given instead of doing it."""
    lost: list[str] = field(default_factory=list)
    """Methods that are carried out, and whose answer is lost."""
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    _version: int = 100

    def put(self, name: str, data: Mapping[str, str] | None = None, **more: Any) -> None:
        """Store one, whatever was there."""
        self._version += 1
        old = self.stored.get(name, {}).get("metadata", {})
        metadata = {"name": name, "namespace": "chat", "uid": f"uid-{name}", **old}
        metadata |= more.pop("metadata", {}) | {"resourceVersion": str(self._version)}
        self.stored[name] = {"kind": "ConfigMap", "metadata": metadata, **more}
        if data is not None:
            self.stored[name]["data"] = dict(data)

    def edit(self, name: str, key: str, text: str) -> None:
        """Write one key as another writer would."""
        self.put(name, {**self.stored[name].get("data", {}), key: text})

    def data(self, name: str) -> dict[str, str]:
        return dict(self.stored[name].get("data", {}))

    @property
    def writes(self) -> list[str]:
        return [one.method for one in self.requests if one.method != "GET"]

    def answer(self, request: Request) -> Answer:
        """Answer as the API server does."""
        self.requests.append(request)
        faults = self.faults.get(request.method)
        if faults:
            return faults.pop(0)
        if request.method != "GET" and self.before_write:
            self.before_write.pop(0)()
        answer = self._do(request)
        if request.method in self.lost:
            self.lost.remove(request.method)
            return stream(CUT)
        return answer

    def _do(self, request: Request) -> Answer:
        name = request.path.removeprefix(PATH).strip("/")
        body = json.loads(request.body) if request.body else {}
        if request.method == "POST":
            name = body["metadata"]["name"]
            if name in self.stored:
                return refused(409, "already exists")
            self.put(name, **{k: v for k, v in body.items() if k != "kind"})
            return self._shown(name, status=201)
        if name not in self.stored:
            return refused(404, f'configmaps "{name}" not found')
        if request.method == "GET":
            return self._shown(name)
        found = self.stored[name]["metadata"]
        asked = body["preconditions" if request.method == "DELETE" else "metadata"]
        if asked["resourceVersion"] != found["resourceVersion"] or asked["uid"] != found["uid"]:
            return refused(409, "the object has been modified")
        if request.method == "DELETE":
            del self.stored[name]
            return Answer(body=b'{"kind": "Status", "status": "Success"}')
        self.stored[name] = body
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        return self._shown(name)

    def _shown(self, name: str, status: int = 200) -> Answer:
        return Answer(status=status, body=json.dumps(self.stored[name]).encode())


@asynccontextmanager
async def serve_configmaps() -> AsyncIterator[ConfigMaps]:
    configmaps = ConfigMaps()
    async with scripted_kube([configmaps.answer], []) as server:
        configmaps.url = server.url
        yield configmaps
