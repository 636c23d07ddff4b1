"""The hub's own library, asking through our HTTP client. Import it only when a hub is asked.

huggingface_hub knows the API and its pages. Left to itself it waits for a page of a listing without
a deadline, sleeps for as long as a server's ``Retry-After`` says, sends the token wherever a
``Link`` points, takes proxies and certificates from the process, and reports what software calls
it. So the one client that it uses for everything is ours: each request is sent by the ``Client`` of
the source that asks, and what is no success is raised before the library can make something of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url, set_client_factory
from huggingface_hub.hf_api import RepoFile

from sidecar.artifacts.listing import MAX_FILES
from sidecar.artifacts.remote.http_client import Client
from sidecar.artifacts.remote.hub_answers import Hub
from sidecar.errors import FetchFailed, InvalidArtifact

LOOK_SECONDS = 60.0
"""No further page is asked for after these."""
MAX_REQUESTS = 400
"""A page of a listing has 1,000 entries, and each file may have a directory of its own."""
MAX_ANSWER_BYTES = 32 << 20
_SENT = ("authorization", "content-type")
_READ = ("content-type", "link")
"""All that the library needs of an answer; cookies and warnings to log are not among it."""
_UNREADABLE = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository at a commit."""

    path: str
    """From the top of the repository."""
    url: str
    size: int
    git_sha1: str
    """Of its content as git has it; empty where git has only a pointer to the content."""
    sha256: str
    """Of content that git has only a pointer to, else empty."""


class HubApi:
    """Questions to one hub, for one look. Methods block, and raise ``ArtifactError`` only."""

    def __init__(self, hub: Hub, client: Client) -> None:
        self._hub = hub
        self._client = client
        self._until = time.monotonic() + LOOK_SECONDS
        self._requests_left = MAX_REQUESTS
        # Not None, which would have the library look for a token in the agent's home directory.
        self._api = HfApi(endpoint=hub.endpoint, token=hub.token or False)

    def find_commit(self) -> str:
        """Return the commit that the revision stands for."""
        with self._asking():
            reference = self._hub.reference
            commit = self._api.model_info(reference.repository, revision=reference.revision).sha
            if not isinstance(commit, str) or len(commit) != 40 or not commit.isalnum():
                raise ValueError("no commit")
            return commit

    def list_files(self, commit: str) -> list[HubFile]:
        """Return all files below the reference's path; ``NotFound`` when it is no directory."""
        files: list[HubFile] = []
        with self._asking():
            for entry in self._api.list_repo_tree(
                self._hub.reference.repository,
                self._hub.reference.path or None,
                recursive=True,
                revision=commit,
            ):
                if isinstance(entry, RepoFile):
                    files.append(self._file(entry, commit))
                if len(files) > MAX_FILES:
                    raise InvalidArtifact(
                        f"{self._hub.reference.where}: more than {MAX_FILES} files; name a "
                        "directory of the repository"
                    )
        return files

    def find_file(self, commit: str) -> HubFile | None:
        """Return the file that the reference's path names, if it names one."""
        reference = self._hub.reference
        with self._asking():
            for entry in self._api.get_paths_info(
                reference.repository, reference.path, revision=commit
            ):
                if isinstance(entry, RepoFile) and entry.path == reference.path:
                    return self._file(entry, commit)
        return None

    def send(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request of the library."""
        url, where = str(request.url), self._hub.reference.where
        self._requests_left -= 1
        if self._requests_left < 0 or time.monotonic() > self._until:
            raise FetchFailed(
                f"{where}: the listing took more than {MAX_REQUESTS} requests or "
                f"{LOOK_SECONDS:g} s; name a directory of the repository"
            )
        if not self._hub.is_at(url):
            raise FetchFailed(
                f"{where}: the listing goes on at another server, where the token must not go; "
                "name that server in HF_ENDPOINT"
            )
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        body = request.read()
        with self._client.open(request.method, url, headers=headers, body=body) as answer:
            if answer.status != 200:
                raise self._hub.refusal(answer)
            content = answer.read(MAX_ANSWER_BYTES)
        kept = {name: answer.headers[name] for name in _READ if name in answer.headers}
        return httpx2.Response(200, headers=kept, content=content)

    def _file(self, entry: RepoFile, commit: str) -> HubFile:
        size = entry.lfs.size if entry.lfs else entry.size
        sha256 = entry.lfs.sha256 if entry.lfs else ""
        path = entry.path
        if not (isinstance(path, str) and isinstance(size, int) and isinstance(sha256, str)):
            raise TypeError("no file")
        if size < 0 or (entry.lfs and len(sha256) != 64):
            raise ValueError("no size or digest")
        is_pointer = bool(entry.lfs or entry.xet_hash)
        return HubFile(
            path=path,
            url=hf_hub_url(
                self._hub.reference.repository,
                path,
                revision=commit,
                endpoint=self._hub.endpoint,
            ),
            size=size,
            git_sha1="" if is_pointer else str(entry.blob_id),
            sha256=sha256,
        )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        token = _asking.set(self)
        try:
            yield
        except _UNREADABLE as error:
            # Its words may repeat what the server sent.
            raise self._hub.no_hub() from error
        finally:
            _asking.reset(token)


class _Transport(httpx2.BaseTransport):
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return _asking.get().send(request)


_asking: ContextVar[HubApi] = ContextVar("_asking")
# The library keeps one client for all threads of the process; only a failed connection, of which it
# never hears, would make it close that.
set_client_factory(lambda: httpx2.Client(transport=_Transport()))
# Else it would fetch a list of programs that may be calling it, and keep that in the user's home.
constants.HF_HUB_DISABLE_TELEMETRY = True
