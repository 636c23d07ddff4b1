"""The way to the API server: the official client's configuration, credentials and transport.

::

    KubeError
    |-- KubeConfigUnusable  no usable kubeconfig or ServiceAccount  -> retry, it may be mended
    |-- KubeUnavailable     no connection, no answer, 429, 5xx      -> retry with backoff
    |-- KubeDenied          401, 403                                -> retry, say what is needed
    |-- KubeGone            410: the resource_version is too old    -> list again
    `-- KubeProtocolError   an answer that is not the API's         -> list again with backoff

Requests are made and answers read as plain JSON: the generated API classes and models cost 25 MB
and 0.8 s to import, and time at every event. Importing this module costs 0.5 s and 30 MB.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config import ConfigException, incluster_config, kube_config

from sidecar import __version__
from sidecar.errors import SidecarError

CONNECT_TIMEOUT_SECONDS = 5.0
CONFIG_TIMEOUT_SECONDS = 15.0
"""A kubeconfig may run a program to obtain credentials."""
MAX_BODY_BYTES = 16 * 1024 * 1024
"""A ConfigMap holds 1 MiB; JSON escapes can make six of each byte, annotations add to it."""
MAX_MESSAGE_CHARS = 256
KEEPALIVE_IDLE_SECONDS = 15
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_PROBES = 3

Query = Mapping[str, str]


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


class KubeProtocolError(KubeError):
    """The answer is not what the Kubernetes API sends."""


class KubeClient:
    """Requests with the credentials that were valid when it was opened."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api = api
        self.namespace = namespace
        """The ServiceAccount's own, or the kubeconfig context's."""

    async def get_json(self, path: str, query: Query, *, timeout: float) -> dict[str, Any]:
        """Answer one GET within ``timeout`` seconds. Raises ``KubeError``."""
        async with self.open_stream(path, query, timeout=timeout) as chunks:
            body = bytearray()
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise KubeProtocolError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        return parse_object(bytes(body))

    @asynccontextmanager
    async def open_stream(
        self, path: str, query: Query, *, timeout: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a GET whose body, ``timeout`` seconds at most from now, comes in chunks.

        Raises ``KubeError``, also while the chunks are read.
        """
        with _translated_errors(timeout):
            answer = await self._send(path, query, timeout)
        try:
            if answer.status != 200:
                with _translated_errors(timeout):
                    raise await _refusal(answer)
            async with aclosing(_read_chunks(answer, timeout)) as chunks:
                yield chunks
        finally:
            _abandon(answer)

    async def _send(self, path: str, query: Query, timeout: float) -> RESTResponse:
        method, url, headers, *_ = await self._api.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_SECONDS)
        return await self._api.call_api(method, url, headers, _request_timeout=limits)


@asynccontextmanager
async def open_client(kubeconfig: Path | None) -> AsyncIterator[KubeClient]:
    """Read configuration and credentials anew, and hold connections while the ``with`` lasts.

    Without ``kubeconfig``: the pod's ServiceAccount, or outside a pod what kubectl would use.
    Raises ``KubeConfigUnusable``.
    """
    configuration = Configuration()
    try:
        async with asyncio.timeout(CONFIG_TIMEOUT_SECONDS):
            namespace = await _load(configuration, kubeconfig)
        _freeze_credentials(configuration)
        api = ApiClient(configuration)
    except TimeoutError as error:
        message = f"no credentials within {CONFIG_TIMEOUT_SECONDS:g} s"
        raise KubeConfigUnusable(message) from error
    except yaml.YAMLError as error:
        # Its own words quote the line, which may hold a token.
        raise KubeConfigUnusable("the kubeconfig is not valid YAML") from error
    except ConfigException as error:
        # What follows the first "in" may print a whole user entry, token included.
        raise KubeConfigUnusable(str(error).partition(" in ")[0]) from error
    except OSError as error:
        which = f"{error.filename}: " if error.filename else ""
        raise KubeConfigUnusable(f"{which}{error.strerror or type(error).__name__}") from error
    except ImportError as error:
        message = f"its way to log in needs a library that is not installed: {error.name}"
        raise KubeConfigUnusable(message) from error
    except aiohttp.ClientError as error:
        raise KubeConfigUnusable(f"no credentials: {type(error).__name__}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise KubeConfigUnusable("the kubeconfig is malformed") from error
    connector = aiohttp.TCPConnector(
        ssl=api.rest_client.ssl_context, socket_factory=_open_keepalive_socket
    )
    configuration.client_session_kwargs = {"connector": connector}
    api.user_agent = f"model-sidecar/{__version__}"
    try:
        yield KubeClient(api, namespace)
    finally:
        await api.close()  # type: ignore[no-untyped-call]
        await connector.close()


async def _load(configuration: Configuration, kubeconfig: Path | None) -> str:
    """Fill in server and credentials; return the default namespace."""
    if kubeconfig is None:
        try:
            incluster_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except ConfigException as error:
            kubeconfig = Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)
            if not kubeconfig.is_file():
                message = f"no ServiceAccount ({error}), and no {kubeconfig}"
                raise KubeConfigUnusable(message) from error
        else:
            beside = Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace")
            return beside.read_text().strip()
    kubeconfig.stat()
    loader = await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
        str(kubeconfig), client_configuration=configuration, persist_config=False
    )
    return str(loader.current_context["context"].get("namespace") or "default")


def _freeze_credentials(configuration: Configuration) -> None:
    # A client is opened for each watch and reads them then; token files may end in a newline.
    configuration.refresh_api_key_hook = None
    configuration.api_key = {name: key.strip() for name, key in configuration.api_key.items()}


def _open_keepalive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Open a socket that notices within half a minute that the other side is silently gone."""
    family, kind, protocol, *_ = address
    opened = socket.socket(family=family, type=kind, proto=protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    return opened


async def _read_chunks(answer: RESTResponse, timeout: float) -> AsyncGenerator[bytes, None]:
    with _translated_errors(timeout):
        async for chunk in answer.response.content.iter_any():
            yield chunk


def _abandon(answer: RESTResponse) -> None:
    """Give back the connection, or end it where the answer was not read to its end."""
    connection = answer.response.connection
    if connection is not None and connection.transport is not None:
        # Closing would wait for the server's TLS farewell, which a half-open one never sends.
        connection.transport.abort()
    answer.response.close()


@contextmanager
def _translated_errors(timeout: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise KubeUnavailable(f"the API server did not answer in {timeout:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise KubeUnavailable(_say(error)) from error


async def _refusal(answer: RESTResponse) -> KubeError:
    body = await answer.response.content.read(64 * 1024)
    try:
        message = str(parse_object(body).get("message") or answer.reason)
    except KubeProtocolError:
        message = str(answer.reason)
    return error_for(answer.status, message)


def error_for(code: int, message: str) -> KubeError:
    """Translate the HTTP status, or the code of a Status object, of a refused request."""
    said = message[:MAX_MESSAGE_CHARS]
    match code:
        case 401:
            text = f"the API server does not accept the credentials: 401 {said}"
            return KubeDenied(text, forbidden=False)
        case 403:
            return KubeDenied(f"the API server refuses: 403 {said}", forbidden=True)
        case 410:
            return KubeGone(f"the resource_version is too old: 410 {said}")
        case _:
            return KubeUnavailable(f"the API server answered {code} {said}")


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse one JSON object. Raises ``KubeProtocolError``."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KubeProtocolError("the API server sent what is not JSON") from error
    if not isinstance(value, dict):
        raise KubeProtocolError("the API server sent JSON that is not an object")
    return value


def _say(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of {error.host}:{error.port} is not trusted"
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or type(error.os_error).__name__
            return f"cannot connect to {error.host}:{error.port}: {why}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "the API server closed the connection"
        case _:
            return f"the connection to the API server failed: {type(error).__name__}"
