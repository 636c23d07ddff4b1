"""Google Cloud Storage without a cloud: fake-gcs-server, which asks nobody who they are.

`GuardedGcs` has a door in front of it that does: it takes the tokens that Google takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from lab import LabError
from lab.gcs_door import Door, Google
from lab.golang import Program, find
from lab.golang import install as install_program
from lab.process import Process, free_port
from lab.tls import Certificate
from lab.tokens import Issuer
from lab.web import Answer, is_ok, send

MODULE = "github.com/fsouza/fake-gcs-server"
FAKE_GCS = Program(
    name="fake-gcs-server",
    module=MODULE,
    version="v1.56.1",
    package=MODULE,
    version_command=("-help",),
    oldest=(1, 50),
)


def install() -> None:
    """Build it, once."""
    install_program(FAKE_GCS)


class Gcs:
    """One emulator. `stop` and `kill` lose what was put: its files on disk would be slow to put."""

    def __init__(self, work: Path) -> None:
        program = find(FAKE_GCS)
        if program is None:
            raise LabError("fake-gcs-server is not installed: run `python -m lab install sources`.")
        port = free_port()
        self.emulator_url = f"http://127.0.0.1:{port}"
        self.url = self.emulator_url
        """What STORAGE_EMULATOR_HOST is to say."""
        self.authority: Path | None = None
        self.log = work / "gcs.log"
        work.mkdir(parents=True, exist_ok=True)
        self.process = Process(
            "fake-gcs-server",
            [
                program,
                "-scheme=http",
                "-host=127.0.0.1",
                f"-port={port}",
                f"-public-host=127.0.0.1:{port}",
                f"-external-url={self.emulator_url}",
                "-backend=memory",
                "-data=",
                "-log-level=warn",
            ],
            log=self.log,
            cwd=work,
        )

    def start(self, deadline: float = 30.0) -> Self:
        """Start, and wait until it answers; again after `stop` or `kill`, empty."""
        self.process.start()
        healthy = f"{self.emulator_url}/_internal/healthcheck"
        self.process.wait_ready(lambda: is_ok(healthy), deadline)
        return self

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Stop and start, on the same port; what was put is gone."""
        self.stop()
        self.start()

    def _done(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Path = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        answer = send(method, f"{self.emulator_url}{path}", body=body, headers=headers)
        if answer.status not in (200, 204):
            raise LabError(f"GCS answered {answer.status} to {method} {path}: {answer.text}")
        return answer

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket."""
        self._done(
            "POST",
            "/storage/v1/b?project=lab",
            body=json.dumps({"name": bucket}).encode(),
            headers={"Content-Type": "application/json"},
        )

    def put(self, bucket: str, name: str, body: bytes | Path) -> str:
        """Put an object, or a file as one; its ETag (its MD5 in base64), without quotes."""
        query = urlencode({"uploadType": "media", "name": name})
        return str(
            self._done("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", body=body).json()["etag"]
        )

    def put_all(self, bucket: str, objects: Mapping[str, bytes | Path]) -> None:
        """Put many objects, eight at a time."""
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda item: self.put(bucket, *item), objects.items()):
                pass

    def delete(self, bucket: str, name: str) -> None:
        """Delete an object."""
        self._done("DELETE", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class GuardedGcs(Gcs):
    """The emulator behind a door: without a token of Google's it answers 401.

    Buckets that begin with `public-` are for everybody.
    """

    def __init__(
        self,
        work: Path,
        *,
        certificate: Certificate | None = None,
        issuer: Issuer | None = None,
    ) -> None:
        """Tokens of the issuer's workloads are exchanged, as workload identity federation does."""
        super().__init__(work)
        self.google = Google(work, certificate, issuer)
        self._door = Door(self.emulator_url, self.google.is_allowed, certificate)
        self.url = self._door.url
        self.authority = certificate.authority if certificate else None

    def start(self, deadline: float = 30.0) -> Self:
        super().start(deadline)
        self.google.tokens.start()
        self._door.start()
        return self

    def stop(self) -> None:
        self._end_door()
        super().stop()

    def kill(self) -> None:
        self._end_door()
        super().kill()

    def _end_door(self) -> None:
        self._door.stop()
        self.google.tokens.stop()
