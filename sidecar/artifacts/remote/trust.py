"""Which certificates a server may show."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from functools import lru_cache

from sidecar.errors import FetchFailed

CA_SETTINGS = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def open_trust(
    settings: Mapping[str, str], ca_certificate: str | None, *, where: str
) -> ssl.SSLContext:
    """Return a context that trusts the system's certificates and those that are named besides.

    Raises ``FetchFailed`` when one that is named cannot be read.
    """
    named = {name: settings[name] for name in CA_SETTINGS if settings.get(name)}
    for name, path in named.items():
        if not os.access(path, os.R_OK):
            raise FetchFailed(f"{where}: {name} names {path}, which the agent cannot read")
    files = tuple((path, os.stat(path).st_mtime_ns) for path in dict.fromkeys(named.values()))
    try:
        return _load(files, ca_certificate or "")
    except (OSError, ValueError) as error:
        what = "ca.crt among the credentials" if ca_certificate else " and ".join(named)
        raise FetchFailed(
            f"{where}: {what or 'the trust store of the system'} holds no certificates in PEM form"
        ) from error


# One takes 25 ms, in which nothing else runs, and 0.8 MB; sources are opened at every look.
@lru_cache(maxsize=8)
def _load(files: tuple[tuple[str, int], ...], ca_certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path, _ in files:
        if os.path.isdir(path):
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    if ca_certificate:
        context.load_verify_locations(cadata=ca_certificate)
    return context
