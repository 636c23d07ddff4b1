"""Google Cloud Storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obstore.store import GCSStore

from sidecar.artifacts.remote.identity import Grant
from sidecar.artifacts.remote.identity_google import find_google
from sidecar.artifacts.remote.objects_access import Cloud, Place, Server, own_server
from sidecar.artifacts.remote.objects_meanings import Dialect
from sidecar.artifacts.remote.secrets import Credentials

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSCredential, ObjectStore, RetryConfig

GOOGLE_URL = "https://storage.googleapis.com"


def _find_server(place: Place, credentials: Credentials) -> Server:
    """Return where the bucket is: STORAGE_EMULATOR_HOST, which Google's own clients read too."""
    endpoint = credentials.first("STORAGE_EMULATOR_HOST")
    if not endpoint:
        return Server(url=GOOGLE_URL)
    url = own_server(endpoint, "STORAGE_EMULATOR_HOST", scheme="http", where=place.where)
    return Server(url=url, is_own=True)


def _identify(place: Place, server: Server, credentials: Credentials) -> Grant:
    return find_google(credentials, where=place.where, is_emulator=server.is_own)


def _build(
    place: Place,
    server: Server,
    credentials: Credentials,
    grant: Grant,
    options: ClientConfig,
    retry: RetryConfig,
) -> ObjectStore:
    def provide() -> GCSCredential:
        return {"token": grant.secret.get("token") or "", "expires_at": None}

    return GCSStore(
        place.bucket,
        config={"base_url": server.url, "skip_signature": not grant.secret},
        client_options=options,
        retry_config=retry,
        # Also for requests that are not signed: without one, files of the user are looked for.
        credential_provider=provide,
    )


GCS = Cloud(
    dialect=Dialect(
        bucket="bucket",
        permission="roles/storage.objectViewer",
        endpoint="STORAGE_EMULATOR_HOST",
        settings="GOOGLE_SERVICE_ACCOUNT and GOOGLE_SERVICE_ACCOUNT_KEY",
    ),
    find_server=_find_server,
    identify=_identify,
    build=_build,
    listings_may_end_early=True,
)
