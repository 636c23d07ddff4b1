"""What servers of object stores mean by what they answer, in our words: one table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.artifacts.remote.identity import Grant
from sidecar.errors import (
    AccessDenied,
    ArtifactError,
    FetchFailed,
    NotFound,
    SourceMoved,
    SourceNotAllowed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What differs between clouds in the words of an error."""

    bucket: str
    """What a bucket is called."""
    permission: str
    """What an identity needs to read."""
    endpoint: str
    """The setting that says where the server is."""
    settings: str
    """What obstore reads besides all that is said to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What an error is told about."""

    where: str
    """The source in words."""
    bucket: str
    host: str
    grant: Grant
    dialect: Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a server means by a code or a status; the texts are filled in from the ``Story``."""

    error: type[ArtifactError]
    why: str
    hint: str


_SECRET = Meaning(
    error=AccessDenied, why="the key or token is not accepted", hint="check {identity}"
)
_UNKNOWN_KEY = Meaning(
    error=AccessDenied,
    why="the key is not known there",
    hint="check {identity}, and that {endpoint} is the server that it belongs to",
)
_TOKEN = Meaning(error=AccessDenied, why="the token is not accepted", hint="renew {identity}")
_EXPIRED = Meaning(error=AccessDenied, why="the token has expired", hint="renew {identity}")
_CLOCK = Meaning(
    error=AccessDenied,
    why="the clocks of this node and of the server differ too much",
    hint="correct the node's clock",
)
_FORBIDDEN = Meaning(
    error=AccessDenied,
    why="the identity may not read it",
    hint="give {permission} to {identity}",
)
_NOT_ADMITTED = Meaning(
    error=AccessDenied,
    why="the request is not admitted",
    hint="check {identity}, that it has {permission}, and the network rules of the account",
)
_NO_BUCKET = Meaning(
    error=NotFound, why="there is no such {bucket}", hint="check its name and {endpoint}"
)
_NO_OBJECT = Meaning(error=NotFound, why="there is nothing of this name", hint="check the source")
_REGION = Meaning(
    error=FetchFailed,
    why="the {bucket} is in another region{region}",
    hint="set AWS_REGION to the region of the {bucket}",
)
_ARCHIVED = Meaning(
    error=AccessDenied, why="the object is archived", hint="restore it to a tier that can be read"
)
_BUSY = Meaning(error=FetchFailed, why="the server is busy or out of order", hint="it is retried")
_MOVED = Meaning(
    error=SourceMoved, why="the object is another one than was listed", hint="it is listed anew"
)
_REJECTED = Meaning(
    error=FetchFailed,
    why="the server rejects the request",
    hint="check that {endpoint} is right, and whether {host} speaks https",
)

CODES: Mapping[str, Meaning] = {
    # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; GCS answers the same way.
    "SignatureDoesNotMatch": _SECRET,
    "InvalidSecurity": _SECRET,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "XAdminUserNotFound": _UNKNOWN_KEY,
    "InvalidToken": _TOKEN,
    "AuthenticationRequired": _TOKEN,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "AccountProblem": _FORBIDDEN,
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": _NO_OBJECT,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidObjectState": _ARCHIVED,
    "InvalidRange": _MOVED,
    "PreconditionFailed": _MOVED,
    # https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
    "AuthenticationFailed": _SECRET,
    "InvalidAuthenticationInfo": _SECRET,
    "NoAuthenticationInformation": _FORBIDDEN,
    "AuthorizationFailure": _NOT_ADMITTED,
    "AuthorizationPermissionMismatch": _FORBIDDEN,
    "AuthorizationResourceTypeMismatch": _FORBIDDEN,
    "AuthorizationServiceMismatch": _FORBIDDEN,
    "InsufficientAccountPermissions": _FORBIDDEN,
    "PublicAccessNotPermitted": _FORBIDDEN,
    "AccountIsDisabled": _FORBIDDEN,
    "ContainerNotFound": _NO_BUCKET,
    "BlobNotFound": _NO_OBJECT,
    "ResourceNotFound": _NO_OBJECT,
    "BlobArchived": _ARCHIVED,
    "ConditionNotMet": _MOVED,
}

_REFUSALS = (_FORBIDDEN, _NOT_ADMITTED, _TOKEN, _SECRET, _UNKNOWN_KEY)

STATUSES: Mapping[int, Meaning] = {
    301: _REGION,
    400: _REJECTED,
    401: _TOKEN,
    403: _FORBIDDEN,
    404: _NO_OBJECT,
    412: _MOVED,
    416: _MOVED,
}
"""For an answer without a code that is known; any other status: the server is out of order."""

TRANSPORT: tuple[tuple[str, Meaning], ...] = (
    (
        "127.0.0.1:0,",
        Meaning(
            error=SourceNotAllowed,
            why="{host} redirects to another host, which is not followed",
            hint="write the host that answers in {endpoint}",
        ),
    ),
    ("BareRedirect", _REGION),
    (
        "dns error",
        Meaning(
            error=FetchFailed, why="the name {host} has no address", hint="check {endpoint} and DNS"
        ),
    ),
    (
        "ProxyAuthRequired",
        Meaning(
            error=FetchFailed,
            why="the proxy wants a user and a password",
            hint="write them in HTTPS_PROXY, or name {host} in NO_PROXY",
        ),
    ),
    (
        "InvalidContentType",
        Meaning(
            error=FetchFailed,
            why="{host} does not speak TLS",
            hint="write http:// in {endpoint} if that is meant",
        ),
    ),
    (
        "InvalidCertificate",
        Meaning(
            error=FetchFailed,
            why="the certificate of {host} is not trusted",
            hint="mount its CA as ca.crt among the credentials, or name its file in AWS_CA_BUNDLE "
            "or SSL_CERT_FILE",
        ),
    ),
    (
        "ConnectionRefused",
        Meaning(error=FetchFailed, why="{host} refuses the connection", hint="check {endpoint}"),
    ),
    (
        "Unreachable",
        Meaning(error=FetchFailed, why="there is no way to {host}", hint="check {endpoint}"),
    ),
    (
        "TimedOut",
        Meaning(error=FetchFailed, why="{host} is silent", hint="it is retried"),
    ),
    ("UnexpectedRange", _MOVED),
    (
        "NotPartial",
        Meaning(
            error=FetchFailed,
            why="{host} sends a whole object, or a page, where a part was asked for",
            hint="check that {endpoint} is an object store",
        ),
    ),
    (
        "InvalidListResponse",
        Meaning(
            error=FetchFailed,
            why="what {host} answers is no whole listing",
            hint="check that {endpoint} is an object store",
        ),
    ),
)
"""What obstore says of a connection, by what its debug text has in it. The first one that fits."""

PANIC = Meaning(
    error=FetchFailed,
    why="the client of object stores has failed by a defect of its own",
    hint="check {identity} and {endpoint}; the agent's log has its words",
)
CUT = Meaning(error=FetchFailed, why="the connection to {host} was cut", hint="it is retried")


def tell_answer(status: int, body: str, story: Story) -> ArtifactError:
    """Return the error that a server's answer means, by its code, else by its status."""
    found = re.search(r"<Code>([A-Za-z]{1,64})</Code>", body)
    code = found[1] if found and found[1] in CODES else ""
    meaning = CODES[code] if code else STATUSES.get(status, _BUSY)
    if not story.grant.secret and meaning in _REFUSALS:
        return AccessDenied(f"{status} from {story.where}: {story.grant.words}")
    error = tell(meaning, story, status=f"{status} from ", code=code, region=_region(body))
    if not story.grant.secret and meaning in (_NO_BUCKET, _NO_OBJECT):
        # Azure says so of what is private.
        return NotFound(f"{error} ({story.grant.words})")
    return error


def tell(
    meaning: Meaning, story: Story, *, status: str = "", code: str = "", region: str = ""
) -> ArtifactError:
    """Return the error that says this of a source."""
    words = {
        "identity": story.grant.words,
        "permission": story.dialect.permission,
        "endpoint": story.dialect.endpoint,
        "bucket": story.dialect.bucket,
        "host": story.host,
        "region": f", {region}" if region else "",
    }
    why, hint = meaning.why.format(**words), meaning.hint.format(**words)
    shown = f" ({code})" if code else ""
    return meaning.error(f"{status}{story.where}: {why}{shown}; {hint}")


def _region(body: str) -> str:
    found = re.search(r"<Region>([a-z]{2}(?:-[a-z]{1,12}){1,3}-\d)</Region>", body)
    return found[1] if found else ""
