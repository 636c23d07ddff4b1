"""What ServiceAccounts ask of an API server, by its own audit log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitManagedFields": True,
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as the server received it or as it began to answer."""

    user: str
    verb: str
    resource: str
    name: str
    code: int
    """0 where it is not answered yet."""
    stage: str
    at: float
    """Unix seconds at which it came in."""


class Audit:
    """The log of one API server, across its restarts."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._policy = work / "audit-policy.json"
        self._policy.write_text(json.dumps(POLICY))
        self._log = work / "audit.log"

    def apiserver_args(self) -> list[str]:
        """Flags that make an API server write it, each line before it goes on."""
        return [f"--audit-policy-file={self._policy}", f"--audit-log-path={self._log}"]

    def received(self, user: str) -> list[Asked]:
        """Every request of a user, once, in order."""
        return [one for one in self._lines(user) if one.stage == "RequestReceived"]

    def answered(self, user: str) -> list[Asked]:
        """Every answer that was begun (watches) or given."""
        return [one for one in self._lines(user) if one.code]

    def _lines(self, user: str) -> list[Asked]:
        if not self._log.exists():
            return []
        # A server that is killed may leave half a line.
        lines = [one for one in self._log.read_text().splitlines() if one.endswith("}")]
        asked = (_parse(json.loads(line)) for line in lines)
        return [one for one in asked if one.user == user]


def _parse(event: dict[str, Any]) -> Asked:
    what = event.get("objectRef", {})
    return Asked(
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=what.get("resource", event["requestURI"]),
        name=what.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        stage=event["stage"],
        at=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
    )
