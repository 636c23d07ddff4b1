"""Tokens of a ServiceAccount as a kubelet mounts them, and one whose time is over.

An API server grants none for less than ten minutes. So the claims of one that it granted are signed
again with its own key and another time: whether that one is still good is the server's judgement.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from lab.configmap import MountedConfigMap
from lab.kube import Kube
from lab.web import send

GRANTED = "10m"
LEEWAY_SECONDS = 60
"""For which the API server takes a token that has expired (go-jose's ``DefaultLeeway``)."""
NUMBER_BYTES = 32
"""Of each of the two in a signature of P-256 (RFC 7518, section 3.4)."""


class MountedToken:
    """A projected volume with a token in it: rotated by one rename."""

    def __init__(self, path: Path) -> None:
        self._volume = MountedConfigMap(path)
        self.file = path / "token"

    def rotate(self, token: str) -> None:
        self._volume.write({"token": token})


def bind_token(kube: Kube, namespace: str, account: str, secret: str) -> str:
    """A token that is good while the Secret exists; the Secret is made."""
    kube.kubectl("create", "secret", "generic", secret, "-n", namespace)
    flags = (f"--duration={GRANTED}", "--bound-object-kind=Secret", f"--bound-object-name={secret}")
    return kube.kubectl("create", "token", account, "-n", namespace, *flags).strip()


def resigned(kube: Kube, token: str, *, ends_in: float) -> str:
    """The same token, granted just now, as if that had been so long ago that its time, with the
    leeway, ends in so many seconds."""
    head, body, _ = token.split(".")
    claims: dict[str, Any] = json.loads(_decode(body))
    end = int(claims["iat"] + ends_in) - LEEWAY_SECONDS
    claims |= {"exp": end, "iat": end - 600, "nbf": end - 600}
    signed = f"{head}.{_encode(json.dumps(claims).encode())}"
    return f"{signed}.{_encode(_sign(kube.work / 'service-account.key', signed.encode()))}"


def is_refused(kube: Kube, token: str) -> bool:
    """Whether the API server does not know the token's bearer, asked directly."""
    answer = send(
        "GET",
        f"{kube.url}/apis",
        headers={"Authorization": f"Bearer {token}"},
        authority=kube.ca_file,
        timeout=5.0,
    )
    return answer.status == 401


def _sign(key: Path, text: bytes) -> bytes:
    """ES256. OpenSSL writes the two numbers in DER (SEQUENCE of INTEGERs), JWS wants them bare."""
    der = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(key)],
        input=text,
        capture_output=True,
        timeout=30,
        check=True,
    ).stdout
    numbers, at = b"", 2
    for _ in range(2):
        length = der[at + 1]
        number = der[at + 2 : at + 2 + length]
        numbers += int.from_bytes(number).to_bytes(NUMBER_BYTES)
        at += 2 + length
    return numbers


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
