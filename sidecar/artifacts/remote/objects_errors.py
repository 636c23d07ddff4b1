"""What object stores say, in our words: a table for what obstore raises, one for servers' answers.

obstore's messages quote the server's answer (which may repeat the key id and the string that was
signed) and the URL. Nothing of them is passed on but a status, a known word and a region.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from obstore import exceptions as foreign

from sidecar.artifacts.remote.identity import Grant
from sidecar.errors import (
    AccessDenied,
    ArtifactError,
    FetchFailed,
    InvalidArtifact,
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
    (
        "BareRedirect",
        _REGION,
    ),
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
    (
        "UnexpectedRange",
        _MOVED,
    ),
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

_CUT = Meaning(error=FetchFailed, why="the connection to {host} was cut", hint="it is retried")


def _tell_answer(text: str, status: int, story: Story) -> ArtifactError:
    found = re.search(r"\bstatus: (\d{3})\b", text) or re.search(r"status code: (\d{3})\b", text)
    return tell_answer(int(found[1]) if found else status, text, story)


def _tell_generic(text: str, story: Story) -> ArtifactError:
    if re.search(r"\bstatus: \d{3}\b", text):
        return _tell_answer(text, 0, story)
    # The URL is in there too, and an object may be called anything.
    text = re.sub(r"uri: Some\(\s*[^\n]*\s*\)", "", text)
    meaning = next((one for needle, one in TRANSPORT if needle in text), _CUT)
    return _tell(meaning, story, "", "")


def _tell_name(text: str, story: Story) -> ArtifactError:
    return InvalidArtifact(
        f"{story.where}: an object there has an empty, `.` or `..` component or a control "
        "character in its name; rename it"
    )


def _tell_other(text: str, story: Story) -> ArtifactError:
    return FetchFailed(
        f"{story.where}: cannot be asked for with these settings; check {story.dialect.endpoint}, "
        "the proxy and the certificates"
    )


Telling = Callable[[str, Story], ArtifactError]

FOREIGN: Mapping[type[Exception], Telling] = {
    foreign.PermissionDeniedError: lambda text, story: _tell_answer(text, 403, story),
    foreign.UnauthenticatedError: lambda text, story: _tell_answer(text, 401, story),
    FileNotFoundError: lambda text, story: _tell_answer(text, 404, story),
    foreign.NotFoundError: lambda text, story: _tell_answer(text, 404, story),
    foreign.PreconditionError: lambda text, story: _tell_answer(text, 412, story),
    foreign.NotModifiedError: lambda text, story: _tell_answer(text, 412, story),
    foreign.AlreadyExistsError: lambda text, story: _tell_answer(text, 409, story),
    foreign.GenericError: _tell_generic,
    foreign.InvalidPathError: _tell_name,
    foreign.JoinError: _tell_other,
    foreign.NotSupportedError: _tell_other,
    foreign.UnknownConfigurationKeyError: _tell_other,
    foreign.BaseError: _tell_other,
    NotImplementedError: _tell_other,
    OSError: _tell_other,
    ValueError: _tell_other,
}
"""All that obstore raises; an error of a class that is not named is told as its nearest base."""


@contextmanager
def object_errors(story: Story) -> Iterator[None]:
    """Translate what obstore raises into ``ArtifactError``."""
    try:
        yield
    except tuple(FOREIGN) as error:
        tell = next(FOREIGN[one] for one in type(error).__mro__ if one in FOREIGN)
        # Not chained: a traceback would show the message that must not be shown.
        raise tell(str(error), story) from None


def tell_answer(status: int, text: str, story: Story) -> ArtifactError:
    """Return the error that a server's answer means, by its code, else by its status."""
    found = re.search(r"<Code>([A-Za-z]{1,64})</Code>", text)
    code = found[1] if found and found[1] in CODES else ""
    meaning = CODES[code] if code else STATUSES.get(status, _BUSY)
    if not story.grant.secret and meaning in _REFUSALS:
        return AccessDenied(f"{status} from {story.where}: {story.grant.words}")
    error = _tell(meaning, story, f"{status} from ", code, _region(text))
    if not story.grant.secret and meaning in (_NO_BUCKET, _NO_OBJECT):
        # Azure says so of what is private.
        return NotFound(f"{error} ({story.grant.words})")
    return error


def _tell(
    meaning: Meaning, story: Story, status: str, code: str, region: str = ""
) -> ArtifactError:
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


def _region(text: str) -> str:
    found = re.search(r"<Region>([a-z]{2}(?:-[a-z]{1,12}){1,3}-\d)</Region>", text)
    return found[1] if found else ""
