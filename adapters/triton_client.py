"""NVIDIA's client behind typed calls: one attempt each, and our errors instead of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from adapters.base import (
    EngineError,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    EngineUnsupported,
)
from adapters.http import (
    ErrorTable,
    cut,
    deadline_words,
    map_engine_errors,
    open_tls,
    read_api_key,
    status_error,
)

ENGINE = "Triton"
NOT_EXPLICIT = "not allowed if polling is enabled"
HOW_TO_START = "start it with --model-control-mode=explicit"

TRITON_ERRORS: ErrorTable = (
    # Nothing was sent yet, so the outcome is known.
    (aiohttp.ConnectionTimeoutError, EngineUnavailable),
    (aiohttp.ServerTimeoutError, EngineTimeout),
    (aiohttp.ClientConnectionError, EngineUnavailable),
    (aiohttp.ClientPayloadError, EngineUnavailable),
    (aiohttp.ClientError, EngineProtocolError),
    (TimeoutError, EngineTimeout),
    (OSError, EngineUnavailable),
    # The client lets the errors of its JSON parser through.
    (ValueError, EngineProtocolError),
)


class TritonClient:
    """The repository API of one server. Its calls are made inside ``asking``."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._client: Any = None

    @asynccontextmanager
    async def asking(self, what: str, seconds: float) -> AsyncIterator[None]:
        """Bound the calls inside by one deadline, and raise our errors for theirs."""
        with map_engine_errors(ENGINE, TRITON_ERRORS), deadline_words(ENGINE, what, seconds):
            try:
                async with asyncio.timeout(seconds):
                    yield
            except InferenceServerException as exc:
                raise refusal(what, exc) from exc

    async def is_live(self) -> bool:
        """Tell whether the server answers at all; its readiness fails after one failed load."""
        return bool(await self._open().is_server_live(headers=self._headers()))

    async def index(self) -> object:
        """Return the repository index as the server gives it."""
        return await self._open().get_model_repository_index(headers=self._headers())

    async def load(self, name: str, config: str | None) -> None:
        """Load a model, and return when it is loaded."""
        await self._open().load_model(name, headers=self._headers(), config=config)

    async def unload(self, name: str) -> None:
        """Begin to unload a model; the server answers before it is gone."""
        await self._open().unload_model(name, headers=self._headers())

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _open(self) -> Any:  # noqa: ANN401 - the client has no types
        if self._client is None:
            parts = urlsplit(self._options.url)
            tls = parts.scheme == "https"
            client: Any = InferenceServerClient
            self._client = client(
                self._options.url.removeprefix(f"{parts.scheme}://").rstrip("/"),
                conn_timeout=None,
                ssl=tls,
                ssl_context=open_tls(self._options.ca_file) if tls else True,
            )
        return self._client

    def _headers(self) -> dict[str, str]:
        key = read_api_key(self._options.api_key_file)
        return {} if key is None else {"Authorization": f"Bearer {key}"}


def refusal(what: str, exc: Exception) -> EngineError:
    """Return what an error answer of the server means."""
    answered: Any = exc
    status, words = str(answered.status()), cut(str(answered.message()))
    if NOT_EXPLICIT in words:
        return EngineUnsupported(f"{ENGINE} refused: {words}; {HOW_TO_START}")
    if status == "404":
        return EngineUnsupported(f"{ENGINE} answers 404 to {what}: is this a Triton server?")
    if status in ("400", "500"):
        return EngineRejected(f"{ENGINE} refused: {words}")
    if not status.isdecimal():
        return EngineProtocolError(f"{ENGINE} failed at {what}: {words}")
    return status_error(ENGINE, what, int(status), words)
