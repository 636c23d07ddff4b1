"""Who asks Azure Blob Storage.

The account's key; a shared access signature; an application with a secret or with a projected token
(workload identity); the node's managed identity. The last is the process's own identity, which a
mounted secret does not fall back to. A connection string is taken apart into the first two.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from sidecar.artifacts.remote.identity import (
    Grant,
    ask_node,
    nobody,
    nobody_by_choice,
    post_form,
    read_token,
    refused,
    usable_seconds,
)
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied

LOGIN_URL = "https://login.microsoftonline.com"
RESOURCE = "https://storage.azure.com"
METADATA_URL = "http://169.254.169.254"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def find_azure(
    credentials: Credentials, connection: Mapping[str, str], *, where: str, is_emulator: bool
) -> Grant:
    """Return the identity for Blob Storage; an unsigned grant when there is none.

    ``connection`` is the connection string, taken apart. No metadata server is asked for an
    emulator. Raises ``ArtifactError``.
    """
    values, place = credentials.values, credentials.where
    if credentials.is_on("AZURE_SKIP_SIGNATURE"):
        return nobody_by_choice(credentials, "AZURE_SKIP_SIGNATURE")
    if connection:
        return _from_connection(connection, place, where)
    if "AZURE_STORAGE_ACCOUNT_KEY" in values:
        return _account_key(
            values["AZURE_STORAGE_ACCOUNT_KEY"], "AZURE_STORAGE_ACCOUNT_KEY", place, where
        )
    if "AZURE_STORAGE_SAS_TOKEN" in values:
        return _signature(values["AZURE_STORAGE_SAS_TOKEN"], "AZURE_STORAGE_SAS_TOKEN", place)
    if "AZURE_CLIENT_SECRET" in values:
        proof = {"client_secret": values["AZURE_CLIENT_SECRET"]}
        return _application(proof, "AZURE_CLIENT_SECRET", credentials, where)
    if "AZURE_FEDERATED_TOKEN_FILE" in values:
        name = "AZURE_FEDERATED_TOKEN_FILE"
        token = read_token(values[name], name, where=where)
        proof = {"client_assertion": token, "client_assertion_type": ASSERTION_TYPE}
        return _application(proof, name, credentials, where)
    if credentials.is_mounted:
        return nobody(
            f"{place} has no AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or "
            "AZURE_CLIENT_SECRET"
        )
    node = None if is_emulator else _node(credentials)
    return node or nobody(
        f"{place} has no AZURE_STORAGE_ACCOUNT_KEY, no workload identity, and no metadata server "
        "gives a token"
    )


def parse_connection(text: str) -> dict[str, str]:
    """Take a connection string apart: names in lower case, as they count for nothing."""
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _from_connection(connection: Mapping[str, str], place: str, where: str) -> Grant:
    name = "AZURE_STORAGE_CONNECTION_STRING"
    if "accountkey" in connection:
        return _account_key(connection["accountkey"], name, place, where)
    if "sharedaccesssignature" in connection:
        return _signature(connection["sharedaccesssignature"], name, place)
    return nobody(f"{name} in {place} has neither AccountKey nor SharedAccessSignature")


def _account_key(key: str, name: str, place: str, where: str) -> Grant:
    try:
        base64.b64decode(key, validate=True)
    except ValueError:
        raise AccessDenied(f"{where}: {name} in {place} is no account key (base64)") from None
    return Grant(secret={"access_key": key}, words=f"{name} in {place}")


def _signature(text: str, name: str, place: str) -> Grant:
    return Grant(secret={"sas_token": text.removeprefix("?")}, words=f"{name} in {place}")


def _application(
    proof: Mapping[str, str], name: str, credentials: Credentials, where: str
) -> Grant:
    """https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow"""
    values, place = credentials.values, credentials.where
    for needed in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        if needed not in values:
            raise AccessDenied(f"{where}: {place} has {name} and no {needed}")
    login = values.get("AZURE_AUTHORITY_HOST", LOGIN_URL).rstrip("/")
    url = f"{login}/{quote(values['AZURE_TENANT_ID'], safe='')}/oauth2/v2.0/token"
    form = {
        "grant_type": "client_credentials",
        "client_id": values["AZURE_CLIENT_ID"],
        "scope": f"{RESOURCE}/.default",
        **proof,
    }
    reply = post_form(url, form, credentials, where=where)
    token, seconds, code = reply.json("access_token", "expires_in", "error")
    if reply.status != 200 or not token:
        hint = f"check AZURE_TENANT_ID, AZURE_CLIENT_ID and {name} in {place}"
        raise refused(reply, "Microsoft Entra", code, hint, where=where)
    words = f"the application of AZURE_CLIENT_ID in {place}"
    return Grant(secret={"token": token}, words=words, seconds=usable_seconds(seconds))


def _node(credentials: Credentials) -> Grant | None:
    """https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token"""
    values = credentials.values
    server = values.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", METADATA_URL).rstrip("/")
    query = {"api-version": "2018-02-01", "resource": f"{RESOURCE}/"}
    if "AZURE_CLIENT_ID" in values:
        query["client_id"] = values["AZURE_CLIENT_ID"]
    url = f"{server}/metadata/identity/oauth2/token?{urlencode(query)}"
    reply = ask_node("GET", url, {"Metadata": "true"})
    if reply is None or reply.status != 200:
        return None
    token, seconds = reply.json("access_token", "expires_in")
    if not token:
        return None
    words = "the node's managed identity"
    return Grant(secret={"token": token}, words=words, seconds=usable_seconds(seconds))
