"""Azure Blob Storage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.store import AzureStore

from sidecar.artifacts.remote.identity import Grant
from sidecar.artifacts.remote.identity_azure import find_azure, parse_connection
from sidecar.artifacts.remote.objects_access import Cloud, Place, Server, own_server
from sidecar.artifacts.remote.objects_meanings import Dialect
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied, UnsupportedSource

if TYPE_CHECKING:
    from obstore.store import AzureCredential, ClientConfig, ObjectStore, RetryConfig

HOSTS = re.compile(
    r"([a-z0-9]{3,24})(?:\.z\d{1,2}\.blob\.storage\.azure\.net"
    r"|\.blob\.core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))"
)
"""Microsoft's own servers, which a document may name: what is sent there stays with Microsoft."""

_ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,63}")
"""Azure's are of small letters and digits; an emulator's need not be."""


def _find_server(place: Place, credentials: Credentials) -> Server:
    """Return where the container is: the URL's host, a setting, or the account's own server."""
    if place.host:
        return Server(url=f"https://{place.host}")
    connection = _connection(credentials)
    endpoint = credentials.first("AZURE_STORAGE_ENDPOINT") or connection.get("blobendpoint", "")
    if endpoint:
        url = own_server(endpoint, "AZURE_STORAGE_ENDPOINT", scheme="https", where=place.where)
        return Server(url=url, is_own=True)
    suffix = connection.get("endpointsuffix", "")
    url = f"https://{_account(place, '', credentials)}.blob.{suffix or 'core.windows.net'}"
    url = own_server(url, "AZURE_STORAGE_CONNECTION_STRING", scheme="https", where=place.where)
    return Server(url=url, is_own=bool(suffix))


def _account(place: Place, url: str, credentials: Credentials) -> str:
    named = HOSTS.fullmatch(place.host)
    ours = _connection(credentials).get("accountname") or credentials.first(
        "AZURE_STORAGE_ACCOUNT_NAME"
    )
    if ours and not _ACCOUNT.fullmatch(ours):
        raise UnsupportedSource(
            f"{place.where}: AZURE_STORAGE_ACCOUNT_NAME in {credentials.where} is no name of an "
            "account; write its letters and digits alone"
        )
    if not ours and url:
        parts = urlsplit(url)
        # Azurite and Azure Stack have it in the path.
        ours = parts.path.strip("/").partition("/")[0] or (parts.hostname or "").partition(".")[0]
    account = named[1] if named else ours
    if not account:
        raise AccessDenied(
            f"{place.where}: {credentials.where} does not say which account; set "
            "AZURE_STORAGE_ACCOUNT_NAME, or write az://account.blob.core.windows.net/container/"
        )
    return account


def _identify(place: Place, server: Server, credentials: Credentials) -> Grant:
    connection = _connection(credentials)
    is_emulator = server.url.startswith("http://")
    grant = find_azure(credentials, connection, where=place.where, is_emulator=is_emulator)
    ours = connection.get("accountname") or credentials.first("AZURE_STORAGE_ACCOUNT_NAME")
    if place.host and "token" not in grant.secret and grant.secret:
        account = _account(place, server.url, credentials)
        # Whoever has the other account would be sent a signature of this one.
        if ours != account:
            raise AccessDenied(
                f"{place.where}: {grant.words} is not for the account {account}; name the account "
                "it is for in AZURE_STORAGE_ACCOUNT_NAME"
            )
    return grant


def _build(
    place: Place,
    server: Server,
    credentials: Credentials,
    grant: Grant,
    options: ClientConfig,
    retry: RetryConfig,
) -> ObjectStore:
    def provide() -> AzureCredential:
        held = grant.secret
        if key := held.get("access_key"):
            return {"access_key": key, "expires_at": None}
        if signature := held.get("sas_token"):
            return {"sas_token": signature, "expires_at": None}
        return {"token": held.get("token") or "", "expires_at": None}

    return AzureStore(
        place.bucket,
        config={
            "account_name": _account(place, server.url, credentials),
            "endpoint": server.url,
            # Azurite is served by its endpoint; with this switch the identity would be its own.
            "use_emulator": False,
            "use_fabric_endpoint": False,
            "skip_signature": not grant.secret,
        },
        client_options=options,
        retry_config=retry,
        # Also for requests that are not signed: without one, keys of the environment are looked at.
        credential_provider=provide,
    )


def _connection(credentials: Credentials) -> dict[str, str]:
    return parse_connection(credentials.first("AZURE_STORAGE_CONNECTION_STRING"))


AZURE = Cloud(
    dialect=Dialect(
        bucket="container",
        permission="the role Storage Blob Data Reader",
        endpoint="AZURE_STORAGE_ENDPOINT",
        settings="AZURE_*",
    ),
    find_server=_find_server,
    identify=_identify,
    build=_build,
)
