"""Microsoft Entra ID's token server, as far as storage asks it: an application gets a token.

Azurite takes these (`Azure(oauth=True)`); it looks at audience, issuer and times, and at no
signature. What is wrong with an application's proof is told here, before that.
Rule: https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
"""

from __future__ import annotations

import secrets
import time
import uuid
from pathlib import Path

from lab.stub import Stub, StubAnswer, StubRequest
from lab.tls import Certificate
from lab.tokens import Issuer, SigningKey

AUDIENCE = "api://AzureADTokenExchange"
SUBJECT = "system:serviceaccount:models:reader"
SCOPE = "https://storage.azure.com/.default"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Entra(Stub):
    """One tenant with one application, which has a secret and may be a workload of an issuer."""

    def __init__(
        self, work: Path, *, certificate: Certificate | None = None, issuer: Issuer | None = None
    ) -> None:
        super().__init__(self._token, certificate)
        self._key = SigningKey(work)
        self._issuer = issuer
        self.tenant = str(uuid.uuid4())
        self.client = str(uuid.uuid4())
        self.secret = secrets.token_urlsafe(24)

    def environment(self) -> dict[str, str]:
        """The variables by which Azure's libraries find it; the proof is not among them."""
        return {
            "AZURE_AUTHORITY_HOST": self.url,
            "AZURE_TENANT_ID": self.tenant,
            "AZURE_CLIENT_ID": self.client,
        }

    def _token(self, request: StubRequest) -> StubAnswer:
        form = request.form
        if request.path != f"/{self.tenant}/oauth2/v2.0/token":
            return _refusal("invalid_request", "AADSTS90002: Tenant not found.")
        if form.get("grant_type") != "client_credentials" or form.get("scope") != SCOPE:
            return _refusal("invalid_scope", "AADSTS70011: The scope is not valid.")
        if form.get("client_id") != self.client:
            return _refusal("unauthorized_client", "AADSTS700016: Application not found.")
        if "client_secret" in form and form["client_secret"] != self.secret:
            return _refusal("invalid_client", "AADSTS7000215: Invalid client secret provided.")
        if "client_secret" not in form and not self._is_workload(form):
            return _refusal("invalid_client", "AADSTS700213: No matching federated identity.")
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": f"https://sts.windows.net/{self.tenant}/",
            "appid": self.client,
            "oid": self.client,
            "tid": self.tenant,
            "iat": now,
            "nbf": now - 60,
            "exp": now + 3600,
            "ver": "1.0",
        }
        token = self._key.sign(claims)
        return StubAnswer(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def _is_workload(self, form: dict[str, str]) -> bool:
        if self._issuer is None or form.get("client_assertion_type") != ASSERTION:
            return False
        claims = self._issuer.key.read(form.get("client_assertion", ""))
        return (
            claims is not None
            and claims.get("iss") == self._issuer.url
            and claims.get("sub") == SUBJECT
            and claims.get("aud") == AUDIENCE
        )


def _refusal(error: str, words: str) -> StubAnswer:
    return StubAnswer(
        401 if error == "invalid_client" else 400, {"error": error, "error_description": words}
    )
