"""Every identity against a server that takes the right one and refuses a wrong one.

The metadata, token and STS servers are stubs that speak the documented protocols: the real ones
exist only in their clouds. S3's STS is also tried against a real one, in tests/e2e.
"""

import base64
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lab.tokens import SigningKey
from sidecar.artifacts.remote.identity_aws import find_aws
from sidecar.artifacts.remote.identity_azure import find_azure, parse_connection
from sidecar.artifacts.remote.identity_google import SCOPE, find_google
from sidecar.artifacts.remote.objects import open_objects
from sidecar.artifacts.remote.objects_s3 import find_region
from sidecar.artifacts.remote.secrets import Credentials, read_credentials
from sidecar.errors import AccessDenied, FetchFailed, NotFound
from tests.support.s3_stub import S3Stub, refusal
from tests.support.stub_http import Asked, StubHttp, Told

WHERE = "s3://models/m/"
ROLE = "arn:aws:iam::123456789012:role/reader"
ISSUED = {
    "AccessKeyId": "ASIAISSUED",
    "SecretAccessKey": "issued/secret+1",
    "Token": "issued=token",
}
GRANTED = {
    "access_key_id": "ASIAISSUED",
    "secret_access_key": "issued/secret+1",
    "token": "issued=token",
}


def environment(**given: str) -> Credentials:
    return read_credentials(None, root=Path("/nowhere"), environment=given)


def mounted(root: Path, **files: str) -> Credentials:
    (root / "team-a").mkdir()
    for key, value in files.items():
        (root / "team-a" / key.replace("__", ".")).write_text(value)
    return read_credentials("team-a", root=root, environment={})


def aws(credentials: Credentials):
    return find_aws(credentials, "us-east-1", where=WHERE)


def google(credentials: Credentials, *, is_emulator: bool = False):
    return find_google(credentials, where=WHERE, is_emulator=is_emulator)


def azure(credentials: Credentials):
    connection = parse_connection(credentials.first("AZURE_STORAGE_CONNECTION_STRING"))
    return find_azure(credentials, connection, where=WHERE, is_emulator=False)


def as_json(status: int = 200, /, **fields: object) -> Told:
    return Told(status=status, body=json.dumps(fields).encode())


def test_keys_go_before_all_else():
    found = aws(
        environment(
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
            AWS_SESSION_TOKEN="c",
            AWS_WEB_IDENTITY_TOKEN_FILE="/nowhere",
            AWS_ROLE_ARN=ROLE,
            AWS_SHARED_CREDENTIALS_FILE="/nowhere",
        )
    )
    assert found.secret == {"access_key_id": "a", "secret_access_key": "b", "token": "c"}


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_a_key_is_told(name):
    other = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} - {name}
    with pytest.raises(AccessDenied, match=f"environment has no {other.pop()}"):
        aws(environment(**{name: "x"}))


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "on"])
@pytest.mark.parametrize("name", ["AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST"])
def test_one_may_ask_without_credentials(name, value):
    found = aws(environment(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", **{name: value}))
    assert found.secret == {}
    assert found.words.startswith("asked without credentials")


def test_false_is_not_true():
    found = aws(
        environment(
            AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", awsAnonymousCredential="false"
        )
    )
    assert found.secret


INI = """
[default]
aws_access_key_id = default-key
aws_secret_access_key = default/secret=%(x)s
[team]
aws_access_key_id=team-key
aws_secret_access_key=team-secret
aws_session_token=team-token
[half]
aws_access_key_id=half-key
"""


def test_a_profile_of_a_credentials_file_is_taken(tmp_path):
    (tmp_path / "ini").write_text(INI)
    file = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "ini")}
    assert aws(environment(**file)).secret == {
        "access_key_id": "default-key",
        "secret_access_key": "default/secret=%(x)s",
        "token": None,
    }
    assert aws(environment(**file, AWS_PROFILE="team")).secret == {
        "access_key_id": "team-key",
        "secret_access_key": "team-secret",
        "token": "team-token",
    }
    for wrong in ("half", "missing"):
        with pytest.raises(AccessDenied, match=rf"has no profile \[{wrong}\]"):
            aws(environment(**file, AWS_PROFILE=wrong))


def test_a_credentials_file_is_found_at_home_and_in_a_mounted_secret(tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(INI)
    assert aws(environment(HOME=str(tmp_path))).secret["access_key_id"] == "default-key"
    found = aws(mounted(tmp_path, credentials=INI, AWS_PROFILE="team"))
    assert found.secret["access_key_id"] == "team-key"


@pytest.mark.parametrize("text", ["SECRETLINE\n", "[a]\n[a", "[a]\n  SECRETLINE", "\xff"])
def test_a_broken_credentials_file_is_told_without_its_lines(tmp_path, text):
    (tmp_path / "ini").write_text(text, encoding="latin-1")
    with pytest.raises(AccessDenied) as caught:
        aws(environment(AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "ini")))
    assert "SECRETLINE" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def sts(asked: Asked) -> Told:
    """https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html"""
    form = asked.form
    if form.get("Action") != "AssumeRoleWithWebIdentity" or form.get("Version") != "2011-06-15":
        return Told(status=400, body=b"<Error><Code>InvalidAction</Code></Error>")
    if form["RoleArn"] != ROLE or not form["RoleSessionName"]:
        return Told(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")
    if form["WebIdentityToken"] != "projected.token":
        text = f"<Error><Code>InvalidIdentityToken</Code><Message>{form['WebIdentityToken']}"
        return Told(status=400, body=text.encode())
    return Told(
        body=(
            b"<Credentials><AccessKeyId>ASIAISSUED</AccessKeyId><SecretAccessKey>issued/secret+1"
            b"</SecretAccessKey><SessionToken>issued=token</SessionToken></Credentials>"
        )
    )


def test_a_projected_token_is_exchanged_for_a_role(tmp_path):
    (tmp_path / "token").write_text("projected.token\n")
    with StubHttp(sts) as server:
        given = {
            "AWS_ENDPOINT_URL_STS": server.url,
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        }
        found = aws(environment(**given, AWS_ROLE_ARN=ROLE))
        assert found.secret == GRANTED
        assert found.seconds == 3300.0
        with pytest.raises(AccessDenied, match=r"STS refuses the agent \(AccessDenied\)"):
            aws(environment(**given, AWS_ROLE_ARN="arn:other"))
        (tmp_path / "token").write_text("another.token")
        with pytest.raises(AccessDenied, match=r"InvalidIdentityToken.*check AWS_ROLE_ARN") as told:
            aws(environment(**given, AWS_ROLE_ARN=ROLE))
        assert "another.token" not in str(told.value)
        (tmp_path / "token").write_text("")
        with pytest.raises(AccessDenied, match="AWS_WEB_IDENTITY_TOKEN_FILE names"):
            aws(environment(**given, AWS_ROLE_ARN=ROLE))


def test_a_mounted_secret_may_bring_its_own_projected_token(tmp_path):
    with StubHttp(sts) as server:
        files = {
            "AWS_ENDPOINT_URL_STS": server.url,
            "AWS_WEB_IDENTITY_TOKEN_FILE": "projected",
            "AWS_ROLE_ARN": ROLE,
            "projected": "projected.token",
        }
        assert aws(mounted(tmp_path, **files)).secret == GRANTED


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_token_server_that_is_out_of_order_is_asked_again_later(tmp_path, status):
    (tmp_path / "token").write_text("projected.token")
    with StubHttp(lambda _: Told(status=status)) as server:
        credentials = environment(
            AWS_ENDPOINT_URL_STS=server.url,
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
            AWS_ROLE_ARN=ROLE,
        )
        with pytest.raises(FetchFailed, match=f"{status} from STS"):
            aws(credentials)


def container(asked: Asked) -> Told:
    """https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html"""
    if asked.headers.get("authorization") != "pod token":
        return as_json(401, code="InvalidToken", message="no")
    return as_json(**ISSUED, Expiration="2026-01-01T00:00:00Z")


def test_the_container_hands_out_its_role_for_its_token(tmp_path):
    (tmp_path / "token").write_text("pod token\n")
    name = "AWS_CONTAINER_AUTHORIZATION_TOKEN"
    with StubHttp(container) as server:
        given = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/v1/credentials"}
        for token in ({f"{name}_FILE": str(tmp_path / "token")}, {name: "pod token"}):
            assert aws(environment(**given, **token)).secret == GRANTED
        for token in ({}, {name: "another"}):
            with pytest.raises(AccessDenied, match=r"refuses the agent \(InvalidToken\)"):
                aws(environment(**given, **token))


@pytest.mark.parametrize("url", ["http://example.com/x", "http://10.0.0.1/x", "http:///x"])
def test_credentials_of_a_container_come_from_nowhere_else(url):
    with pytest.raises(AccessDenied, match="AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        aws(environment(AWS_CONTAINER_CREDENTIALS_FULL_URI=url))


def imds(asked: Asked) -> Told:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html"""
    if asked.method == "PUT" and asked.path == "/latest/api/token":
        seconds = asked.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        return Told(body=b"session") if seconds.isdigit() else Told(status=400)
    if asked.headers.get("x-aws-ec2-metadata-token") != "session":
        return Told(status=401)
    path = "/latest/meta-data/iam/security-credentials/"
    if asked.path == path:
        return Told(body=b"node-role")
    return (
        as_json(Code="Success", **ISSUED) if asked.path == f"{path}node-role" else Told(status=404)
    )


def test_the_node_hands_out_its_role():
    with StubHttp(imds) as server:
        given = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        assert aws(environment(**given)).secret == GRANTED
        server.asked.clear()
        found = aws(environment(**given, AWS_EC2_METADATA_DISABLED="true"))
        assert found.secret == {}
        assert server.asked == []


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_node_without_a_role_gives_none(status):
    with StubHttp(lambda _: Told(status=status)) as server:
        found = aws(environment(AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url))
    assert found.words.startswith("no credentials found; the agent's environment has no AWS_ACCESS")


def test_the_identity_of_the_node_is_not_for_mounted_secrets(tmp_path):
    with StubHttp(imds) as server:
        files = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url,
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": server.url,
            "GCE_METADATA_HOST": server.host,
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": server.url,
        }
        credentials = mounted(tmp_path, **files)
        for find in (aws, google, azure):
            assert find(credentials).secret == {}
            assert "no credentials found; mounted secret `team-a` has no" in find(credentials).words
        assert server.asked == []


def test_a_role_is_asked_for_once_for_many_requests(tmp_path):
    (tmp_path / "token").write_text("projected.token")
    keys = {"ASIAISSUED": "issued/secret+1"}
    stub = S3Stub(objects={"m/a": b"x"}, keys=keys, tokens={"ASIAISSUED": "issued=token"})
    with StubHttp(sts) as server, stub.serve() as s3:
        source = open_objects(
            WHERE,
            environment(
                AWS_ENDPOINT_URL=s3.url,
                AWS_ENDPOINT_URL_STS=server.url,
                AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
                AWS_ROLE_ARN=ROLE,
            ),
        )
        (blob,) = source.list().blobs
        for _ in range(3):
            assert b"".join(source.read(blob, 0, None)) == b"x"
        assert len(server.asked) == 1


def test_a_token_that_has_run_out_is_asked_for_again(tmp_path):
    """Each token is good for one request more, as if it ran out at once."""
    valid: list[str] = []

    def issue(_: Asked) -> Told:
        valid[:] = [f"token-{len(server.asked)}"]
        return as_json(access_token=valid[0], expires_in=0)

    def refuse_others(asked: Asked) -> Told | None:
        good = asked.headers.get("authorization") == f"Bearer {valid[0]}"
        return None if good else refusal(401, "AuthenticationRequired")

    user = {"type": "authorized_user", "client_id": "a", "client_secret": "b"}
    stub = S3Stub(objects={"m/a": b"x"}, before=refuse_others)
    with StubHttp(issue) as server, stub.serve() as gcs:
        path = write_key(tmp_path, **user, refresh_token="c", token_uri=server.url)
        source = open_objects(
            "gs://models/m/",
            environment(GOOGLE_APPLICATION_CREDENTIALS=path, STORAGE_EMULATOR_HOST=gcs.url),
        )
        (blob,) = source.list().blobs
        for _ in range(3):
            assert b"".join(source.read(blob, 0, None)) == b"x"
        assert len(server.asked) == 4
        # One that the server takes back is not asked for again at once: that is told.
        chunks = source.read(blob, 0, None)
        stub.before = lambda _: refusal(401, "AuthenticationRequired")
        with pytest.raises(
            AccessDenied, match="401 from gs://models/m/: the token is not accepted"
        ):
            next(chunks)


def write_key(directory: Path, **fields: object) -> str:
    path = directory / "key.json"
    path.write_text(json.dumps(fields))
    return str(path)


def claims_of(token: str) -> dict[str, object]:
    middle = token.split(".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(middle + "==="))
    return claims


def test_a_service_account_signs_its_own_token(tmp_path):
    ours, theirs = SigningKey(tmp_path / "1"), SigningKey(tmp_path / "2")
    account = {"type": "service_account", "client_email": "sa@project", "private_key": ours.pem}
    path = write_key(tmp_path, **account, private_key_id="7")
    found = google(environment(GOOGLE_APPLICATION_CREDENTIALS=path))
    token = found.secret["token"] or ""
    claims = ours.read(token) or {}
    assert theirs.read(token) is None
    assert (claims["iss"], claims["sub"], claims["scope"]) == ("sa@project", "sa@project", SCOPE)
    assert claims["exp"] - claims["iat"] == 3600
    # The key of the lab takes no token that has run out.
    assert found.seconds is not None
    assert found.seconds < 3600


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has no client_email"),
        ({"client_email": "a"}, "has no private_key"),
        ({"client_email": "a", "private_key": "SECRETLINE"}, "no private key in PEM form"),
    ],
)
def test_a_broken_service_account_is_told(tmp_path, fields, message):
    path = write_key(tmp_path, type="service_account", **fields)
    with pytest.raises(AccessDenied, match=message) as caught:
        google(environment(GOOGLE_APPLICATION_CREDENTIALS=path))
    assert "SECRETLINE" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"type": "impersonated"}', '"SECRETLINE', "[" * 100_000]
)
def test_a_file_that_is_no_google_key_is_told(tmp_path, text):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(AccessDenied) as caught:
        google(environment(GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "key.json")))
    assert "SECRETLINE" not in str(caught.value)
    with pytest.raises(AccessDenied, match="cannot be read"):
        google(environment(GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "missing")))


def oauth(asked: Asked) -> Told:
    """https://google.aip.dev/auth/4113 and 4117"""
    if asked.path == "/impersonate":
        if asked.headers.get("authorization") != "Bearer federated":
            return as_json(401)
        wanted = json.loads(asked.body)
        return as_json(accessToken="impersonated") if wanted["scope"] == [SCOPE] else as_json(400)
    form = asked.form
    if form["grant_type"] == "refresh_token":
        if (form["client_secret"], form["refresh_token"]) != ("shared", "1//refresh"):
            return as_json(400, error="invalid_grant", error_description=form["refresh_token"])
        return as_json(access_token="of the user", expires_in=3599)
    if form["subject_token"] != "projected" or form["audience"] != "//iam/pool":
        return as_json(400, error="invalid_request", error_description=form["subject_token"])
    return as_json(access_token="federated", expires_in=3600)


def test_a_user_renews_a_token(tmp_path):
    with StubHttp(oauth) as server:
        user = {"type": "authorized_user", "client_id": "id", "token_uri": f"{server.url}/token"}
        path = write_key(tmp_path, **user, client_secret="shared", refresh_token="1//refresh")
        found = google(environment(GOOGLE_APPLICATION_CREDENTIALS=path))
        assert found.secret == {"token": "of the user"}
        assert found.seconds == 3299.0
        path = write_key(tmp_path, **user, client_secret="shared", refresh_token="1//revoked")
        with pytest.raises(AccessDenied, match=r"refuses the agent \(invalid_grant\)") as caught:
            google(environment(GOOGLE_APPLICATION_CREDENTIALS=path))
        assert "1//revoked" not in str(caught.value)


@pytest.mark.parametrize("impersonates", [False, True])
@pytest.mark.parametrize("as_field", [False, True])
def test_a_projected_token_is_a_federated_identity(tmp_path, impersonates, as_field):
    source: dict[str, object] = {"file": str(tmp_path / "token")}
    if as_field:
        source["format"] = {"type": "json", "subject_token_field_name": "t"}
    with StubHttp(oauth) as server:
        account: dict[str, object] = {
            "type": "external_account",
            "audience": "//iam/pool",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{server.url}/sts",
            "credential_source": source,
        }
        if impersonates:
            account["service_account_impersonation_url"] = f"{server.url}/impersonate"
        credentials = environment(GOOGLE_APPLICATION_CREDENTIALS=write_key(tmp_path, **account))
        for token in ("projected", "another"):
            text = json.dumps({"t": token}) if as_field else token
            (tmp_path / "token").write_text(text)
            if token == "projected":
                granted = "impersonated" if impersonates else "federated"
                assert google(credentials).secret == {"token": granted}
                continue
            with pytest.raises(AccessDenied, match="invalid_request"):
                google(credentials)


def test_a_federated_identity_of_a_mounted_secret_reads_only_its_own_files(tmp_path):
    (tmp_path / "other").write_text("the pod's own token")
    key = {
        "type": "external_account",
        "audience": "a",
        "subject_token_type": "b",
        "token_url": "http://127.0.0.1:1",
        "credential_source": {"file": str(tmp_path / "other")},
    }
    with pytest.raises(AccessDenied, match="names no file in"):
        google(mounted(tmp_path, key__json=json.dumps(key)))


def test_a_federated_identity_from_elsewhere_is_not_supported(tmp_path):
    for source in ({"url": "http://169.254.169.254"}, {"executable": {"command": "x"}}, None):
        fields = {"audience": "a", "subject_token_type": "b", "token_url": "c"}
        path = write_key(tmp_path, type="external_account", credential_source=source, **fields)
        with pytest.raises(AccessDenied, match="a credential_source with a file is supported"):
            google(environment(GOOGLE_APPLICATION_CREDENTIALS=path))


def google_metadata(asked: Asked) -> Told:
    """https://cloud.google.com/compute/docs/metadata/querying-metadata"""
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    if asked.headers.get("metadata-flavor") != "Google":
        return Told(status=403)
    known = asked.path == path
    return as_json(access_token="of the node", expires_in=900) if known else Told(status=404)


def test_googles_metadata_server_gives_a_token():
    with StubHttp(google_metadata) as server:
        found = google(environment(GCE_METADATA_HOST=server.host))
        assert found.secret == {"token": "of the node"}
        assert found.seconds == 600.0
        server.asked.clear()
        assert google(environment(GCE_METADATA_HOST=server.host), is_emulator=True).secret == {}
        skipping = environment(GCE_METADATA_HOST=server.host, GOOGLE_SKIP_SIGNATURE="true")
        assert google(skipping).words.startswith("asked without credentials")
        assert server.asked == []


KEY = base64.b64encode(b"account key").decode()


@pytest.mark.parametrize(
    ("given", "secret"),
    [
        ({"AZURE_STORAGE_ACCOUNT_KEY": KEY}, {"access_key": KEY}),
        ({"AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=a%2B"}, {"sas_token": "sv=1&sig=a%2B"}),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={KEY};"},
            {"access_key": KEY},
        ),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=x;SharedAccessSignature=sv=1&sig=a"},
            {"sas_token": "sv=1&sig=a"},
        ),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountName=a"}, {}),
        ({"AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_SKIP_SIGNATURE": "true"}, {}),
    ],
)
def test_azures_keys_and_signatures(given, secret):
    assert azure(environment(**given)).secret == secret


def test_an_account_key_that_is_none_is_told_and_not_shown():
    with pytest.raises(AccessDenied, match="is no account key") as caught:
        azure(environment(AZURE_STORAGE_ACCOUNT_KEY="SECRET-LINE"))
    assert "SECRET-LINE" not in str(caught.value)


def entra(asked: Asked) -> Told:
    """https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow"""
    form = asked.form
    assert form["grant_type"] == "client_credentials"
    assert form["scope"] == "https://storage.azure.com/.default"
    is_known = (asked.path, form["client_id"]) == ("/tenant/oauth2/v2.0/token", "app")
    by_secret = form.get("client_secret") == "app secret"
    by_token = form.get("client_assertion") == "projected" and form[
        "client_assertion_type"
    ].endswith(":jwt-bearer")
    if not is_known or not (by_secret or by_token):
        return as_json(401, error="invalid_client", error_description=str(form))
    return as_json(access_token="of the app", expires_in=3599)


@pytest.mark.parametrize("by", ["AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"])
def test_an_application_proves_itself_by_a_secret_or_a_projected_token(tmp_path, by):
    (tmp_path / "token").write_text("projected")
    (tmp_path / "wrong").write_text("another")
    is_file = by.endswith("FILE")
    right, wrong = (
        (str(tmp_path / "token"), str(tmp_path / "wrong")) if is_file else ("app secret", "another")
    )
    with StubHttp(entra) as server:
        app = {
            "AZURE_AUTHORITY_HOST": f"{server.url}/",
            "AZURE_CLIENT_ID": "app",
            "AZURE_TENANT_ID": "tenant",
        }
        found = azure(environment(**app, **{by: right}))
        assert found.secret == {"token": "of the app"}
        assert found.seconds == 3299.0
        with pytest.raises(
            AccessDenied, match=rf"\(invalid_client\).*check AZURE_TENANT.*{by}"
        ) as told:
            azure(environment(**app, **{by: wrong}))
        assert "another" not in str(told.value)
        with pytest.raises(AccessDenied, match="and no AZURE_TENANT_ID"):
            azure(environment(AZURE_CLIENT_ID="app", **{by: right}))


def managed(asked: Asked) -> Told:
    """https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token"""
    if asked.headers.get("metadata") != "true" or "api-version" not in asked.query:
        return as_json(400, error="invalid_request")
    if asked.path != "/metadata/identity/oauth2/token":
        return Told(status=404)
    if asked.query.get("resource") != "https://storage.azure.com/":
        return as_json(400, error="invalid_resource")
    who = asked.query.get("client_id", "system")
    if who not in {"system", "assigned"}:
        return as_json(400, error="invalid_request", error_description="Identity not found")
    return as_json(access_token=f"of {who}", expires_in="86399", token_type="Bearer")


def test_azures_metadata_server_gives_the_managed_identity():
    with StubHttp(managed) as server:
        given = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": server.url}
        assert azure(environment(**given)).secret == {"token": "of system"}
        found = azure(environment(**given, AZURE_CLIENT_ID="assigned"))
        assert found.secret == {"token": "of assigned"}
        found = azure(environment(**given, AZURE_CLIENT_ID="unknown"))
        assert found.words.startswith("no credentials found")


@pytest.mark.parametrize("find", [aws, google, azure])
def test_a_silent_metadata_server_is_given_up_soon(find):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        credentials = environment(
            AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{host}",
            GCE_METADATA_HOST=host,
            AZURE_POD_IDENTITY_AUTHORITY_HOST=f"http://{host}",
        )
        begun = time.monotonic()
        assert find(credentials).secret == {}
        assert time.monotonic() - begun < 3.0


def test_aws_says_where_a_bucket_is():
    def answer(asked: Asked) -> Told:
        if asked.path == "/models":
            return Told(status=403, headers={"x-amz-bucket-region": "eu-central-1"})
        return Told(status=404 if asked.path == "/missing" else 503)

    from sidecar.artifacts.remote.objects import parse_place

    with StubHttp(answer) as server:
        credentials = environment()
        assert find_region(server.url, parse_place("s3://models/x"), credentials) == "eu-central-1"
        with pytest.raises(NotFound, match="no such bucket"):
            find_region(server.url, parse_place("s3://missing/x"), credentials)
        with pytest.raises(FetchFailed, match="set AWS_REGION"):
            find_region(server.url, parse_place("s3://other/x"), credentials)
        assert [asked.method for asked in server.asked] == ["HEAD"] * 3
    assert urlsplit(server.url).hostname == "127.0.0.1"


def test_a_projected_token_of_endless_depth_is_told(tmp_path):
    (tmp_path / "token").write_text("[" * 100_000)
    form = {"type": "json", "subject_token_field_name": "token"}
    path = write_key(
        tmp_path,
        type="external_account",
        audience="//iam/pool",
        subject_token_type="urn:ietf:params:oauth:token-type:jwt",
        token_url="http://127.0.0.1:1/token",
        credential_source={"file": str(tmp_path / "token"), "format": form},
    )
    with pytest.raises(AccessDenied, match="holds no token in the field"):
        google(environment(GOOGLE_APPLICATION_CREDENTIALS=path))


@pytest.mark.parametrize("key", ["é", "b3Vy\ncw==", "b3Vycw"])
def test_an_account_key_that_is_none_is_told(key):
    with pytest.raises(AccessDenied, match="is no account key") as caught:
        azure(environment(AZURE_STORAGE_ACCOUNT_KEY=key))
    assert key not in str(caught.value)
