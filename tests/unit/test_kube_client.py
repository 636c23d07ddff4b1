"""The way to the API server: what an answer says is not where we go."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import pytest

from sidecar.cluster.fleet import look
from sidecar.kube.client import open_client
from sidecar.kube.errors import KubeRedirected
from tests.support.kube_api import write_kubeconfig
from tests.support.scripted_api import Call, pod, scripted_api

REDIRECTS = [("GET", status) for status in (300, 301, 302, 303, 304, 305, 307, 308)]
REDIRECTS += [(method, at) for method in ("POST", "PUT", "PATCH", "DELETE") for at in (302, 307)]


@dataclass
class Server:
    url: str
    leads_to: str = ""
    """Every request is sent there; else it is answered with an empty object."""
    status: int = 200
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and token of each request."""


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            token = self.headers.get("authorization", "")
            server.asked.append((self.command, self.path, token))
            self.send_response(server.status)
            if server.leads_to:
                self.send_header("location", server.leads_to)
            body = b"" if server.status == HTTPStatus.NOT_MODIFIED else b"{}"
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http_server.server_port}")
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def api(elsewhere: Server) -> Iterator[Server]:
    """It sends everybody elsewhere."""
    with serving() as server:
        server.leads_to = f"{elsewhere.url}/api/v1/secrets"
        yield server


@pytest.fixture
def kubeconfig(api: Server, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path / "kubeconfig", api.url, {"token": "t"}, "chat")


@pytest.mark.parametrize(("method", "status"), REDIRECTS)
@pytest.mark.parametrize("leads_to", ["elsewhere", "itself"])
async def test_a_redirect_is_an_error_and_no_second_request(
    api: Server, elsewhere: Server, kubeconfig: Path, method: str, status: int, leads_to: str
) -> None:
    api.status = status
    if leads_to == "itself":
        api.leads_to = "/api/v1/secrets"
    async with open_client(kubeconfig) as client:
        asking = (
            client.get_json("/there", {}, timeout=5.0)
            if method == "GET"
            else client.send_json(method, "/there", {}, timeout=5.0)
        )
        with pytest.raises(KubeRedirected, match=str(status)):
            await asking
    assert api.asked == [(method, "/there", "Bearer t")]
    assert elsewhere.asked == []


async def test_a_pod_that_sends_the_asker_elsewhere_is_no_agent(
    elsewhere: Server, tmp_path: Path
) -> None:
    secrets = "/api/v1/namespaces/chat/secrets"

    def reply(call: Call) -> object:
        return {"items": [pod("a")]} if call.path.endswith("/pods") else 302

    for leads_to in (secrets, elsewhere.url + secrets):
        with scripted_api(tmp_path, reply, headers={"location": leads_to}) as api:
            async with open_client(api.kubeconfig) as client:
                fleet = await look(client, namespace="chat", selector="app=chat", port=9110)
        assert [one.trouble for one in fleet.pods] == [
            "what listens on port 9110 is no agent: it answers with a redirect"
        ]
        assert [one.path.rpartition("/")[2] for one in api.calls] == ["pods", "status"]
    assert elsewhere.asked == []
