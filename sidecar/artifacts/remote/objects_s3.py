"""S3 and what speaks like it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from obstore.store import S3Store

from sidecar.artifacts.remote.certificates import ca_text
from sidecar.artifacts.remote.http_client import Client
from sidecar.artifacts.remote.identity import Grant
from sidecar.artifacts.remote.identity_aws import find_aws
from sidecar.artifacts.remote.objects_access import Cloud, Place, Server, own_server
from sidecar.artifacts.remote.objects_meanings import Dialect
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import FetchFailed, NotFound, UnsupportedSource

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Credential

DEFAULT_REGION = "us-east-1"
"""What look-alikes take for theirs when nobody says otherwise."""
BUCKET_REGION = "x-amz-bucket-region"
_REGION = re.compile(r"[A-Za-z0-9._-]{1,63}")
"""Part of a host's name at AWS, and of a header everywhere."""


def find_server(place: Place, credentials: Credentials) -> Server:
    """Return where the bucket is.

    An own endpoint (which may be http://: whoever writes it says so) gets path style, as
    look-alikes want it, unless a setting says otherwise. AWS itself gets the name of the bucket in
    the host, as from its SDKs, and is asked for the region when no setting names it.
    """
    endpoint = credentials.first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = credentials.first("AWS_REGION", "AWS_DEFAULT_REGION")
    if region and not _REGION.fullmatch(region):
        raise UnsupportedSource(
            f"{place.where}: AWS_REGION in {credentials.where} is no name of a region; write one "
            "like eu-west-1"
        )
    if not endpoint:
        region = region or find_region(_aws(DEFAULT_REGION), place, credentials)
        is_virtual = "." not in place.bucket
        url = _in_host(_aws(region), place.bucket) if is_virtual else _aws(region)
        return Server(url=url, region=region, is_virtual_host=is_virtual)
    endpoint = own_server(endpoint, "AWS_ENDPOINT_URL", scheme="https", where=place.where)
    is_virtual = credentials.is_on("S3_USER_VIRTUAL_BUCKET", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST")
    return Server(
        url=_in_host(endpoint, place.bucket) if is_virtual else endpoint,
        region=region or DEFAULT_REGION,
        is_virtual_host=is_virtual,
        is_own=True,
    )


def find_region(server: str, place: Place, credentials: Credentials) -> str:
    """Ask AWS where a bucket is, which it tells everybody. Raises ``ArtifactError``."""
    client = Client(
        place.where,
        settings=credentials.values,
        ca_certificate=ca_text(credentials, where=place.where),
    )
    try:
        with client.open("HEAD", f"{server}/{place.bucket}") as answer:
            status, region = answer.status, answer.headers.get(BUCKET_REGION, "")
    finally:
        client.close()
    if _REGION.fullmatch(region):
        return region
    if status == 404:
        raise NotFound(f"404 from {place.where}: there is no such bucket; check its name")
    raise FetchFailed(
        f"{place.where}: AWS does not say where the bucket is ({status}); set AWS_REGION"
    )


def _identify(place: Place, server: Server, credentials: Credentials) -> Grant:
    return find_aws(credentials, server.region, where=place.where)


def _build(
    place: Place,
    server: Server,
    credentials: Credentials,
    grant: Grant,
    options: ClientConfig,
    retry: RetryConfig,
) -> ObjectStore:
    def provide() -> S3Credential:
        held = grant.secret
        return {
            "access_key_id": held.get("access_key_id") or "",
            "secret_access_key": held.get("secret_access_key") or "",
            "token": held.get("token"),
            "expires_at": None,
        }

    return S3Store(
        place.bucket,
        config={
            "endpoint": server.url,
            "aws_endpoint_url_s3": server.url,
            "virtual_hosted_style_request": server.is_virtual_host,
            "region": server.region,
            "skip_signature": not grant.secret,
            "request_payer": credentials.first("AWS_REQUEST_PAYER").lower() == "requester",
            "s3_express": False,
            "unsigned_payload": False,
        },
        client_options=options,
        retry_config=retry,
        # Also for requests that are not signed: without one, keys of the environment are looked at.
        credential_provider=provide,
    )


def _aws(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _in_host(url: str, bucket: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, f"{bucket}.{parts.netloc}", parts.path, "", ""))


S3 = Cloud(
    dialect=Dialect(
        bucket="bucket",
        permission="s3:GetObject and s3:ListBucket",
        endpoint="AWS_ENDPOINT_URL",
        settings="AWS_* (AWS_CHECKSUM_ALGORITHM and the like)",
    ),
    find_server=find_server,
    identify=_identify,
    build=_build,
    listings_may_end_early=True,
)
