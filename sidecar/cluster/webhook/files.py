"""A pair of PEM texts as files, which is how Python's TLS takes it."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from sidecar.cluster.webhook.pairs import CertificateError, Pair


class PairFiles:
    """One pair in a private directory, replaced as a whole."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is readable by nobody else, and goes with its maker."""
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"

    def write(self, pair: Pair) -> None:
        """Put ``pair`` in the place of what is there.

        Raises:
            CertificateError: they are no pair; what was there stays.
            OSError: the directory cannot be written.
        """
        certificate = _write_beside(self.certificate, pair.certificate)
        key = _write_beside(self.key, pair.key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            certificate.unlink()
            key.unlink()
            raise CertificateError("the certificate and the key are no pair") from error
        certificate.replace(self.certificate)
        key.replace(self.key)


def _write_beside(path: Path, text: str) -> Path:
    new = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return new
