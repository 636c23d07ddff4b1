"""Signed tokens (JWT, RS256): what workloads prove themselves with, and who issues them.

Rules: RFC 7515 and 7519 for the token, RFC 8017 section 8.2.2 for the signature, OpenID Connect
Discovery 1.0 for what an issuer publishes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from lab import LabError
from lab.stub import Stub, StubAnswer, StubRequest
from lab.tls import Authority, openssl

AUDIENCE = "sts.amazonaws.com"
# The DER of "this is a SHA-256", which stands before the hash inside a signature.
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class SigningKey:
    """An RSA key: signs with openssl, checks signatures by arithmetic."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.identifier = secrets.token_hex(8)
        self.file = work / f"signing-{self.identifier}.pem"
        options = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
        openssl("genpkey", *options, "-out", self.file)
        numbers = openssl("rsa", "-in", self.file, "-noout", "-modulus")
        self._modulus = int(numbers.strip().partition("=")[2], 16)
        self._exponent = 65537

    @property
    def pem(self) -> str:
        """The private key, in PKCS #8."""
        return self.file.read_text()

    @property
    def jwk(self) -> dict[str, str]:
        """The public key, as an issuer publishes it (RFC 7517)."""
        numbers = {"n": self._modulus, "e": self._exponent}
        encoded = {
            name: _encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
            for name, number in numbers.items()
        }
        return {
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": self.identifier,
            **encoded,
        }

    def sign(self, claims: Mapping[str, object]) -> str:
        """A token with these claims."""
        header = {"alg": "RS256", "typ": "JWT", "kid": self.identifier}
        parts = [_encode(json.dumps(part).encode()) for part in (header, dict(claims))]
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.file)],
            input=".".join(parts).encode(),
            capture_output=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"openssl did not sign: {done.stderr.decode(errors='replace')}")
        return ".".join([*parts, _encode(done.stdout)])

    def read(self, token: str) -> dict[str, Any] | None:
        """The claims of a token that this key signed and that has not expired; else None."""
        try:
            signed, _, signature = token.rpartition(".")
            number = int.from_bytes(_decode(signature), "big")
            claims: dict[str, Any] = json.loads(_decode(signed.split(".")[1]))
        except (ValueError, IndexError):
            return None
        hashed = SHA256_PREFIX + hashlib.sha256(signed.encode()).digest()
        width = (self._modulus.bit_length() + 7) // 8
        expected = b"\x00\x01" + b"\xff" * (width - len(hashed) - 3) + b"\x00" + hashed
        if pow(number, self._exponent, self._modulus).to_bytes(width, "big") != expected:
            return None
        return claims if claims.get("exp", 0) > time.time() else None


class Issuer:
    """An OpenID Connect issuer on https: its key is published, its tokens are signed here."""

    def __init__(self, work: Path, authority: Authority) -> None:
        self.key = SigningKey(work)
        self.authority = authority
        self.server = Stub(self._answer, authority.issue())
        self.url = self.server.url

    @property
    def name(self) -> str:
        """How policies call it: the URL without its scheme."""
        return self.url.removeprefix("https://")

    @property
    def thumbprint(self) -> str:
        """SHA-1 of the CA's certificate, by which a cloud pins an issuer's TLS."""
        shown = openssl("x509", "-in", self.authority.file, "-noout", "-fingerprint", "-sha1")
        return shown.strip().partition("=")[2].replace(":", "").lower()

    def token(
        self,
        subject: str,
        *,
        audience: str = AUDIENCE,
        seconds: float = 3600.0,
        key: SigningKey | None = None,
    ) -> str:
        """A token of a workload, as a kubelet mounts one.

        With negative seconds it has expired; with a key that is not the issuer's it is forged.
        """
        now = int(time.time())
        claims = {"iss": self.url, "sub": subject, "aud": audience, "iat": now}
        return (key or self.key).sign({**claims, "exp": now + int(seconds)})

    def _answer(self, request: StubRequest) -> StubAnswer:
        match request.path:
            case "/.well-known/openid-configuration":
                return StubAnswer(200, {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"})
            case "/jwks":
                return StubAnswer(200, {"keys": [self.key.jwk]})
            case _:
                return StubAnswer(404)

    def start(self) -> Self:
        """Publish the key."""
        self.server.start()
        return self

    def stop(self) -> None:
        """End the server; tokens that were issued stay valid where the key is known."""
        self.server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
