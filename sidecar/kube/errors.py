"""What can go wrong between us and the API server.

::

    KubeError
    |-- KubeConfigUnusable  no usable kubeconfig or ServiceAccount  -> retry, it may be mended
    |-- KubeUnavailable     no connection, no answer, 429, 5xx      -> retry with backoff
    |-- KubeNotFound        404: no such object                     -> a reader retries
    |-- KubeConflict        409: changed meanwhile, or there already -> read again
    |-- KubeInvalid         400, 413, 422                           -> the request is wrong
    |-- KubeDenied          401, 403                                -> retry, say what is needed
    |-- KubeGone            410: the resource_version is too old    -> list again
    `-- KubeProtocolError   an answer that is not the API's         -> list again with backoff
        `-- KubeRedirected  3xx: never followed                     -> as above
"""

from __future__ import annotations

from sidecar.errors import SidecarError


class KubeError(SidecarError):
    """Base of what can go wrong between us and the API server."""


class KubeConfigUnusable(KubeError):
    """There is no configuration that leads to an API server."""


class KubeUnavailable(KubeError):
    """The API server did not answer, or not now."""


class KubeDenied(KubeError):
    """The API server does not accept the credentials (401) or does not allow the request (403)."""

    def __init__(self, message: str, *, forbidden: bool) -> None:
        super().__init__(message)
        self.forbidden = forbidden


class KubeGone(KubeError):
    """What happened since that resource_version is no longer known."""


class KubeNotFound(KubeError):
    """There is no such object."""


class KubeConflict(KubeError):
    """The object was changed meanwhile, or is there already (409)."""


class KubeInvalid(KubeError):
    """The API server does not take the request as it is (400, 413, 422)."""


class KubeProtocolError(KubeError):
    """The answer is not what the Kubernetes API sends."""


class KubeRedirected(KubeProtocolError):
    """The answer sends us elsewhere (3xx)."""
