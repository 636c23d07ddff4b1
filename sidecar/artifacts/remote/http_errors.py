"""What the HTTP library's exceptions mean to a source: one table."""

from __future__ import annotations

import httpcore

from sidecar.artifacts.remote.port import CONNECT_SECONDS, READ_SECONDS
from sidecar.errors import FetchFailed

ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (httpcore.PoolTimeout, "no connection to {peer} was free within {read:g} s"),
    (httpcore.ConnectTimeout, "no connection to {peer} within {connect:g} s"),
    (httpcore.WriteTimeout, "{peer} took no request within {read:g} s"),
    (httpcore.ReadTimeout, "{peer} was silent for {read:g} s"),
    (httpcore.TimeoutException, "{peer} was silent for {read:g} s"),
    (httpcore.ConnectError, "no connection to {peer} ({reason})"),
    (httpcore.NetworkError, "the connection to {peer} was cut"),
    (httpcore.RemoteProtocolError, "the answer of {peer} broke off or is no HTTP"),
    (httpcore.ProxyError, "no connection to {peer}: the proxy refused it ({reason})"),
    (httpcore.ConnectionNotAvailable, "no connection to {peer} was free"),
    # What is left is a request that cannot be written. Its words would repeat it.
    (httpcore.ProtocolError, "{peer} cannot be asked in this way"),
    (httpcore.UnsupportedProtocol, "{peer} cannot be asked in this way"),
    (OSError, "the connection to {peer} failed"),
)
"""Every foreign exception becomes ``FetchFailed`` with these words; the first match holds."""
FOREIGN = tuple(foreign for foreign, _ in ERRORS)


def translate(error: Exception, *, where: str, peer: str) -> FetchFailed:
    """Return what a foreign exception of ``ERRORS`` means."""
    words = next(words for foreign, words in ERRORS if isinstance(error, foreign))
    reason = str(error)[:200] or "no reason given"
    if isinstance(error, httpcore.ProxyError):
        # A status and words of the proxy's own.
        reason = reason.partition(" ")[0]
    told = words.format(peer=peer, connect=CONNECT_SECONDS, read=READ_SECONDS, reason=reason)
    return FetchFailed(f"{where}: {told}")
