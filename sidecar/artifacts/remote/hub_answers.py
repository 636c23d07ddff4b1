"""What it means when the hub says no.

The hub names its reason in ``X-Error-Code`` (huggingface_hub, ``hf_raise_for_status``). It answers
401 to whoever has no token for what is private as well as for what does not exist, and 404 to whose
token may not see it, so that these sentences name both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sidecar.artifacts.remote.http_client import Answer
from sidecar.artifacts.remote.http_urls import parse_target
from sidecar.artifacts.remote.hub_reference import Reference
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied, ArtifactError, FetchFailed, NotFound

_RATE_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,6})')
"""``RateLimit: "api";r=0;t=55``: nothing left, and 55 s to wait (draft-ietf-httpapi-ratelimit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """One hub, and who asks it."""

    endpoint: str
    """Its URL, without a slash at its end."""
    token: str = field(repr=False)
    """Empty: nobody in particular."""
    reference: Reference
    credentials: Credentials

    def is_at(self, url: str) -> bool:
        """Tell whether a URL is of the hub's own origin, where the token may go."""
        where = self.reference.where
        hub = parse_target(self.endpoint, where=where)
        return parse_target(url, where=where).origin == hub.origin

    def refusal(self, answer: Answer) -> ArtifactError:
        """Return the error that an answer means, which is no success."""
        status, code = answer.status, answer.headers.get("x-error-code", "")
        said = f"{status} from {self.reference.where}"
        if status == 429:
            return FetchFailed(f"{said}: {self._too_many(answer)}")
        if status == 408 or status >= 500:
            return FetchFailed(f"{said}: {answer.peer} has trouble of its own; it is tried again")
        if not self.is_at(answer.url):
            return FetchFailed(
                f"{said}: {answer.peer}, where {self._host} sends us, refuses; the token goes to "
                "HF_ENDPOINT alone, so name there the server that wants it"
            )
        if answer.headers.get("x-error-message") == "Access to this resource is disabled.":
            return AccessDenied(f"{said}: {self._host} has disabled this repository")
        if code == "GatedRepo":
            return AccessDenied(f"{said}: {self._gated}")
        if code == "RevisionNotFound":
            return NotFound(
                f"{said}: the repository has no revision {self.reference.revision!r}; write a "
                "branch, a tag or a full commit of 40 digits, and a slash in a branch as %2F"
            )
        if code == "EntryNotFound":
            return NotFound(
                f"{said}: revision {self.reference.revision!r} has no {self.reference.path!r}; "
                "check the path"
            )
        if status == 401:
            return AccessDenied(f"{said}: {self._unknown}")
        if status == 403:
            return AccessDenied(
                f"{said}: {self._who} may not read it; a fine-grained token needs to be given read "
                "access to this repository"
            )
        if status == 404 and code == "RepoNotFound":
            return NotFound(
                f"{said}: there is no such repository, or {self._who} may not see it; check the "
                "name, and who may read it"
            )
        if status == 404:
            return NotFound(f"{said}: {self._host} does not know it; {self._is_it_a_hub}")
        return FetchFailed(f"{said}: this is no answer of a hub; {self._is_it_a_hub}")

    def no_hub(self) -> FetchFailed:
        """Return the error for an answer that the hub's library cannot read."""
        return FetchFailed(
            f"{self.reference.where}: {self._host} does not answer as a hub does; "
            f"{self._is_it_a_hub}"
        )

    @property
    def _host(self) -> str:
        return parse_target(self.endpoint, where=self.reference.where).peer

    @property
    def _is_it_a_hub(self) -> str:
        return "HF_ENDPOINT must name a server with the API of huggingface.co"

    @property
    def _who(self) -> str:
        return f"the token of {self.credentials.where}" if self.token else "who has no token"

    @property
    def _gated(self) -> str:
        page = f"{self.endpoint}/{self.reference.repository}"
        if not self.token:
            return (
                f"the repository is gated, and {self.credentials.where} has no HF_TOKEN; accept "
                f"its conditions at {page} and give a token of that account"
            )
        return (
            f"the repository is gated, and the account of the token of {self.credentials.where} "
            f"was not let in; ask for access at {page} (a fine-grained token also needs read "
            "access to gated repositories)"
        )

    @property
    def _unknown(self) -> str:
        if not self.token:
            return (
                "there is no such repository, or it is private or gated and "
                f"{self.credentials.where} has no HF_TOKEN; check the name, or give a token that "
                "may read it"
            )
        return (
            f"the token of {self.credentials.where} is not accepted, or there is no such "
            "repository; check HF_TOKEN (was it revoked, did it expire?) and the name"
        )

    def _too_many(self, answer: Answer) -> str:
        limit = _RATE_LIMIT.search(answer.headers.get("ratelimit", ""))
        wait = limit[1] if limit else answer.headers.get("retry-after", "")
        later = f" for the next {wait} s" if wait.isdecimal() and len(wait) < 7 else ""
        more = "" if self.token else "; with an HF_TOKEN it allows more"
        return f"{answer.peer} takes no more requests{later}{more}"
