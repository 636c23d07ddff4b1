"""The admission server as a process of its own, on a loopback port, and questions to it."""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from lab import LabError
from lab.process import POLL_SECONDS, Process, free_port
from lab.tls import Certificate
from lab.web import Answer, send
from tests.support.admission import response

START_SECONDS = 20.0
WAIT_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[2]


class WebhookProcess:
    """One replica. Its port stays the same over restarts."""

    def __init__(self, work: Path, *flags: str, name: str = "webhook") -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.log = work / f"{name}.log"
        self._process = Process(
            name,
            [
                *(sys.executable, "-m", "sidecar", "webhook"),
                *(f"--listen=localhost:{self.port}", *flags),
            ],
            log=self.log,
            cwd=work,
            env={"PYTHONPATH": str(ROOT)},
        )

    def start(self) -> Self:
        """Start, and wait until it accepts connections (not until it is ready)."""
        self._process.start()
        self._process.wait_ready(lambda: self.certificate() is not None, START_SECONDS)
        return self

    def wait_exit(self, seconds: float) -> bool:
        """Whether it ends by itself within that time."""
        return self._process.wait_exit(seconds)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def certificate(self) -> str | None:
        """The certificate that it shows now, PEM; None while nobody answers."""
        try:
            return ssl.get_server_certificate(("localhost", self.port), timeout=5.0)
        except OSError:
            return None

    def ask(self, path: str, review: Any, authority: Path) -> Any:
        """The response to one review."""
        answer = self.post(path, json.dumps(review).encode(), authority)
        assert answer.status == 200, answer.text
        return response(answer.body)

    def post(self, path: str, body: bytes, authority: Path) -> Answer:
        """One POST by this authority's word."""
        return send("POST", f"{self.url}{path}", body=body, authority=authority, timeout=15.0)

    def get(self, path: str, authority: Path) -> Answer:
        """One GET."""
        return send("GET", f"{self.url}{path}", authority=authority, timeout=15.0)

    def log_text(self) -> str:
        """Everything that it logged."""
        return self.log.read_text(errors="replace")

    def wait_log(self, words: str, deadline: float = WAIT_SECONDS) -> None:
        """Wait until it said so."""
        wait_until(f"{words!r} in its log", lambda: words in self.log_text(), deadline)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Files:
    """A certificate's files as a Secret's volume has them: replaced while somebody reads them."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.certificate = work / "tls.crt"
        self.key = work / "tls.key"

    @property
    def flags(self) -> Sequence[str]:
        """How the server is told of them."""
        return f"--tls-cert-file={self.certificate}", f"--tls-key-file={self.key}"

    def write(self, issued: Certificate) -> None:
        """Put another pair in their place."""
        for source, path in ((issued.chain, self.certificate), (issued.key, self.key)):
            new = path.with_suffix(".new")
            new.write_bytes(source.read_bytes())
            new.replace(path)


def wait_until(what: str, look: Callable[[], object], deadline: float = WAIT_SECONDS) -> None:
    """Look until ``look`` returns something true; an API that refuses is nothing true."""
    end = time.monotonic() + deadline
    trouble: object = ""
    while True:
        try:
            if look():
                return
        except (LabError, OSError) as error:
            trouble = error
        assert time.monotonic() < end, f"no {what} in {deadline:g} s: {trouble}"
        time.sleep(POLL_SECONDS)
