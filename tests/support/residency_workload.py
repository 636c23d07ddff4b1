"""A random workload over more LoRAs than an engine has places for, the same one for the same seed.

Clients choose by Zipf's law, in bursts with pauses between them; what is popular changes; meanwhile
the document gains, loses and replaces LoRAs.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from lab import LabError
from lab.vllm import complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How clients behave; times in seconds."""

    clients: int = 4
    zipf: float = 1.2
    """Weight of the n-th in popularity: ``n ** -zipf``."""
    burst: int = 6
    """Requests of one burst, at most."""
    gap: float = 0.3
    """Mean pause between the requests of a burst."""
    pause: float = 4.0
    """Mean pause between bursts."""
    tokens: tuple[int, int] = (2, 80)
    """Length of an answer, from and to."""
    single: float = 0.0
    """Share of the requests that ask for one token alone."""
    fashion: float = 20.0
    """After so long other LoRAs are the popular ones."""


class Crowd:
    """The clients, each a thread with a random stream of its own."""

    def __init__(
        self, url: str, names: Callable[[], Sequence[str]], shape: Shape, seed: int
    ) -> None:
        """``names`` gives the LoRAs that may be asked for now."""
        self._url, self._names, self._shape, self._seed = url, names, shape, seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._flights: list[tuple[float, int]] = [(0.0, 0)]
        self.answered = 0
        self.refused = 0
        """Requests for a LoRA that was gone, for good or for the moment of its replacement."""
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(shape.clients)
        ]

    def is_busy(self, at: float) -> bool:
        """Tell whether any request was in flight at a monotonic time."""
        return self._flights[bisect_right(self._flights, (at, 1 << 30)) - 1][1] > 0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _run(self, number: int) -> None:
        chance, shape = random.Random(f"{self._seed}/{number}"), self._shape
        while not self._stop.wait(chance.expovariate(1 / shape.pause)):
            for _ in range(chance.randint(1, shape.burst)):
                tokens = 1 if chance.random() < shape.single else chance.randint(*shape.tokens)
                self._ask(self._choose(chance), tokens)
                if self._stop.wait(chance.expovariate(1 / shape.gap)):
                    return

    def _choose(self, chance: random.Random) -> str:
        names = sorted(self._names())
        season = int((time.monotonic() - self._began) / self._shape.fashion)
        random.Random(f"{self._seed}/season {season}").shuffle(names)
        weights = [rank**-self._shape.zipf for rank in range(1, len(names) + 1)]
        return chance.choices(names, weights)[0]

    def _ask(self, name: str, tokens: int) -> None:
        self._flight(1)
        try:
            complete(self._url, name, f"{name} says", tokens)
            self.answered += 1
        except LabError as error:
            if "answered 404" in str(error):
                self.refused += 1
            else:
                self.errors.append(str(error))
        except OSError as error:
            self.errors.append(str(error))
        finally:
            self._flight(-1)

    def _flight(self, step: int) -> None:
        with self._lock:
            self._flights.append((time.monotonic(), self._flights[-1][1] + step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the agent to the engine, as the relay saw it; monotonic times."""

    unix: float
    """Unix seconds at which it began."""
    began: float
    ended: float
    method: str
    path: str
    payload: bytes
    status: int
    body: bytes = field(repr=False)


class Relay:
    """Stands between the agent and the engine and keeps every call: what a model of the engine
    can know is exactly this."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url).netloc
        calls: list[Call] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.upstream = http.client.HTTPConnection(target, timeout=60)

            def finish(self) -> None:
                self.upstream.close()
                super().finish()

            def do_GET(self) -> None:
                began, unix = time.monotonic(), time.time_ns() / 1e9
                payload = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {"Content-Type": "application/json"} if payload else {}
                self.upstream.request(self.command, self.path, payload or None, headers)
                answer = self.upstream.getresponse()
                body = answer.read()
                calls.append(
                    Call(
                        unix=unix,
                        began=began,
                        ended=time.monotonic(),
                        method=self.command,
                        path=self.path,
                        payload=payload,
                        status=answer.status,
                        body=body,
                    )
                )
                # An agent that is stopped does not wait for its last answer.
                with suppress(ConnectionError):
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.calls = calls
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)
