"""A certificate authority for loopback servers, made anew each time with the openssl program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.install import run

OPENSSL_TIMEOUT_SECONDS = 30.0
NAMES = ("IP:127.0.0.1", "IP:::1", "DNS:localhost")
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def openssl(*arguments: str | Path) -> str:
    """Run openssl; what it writes to its output, or a LabError."""
    return run(
        ["openssl", *arguments],
        timeout=OPENSSL_TIMEOUT_SECONDS,
        hint="The lab needs the openssl program (Debian: apt install openssl).",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a server shows: its certificate, then the authority's, and the key, all PEM."""

    chain: Path
    key: Path
    authority: Path
    """CA file for those who shall trust it."""


class Authority:
    """One CA; nobody trusts it who was not told to."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.file = work / "ca.crt"
        self._key = work / "ca.key"
        self._issued = 0
        work.mkdir(parents=True, exist_ok=True)
        openssl(
            *("req", "-x509", *KEY, "-subj", "/CN=lab CA"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", self._key, "-out", self.file),
        )

    def issue(self, *names: str) -> Certificate:
        """A server certificate, of loopback unless names (`DNS:...`, `IP:...`) are given."""
        self._issued += 1
        key = self.work / f"server-{self._issued}.key"
        chain = self.work / f"server-{self._issued}.crt"
        openssl(
            *("req", "-x509", *KEY, "-subj", "/CN=lab server"),
            *("-CA", self.file, "-CAkey", self._key),
            *("-addext", f"subjectAltName={','.join(names or NAMES)}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", "extendedKeyUsage=serverAuth,clientAuth"),
            *("-keyout", key, "-out", chain),
        )
        chain.write_text(chain.read_text() + self.file.read_text())
        return Certificate(chain=chain, key=key, authority=self.file)
