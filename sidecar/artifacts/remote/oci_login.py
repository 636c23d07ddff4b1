"""Who we are to a registry: a user and a password of a mounted secret or of Docker's config."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sidecar.artifacts.remote.oci_reference import DOCKER_HUB, DOCKER_HUB_NAMES, Reference
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied

MAX_CONFIG_BYTES = 1 << 20
"""As much as a Kubernetes Secret holds."""
_CONFIG_KEYS = (".dockerconfigjson", "config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a registry, or its token server, is told of us."""

    user: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of looking for credentials."""

    login: Login | None
    missing: str
    """In words, for an error: where nothing was found, and what would be taken."""


def find_login(reference: Reference, credentials: Credentials) -> Found:
    """Look for the credentials of a repository.

    In a mounted secret: ``username`` and ``password``, else an image pull secret
    (``.dockerconfigjson`` or ``config.json``). Without one: ``config.json`` in the directory that
    ``DOCKER_CONFIG`` names. Keys of ``auths`` match as the kubelet matches them
    (kubernetes.io/docs/concepts/containers/images, "config.json"): globs in parts of the host, a
    path that the repository begins with; of several, the longest. A mounted secret with
    ``https-host`` says nothing to any other host, as for ``https://``. Programs that a config names
    (``credHelpers``, ``credsStore``) are not run. Raises ``AccessDenied`` for a broken config.
    """
    values, where = credentials.values, credentials.where
    told = values.get("https-host", "").lower() if credentials.is_mounted else ""
    if told and (DOCKER_HUB if told in DOCKER_HUB_NAMES else told) != reference.host:
        return Found(
            login=None, missing=f"{where} is for another host (its https-host), so it was not used"
        )
    if credentials.is_mounted and values.get("username") and values.get("password"):
        return Found(login=Login(user=values["username"], password=values["password"]), missing="")
    config = _read_config(reference, credentials)
    if config is None:
        taken = " or ".join(("username and password", *_CONFIG_KEYS))
        if not credentials.is_mounted:
            taken = "DOCKER_CONFIG, the directory of a config.json"
        return Found(login=None, missing=f"{where} has no credentials for it ({taken})")
    entry = _choose(config.get("auths"), reference)
    login = _login_of(entry, reference, where) if entry is not None else None
    missing = f"the Docker config of {where} has no entry for {reference.registry}"
    if config.get("credHelpers") or config.get("credsStore"):
        missing += ", and the program that it names for credentials is not run"
    return Found(login=login, missing=missing)


def _read_config(reference: Reference, credentials: Credentials) -> Mapping[str, Any] | None:
    text = next((found for key in _CONFIG_KEYS if (found := credentials.values.get(key))), None)
    directory = credentials.values.get("DOCKER_CONFIG")
    if text is None and directory and not credentials.is_mounted:
        try:
            with (Path(directory) / "config.json").open(encoding="utf-8") as handle:
                text = handle.read(MAX_CONFIG_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeError) as error:
            raise _broken(reference, credentials.where, "cannot be read") from error
    if text is None:
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        # Not as a cause: its message quotes what it could not read.
        raise _broken(reference, credentials.where, "is no JSON") from None
    if not isinstance(config, dict):
        raise _broken(reference, credentials.where, "is no JSON object")
    return config


def _choose(auths: object, reference: Reference) -> Mapping[str, Any] | None:
    wanted = f"{reference.registry}/{reference.repository}"
    found: list[tuple[int, Mapping[str, Any]]] = []
    for key, entry in auths.items() if isinstance(auths, dict) else ():
        pattern = _plain_key(key)
        if isinstance(entry, dict) and entry and _is_match(pattern, wanted):
            found.append((len(pattern), entry))
    return max(found, key=lambda one: one[0])[1] if found else None


def _plain_key(key: str) -> str:
    """Return ``host[:port][/path]``: Docker writes ``https://index.docker.io/v1/`` too."""
    _, _, plain = key.rpartition("://")
    plain = plain.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    host, slash, path = plain.partition("/")
    return (DOCKER_HUB if host.lower() in DOCKER_HUB_NAMES else host.lower()) + slash + path


def _is_match(pattern: str, wanted: str) -> bool:
    host, _, path = pattern.partition("/")
    own_host, _, own_path = wanted.partition("/")
    parts, own_parts = host.split("."), own_host.split(".")
    is_host = host == own_host or (
        # A glob does not reach over a dot.
        len(parts) == len(own_parts) and all(map(fnmatchcase, own_parts, parts))
    )
    return is_host and (not path or f"{own_path}/".startswith(f"{path}/"))


def _login_of(entry: Mapping[str, Any], reference: Reference, where: str) -> Login:
    user, password, packed = entry.get("username"), entry.get("password"), entry.get("auth")
    if isinstance(packed, str) and packed:
        try:
            text = base64.b64decode(packed, validate=True).decode()
        except (binascii.Error, UnicodeError):
            raise _broken(reference, where, "has an auth that is no base64") from None
        user, _, password = text.partition(":")
    if entry.get("identitytoken") and not (isinstance(password, str) and password):
        raise _broken(reference, where, "has an identity token, which is not used")
    if not (isinstance(user, str) and user and isinstance(password, str) and password):
        raise _broken(reference, where, "has an entry without a user or a password")
    return Login(user=user, password=password.rstrip("\0"))


def _broken(reference: Reference, where: str, what: str) -> AccessDenied:
    return AccessDenied(
        f"{reference.where}: the Docker config of {where} {what}; make it with "
        "`kubectl create secret docker-registry`, or mount username and password"
    )
