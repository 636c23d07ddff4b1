"""Azure Blob Storage without a cloud: Azurite, which checks shared keys and signatures (SAS).

Rules: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key and
https://learn.microsoft.com/rest/api/storageservices/create-service-sas
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode, urlsplit

from lab import LabError
from lab.node import find_package, install_package, node
from lab.process import Process, free_port
from lab.tls import Certificate
from lab.web import Answer, send

PACKAGE = "azurite"
VERSION = "3.37.0"
# Its telemetry, which is turned off below. A newer one asks for what some registries do not have.
OVERRIDES = {"applicationinsights": "3.16.0"}
API_VERSION = "2023-11-03"


def install() -> None:
    """Install Azurite, and Node.js where there is none."""
    install_package(PACKAGE, VERSION, OVERRIDES)


def find() -> Path | None:
    """The blob server's program, when it is installed."""
    return find_package(PACKAGE, VERSION, "azurite-blob")


def _sign(key: str, text: str) -> str:
    digest = hmac.new(base64.b64decode(key), text.encode(), "sha256").digest()
    return base64.b64encode(digest).decode()


class Azure:
    """One blob server with one account. `stop` keeps what was put, `kill` may lose the latest."""

    def __init__(
        self,
        work: Path,
        *,
        account: str = "labaccount",
        key: str | None = None,
        certificate: Certificate | None = None,
        oauth: bool = False,
    ) -> None:
        """`oauth` takes tokens of Entra too, over https alone (see `lab.entra`)."""
        program = find()
        if program is None:
            raise LabError("Azurite is not installed: run `python -m lab install sources`.")
        port = free_port()
        self.account = account
        self.key = key or base64.b64encode(secrets.token_bytes(64)).decode()
        self.authority = certificate.authority if certificate else None
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}/{account}"
        """Of the account, as its path; there are no host names per account on loopback."""
        self.log = work / "azurite.log"
        secure = ["--oauth=basic"] if oauth else []
        if certificate is not None:
            secure += [f"--cert={certificate.chain}", f"--key={certificate.key}"]
        work.mkdir(parents=True, exist_ok=True)
        self.process = Process(
            PACKAGE,
            [
                node().program,
                program,
                "--blobHost=127.0.0.1",
                f"--blobPort={port}",
                f"--location={work}",
                "--disableTelemetry",
                "--skipApiVersionCheck",
                *secure,
            ],
            log=self.log,
            cwd=work,
            env={"AZURITE_ACCOUNTS": f"{account}:{self.key}"},
        )

    def start(self, deadline: float = 60.0) -> Self:
        """Start, and wait until it answers; again after `stop` or `kill`."""
        self.process.start()
        self.process.wait_ready(self._is_ready, deadline)
        return self

    def _is_ready(self) -> bool:
        try:
            return self.send("GET", "", query={"comp": "list"}).status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Stop and start, on the same port with the same blobs."""
        self.stop()
        self.start()

    def environment(self) -> dict[str, str]:
        """The variables by which Azure's tools and libraries find this account."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": self.url,
        }

    def send(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | Path = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request of any outcome, signed with the shared key; `path` is /container/blob."""
        length = len(body) if isinstance(body, bytes) else body.stat().st_size
        extra = {name.lower(): value for name, value in (headers or {}).items()}
        extra |= {
            "x-ms-date": format_datetime(datetime.now(UTC), usegmt=True),
            "x-ms-version": API_VERSION,
            "content-type": "application/octet-stream",
        }
        url = f"{self.url}{quote(path, safe='/-_.~')}"
        lines = [method, "", "", str(length or ""), "", extra["content-type"], ""]
        named = ("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range")
        lines += [extra.get(name, "") for name in named]
        lines += [f"{name}:{extra[name]}" for name in sorted(extra) if name.startswith("x-ms-")]
        lines.append(f"/{self.account}{urlsplit(url).path}")
        lines += [f"{name}:{value}" for name, value in sorted((query or {}).items())]
        extra["authorization"] = (
            f"SharedKey {self.account}:{_sign(key or self.key, chr(10).join(lines))}"
        )
        asked = f"?{urlencode(query)}" if query else ""
        return send(method, f"{url}{asked}", body=body, headers=extra, authority=self.authority)

    def _done(self, method: str, path: str, **more: object) -> Answer:
        answer = self.send(method, path, **more)  # type: ignore[arg-type]
        if answer.status >= 300:
            raise LabError(f"Azurite answered {answer.status} to {method} {path}: {answer.text}")
        return answer

    def make_container(self, container: str, *, anonymous_read: bool = False) -> None:
        """Make a container (3 characters at least), which everybody may read when told so."""
        access = {"x-ms-blob-public-access": "container"} if anonymous_read else {}
        self._done("PUT", f"/{container}", query={"restype": "container"}, headers=access)

    def put(self, container: str, name: str, body: bytes | Path) -> str:
        """Put a blob, or a file as one; its ETag as it was answered, in quotes."""
        kind = {"x-ms-blob-type": "BlockBlob"}
        return str(
            self._done("PUT", f"/{container}/{name}", body=body, headers=kind).headers["ETag"]
        )

    def put_all(self, container: str, blobs: Mapping[str, bytes | Path]) -> None:
        """Put many blobs, eight at a time."""
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda item: self.put(container, *item), blobs.items()):
                pass

    def delete(self, container: str, name: str) -> None:
        """Delete a blob."""
        self._done("DELETE", f"/{container}/{name}")

    def sas(self, container: str, *, permissions: str = "rl", seconds: float = 3600.0) -> str:
        """The query string that lets its holder into one container; negative: it has expired."""
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        expiry = end.strftime("%Y-%m-%dT%H:%M:%SZ")
        lines = [
            permissions,
            "",
            expiry,
            f"/blob/{self.account}/{container}",
            *("", "", ""),
            API_VERSION,
            "c",
            *("", "", "", "", "", "", ""),
        ]
        return urlencode(
            {
                "sp": permissions,
                "se": expiry,
                "sv": API_VERSION,
                "sr": "c",
                "sig": _sign(self.key, "\n".join(lines)),
            }
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
