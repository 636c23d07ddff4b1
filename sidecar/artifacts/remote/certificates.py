"""Certificates that are trusted besides those of the system."""

from __future__ import annotations

import os

from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import FetchFailed

CA_SETTINGS = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_BEGIN = "-----BEGIN CERTIFICATE-----"


def ca_text(credentials: Credentials, *, where: str) -> str | None:
    """Return the certificates, in PEM form, that the operator names; None when he names none.

    These are ``ca.crt`` of a mounted secret, and the files that the settings of the AWS tools and
    of HTTP clients name. Raises ``FetchFailed`` when one cannot be read.
    """
    texts: dict[str, str] = {}
    if "ca.crt" in credentials.values:
        texts["ca.crt"] = credentials.values["ca.crt"]
    for name in CA_SETTINGS:
        path = credentials.values.get(name, "")
        if path and not os.path.isdir(path):
            texts[name] = _read(path, name, where)
    for name, text in texts.items():
        if _BEGIN not in text:
            raise FetchFailed(f"{where}: {name} holds no certificate in PEM form")
    return "\n".join(dict.fromkeys(texts.values())) or None


def _read(path: str, name: str, where: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise FetchFailed(f"{where}: {name} names {path}, which cannot be read") from error
