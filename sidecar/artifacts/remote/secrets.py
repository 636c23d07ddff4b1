"""Who asks a source: a mounted secret, or the agent's environment, as one mapping.

A mounted secret is a directory with a file for each key, as the kubelet mounts a Secret. It is read
again at every open, so that a rotated secret counts from the next fetch or look on. With one,
identities come from it alone; settings that grant nothing (endpoint, region, proxy, certificates)
fall back to the environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.errors import AccessDenied

ENVIRONMENT = "the agent's environment"
MAX_FILE_BYTES = 1 << 20
"""What Kubernetes allows a whole Secret."""

SETTINGS: tuple[tuple[str, ...], ...] = (
    ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    ("AWS_ENDPOINT_URL_STS",),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    ("S3_USER_VIRTUAL_BUCKET", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
    ("AWS_REQUEST_PAYER",),
    ("STORAGE_EMULATOR_HOST",),
    ("AZURE_AUTHORITY_HOST",),
    ("HF_ENDPOINT",),
    ("AWS_CA_BUNDLE",),
    ("SSL_CERT_FILE",),
    ("REQUESTS_CA_BUNDLE",),
    ("CURL_CA_BUNDLE",),
    ("HTTPS_PROXY", "https_proxy"),
    ("HTTP_PROXY", "http_proxy"),
    ("ALL_PROXY", "all_proxy"),
    ("NO_PROXY", "no_proxy"),
)
"""What a mounted secret need not repeat. Names of one line say the same thing: a secret that has
one of them has all of them, so that the environment's more special name does not win over it."""

OPERATORS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What no mounted secret has a say in: the environment's holds, or none."""

ALIASES: Mapping[str, str] = {
    # KServe, pkg/credentials/s3/s3_secret.go and azure/azure_secret.go.
    "awsAnonymousCredential": "AWS_SKIP_SIGNATURE",
    "AZ_CLIENT_ID": "AZURE_CLIENT_ID",
    "AZ_CLIENT_SECRET": "AZURE_CLIENT_SECRET",
    "AZ_TENANT_ID": "AZURE_TENANT_ID",
    "AZURE_ACCOUNT_NAME": "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCESS_KEY": "AZURE_STORAGE_ACCOUNT_KEY",
    # Azure's command line and adlfs; Rust's object_store.
    "AZURE_STORAGE_ACCOUNT": "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_KEY": "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_KEY": "AZURE_STORAGE_SAS_TOKEN",
    # Data connections of Open Data Hub; GDAL; Rust's object_store.
    "AWS_S3_ENDPOINT": "AWS_ENDPOINT_URL",
    "AWS_NO_SIGN_REQUEST": "AWS_SKIP_SIGNATURE",
    "AWS_ENDPOINT": "AWS_ENDPOINT_URL",
    # The older name of the hub's client.
    "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN",
}
"""Other names that are in use; what they name stays readable by them too."""

KEYS_OF_SECRETS: Mapping[str, str] = {
    # KServe.
    "awsAccessKeyID": "AWS_ACCESS_KEY_ID",
    "awsSecretAccessKey": "AWS_SECRET_ACCESS_KEY",
    # MinIO's charts (minio/minio; before it stable/minio, and Argo's examples).
    "rootUser": "AWS_ACCESS_KEY_ID",
    "rootPassword": "AWS_SECRET_ACCESS_KEY",
    "accesskey": "AWS_ACCESS_KEY_ID",
    "secretkey": "AWS_SECRET_ACCESS_KEY",
    # The Secret of Kubernetes' own Azure volumes.
    "azurestorageaccountname": "AZURE_STORAGE_ACCOUNT_NAME",
    "azurestorageaccountkey": "AZURE_STORAGE_ACCOUNT_KEY",
    "token": "HF_TOKEN",
}
"""Names that mean something in a Secret only: in an environment they may be anything."""

PATHS = frozenset(
    {
        "AWS_CA_BUNDLE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AZURE_FEDERATED_TOKEN_FILE",
        "CURL_CA_BUNDLE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    }
)
"""Whose value is the name of a file."""

_INI = "credentials"
_GOOGLE_KEY = "gcloud-application-credentials.json"
_GOOGLE_TYPES = frozenset({"service_account", "authorized_user", "external_account"})


class Values(Mapping[str, str]):
    """A mapping whose values are not shown by ``repr``."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Values({', '.join(sorted(self._values))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """All that a source may use to name itself and to find its server."""

    values: Mapping[str, str] = field(repr=False)
    """By the names of the ecosystem's environment variables, none of them empty. Files of a mounted
    secret that are no such name (``ca.crt``, ``username``, ``.dockerconfigjson``) by theirs."""
    where: str
    """In words, for errors: "mounted secret `team-a`" or "the agent's environment"."""
    is_mounted: bool
    directory: Path | None
    """Of the mounted secret."""

    def first(self, *names: str) -> str:
        """Return the value of the first of these names that is there, else an empty string."""
        return next((self.values[name] for name in names if name in self.values), "")

    def file(self, path: str, name: str) -> str:
        """Return the path of a file that the value ``name`` names.

        Whoever writes a secret says with it which bytes are sent to which server. So the files that
        a mounted secret can name are its own. Raises ``AccessDenied`` for another one.
        """
        if self.directory is None:
            return path
        return _own_file(self.directory, path, name, self.where)

    def is_on(self, *names: str) -> bool:
        """Tell whether the first of these names that is there says yes."""
        return self.first(*names).lower() in {"1", "true", "yes", "on"}


def read_credentials(
    name: str | None, *, root: Path, environment: Mapping[str, str]
) -> Credentials:
    """Return the mounted secret of this name below ``root``; without a name, the environment.

    Raises ``AccessDenied`` when it is not mounted or cannot be read.
    """
    surroundings = _renamed({key: value for key, value in environment.items() if value}, ALIASES)
    if name is None:
        return Credentials(
            values=Values(surroundings), where=ENVIRONMENT, is_mounted=False, directory=None
        )
    where = f"mounted secret `{name}`"
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise AccessDenied(f"{name!r} is no name of a mounted secret: write its directory's name")
    directory = root / name
    found = _renamed(_read_files(directory, where), {**KEYS_OF_SECRETS, **ALIASES})
    _point_to_files(found, directory, where)
    for group in SETTINGS:
        if not any(one in found for one in group):
            found |= {one: surroundings[one] for one in group if one in surroundings}
    for one in OPERATORS:
        found.pop(one, None)
    found |= {one: surroundings[one] for one in OPERATORS if one in surroundings}
    return Credentials(values=Values(found), where=where, is_mounted=True, directory=directory)


def _renamed(given: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, str]:
    values = dict(given)
    for alias, name in aliases.items():
        if alias in given:
            values.setdefault(name, given[alias])
    return values


def _read_files(directory: Path, where: str) -> dict[str, str]:
    for _ in range(3):
        # The kubelet swaps this link when the Secret changes: all files are read from one side.
        side = Path(os.path.realpath(directory / "..data"))
        try:
            names = sorted(os.listdir(side if side.is_dir() else directory))
            found = {
                name: _read_text((side if side.is_dir() else directory) / name) for name in names
            }
        except (FileNotFoundError, NotADirectoryError):
            if directory.is_dir():
                continue
            raise AccessDenied(
                f"{where}: there is no directory {directory}; mount the Secret there, each key a "
                "file, or correct `credentials` of the entry (--credentials-dir is where they are)"
            ) from None
        except OSError as error:
            raise AccessDenied(
                f"{where}: {directory} cannot be read ({error.strerror}); the agent's user needs "
                "to read its files"
            ) from None
        return {name: text for name, text in found.items() if text}
    raise AccessDenied(f"{where}: {directory} changes while it is read")


def _read_text(path: Path) -> str:
    """Return the text of a file; nothing for what is no text file of a Secret's size."""
    if path.name.startswith("..") or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return ""
    try:
        # `echo key | base64` leaves a newline in the Secret.
        return path.read_bytes().decode().strip()
    except UnicodeDecodeError:
        return ""


def _point_to_files(found: dict[str, str], directory: Path, where: str) -> None:
    if _INI in found:
        found.setdefault("AWS_SHARED_CREDENTIALS_FILE", _INI)
    google = next(
        (one for one in (_GOOGLE_KEY, *sorted(found)) if _is_google_key(one, found)), None
    )
    if google is not None:
        found.setdefault("GOOGLE_APPLICATION_CREDENTIALS", google)
    for name in PATHS & found.keys():
        # A Secret's key of this name often holds the content itself.
        file = name if found[name].startswith(("{", "-----BEGIN")) else found[name]
        found[name] = _own_file(directory, file, name, where)


def _own_file(directory: Path, file: str, name: str, where: str) -> str:
    path = Path(os.path.normpath(directory / file))
    if not path.is_relative_to(directory) or not os.path.isfile(path):
        raise AccessDenied(
            f"{where}: {name} names no file in {directory}; write the name of one of its keys"
        )
    return str(path)


def _is_google_key(name: str, found: Mapping[str, str]) -> bool:
    if not name.endswith(".json") or name not in found:
        return False
    try:
        content = json.loads(found[name])
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("type") in _GOOGLE_TYPES
