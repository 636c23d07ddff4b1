"""A remote source over plain HTTP for tests of what is done with one."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Sequence

from sidecar.artifacts.remote.port import Blob, Contents
from sidecar.errors import AccessDenied, FetchFailed, NotFound, SourceMoved

CHUNK_BYTES = 1 << 16


class WireSource:
    """Reads ``Blob.key`` as a path of one server, with the etag that is the blob's tag."""

    def __init__(self, port: int, blobs: Sequence[Blob] = (), *, read_seconds: float = 5.0) -> None:
        self.where = f"http://127.0.0.1:{port}"
        self._port = port
        self._blobs = tuple(blobs)
        self._read_seconds = read_seconds

    def list(self) -> Contents:
        return Contents(blobs=self._blobs, signature=str(hash(self._blobs)))

    def read(self, blob: Blob, start: int, end: int | None) -> Iterator[bytes | memoryview]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._read_seconds)
        headers = {"If-Match": blob.tag} if blob.tag else {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        answer = None
        try:
            connection.request("GET", blob.key, headers=headers)
            answer = connection.getresponse()
            self._check(answer.status, "Range" in headers)
            while piece := answer.read1(CHUNK_BYTES):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise FetchFailed(f"{self.where}: {type(error).__name__}") from error
        finally:
            if answer is not None:
                answer.close()
            connection.close()

    def close(self) -> None:
        """There is nothing to give up."""

    def _check(self, status: int, is_part: bool) -> None:
        if status == 412:
            raise SourceMoved(f"{self.where}: it changed")
        if status == 403:
            raise AccessDenied(f"{self.where}: 403")
        if status == 404:
            raise NotFound(f"{self.where}: 404")
        if status != (206 if is_part else 200):
            raise FetchFailed(f"{self.where}: {status}")
