"""An OCI registry: distribution, open, behind passwords, or behind a token server.

Rules: https://github.com/opencontainers/distribution-spec/blob/main/spec.md and, for tokens,
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

from lab import LabError
from lab.golang import Program, find
from lab.golang import install as install_program
from lab.process import Process, free_port
from lab.stub import Stub, StubAnswer, StubRequest
from lab.tls import Certificate
from lab.tokens import SigningKey
from lab.web import Answer, send

MODULE = "github.com/distribution/distribution/v3"
REGISTRY = Program(
    name="registry",
    module=MODULE,
    version="v3.1.2",
    package=f"{MODULE}/cmd/registry",
    version_command=("--version",),
    oldest=(3, 0),
)
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SERVICE = "lab"
USER = "lab"
# Passwords with their bcrypt, for which Python has no library of its own.
PASSWORDS = {
    "lab-password": "$2a$04$e393KkRmIGuww1d9DLu9t.P5dART/Fs7pXx39k9o.1Fv5fomHosF6",
    "lab-password-2": "$2a$04$FNe6jU.1tdX2IuCxJYvTZet7Na8X5EeppRy94WT/RAPWX2GqzHAz2",
}
PASSWORD, OTHER_PASSWORD = PASSWORDS
TOKEN_SECONDS = 300


def install() -> None:
    """Build it, once."""
    install_program(REGISTRY)


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Registry:
    """One registry; what is pushed stays under `work`. `stop` and `start` keep it."""

    def __init__(
        self,
        work: Path,
        *,
        certificate: Certificate | None = None,
        auth: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`auth` is that section of distribution's configuration; `with_*` below make it."""
        program = find(REGISTRY)
        if program is None:
            raise LabError("The registry is not installed: run `python -m lab install sources`.")
        self.work = work
        self.host = f"127.0.0.1:{free_port()}"
        """How references begin."""
        self.url = f"{'https' if certificate else 'http'}://{self.host}"
        self.authority = certificate.authority if certificate else None
        self.log = work / "registry.log"
        work.mkdir(parents=True, exist_ok=True)
        http: dict[str, object] = {"addr": self.host, "secret": secrets.token_hex(16)}
        if certificate is not None:
            http["tls"] = {"certificate": str(certificate.chain), "key": str(certificate.key)}
        # JSON is YAML, and needs no library.
        configuration = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": str(work / "data")},
                "delete": {"enabled": True},
            },
            "http": http,
            **({"auth": auth} if auth else {}),
        }
        (work / "config.yml").write_text(json.dumps(configuration))
        self.process = Process(
            "registry",
            [program, "serve", work / "config.yml"],
            log=self.log,
            cwd=work,
            env={"OTEL_TRACES_EXPORTER": "none"},
        )

    def start(self, deadline: float = 30.0) -> Self:
        """Start, and wait until it answers; again after `stop` or `kill`, on the same port."""
        self.process.start()
        self.process.wait_ready(self._is_ready, deadline)
        return self

    def _is_ready(self) -> bool:
        try:
            answer = send("GET", f"{self.url}/v2/", authority=self.authority, timeout=5.0)
        except OSError:
            return False
        return answer.status in (200, 401)

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Stop and start, on the same port with what was pushed."""
        self.stop()
        self.start()

    def authorization(self, repository: str) -> str | None:
        """The header's value with which everything is allowed; an open registry asks for none."""
        return None

    def send(
        self,
        method: str,
        path: str,
        *,
        repository: str = "",
        body: bytes | Path = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request of any outcome, allowed to do everything in the repository."""
        given = dict(headers or {})
        if (authorization := self.authorization(repository)) is not None:
            given.setdefault("Authorization", authorization)
        url = path if path.startswith(("http:", "https:")) else f"{self.url}{path}"
        return send(method, url, body=body, headers=given, authority=self.authority)

    def push_blob(self, repository: str, body: bytes | Path) -> dict[str, Any]:
        """Push a blob; its digest and size, as a descriptor has them."""
        if isinstance(body, bytes):
            digest, size = hashlib.sha256(body).hexdigest(), len(body)
        else:
            with body.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            size = body.stat().st_size
        begun = self.send("POST", f"/v2/{repository}/blobs/uploads/", repository=repository)
        self._check(begun, 202, f"an upload to {repository}")
        place = begun.headers["Location"]
        place += ("&" if "?" in place else "?") + urlencode({"digest": f"sha256:{digest}"})
        done = self.send("PUT", place, repository=repository, body=body)
        self._check(done, 201, f"a blob of {repository}")
        return {"digest": f"sha256:{digest}", "size": size}

    def push_manifest(self, repository: str, reference: str, manifest: Mapping[str, object]) -> str:
        """Push a manifest or an index under a tag or a digest; its digest."""
        body = json.dumps(manifest).encode()
        done = self.send(
            "PUT",
            f"/v2/{repository}/manifests/{quote(reference, safe=':')}",
            repository=repository,
            body=body,
            headers={"Content-Type": str(manifest.get("mediaType", MANIFEST))},
        )
        self._check(done, 201, f"{repository}:{reference}")
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    @staticmethod
    def _check(answer: Answer, status: int, what: str) -> None:
        if answer.status != status:
            raise LabError(f"The registry answered {answer.status} to {what}: {answer.text}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class PasswordRegistry(Registry):
    """A registry that asks for user and password (`Basic`) at every request."""

    def __init__(self, work: Path, *, certificate: Certificate | None = None) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._passwords = work / "htpasswd"
        self.password = ""
        self.set_password(PASSWORD)
        auth = {"htpasswd": {"realm": "lab", "path": str(self._passwords)}}
        super().__init__(work, certificate=certificate, auth=auth)

    def set_password(self, password: str) -> None:
        """Let `lab` in with this one of PASSWORDS, and no longer with another; at once."""
        before = self._passwords.stat().st_mtime_ns if self._passwords.exists() else 0
        self._passwords.write_text(f"{USER}:{PASSWORDS[password]}\n")
        # It is read again when its time has moved.
        moment = max(time.time_ns(), before + 1_000_000_000)
        os.utime(self._passwords, ns=(moment, moment))
        self.password = password

    def authorization(self, repository: str) -> str | None:
        return basic(USER, self.password)


class TokenRegistry(Registry):
    """A registry that sends its clients to a token server, which asks for the password.

    Repositories below `public/` are for everybody: the server gives a token to whoever asks.
    """

    def __init__(self, work: Path, *, certificate: Certificate | None = None) -> None:
        self._key = SigningKey(work)
        self.password = PASSWORD
        self.tokens = Stub(self._answer, certificate)
        """The token server; it counts its requests."""
        keys = work / "jwks.json"
        keys.write_text(json.dumps({"keys": [self._key.jwk]}))
        auth = {
            "token": {
                "realm": f"{self.tokens.url}/token",
                "service": SERVICE,
                "issuer": SERVICE,
                "jwks": str(keys),
            }
        }
        super().__init__(work, certificate=certificate, auth=auth)

    def start(self, deadline: float = 30.0) -> Self:
        self.tokens.start()
        return super().start(deadline)

    def stop(self) -> None:
        super().stop()
        self.tokens.stop()

    def kill(self) -> None:
        super().kill()
        self.tokens.stop()

    def authorization(self, repository: str) -> str | None:
        return f"Bearer {self.token(repository, ['pull', 'push', 'delete'])}"

    def token(self, repository: str, actions: list[str], *, seconds: float = TOKEN_SECONDS) -> str:
        """A token that the registry accepts, without asking the token server."""
        now = int(time.time())
        access = [{"type": "repository", "name": repository, "actions": actions}]
        return self._key.sign(
            {
                "iss": SERVICE,
                "sub": USER,
                "aud": SERVICE,
                "iat": now,
                "nbf": now - 60,
                "exp": now + int(seconds),
                "jti": secrets.token_hex(8),
                "access": access if repository else [],
            }
        )

    def _answer(self, request: StubRequest) -> StubAnswer:
        given = request.headers.get("Authorization")
        scope = request.query.get("scope", "")
        kind, _, rest = scope.partition(":")
        repository, _, actions = rest.rpartition(":")
        is_public = repository.startswith("public/") and actions == "pull"
        if given is None and not is_public:
            return StubAnswer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "who?"}]})
        if given is not None and given != basic(USER, self.password):
            return StubAnswer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong"}]})
        allowed = actions.split(",") if kind == "repository" else []
        token = self.token(repository, allowed)
        return StubAnswer(200, {"token": token, "expires_in": TOKEN_SECONDS})
