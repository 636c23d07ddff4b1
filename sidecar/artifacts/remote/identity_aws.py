"""Who asks S3, in the order of the AWS SDKs.

Keys; a web identity (IRSA, or any OIDC token that the kubelet projects); a profile of a credentials
file; the container's server (ECS, EKS Pod Identity); the node's (IMDSv2). The last two are the
process's own identity, which a mounted secret does not fall back to.
https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
"""

from __future__ import annotations

import configparser
import html
import os
import re
from urllib.parse import urlsplit

from sidecar.artifacts.remote.identity import (
    TOKEN_SECONDS,
    Grant,
    Reply,
    ask_node,
    nobody,
    nobody_by_choice,
    post_form,
    read_token,
    refused,
    usable_seconds,
)
from sidecar.artifacts.remote.secrets import Credentials
from sidecar.errors import AccessDenied, FetchFailed

ROLE_SECONDS = 3600
"""How long an assumed role is asked for; every role allows it."""
METADATA_URL = "http://169.254.169.254"
CONTAINER_URL = "http://169.254.170.2"
CONTAINER_HOSTS = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost"})
"""Where a container's credentials come from without TLS; besides, all of 127.0.0.0/8 and ``::1``.
https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html"""


def find_aws(credentials: Credentials, region: str, *, where: str) -> Grant:
    """Return the identity for S3; an unsigned grant when there is none.

    Raises ``ArtifactError``.
    """
    values = credentials.values
    if credentials.is_on("AWS_SKIP_SIGNATURE"):
        return nobody_by_choice(credentials, "AWS_SKIP_SIGNATURE")
    if "AWS_ACCESS_KEY_ID" in values or "AWS_SECRET_ACCESS_KEY" in values:
        return _keys(credentials, where)
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in values and "AWS_ROLE_ARN" in values:
        return _web_identity(credentials, region, where)
    if (found := _profile(credentials, where)) is not None:
        return found
    if credentials.is_mounted:
        return nobody(f"{credentials.where} has no AWS_ACCESS_KEY_ID")
    return (
        _container(credentials, where)
        or _node(credentials)
        or nobody(
            f"{credentials.where} has no AWS_ACCESS_KEY_ID, no web identity and no credentials "
            "file, and no metadata server gives any"
        )
    )


def _keys(credentials: Credentials, where: str) -> Grant:
    values = credentials.values
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if name not in values:
            raise AccessDenied(f"{where}: {credentials.where} has no {name}")
    token = values.get("AWS_SESSION_TOKEN")
    names = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    return _grant(
        values["AWS_ACCESS_KEY_ID"],
        values["AWS_SECRET_ACCESS_KEY"],
        token,
        words=f"{names}{', AWS_SESSION_TOKEN' if token else ''} in {credentials.where}",
    )


def _profile(credentials: Credentials, where: str) -> Grant | None:
    values = credentials.values
    path, name = values.get("AWS_SHARED_CREDENTIALS_FILE", ""), values.get("AWS_PROFILE", "")
    if not path and not credentials.is_mounted and "HOME" in values:
        path = os.path.join(values["HOME"], ".aws", "credentials")
        if not name and not os.path.exists(path):
            return None
    if not path:
        return None
    # No text of a parser's error is passed on: it quotes the line, and the key in it.
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError):
        raise AccessDenied(f"{where}: the credentials file {path} cannot be read") from None
    except configparser.Error:
        raise AccessDenied(f"{where}: {path} is no credentials file in INI form") from None
    profile = name or "default"
    found = dict(parser.items(profile)) if parser.has_section(profile) else {}
    key, secret = found.get("aws_access_key_id"), found.get("aws_secret_access_key")
    if not key or not secret:
        raise AccessDenied(
            f"{where}: {path} has no profile [{profile}] with aws_access_key_id and "
            "aws_secret_access_key; AWS_PROFILE chooses another profile"
        )
    return _grant(key, secret, found.get("aws_session_token"), words=f"[{profile}] of {path}")


def _web_identity(credentials: Credentials, region: str, where: str) -> Grant:
    """https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html"""
    values = credentials.values
    path, role = values["AWS_WEB_IDENTITY_TOKEN_FILE"], values["AWS_ROLE_ARN"]
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role,
        "RoleSessionName": values.get("AWS_ROLE_SESSION_NAME", "model-sidecar"),
        "WebIdentityToken": read_token(path, "AWS_WEB_IDENTITY_TOKEN_FILE", where=where),
        "DurationSeconds": str(ROLE_SECONDS),
    }
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    url = values.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.{domain}/"
    reply = post_form(url, form, credentials, where=where)
    key, secret, token = (
        _tag(reply.text, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")
    )
    if reply.status != 200 or not key or not secret:
        hint = "check AWS_ROLE_ARN, and that the role trusts the issuer of the token"
        code = _tag(reply.text, "Code") or str(reply.status)
        raise refused(reply, "STS", code, hint, where=where)
    words = f"the role of AWS_ROLE_ARN in {credentials.where}"
    return _grant(key, secret, token, words=words, seconds=usable_seconds(str(ROLE_SECONDS)))


def _container(credentials: Credentials, where: str) -> Grant | None:
    values = credentials.values
    relative = values.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "")
    url = f"{CONTAINER_URL}{relative}" if relative else ""
    url = url or values.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
    if not url:
        return None
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_near = host in CONTAINER_HOSTS or host.startswith("127.") or host == "::1"
    if parts.scheme != "https" and not is_near:
        raise AccessDenied(
            f"{where}: AWS_CONTAINER_CREDENTIALS_FULL_URI names a host that is neither the "
            "container's own nor reached by https://"
        )
    headers = {}
    if "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" in values:
        name = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
        headers["Authorization"] = read_token(values[name], name, where=where)
    elif "AWS_CONTAINER_AUTHORIZATION_TOKEN" in values:
        headers["Authorization"] = values["AWS_CONTAINER_AUTHORIZATION_TOKEN"]
    what = "the server of the container's credentials"
    return _from_json(ask_node("GET", url, headers), what, where)


def _node(credentials: Credentials) -> Grant | None:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html"""
    if credentials.is_on("AWS_EC2_METADATA_DISABLED"):
        return None
    server = credentials.values.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA_URL).rstrip("/")
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
    token = ask_node("PUT", f"{server}/latest/api/token", ttl)
    if token is None or token.status != 200:
        return None
    headers = {"X-aws-ec2-metadata-token": token.text.strip()}
    roles = f"{server}/latest/meta-data/iam/security-credentials/"
    role = ask_node("GET", roles, headers)
    if role is None or role.status != 200 or not role.text.strip():
        return None
    name = role.text.split()[0]
    reply = ask_node("GET", f"{roles}{name}", headers)
    if reply is None or reply.status != 200:
        return None
    key, secret, session = reply.json("AccessKeyId", "SecretAccessKey", "Token")
    if not key or not secret:
        return None
    return _grant(key, secret, session, words="the node's role", seconds=TOKEN_SECONDS)


def _from_json(reply: Reply | None, what: str, where: str) -> Grant:
    if reply is None:
        raise FetchFailed(f"{where}: {what} does not answer")
    key, secret, token, code = reply.json("AccessKeyId", "SecretAccessKey", "Token", "code")
    if reply.status != 200 or not key or not secret:
        raise refused(reply, what, code or str(reply.status), "check its role", where=where)
    return _grant(key, secret, token, words="the container's role", seconds=TOKEN_SECONDS)


def _grant(
    key: str, secret: str, token: str | None, *, words: str, seconds: float | None = None
) -> Grant:
    held = {"access_key_id": key, "secret_access_key": secret, "token": token or None}
    return Grant(secret=held, words=words, seconds=seconds)


def _tag(text: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]{{1,8192}})</{name}>", text)
    return html.unescape(found[1]).strip() if found else ""
