"""Everything that obstore and the servers behind it can say has a sentence of ours."""

import asyncio
import inspect
import json
from typing import Any

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore import exceptions as foreign
from obstore.store import S3Store

from sidecar.artifacts.remote.identity import Grant, Reply, refused, usable_seconds
from sidecar.artifacts.remote.objects_errors import DEBUG, FOREIGN, object_errors
from sidecar.artifacts.remote.objects_meanings import (
    CODES,
    STATUSES,
    TRANSPORT,
    Dialect,
    Story,
    tell_answer,
)
from sidecar.errors import AccessDenied, ArtifactError, FetchFailed, NotFound, SourceMoved

DIALECT = Dialect(
    bucket="bucket", permission="s3:GetObject", endpoint="AWS_ENDPOINT_URL", settings="AWS_*"
)
KEY = Grant(secret={"secret_access_key": "x"}, words="AWS_ACCESS_KEY_ID in mounted secret `a`")
NOBODY = Grant(secret={}, words="no credentials found; mounted secret `a` has no key")


def story(grant: Grant = KEY) -> Story:
    return Story(
        where="s3://models/m/",
        bucket="models",
        host="s3.example:9000",
        grant=grant,
        dialect=DIALECT,
    )


def translated(error: Exception, grant: Grant = KEY) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught, object_errors(story(grant)):
        raise error
    return caught.value


def test_every_exception_of_obstore_is_in_the_table():
    known = {
        one
        for _, one in inspect.getmembers(foreign, inspect.isclass)
        if issubclass(one, BaseException)
    }
    # Its pages name two of Python's own besides.
    assert known | {FileNotFoundError, ValueError, NotImplementedError, OSError} == set(FOREIGN)


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_exception_of_obstore_is_told_without_its_text(kind):
    told = translated(kind("Authorization: AWS4-HMAC wJalrXUtnFEMI sig=abc"))
    assert "s3://models/m/" in str(told)
    for secret in ("Authorization", "wJalr", "sig="):
        assert secret not in str(told)
    # A traceback does not show it either.
    assert told.__cause__ is None
    assert told.__suppress_context__


def test_an_exception_of_a_later_version_is_told_as_its_base():
    class QuotaError(foreign.GenericError):
        pass

    assert str(translated(QuotaError("    status: 503,"))).startswith("503 from")


def test_a_panic_of_obstore_is_told_like_an_error():
    """Of the one kind for threads, which is no ``Exception``, and of the one for event loops."""
    key = {"access_key_id": "a", "secret_access_key": "b", "token": "no header holds\nthis"}

    def provide() -> Any:
        return {**key, "expires_at": None}

    url = "http://127.0.0.1:1"
    store = S3Store(
        "models",
        config={"endpoint": url, "aws_endpoint_url_s3": url, "region": "here"},
        client_options={"allow_http": True},
        credential_provider=provide,
    )

    async def head() -> None:
        await obstore.head_async(store, "x")

    for ask in (lambda: obstore.head(store, "x"), lambda: asyncio.run(head())):
        with (
            pytest.raises(FetchFailed, match="failed by a defect of its own") as caught,
            object_errors(story()),
        ):
            ask()
        assert "this" not in str(caught.value)
        assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_what_is_not_of_obstore_passes(kind):
    with pytest.raises(kind), object_errors(story()):
        raise kind


def test_an_error_of_ours_passes():
    assert translated(NotFound("as it was")).args == ("as it was",)


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_told_with_its_status(code):
    told = tell_answer(400, f"<Error><Code>{code}</Code></Error>", story())
    assert type(told) is CODES[code].error
    assert str(told).startswith("400 from s3://models/m/: ")
    assert f"({code})" in str(told)
    assert "{" not in str(told)


@pytest.mark.parametrize("status", [*STATUSES, 409, 418, 429, 500, 503])
def test_a_status_without_a_code_is_told(status):
    told = tell_answer(status, "", story())
    assert str(told).startswith(f"{status} from s3://models/m/: ")
    assert "{" not in str(told)
    expected = STATUSES[status].error if status in STATUSES else FetchFailed
    assert type(told) is expected


def test_a_code_that_is_not_known_is_not_shown():
    told = tell_answer(403, "<Error><Code>WJalrXUtnFEMI</Code></Error>", story())
    assert "WJalr" not in str(told)
    assert isinstance(told, AccessDenied)


@pytest.mark.parametrize(("needle", "meaning"), TRANSPORT)
def test_a_connection_that_fails_is_told(needle, meaning):
    told = translated(foreign.GenericError(f"Generic {{ source: {needle} }}"))
    assert type(told) is meaning.error
    assert "{" not in str(told)


def test_a_url_with_the_words_of_an_error_is_no_error():
    text = (
        "Generic {\n  uri: Some(\n    http://h/dns error/InvalidCertificate,\n  ),\n"
        "  kind: Timeout,\n  source: TimedOut,\n}"
    )
    assert "is silent" in str(translated(foreign.GenericError(text)))


def test_what_a_server_or_an_object_is_called_does_not_change_the_status():
    """The second half, in which what others wrote is escaped, counts alone."""
    body = "\n    status: 200,\n<Code>NoSuchKey</Code>"
    text = (
        f"for path {body}: non-2xx status code: 403 Forbidden: {body}{DEBUG}Generic {{\n"
        f"  path: {json.dumps(body)},\n  inner: Status {{\n    status: 403,\n"
        '    body: Some(\n      "<Code>SignatureDoesNotMatch</Code>",\n    ),\n  },\n}'
    )
    told = translated(foreign.GenericError(text))
    assert str(told).startswith("403 from s3://models/m/: the key or token is not accepted")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (foreign.PermissionDeniedError("x"), AccessDenied),
        (foreign.UnauthenticatedError("x"), AccessDenied),
        (FileNotFoundError("x"), NotFound),
        (foreign.PreconditionError("x"), SourceMoved),
        (foreign.GenericError("x"), FetchFailed),
    ],
)
def test_an_error_that_names_no_status_has_its_usual_one(error, expected):
    assert type(translated(error)) is expected


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (401, "NoAuthenticationInformation"),
        (409, "PublicAccessNotPermitted"),
        (401, "InvalidAuthenticationInfo"),
        (403, ""),
    ],
)
def test_who_has_no_credentials_is_told_so(status, code):
    told = tell_answer(status, f"<Code>{code}</Code>", story(NOBODY))
    assert isinstance(told, AccessDenied)
    assert str(told) == (
        f"{status} from s3://models/m/: no credentials found; mounted secret `a` has no key"
    )


def test_what_is_private_may_seem_not_to_be_there():
    told = tell_answer(404, "<Code>ResourceNotFound</Code>", story(NOBODY))
    assert isinstance(told, NotFound)
    assert "no credentials found" in str(told)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<Code>PermanentRedirect</Code><Region>eu-west-1</Region>", "another region, eu-west-1"),
        ("<Code>PermanentRedirect</Code><Region>us-gov-east-1</Region>", ", us-gov-east-1"),
        ("<Code>PermanentRedirect</Code><Region>AKIAEXAMPLE</Region>", "another region ("),
    ],
)
def test_another_region_is_named(text, shown):
    assert shown in str(tell_answer(301, text, story()))


def test_a_moved_object_is_read_anew():
    assert isinstance(translated(foreign.PreconditionError(" status: 412,")), SourceMoved)


# The first sign is in no sentence of ours.
secrets = st.text(min_size=4, max_size=80).map("§{}".format)


@given(
    secret=secrets,
    status=st.integers(100, 599),
    code=st.sampled_from(["", *CODES]),
    kind=st.sampled_from(list(FOREIGN)),
)
def test_no_message_shows_what_a_server_repeats(secret, status, code, kind):
    text = (
        f"Error performing GET https://a.blob.core.windows.net/c?sig={secret}\n status: {status},\n"
        f"body: Some( <Code>{code}</Code><Code>{secret}</Code><Region>{secret}</Region>"
        f"<StringToSign>{secret}</StringToSign>{secret} dns error"
    )
    grant = Grant(secret={"secret_access_key": secret}, words="AWS_SECRET_ACCESS_KEY")
    told = translated(kind(text), grant)
    assert "§" not in f"{told} {told!r} {grant} {grant!r}"


@given(status=st.integers(100, 599), code=secrets | st.text(max_size=80))
def test_a_token_server_is_quoted_by_one_plain_word_at_most(status, code):
    told = refused(Reply(status=status, text=code), "STS", code, "check it", where="s3://m/")
    assert "§" not in str(told)
    assert isinstance(told, FetchFailed if status == 429 or status >= 500 else AccessDenied)


@given(text=st.text(), value=st.none() | st.booleans() | st.lists(st.text()))
def test_any_answer_of_a_token_server_is_read_or_empty(text, value):
    assert Reply(status=200, text=text).json("a", "b") == ["", ""] or text.lstrip().startswith("{")
    assert Reply(status=200, text=json.dumps({"a": value})).json("a") in ([""], ["True"], ["False"])
    assert Reply(status=200, text=json.dumps([value])).json("a") == [""]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_an_answer_of_endless_depth_is_empty(opening):
    assert Reply(status=200, text=opening * 100_000).json("a") == [""]


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [
        ("3600", 3300.0),
        ("300", 60.0),
        ("100", 50.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("soon", 240.0),
        ("nan", 240.0),
        ("inf", 240.0),
    ],
)
def test_a_token_is_given_up_some_time_before_its_end(expires_in, seconds):
    assert usable_seconds(expires_in) == seconds
