"""The signature of a Google service account: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2).

One signature an hour is all the agent needs of RSA. A library for it would be as large as the rest
of what it installs, and one more to keep patched. What a timing attack needs, many signatures made
while somebody measures them, does not exist here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

_PEM = re.compile(
    r"-----BEGIN (RSA )?PRIVATE KEY-----\s*([A-Za-z0-9+/=\s]+?)-----END (?:RSA )?PRIVATE KEY-----"
)
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""What stands before a SHA-256 digest; RFC 8017, 9.2, note 1."""
_INTEGER, _OCTETS, _SEQUENCE = 0x02, 0x04, 0x30


class RsaKey:
    """A private key. Its ``repr`` shows nothing of it."""

    __slots__ = ("_exponent", "_modulus")

    def __init__(self, modulus: int, exponent: int) -> None:
        self._modulus = modulus
        self._exponent = exponent

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        size = (self._modulus.bit_length() + 7) // 8
        tail = _DIGEST_INFO + hashlib.sha256(message).digest()
        padded = b"\x00\x01" + b"\xff" * (size - len(tail) - 3) + b"\x00" + tail
        return pow(int.from_bytes(padded), self._exponent, self._modulus).to_bytes(size)


def read_key(pem: str) -> RsaKey:
    """Read a key in PEM form, PKCS#8 (as Google writes it) or PKCS#1.

    Raises ``ValueError``, without a word of the text, for anything else.
    """
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("no private key in PEM form")
    try:
        data = base64.b64decode("".join(found[2].split()), validate=True)
        fields = _fields(_only(data, _SEQUENCE))
        if not found[1]:
            # PKCS#8: version, algorithm, and the PKCS#1 key within a string of octets.
            fields = _fields(_only(fields[2][1], _SEQUENCE))
        _, modulus, _, exponent = (int.from_bytes(value) for _, value in fields[:4])
        if any(tag != _INTEGER for tag, _ in fields[:4]) or modulus.bit_length() < 1024:
            raise ValueError
    except (binascii.Error, IndexError, ValueError):
        raise ValueError("the private key is no RSA key of 1024 bits or more") from None
    return RsaKey(modulus, exponent)


def _only(data: bytes, tag: int) -> bytes:
    (found,) = _fields(data)
    if found[0] != tag:
        raise ValueError
    return found[1]


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Split DER into tags and values, one level deep."""
    fields = []
    while data:
        tag, size, start = data[0], data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start])
        if len(data) < start + size:
            raise ValueError
        fields.append((tag, data[start : start + size]))
        data = data[start + size :]
    return fields
