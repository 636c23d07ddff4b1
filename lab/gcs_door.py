"""Who may come in to the lab's Google Cloud Storage: the door, and the servers that give tokens.

Rules: https://google.aip.dev/auth/4111 (self-signed tokens), RFC 7523 and RFC 6749 section 6
(keys and refresh tokens for access tokens), https://google.aip.dev/auth/4117 (federation).
"""

from __future__ import annotations

import http.client
import secrets
import shutil
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lab.stub import Listener, Stub, StubAnswer, StubRequest
from lab.tls import Certificate
from lab.tokens import Issuer, SigningKey

EMAIL = "reader@lab.iam.gserviceaccount.com"
AUDIENCE = (
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/lab/providers/lab"
)
SUBJECT = "system:serviceaccount:models:reader"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
STORAGE_SCOPES = ("devstorage.", "/auth/cloud-platform")
TIMEOUT_SECONDS = 60.0
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host"})


class Google:
    """What Google knows: one service account, one user, one federated workload."""

    def __init__(self, work: Path, certificate: Certificate | None, issuer: Issuer | None) -> None:
        self._work = work
        self._issuer = issuer
        self._given: set[str] = set()
        self._client_secret = secrets.token_hex(12)
        self._refresh_token = secrets.token_hex(24)
        self.key = SigningKey(work)
        self.tokens = Stub(self._answer, certificate)
        """The token servers; it keeps what it was asked."""

    def rotate(self) -> None:
        """Give the service account a new key, the user new secrets, and take the old ones away."""
        self.key = SigningKey(self._work)
        self._client_secret = secrets.token_hex(12)
        self._refresh_token = secrets.token_hex(24)
        self._given.clear()

    def service_account(self) -> dict[str, Any]:
        """The service account's key file, as JSON."""
        return {
            "type": "service_account",
            "project_id": "lab",
            "private_key_id": self.key.identifier,
            "private_key": self.key.pem,
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": f"{self.tokens.url}/token",
        }

    def self_signed(self, key: SigningKey | None = None) -> str:
        """A token as client libraries make them from the key file; forged with another key."""
        now = int(time.time())
        claims = {"iss": EMAIL, "sub": EMAIL, "scope": SCOPE, "iat": now, "exp": now + 3600}
        return (key or self.key).sign(claims)

    def authorized_user(self) -> dict[str, Any]:
        """What `gcloud auth application-default login` leaves."""
        return {
            "type": "authorized_user",
            "client_id": "lab.apps.googleusercontent.com",
            "client_secret": self._client_secret,
            "refresh_token": self._refresh_token,
            "token_uri": f"{self.tokens.url}/token",
        }

    def external_account(self, token_file: Path, *, impersonate: bool = False) -> dict[str, Any]:
        """The configuration of a workload whose token for AUDIENCE, of SUBJECT, is in a file."""
        found: dict[str, Any] = {
            "type": "external_account",
            "audience": AUDIENCE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{self.tokens.url}/sts",
            "credential_source": {"file": str(token_file)},
        }
        if impersonate:
            found["service_account_impersonation_url"] = (
                f"{self.tokens.url}/v1/serviceAccounts/{EMAIL}:generateAccessToken"
            )
        return found

    def is_allowed(self, authorization: str | None, bucket: str) -> bool:
        """Whether a request of a bucket comes in."""
        if authorization is None:
            return bucket.startswith("public-")
        token = authorization.removeprefix("Bearer ")
        return token in self._given or self._is_own(
            token, audience="https://storage.googleapis.com/"
        )

    def _is_own(self, token: str, *, audience: str) -> bool:
        claims = self.key.read(token)
        if claims is None or claims.get("iss") != EMAIL or claims.get("sub", EMAIL) != EMAIL:
            return False
        scope = str(claims.get("scope", ""))
        return claims.get("aud") == audience or any(word in scope for word in STORAGE_SCOPES)

    def _give(self, name: str) -> StubAnswer:
        token = secrets.token_hex(24)
        self._given.add(token)
        return StubAnswer(200, {name: token, "expires_in": 3600, "token_type": "Bearer"})

    def _answer(self, request: StubRequest) -> StubAnswer:
        match request.path:
            case "/token":
                is_known = self._is_known(request.form)
            case "/sts":
                is_known = self._is_workload(request.form)
            case path if path.endswith(f"{EMAIL}:generateAccessToken"):
                held = request.headers.get("Authorization", "").removeprefix("Bearer ")
                if held in self._given:
                    return self._give("accessToken")
                return StubAnswer(403, {"error": {"code": 403, "status": "PERMISSION_DENIED"}})
            case _:
                return StubAnswer(404)
        if is_known:
            return self._give("access_token")
        return StubAnswer(400, {"error": "invalid_grant", "error_description": "Not accepted."})

    def _is_known(self, form: dict[str, str]) -> bool:
        if form.get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return self._is_own(form.get("assertion", ""), audience=f"{self.tokens.url}/token")
        user = self.authorized_user()
        names = ("client_id", "client_secret", "refresh_token")
        return form.get("grant_type") == "refresh_token" and all(
            form.get(name) == user[name] for name in names
        )

    def _is_workload(self, form: dict[str, str]) -> bool:
        if self._issuer is None or form.get("audience") != AUDIENCE:
            return False
        claims = self._issuer.key.read(form.get("subject_token", ""))
        return (
            claims is not None
            and claims.get("iss") == self._issuer.url
            and claims.get("sub") == SUBJECT
            and claims.get("aud") == AUDIENCE
        )


class Door(Listener):
    """Passes requests on to another server, when they may come in."""

    def __init__(
        self,
        behind: str,
        is_allowed: Callable[[str | None, str], bool],
        certificate: Certificate | None,
    ) -> None:
        super().__init__(certificate)
        self._behind = urlsplit(behind).netloc
        self._is_allowed = is_allowed

    def handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = TIMEOUT_SECONDS

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                bucket = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[0]
                authorization = self.headers.get("Authorization")
                if not door._is_allowed(authorization, bucket):
                    self._refuse(authorization is None)
                    return
                given = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in HOP_BY_HOP | {"authorization"}
                }
                behind = http.client.HTTPConnection(door._behind, timeout=TIMEOUT_SECONDS)
                try:
                    behind.request(self.command, self.path, body=body, headers=given)
                    self._pass_on(behind.getresponse())
                finally:
                    behind.close()

            def _pass_on(self, response: http.client.HTTPResponse) -> None:
                # Without a length it would end with its connection, which over TLS looks cut.
                whole = b"" if "Content-Length" in response.headers else response.read()
                self.send_response(response.status)
                for name, value in response.headers.items():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                if "Content-Length" not in response.headers:
                    self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole)
                shutil.copyfileobj(response, self.wfile)

            def _refuse(self, is_anonymous: bool) -> None:
                code = "AccessDenied" if is_anonymous else "AuthenticationRequired"
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Bearer realm="https://accounts.google.com/"')
                self.send_header("Content-Type", "application/xml; charset=UTF-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        return Handler
