import base64
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.rs256 import read_key

# RFC 7515, appendix A.2: a key, what is signed, and the signature that everybody has to make.
MODULUS = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql"
    "L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUs"
    "LA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoud"
    "F8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)
EXPONENT = (
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe"
    "46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9J"
    "YanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuh"
    "LhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ"
)
MESSAGE = (
    "eyJhbGciOiJSUzI1NiJ9."
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
SIGNATURE = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujG"
    "bds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K"
    "0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6"
    "LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)


def number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=="))


def der(tag: int, value: bytes) -> bytes:
    size = len(value).to_bytes(4).lstrip(b"\0") or b"\0"
    head = size if len(value) < 128 else bytes([0x80 | len(size)]) + size
    return bytes([tag]) + head + value


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def pem(name: str, data: bytes) -> str:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {name}-----\n{text}-----END {name}-----\n"


PKCS1 = der(0x30, b"".join(map(integer, (0, number(MODULUS), 65537, number(EXPONENT), 3, 5))))
RSA = der(0x30, bytes.fromhex("06092a864886f70d0101010500"))
PKCS8 = der(0x30, integer(0) + RSA + der(0x04, PKCS1))


@pytest.mark.parametrize(
    "text",
    [
        pem("PRIVATE KEY", PKCS8),
        pem("RSA PRIVATE KEY", PKCS1),
        "Bag Attributes\n" + pem("PRIVATE KEY", PKCS8).replace("\n", "\r\n"),
    ],
)
def test_the_signature_is_that_of_the_rfc(text):
    made = base64.urlsafe_b64encode(read_key(text).sign(MESSAGE.encode()))
    assert made.rstrip(b"=").decode() == SIGNATURE


@pytest.mark.parametrize("bits", [1024, 2048, 3072])
def test_openssl_makes_the_same_signature(tmp_path, bits):
    file = tmp_path / "key.pem"
    make = ("genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{bits}", "-out", file)
    subprocess.run(["openssl", *make], check=True, capture_output=True, timeout=60)
    sign = ["openssl", "dgst", "-sha256", "-sign", str(file)]
    theirs = subprocess.run(sign, input=b"message", check=True, capture_output=True, timeout=60)
    assert read_key(file.read_text()).sign(b"message") == theirs.stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
        pem("PRIVATE KEY", b"junk"),
        pem("PRIVATE KEY", PKCS8[:-1]),
        pem("PRIVATE KEY", PKCS8 + b"\0"),
        pem("PRIVATE KEY", PKCS1),
        pem("RSA PRIVATE KEY", PKCS8),
        pem("EC PRIVATE KEY", PKCS1),
        pem("PRIVATE KEY", der(0x30, integer(0) + RSA + der(0x04, der(0x30, integer(7) * 4)))),
    ],
)
def test_what_is_no_rsa_key_is_refused(text):
    with pytest.raises(ValueError, match="private key"):
        read_key(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_or_refused(data):
    with pytest.raises(ValueError, match="private key"):
        read_key(pem("PRIVATE KEY", data))


def test_nothing_of_a_key_is_shown():
    shown = repr(read_key(pem("PRIVATE KEY", PKCS8)))
    assert str(number(EXPONENT)) not in shown
    assert hex(number(EXPONENT))[2:] not in shown
