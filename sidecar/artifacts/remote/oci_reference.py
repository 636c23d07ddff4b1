"""``oci://`` as it is written, and what it means: a registry, a repository, and what is pinned."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sidecar.artifacts.remote.addresses import is_loopback
from sidecar.core.redact import redact_source
from sidecar.errors import UnsupportedSource

SCHEME = "oci://"
MAX_NAME_CHARACTERS = 255
DOCKER_HUB = "docker.io"
DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_DOCKER_HUB_SERVER = "registry-1.docker.io"
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
)
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_PORT = re.compile(r":[0-9]+\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One manifest of one repository."""

    where: str
    """As it was written, for people."""
    registry: str
    """The registry's name with its port, as credentials are kept under it."""
    repository: str
    tag: str
    digest: str
    """``sha256:<64 hex>``; empty when only the tag says what is meant."""
    is_plain: bool
    """Spoken to without TLS."""

    @property
    def url(self) -> str:
        """Where the registry keeps the repository, without a slash at its end."""
        host = _DOCKER_HUB_SERVER if self.registry == DOCKER_HUB else self.registry
        scheme = "http" if self.is_plain else "https"
        return f"{scheme}://{host}/v2/{self.repository}"

    @property
    def host(self) -> str:
        """The registry's name without its port, IPv6 without brackets."""
        return _PORT.sub("", self.registry).strip("[]")

    @property
    def is_loopback(self) -> bool:
        """This machine's own."""
        return is_loopback(self.host)


def parse_reference(source: str, *, has_ca: bool = False) -> Reference:
    """Take ``oci://registry[:port]/repository[:tag][@sha256:...]`` apart.

    Names mean what they mean to ``docker pull`` (distribution/reference, ``ParseDockerRef``): no
    registry is Docker Hub, whose own images are in ``library``; no tag is ``latest``; of a tag and
    a digest, the digest counts. Without TLS are this machine's own registries only, as they are to
    containerd, and these only as long as nobody names a CA for them (``has_ca``).
    Raises ``UnsupportedSource``.
    """
    where = redact_source(source)
    text = source[len(SCHEME) :]
    authority, _, _ = text.partition("/")
    if "@" in authority.partition("@sha256:")[0]:
        raise _bad(
            where, "a user and a password are not taken from the URL; name a secret in credentials:"
        )
    if "?" in text or "#" in text:
        raise _bad(where, "it has no place for a query or a fragment")
    name, at_sign, digest = text.partition("@")
    if at_sign and not _DIGEST.fullmatch(digest):
        raise _bad(where, "the digest must be sha256: and 64 hexadecimal digits in lower case")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, ""
    registry, repository = _split_registry(path)
    if (tag and not _TAG.fullmatch(tag)) or name.endswith(":"):
        raise _bad(where, "the tag may have letters, digits and ._- only, 128 at most")
    if not _HOST.fullmatch(registry):
        raise _bad(where, "the registry must be a host name or address, and maybe a port")
    if repository != repository.lower():
        raise _bad(where, "repository names are in lower case")
    if not _REPOSITORY.fullmatch(repository):
        raise _bad(
            where,
            "the repository may have lower-case letters, digits, slashes and ._- between them",
        )
    if len(registry) + 1 + len(repository) > MAX_NAME_CHARACTERS:
        raise _bad(
            where, f"registry and repository have more than {MAX_NAME_CHARACTERS} characters"
        )
    return Reference(
        where=where,
        registry=registry,
        repository=repository,
        tag=tag or ("" if digest else "latest"),
        digest=digest,
        is_plain=is_loopback(_PORT.sub("", registry)) and not has_ca,
    )


def _split_registry(path: str) -> tuple[str, str]:
    first, slash, rest = path.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    registry, repository = (first, rest) if slash and is_host else (DOCKER_HUB, path)
    if registry in DOCKER_HUB_NAMES:
        registry = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    return registry.lower(), repository


def _bad(where: str, why: str) -> UnsupportedSource:
    return UnsupportedSource(
        f"{where}: {why}; write oci://registry[:port]/repository[:tag] or "
        "oci://registry[:port]/repository@sha256:<64 hex>"
    )
