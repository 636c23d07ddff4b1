"""An API server in threads, for what blocks or writes: every request is answered by a function."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.kube_api import status_object, write_kubeconfig

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: Mapping[str, str]
    body: Json
    content_type: str


Reply = Callable[[Call], object]
"""JSON to answer with 200, bytes as they are, or a number for a Status object of that code."""


@dataclass
class ScriptedApi:
    kubeconfig: Path
    calls: list[Call] = field(default_factory=list)

    def of(self, method: str) -> list[Call]:
        """The calls with this method, in order."""
        return [one for one in self.calls if one.method == method]


@contextmanager
def scripted_api(
    work: Path, reply: Reply, namespace: str = "chat", headers: Mapping[str, str] | None = None
) -> Iterator[ScriptedApi]:
    """Serve on a loopback port; the kubeconfig that leads there is in ``work``. Every answer has
    ``headers``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            target = urlsplit(self.path)
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            call = Call(
                method=self.command,
                path=target.path,
                query={name: values[0] for name, values in parse_qs(target.query).items()},
                body=json.loads(sent) if sent else {},
                content_type=self.headers.get("content-type", ""),
            )
            api.calls.append(call)
            said = reply(call)
            code = said if isinstance(said, int) else 200
            said = status_object(said) if isinstance(said, int) else said
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            """Whoever asked has gone."""

    server = Server(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    api = ScriptedApi(write_kubeconfig(work / "kubeconfig", url, {"token": "t"}, namespace))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pod(name: str, *, address: str = "10.9.0.1", phase: str = "Running", **more: Any) -> Json:
    """A Pod object, as a list has it; ``labels``, ``spec`` and ``metadata`` may be given."""
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "labels": more.get("labels", {}),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **more.get("metadata", {}),
        },
        "spec": more.get("spec", {"containers": [{"name": "engine"}]}),
        "status": {"phase": phase, "podIP": address},
    }


def target(name: str, state: str = "resident", **more: Any) -> Json:
    """A target of a status."""
    return {"name": name, "kind": "lora", "state": state, "desired": True, **more}


def agent_status(
    *targets: Mapping[str, Any],
    digest: str = "d1",
    converged: bool = True,
    reasons: Sequence[str] = (),
    **document: Any,
) -> Json:
    """What an agent answers on ``/status``, the fields that a fleet is shown by."""
    return {
        "version": "1.2.3",
        "converged": converged,
        "ready": not reasons,
        "reasons": list(reasons),
        "cycle": "generation 1: converged",
        "document": {"digest": digest, "source": "configmap chat/models", **document},
        "targets": {one["name"]: one for one in targets},
    }
