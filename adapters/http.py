"""One HTTP client for every engine: deadlines, body limits, one translation of foreign errors.

The only module here that knows the HTTP library: httpcore, the transport of httpx, which by itself
costs an agent 8 MB and a third of the time of each call less. A request is one attempt: it ends
with an ``Answer`` of any status, or with an ``EngineError``. The API key never leaves the request
header.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpcore

from adapters.base import (
    EngineBusy,
    EngineError,
    EngineOptions,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)

MAX_WORDS = 256
"""Characters of a foreign text that an error repeats."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_PAGE_BYTES = 64 * 1024 * 1024
"""vLLM's page grows with every combination of LoRA names that ever had a request."""
CONNECT_SECONDS = 5.0
KEEPALIVE_SECONDS = 2.0
"""Engines on uvicorn close idle connections after 5 s; a request must not meet that moment."""
MAX_CONNECTIONS = 64

ErrorTable = tuple[tuple[type[BaseException], type[EngineError]], ...]

HTTP_ERRORS: ErrorTable = (
    # Nothing was sent yet, so the outcome is known.
    (httpcore.ConnectTimeout, EngineUnavailable),
    (httpcore.PoolTimeout, EngineUnavailable),
    (httpcore.ConnectionNotAvailable, EngineUnavailable),
    (httpcore.TimeoutException, EngineTimeout),
    (httpcore.NetworkError, EngineUnavailable),
    # The peer went away in the middle of an answer, as a dying engine does.
    (httpcore.RemoteProtocolError, EngineUnavailable),
    (httpcore.ProtocolError, EngineProtocolError),
    (httpcore.UnsupportedProtocol, EngineProtocolError),
    (httpcore.ProxyError, EngineProtocolError),
    (TimeoutError, EngineTimeout),
    (OSError, EngineUnavailable),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of any status."""

    status: int
    body: bytes
    connection: object = field(repr=False)
    """The TCP connection it came over: the same object means the same process at the other end."""

    @property
    def words(self) -> str:
        """Return the body as text for an error, cut short."""
        return cut(self.body[: 4 * MAX_WORDS].decode(errors="replace"))

    def json(self) -> object:
        """Parse the body; raise ``EngineProtocolError`` when it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as exc:
            raise EngineProtocolError(
                f"the engine answered {self.status} with something that is not JSON: {self.words}"
            ) from exc


def cut(text: str) -> str:
    """Shorten a foreign text to one line of at most ``MAX_WORDS`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_WORDS else line[: MAX_WORDS - 1] + "…"


@contextmanager
def map_engine_errors(engine: str, table: ErrorTable = HTTP_ERRORS) -> Iterator[None]:
    """Turn the foreign exceptions of ``table`` into ours, the first match wins."""
    try:
        yield
    except EngineError:
        raise
    except tuple(foreign for foreign, _ in table) as exc:
        ours = next(ours for foreign, ours in table if isinstance(exc, foreign))
        words = cut(str(exc)) or type(exc).__name__
        raise ours(f"{engine} cannot be asked: {words}") from exc


@contextmanager
def deadline_words(engine: str, what: str, seconds: float) -> Iterator[None]:
    """Say which deadline passed, where ``asyncio.timeout`` says nothing."""
    try:
        yield
    except TimeoutError as exc:
        raise EngineTimeout(f"{engine} did not answer {what} within {seconds:g} s") from exc


def check_status(engine: str, what: str, answer: Answer) -> None:
    """Raise what a status that is not 200 means for any engine."""
    if answer.status == 200:
        return
    raise status_error(engine, what, answer.status, answer.words)


def status_error(engine: str, what: str, status: int, words: str) -> EngineError:
    """Return what a status other than 200 means where the engine has no more to say."""
    text = f"{engine} answered {status} to {what}" + (f": {words}" if words else "")
    match status:
        case 401 | 403:
            return EngineRejected(f"{text} (set --engine-api-key-file to a key that it accepts)")
        case 429:
            return EngineBusy(text)
        case 502 | 503 | 504:
            return EngineUnavailable(text)
        case _:
            return EngineProtocolError(text)


def read_api_key(path: str | None) -> str | None:
    """Return the key in a file as it is now; raise ``EngineUnavailable`` when it has none."""
    if path is None:
        return None
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not ASCII text"
        raise EngineUnavailable(
            f"the engine's API key file {path} is unreadable: {reason}"
        ) from None
    # The HTTP library would repeat a value that it refuses, and so put the key into an error.
    if not key or not key.isprintable():
        raise EngineUnavailable(f"the engine's API key file {path} holds no one-line key")
    return key


def open_tls(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that trusts ``ca_file``, else what this machine trusts."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise EngineUnavailable(f"the engine's CA file {ca_file} is unusable: {reason}") from exc


class EngineHttp:
    """The connections to one engine process."""

    def __init__(self, engine: str, options: EngineOptions) -> None:
        self._engine = engine
        self._base = options.url.rstrip("/")
        self._options = options
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def get(self, path: str, *, timeout: float, max_bytes: int = MAX_ANSWER_BYTES) -> Answer:
        """GET a path of the engine, or a whole URL."""
        return await self._request("GET", path, None, timeout, max_bytes)

    async def post(self, path: str, payload: object, *, timeout: float) -> Answer:
        """POST JSON to a path of the engine."""
        return await self._request("POST", path, payload, timeout, MAX_ANSWER_BYTES)

    async def _request(
        self, method: str, path: str, payload: object, timeout: float, max_bytes: int
    ) -> Answer:
        url = self._base + path if path.startswith("/") else path
        what = f"{method} {urlsplit(url).path}"
        with (
            map_engine_errors(self._engine),
            deadline_words(self._engine, what, timeout),
        ):
            async with asyncio.timeout(timeout):
                pool = self._pool or self._open()
                headers = self._headers(url)
                content = None
                if payload is not None:
                    headers["Content-Type"] = "application/json"
                    content = json.dumps(payload).encode()
                limits = {"connect": min(CONNECT_SECONDS, timeout)}
                async with pool.stream(
                    method,
                    url,
                    headers=headers,
                    content=content,
                    extensions={"timeout": limits},
                ) as response:
                    body = await self._read(response, what, max_bytes)
                return Answer(response.status, body, response.extensions["network_stream"])

    async def _read(self, response: httpcore.Response, what: str, max_bytes: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.aiter_stream():
            size += len(chunk)
            if size > max_bytes:
                raise EngineProtocolError(
                    f"{self._engine} answered {what} with more than {max_bytes} bytes"
                )
            chunks.append(chunk)
        return b"".join(chunks)

    def _headers(self, url: str) -> dict[bytes | str, bytes | str]:
        # Engines serve their metrics on request compressed, at the expense of their own CPU.
        headers: dict[bytes | str, bytes | str] = {"Accept-Encoding": "identity"}
        if url.startswith(self._base + "/"):
            key = read_api_key(self._options.api_key_file)
            if key is not None:
                headers["Authorization"] = f"Bearer {key}"
        return headers

    def _open(self) -> httpcore.AsyncConnectionPool:
        tls = self._base.startswith("https:") or (self._options.metrics_url or "").startswith(
            "https:"
        )
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=open_tls(self._options.ca_file) if tls else None,
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
        )
        return self._pool

    async def aclose(self) -> None:
        """Close every connection."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()
