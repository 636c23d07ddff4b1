"""S3 without a cloud: versitygw over a directory, with its own IAM and STS beside it.

Access is checked as AWS does it: keys, session tokens, roles taken on with a workload's token.

ETags are the MD5 of what was put. A file laid into the bucket's directory has none at all: it is
listed with an empty one, so `put` is the way in.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from lab import LabError
from lab.golang import Edit, Program, find
from lab.golang import install as install_program
from lab.iam import Iam, read_policy
from lab.process import Process, free_port
from lab.sigv4 import Keys, send_signed
from lab.tls import Certificate
from lab.web import Answer, is_ok

REGION = "us-east-1"
MODULE = "github.com/versity/versitygw"
VERSITYGW = Program(
    name="versitygw",
    module=MODULE,
    version="v1.8.0",
    package=f"{MODULE}/cmd/versitygw",
    version_command=("--version",),
    oldest=(1, 8),
)
# The STS asks no issuer on loopback for its keys, and none on a port of its own: it would let a
# stranger's token reach into its network. Here both live on loopback.
VERSITYGW_IAM = Program(
    name="versitygw-iam",
    module=MODULE,
    version=VERSITYGW.version,
    package=VERSITYGW.package,
    edits=(
        Edit(
            file="iamapi/internal/iamutil/oidc_thumbprint.go",
            old="return ip.IsLoopback() || ",
            new="return ",
        ),
        Edit(
            file="iamapi/internal/iamutil/oidc.go",
            old=' || parsed.Port() != ""',
            new="",
        ),
    ),
    version_command=VERSITYGW.version_command,
    oldest=VERSITYGW.oldest,
)
PROGRAMS = (VERSITYGW, VERSITYGW_IAM)
HEALTH = "/healthz"


def install() -> None:
    """Build what is missing."""
    for program in PROGRAMS:
        install_program(program)


def _path(program: Program) -> Path:
    found = find(program)
    if found is None:
        raise LabError(f"{program.name} is not installed: run `python -m lab install sources`.")
    return found


class S3:
    """One server. Everything it writes is under `work`; with a certificate it speaks https."""

    def __init__(
        self,
        work: Path,
        *,
        access_key: str = "LABROOTACCESSKEY",
        secret_key: str = "lab/root+secret=key",
        region: str = REGION,
        certificate: Certificate | None = None,
    ) -> None:
        self.work = work
        self.root = Keys(access_key=access_key, secret_key=secret_key)
        self.region = region
        self.authority = certificate.authority if certificate else None
        """CA file that a client has to trust, when it is https."""
        port, iam_port = free_port(), free_port()
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.sts_url = f"{scheme}://127.0.0.1:{iam_port}"
        self.iam = Iam(self.sts_url, self.root, region, self.authority)
        self.data = work / "data"
        self.log = work / "s3.log"
        iam = work / "iam"
        # A name without a file: nothing is left of it, and its length does not depend on `work`.
        socket = f"@lab-{secrets.token_hex(8)}"
        for folder in (self.data, iam):
            folder.mkdir(parents=True, exist_ok=True)
        environment = {"ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": secret_key}
        shared = ["--health", HEALTH, "--region", region]
        if certificate is not None:
            shared += ["--cert", str(certificate.chain), "--key", str(certificate.key)]
        self.iam_process = Process(
            "versitygw-iam",
            [
                _path(VERSITYGW_IAM),
                f"--port=127.0.0.1:{iam_port}",
                *shared,
                "iam",
                f"--dir={iam}",
                f"--private-ports={socket}",
            ],
            log=work / "iam.log",
            cwd=work,
            env=environment,
        )
        self.process = Process(
            "versitygw",
            [
                _path(VERSITYGW),
                f"--port=127.0.0.1:{port}",
                *shared,
                f"--iam-standalone-endpoint={socket}",
                "posix",
                self.data,
            ],
            log=self.log,
            cwd=work,
            env=environment,
        )

    def start(self, deadline: float = 30.0) -> Self:
        """Start, and wait until ready; again after `stop` or `kill`, with the same data."""
        self.iam_process.start()
        self.iam_process.wait_ready(lambda: self._is_ok(self.sts_url), deadline)
        try:
            self.process.start()
            self.process.wait_ready(lambda: self._is_ok(self.url), deadline)
        except BaseException:
            self.iam_process.kill()
            raise
        return self

    def _is_ok(self, url: str) -> bool:
        return is_ok(f"{url}{HEALTH}", authority=self.authority)

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()
        self.iam_process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.iam_process.kill()

    def restart(self) -> None:
        """Stop and start, on the same port with the same data."""
        self.stop()
        self.start()

    def environment(self, keys: Keys | None = None) -> dict[str, str]:
        """The variables by which AWS' tools and libraries find this server."""
        named = (keys or self.root).environment()
        named |= {"AWS_ENDPOINT_URL": self.url, "AWS_REGION": self.region}
        if self.authority is not None:
            named["AWS_CA_BUNDLE"] = str(self.authority)
        return named

    def send(
        self,
        method: str,
        path: str,
        *,
        keys: Keys | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | Path = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One signed request of any outcome; `path` is /bucket/key."""
        return send_signed(
            method,
            f"{self.url}{path}",
            keys or self.root,
            region=self.region,
            query=query,
            body=body,
            headers=headers,
            authority=self.authority,
        )

    def _done(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | Path = b"",
    ) -> Answer:
        answer = self.send(method, path, query=query, body=body)
        if answer.status not in (200, 204):
            raise LabError(f"S3 answered {answer.status} to {method} {path}: {answer.text}")
        return answer

    def make_bucket(self, bucket: str, *, anonymous_read: bool = False) -> None:
        """Make a bucket (3 characters at least), which everybody may read when told so."""
        self._done("PUT", f"/{bucket}")
        if anonymous_read:
            policy = read_policy([bucket], principal="*")
            self._done("PUT", f"/{bucket}", query={"policy": ""}, body=policy.encode())

    def put(self, bucket: str, key: str, body: bytes | Path) -> str:
        """Put an object, or a file as one; its ETag as it was answered, in quotes."""
        return str(self._done("PUT", f"/{bucket}/{key}", body=body).headers["ETag"])

    def put_all(self, bucket: str, objects: Mapping[str, bytes | Path]) -> None:
        """Put many objects, eight at a time."""
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda item: self.put(bucket, *item), objects.items()):
                pass

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object."""
        self._done("DELETE", f"/{bucket}/{key}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
