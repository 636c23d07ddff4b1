"""Asks a running agent for its status, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from sidecar.flags import UsageError

ANSWER_SECONDS = 10.0
"""Deadline of one request, beyond what a long poll waits."""
MAX_ANSWER_BYTES = 64 << 20


class AgentUnreachable(Exception):
    """No status could be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class AgentClient:
    """One agent's read-only HTTP surface."""

    url: str
    _opener: urllib.request.OpenerDirector = field(
        # A proxy of the environment does not lead to a pod, and never to the loopback.
        default_factory=lambda: urllib.request.build_opener(urllib.request.ProxyHandler({}))
    )

    def read_status(self, *, wait_seconds: float | None = None) -> dict[str, Any]:
        """Return ``/status``; with ``wait_seconds``, once it converged or the time passed.

        Raises ``AgentUnreachable``.
        """
        query, timeout = "", ANSWER_SECONDS
        if wait_seconds is not None:
            query = "?" + urlencode({"wait": "converged", "timeout": f"{wait_seconds:.3f}"})
            timeout += wait_seconds
        try:
            with self._opener.open(f"{self.url}/status{query}", timeout=timeout) as answer:
                body = answer.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise self._stranger(f"it answers {error.code} to /status") from error
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise AgentUnreachable(
                f"no agent answers at {self.url} ({getattr(why, 'strerror', None) or why}): is it "
                "running? Name it with --url, and forward its port where it is in a pod: "
                "kubectl port-forward POD 9110"
            ) from error
        try:
            status: Any = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._stranger("its /status is no JSON") from error
        if not isinstance(status, dict) or not _are_records(status.get("targets")):
            raise self._stranger("its /status has no targets")
        return status

    def _stranger(self, why: str) -> AgentUnreachable:
        return AgentUnreachable(f"what listens at {self.url} is no model-sidecar agent: {why}")


def _are_records(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


def parse_url(text: str) -> str:
    """Return the base URL of an agent. Raises ``UsageError``."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"--url: {text!r} is no URL; write http://HOST:PORT")
    return text.split("?")[0].split("#")[0].rstrip("/").removesuffix("/status")
