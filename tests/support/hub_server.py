"""A stub of the Hugging Face hub on loopback, and of the caches that it redirects to.

Written from the protocol as huggingface_hub 2.4.0 speaks it and the hub documents it
(https://huggingface.co/docs/hub/api); nothing of the real hub is in it. It stands for

- ``GET /api/models/NAME[/revision/REVISION]``: ``HfApi.model_info``
- ``GET /api/models/NAME/tree/REVISION[/PATH]?recursive=``: ``HfApi.list_repo_tree``, in pages of
  ``page_size`` entries that a ``Link`` header chains with an opaque cursor
- ``POST /api/models/NAME/paths-info/REVISION``: ``HfApi.get_paths_info``
- ``GET`` and ``HEAD /NAME/resolve/REVISION/PATH``: bytes. A file of git is redirected to another
  path of the hub, one of LFS to a signed URL of another server, which refuses who sends it a token
- ``GET /api/agent-harnesses``: what the library asks for by itself.

Errors carry ``X-Error-Code`` and ``X-Error-Message`` as ``hf_raise_for_status`` reads them, in the
order that the hub checks: a token that nobody has, a repository that the token may not see (401
without a token, 404 with one), disabled, gated (for bytes only), revision, entry.

::

    with HubServer() as hub:
        repository = hub.add("acme/sql-lora")
        repository.commit({"adapter_config.json": b"{}", "adapter_model.safetensors": b"..."})
        fetch(hub.endpoint)
        assert [one.path for one in hub.asked] == [...]
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.hub_repository import HubBlob, HubRepository

INVALID_TOKEN = "Invalid credentials in Authorization header"
_MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?")
_PATHS = re.compile(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CACHED = re.compile(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)")


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    token: str | None
    is_to_cache: bool
    headers: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = b""


class HubError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Request-Id": "Root=1-0000"}
        if code:
            headers["X-Error-Code"] = code
        self.reply = _json(status, {"error": message}, headers)


class HubServer:
    """The hub at ``endpoint``, and its cache of LFS files at ``cache``."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, page_size: int = 1000) -> None:
        self.repositories: dict[str, HubRepository] = {}
        self.tokens = {"hf_reader", "hf_other"}
        self.page_size = page_size
        self.asked: list[Asked] = []
        self.endpoint = ""
        self.cache = ""
        self._tls = tls
        self._lock = Lock()
        self._hooks: list[tuple[re.Pattern[str], Callable[[Reply], Reply]]] = []
        self._secret = b"of the cache"
        self._servers: list[tuple[ThreadingHTTPServer, Thread]] = []

    def __enter__(self) -> Self:
        self.cache = self._start(self._answer_cache)
        self.endpoint = self._start(self._answer_hub)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server, thread in self._servers:
            server.shutdown()
            server.server_close()
            thread.join()

    def add(self, name: str, **options: Any) -> HubRepository:
        """Add an empty repository; the options are those of ``HubRepository``."""
        found = self.repositories[name] = HubRepository(name, **options)
        return found

    def once(self, pattern: str, change: Callable[[Reply], Reply]) -> None:
        """Have the next answer to a path of this kind changed, or just something done before it."""
        self._hooks.append((re.compile(pattern), change))

    def paths(self, pattern: str = "") -> list[str]:
        """Return the paths asked for so far that this is found in."""
        return [one.path for one in self.asked if re.search(pattern, one.path)]

    def _start(self, answer: Callable[[Asked, bytes], Reply]) -> str:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def do_GET(self) -> None:
                hub._serve(self, answer)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = _Server(("127.0.0.1", 0), Handler)
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self._servers.append((server, thread))
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{server.server_address[1]}"

    def _serve(
        self, handler: BaseHTTPRequestHandler, answer: Callable[[Asked, bytes], Reply]
    ) -> None:
        authorization = handler.headers.get("Authorization")
        asked = Asked(
            handler.command,
            handler.path,
            authorization.removeprefix("Bearer ") if authorization else None,
            answer == self._answer_cache,
            {name.lower(): value for name, value in handler.headers.items()},
        )
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            self.asked.append(asked)
            hook = next((one for one in self._hooks if one[0].search(asked.path)), None)
            if hook is not None:
                self._hooks.remove(hook)
        try:
            reply = answer(asked, body)
        except HubError as error:
            reply = error.reply
        if hook is not None:
            reply = hook[1](reply)
        handler.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(reply.body)

    def _answer_hub(self, asked: Asked, body: bytes) -> Reply:
        url = urlsplit(asked.path)
        if url.path == "/api/agent-harnesses":
            return _json(200, {"standardEnvVars": [], "harnesses": {}})
        if found := _MODEL.fullmatch(url.path):
            repository, commit = self._find(asked, found[1], found[2] or "main")
            return _json(200, repository.info(commit, with_blobs="blobs=" in url.query))
        if found := _TREE.fullmatch(url.path):
            repository, commit = self._find(asked, found[1], found[2])
            entries = repository.tree(
                commit, unquote(found[3] or ""), is_recursive="recursive=true" in url.query
            )
            if entries is None:
                raise _no_entry(unquote(found[3]), unquote(found[2]))
            return self._page(url.path, url.query, entries)
        if (found := _PATHS.fullmatch(url.path)) and asked.method == "POST":
            repository, commit = self._find(asked, found[1], found[2])
            if asked.headers.get("content-type") != "application/x-www-form-urlencoded":
                raise HubError(400, "", '"paths" is required')
            return _json(200, _paths_info(repository, commit, parse_qs(body.decode())["paths"]))
        if found := _RESOLVE.fullmatch(url.path):
            return self._resolve(asked, found[1], found[2], unquote(found[3]))
        if found := _CACHED.fullmatch(url.path):
            repository, commit = self._find(asked, found[1], found[2])
            blob = repository.commits[commit][unquote(found[3])]
            return _bytes(asked, blob, {"X-Repo-Commit": commit})
        return Reply(404, {"Content-Type": "text/html"}, b"<h1>404</h1>")

    def _answer_cache(self, asked: Asked, _: bytes) -> Reply:
        url = urlsplit(asked.path)
        given = parse_qs(url.query).get("Signature", [""])[0]
        if not hmac.compare_digest(given, self._sign(url.path)):
            return Reply(403, {"Content-Type": "application/xml"}, b"<Error>AccessDenied</Error>")
        if asked.token is not None:
            return Reply(400, {}, b"<Error>Only one auth mechanism allowed</Error>")
        digest = url.path.rpartition("/")[2]
        blobs = [
            blob
            for repository in self.repositories.values()
            for files in repository.commits.values()
            for blob in files.values()
        ]
        return _bytes(asked, next(one for one in blobs if one.sha256 == digest), {})

    def _resolve(self, asked: Asked, name: str, revision: str, path: str) -> Reply:
        repository, commit = self._find(asked, name, revision)
        if repository.granted is not None and asked.token not in repository.granted:
            status = 401 if asked.token is None else 403
            message = f"Access to model {name} is restricted."
            raise HubError(status, "GatedRepo", message)
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise _no_entry(path, unquote(revision))
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(blob.data)),
            "X-Linked-Etag": f'"{blob.etag}"',
            "Accept-Ranges": "bytes",
        }
        if not blob.is_lfs:
            cached = f"/api/resolve-cache/models/{name}/{commit}/{quote(path, safe='')}"
            return Reply(307, {**headers, "Location": cached})
        stored = f"/repos/{name}/{blob.sha256}"
        location = f"{self.cache}{stored}?Expires=9999&Signature={self._sign(stored)}"
        return Reply(302, {**headers, "Location": location})

    def _find(self, asked: Asked, name: str, revision: str) -> tuple[HubRepository, str]:
        if asked.token is not None and asked.token not in self.tokens:
            raise HubError(401, "", INVALID_TOKEN)
        repository = self.repositories.get(name)
        if repository is None or (
            repository.readers is not None and asked.token not in repository.readers
        ):
            if asked.token is None:
                raise HubError(401, "RepoNotFound", "Invalid username or password.")
            raise HubError(404, "RepoNotFound", "Repository not found")
        if repository.is_disabled:
            raise HubError(403, "", "Access to this resource is disabled.")
        commit = repository.find_commit(unquote(revision))
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        return repository, commit

    def _page(self, path: str, query: str, entries: list[dict[str, Any]]) -> Reply:
        given = parse_qs(query)
        cursor = given.pop("cursor", [""])[0]
        start = int(base64.urlsafe_b64decode(cursor)) if cursor else 0
        headers = {}
        if start + self.page_size < len(entries):
            following = base64.urlsafe_b64encode(str(start + self.page_size).encode()).decode()
            kept = "&".join(f"{key}={values[0]}" for key, values in given.items())
            url = f"{self.endpoint}{path}?{kept}&cursor={quote(following)}"
            headers["Link"] = f'<{url}>; rel="next"'
        return _json(200, entries[start : start + self.page_size], headers)

    def _sign(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), sha256).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up: some are meant to."""


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Reply:
    content = {"Content-Type": "application/json; charset=utf-8"}
    return Reply(status, {**content, **(headers or {})}, json.dumps(value).encode())


def _no_entry(path: str, revision: str) -> HubError:
    return HubError(404, "EntryNotFound", f'{path} does not exist on "{revision}"')


def _paths_info(repository: HubRepository, commit: str, paths: list[str]) -> list[dict[str, Any]]:
    """What is not there is left out without a word."""
    entries = repository.tree(commit, "", is_recursive=True) or []
    return [one for one in entries if one["path"] in paths]


def _bytes(asked: Asked, blob: HubBlob, headers: dict[str, str]) -> Reply:
    headers = {
        **headers,
        "ETag": f'"{blob.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
    if wanted is None:
        return Reply(200, headers, blob.data)
    total, start = len(blob.data), int(wanted[1])
    end = min(int(wanted[2]) + 1 if wanted[2] else total, total)
    if start >= total:
        return Reply(416, {"Content-Range": f"bytes */{total}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
    return Reply(206, headers, blob.data[start:end])
