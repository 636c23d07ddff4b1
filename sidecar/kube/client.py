"""The way to the API server: the official client's configuration, credentials and transport.

Requests are made and answers read as plain JSON: the generated API classes and models cost 25 MB
and 0.8 s to import, and time at every event. Importing this module costs 0.5 s and 30 MB.
"""

from __future__ import annotations

import asyncio
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
from sidecar.kube.answers import MAX_BODY_BYTES, error_for, parse_object
from sidecar.kube.errors import (
    KubeConfigUnusable,
    KubeError,
    KubeProtocolError,
    KubeUnavailable,
)

CONNECT_TIMEOUT_SECONDS = 5.0
CONFIG_TIMEOUT_SECONDS = 15.0
"""A kubeconfig may run a program to obtain credentials."""
KEEPALIVE_IDLE_SECONDS = 15
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_PROBES = 3

Query = Mapping[str, str]


class KubeClient:
    """Requests with the credentials that were valid when it was opened."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api = api
        self.namespace = namespace
        """The ServiceAccount's own, or the kubeconfig context's."""

    async def get_json(self, path: str, query: Query, *, timeout: float) -> dict[str, Any]:
        """Answer one GET within ``timeout`` seconds. Raises ``KubeError``."""
        async with self.open_stream(path, query, timeout=timeout) as chunks:
            return parse_object(await _read_all(chunks))

    async def send_json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any],
        *,
        query: Query | None = None,
        content_type: str = "application/json",
        timeout: float,
    ) -> dict[str, Any]:
        """Send one object (POST, PUT, PATCH, DELETE) and return the answer, ``timeout`` seconds at
        most from now. Raises ``KubeError``."""
        with _translated_errors(timeout):
            answer = await self._send(path, query or {}, timeout, method, dict(body), content_type)
        try:
            if answer.status not in (200, 201, 202):
                with _translated_errors(timeout):
                    raise await _refusal(answer)
            async with aclosing(_read_chunks(answer, timeout)) as chunks:
                return parse_object(await _read_all(chunks))
        finally:
            _abandon(answer)

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

    async def _send(
        self,
        path: str,
        query: Query,
        timeout: float,
        method: str = "GET",
        body: dict[str, Any] | None = None,
        content_type: str | None = None,
    ) -> RESTResponse:
        headers = {"Accept": "application/json"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        method, url, headers, sent, *_ = await self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_SECONDS)
        return await self._api.call_api(method, url, headers, sent, _request_timeout=limits)


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
    configuration.client_session_kwargs = {
        "connector": connector,
        "middlewares": (_refuse_redirects,),
    }
    api.user_agent = f"model-sidecar/{__version__}"
    try:
        yield KubeClient(api, namespace)
    finally:
        await api.close()  # type: ignore[no-untyped-call]
        await connector.close()


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Raise ``KubeRedirected``: what a pod answers through the pod proxy must not choose what its
    reader asks for next, with the reader's token."""
    answer = await handler(request)
    if 300 <= answer.status < 400:
        answer.close()
        raise error_for(answer.status, str(answer.reason))
    return answer


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


async def _read_all(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise KubeProtocolError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


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
