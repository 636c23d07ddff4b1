"""Certificates that are their own authority, made and read by the ``openssl`` program.

Python's standard library can use a certificate and cannot make one; the program is in the image,
because its base's list of authorities needs it. A private key passes through a pipe alone.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.errors import SidecarError

OPENSSL_SECONDS: Final = 20.0
VALID_DAYS: Final = 90
_KEY_END = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----\n")
_DNS_NAME = re.compile(r"DNS:([^,\s]+)")
_A_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_NO_PROGRAM = "the openssl program is missing; use --tls-cert-file, or an image that has it"


class CertificateError(SidecarError):
    """No certificate could be made, or one could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a certificate says of itself."""

    not_after: float
    """Unix seconds."""
    names: frozenset[str]
    """DNS names that it is for."""


async def make_pair(names: Sequence[str], *, days: int = VALID_DAYS) -> Pair:
    """Return a new P-256 pair for servers of these DNS names.

    It is signed by itself: there is no authority's key that could sign another. Raises
    ``CertificateError``.
    """
    for name in names:
        if not _A_NAME.fullmatch(name):
            raise CertificateError(f"{name!r} is no DNS name, which a certificate needs")
    config = f"""
        [req]
        distinguished_name = subject
        x509_extensions = extensions
        prompt = no
        [subject]
        CN = model-sidecar-webhook
        [extensions]
        subjectAltName = {",".join(f"DNS:{name}" for name in names)}
        basicConstraints = critical,CA:FALSE
        keyUsage = critical,digitalSignature
        extendedKeyUsage = serverAuth
        subjectKeyIdentifier = hash
        """
    text = await _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", str(days), "-config", "/dev/stdin", "-keyout", "-", "-out", "-"),
        text=config,
    )
    end = _KEY_END.search(text)
    if end is None:
        raise CertificateError("openssl wrote no private key")
    return Pair(certificate=text[end.end() :], key=text[: end.end()])


async def read_facts(certificate: str) -> Facts:
    """Read a certificate. Raises ``CertificateError``."""
    arguments = ("x509", "-noout", "-enddate", "-ext", "subjectAltName")
    said = await _openssl(*arguments, text=certificate)
    end = said.partition("notAfter=")[2].partition("\n")[0]
    try:
        not_after = float(ssl.cert_time_to_seconds(end))
    except ValueError as error:
        raise CertificateError("openssl tells no end of the certificate") from error
    return Facts(not_after=not_after, names=frozenset(_DNS_NAME.findall(said)))


async def _openssl(*arguments: str, text: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "openssl",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise CertificateError(_NO_PROGRAM) from error
    try:
        async with asyncio.timeout(OPENSSL_SECONDS):
            out, trouble = await process.communicate(text.encode())
    except TimeoutError as error:
        raise CertificateError(f"openssl did not end within {OPENSSL_SECONDS:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = trouble.decode(errors="replace").strip().splitlines()
        said = words[-1][:200] if words else f"exit code {process.returncode}"
        raise CertificateError(f"openssl {arguments[0]}: {said}")
    return out.decode()
