"""Object stores, each a real server: one body of tests for all three, then what only one has.

versitygw checks keys, session tokens and roles as AWS does, and its STS the tokens of workloads.
Azurite checks shared keys and signatures (SAS), and of Entra's tokens whom they are for and until
when. fake-gcs-server lets everybody in: the lab has a door before it that checks Google's tokens,
and the token servers of Google and Entra are the lab's too. What hands out a node's identity exists
in clouds only, and is tried against stubs in tests/unit/test_identity.py.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from lab.azure import Azure
from lab.entra import AUDIENCE as ENTRA_AUDIENCE
from lab.entra import SUBJECT as ENTRA_SUBJECT
from lab.entra import Entra
from lab.gcs import GuardedGcs
from lab.gcs_door import AUDIENCE as GOOGLE_AUDIENCE
from lab.gcs_door import SUBJECT as GOOGLE_SUBJECT
from lab.s3 import S3
from lab.tls import Authority
from lab.tokens import Issuer, SigningKey
from sidecar.artifacts.remote.objects import ObjectSource, open_objects
from sidecar.artifacts.remote.port import Blob, Packing
from sidecar.artifacts.remote.secrets import read_credentials
from sidecar.errors import AccessDenied, FetchFailed, NotFound, SourceMoved

pytestmark = pytest.mark.sources

BUCKET = "models"
PUBLIC = "public-models"
SUBJECT = "system:serviceaccount:team-a:agent"


@dataclass(frozen=True, kw_only=True)
class Stand:
    """One server that is up, and how it is asked."""

    scheme: str
    put: Callable[[str, str, bytes], object]
    """Bucket, key, content."""
    put_all: Callable[[str, Mapping[str, bytes]], object]
    settings: dict[str, str]
    """Where the server is."""
    right: dict[str, str]
    """Who may read, as keys of a mounted secret."""
    wrong: dict[str, dict[str, str]]
    """Who may not, by the words of the refusal."""
    denied: str
    """How the server refuses who names nobody."""
    place: dict[str, str] = field(default_factory=dict)
    """What an identity needs besides, also that of nobody."""
    disturbing: dict[str, str] = field(default_factory=dict)
    """An identity of the process that must not count."""

    def url(self, key: str, bucket: str = BUCKET) -> str:
        """The source of a key."""
        return f"{self.scheme}://{bucket}/{key}"

    def open(self, key: str, bucket: str = BUCKET, **more: str) -> ObjectSource:
        """A source with the right identity in the agent's environment."""
        return self.open_as(self.right | more, key, bucket)

    def open_as(self, identity: Mapping[str, str], key: str, bucket: str = BUCKET) -> ObjectSource:
        """A source with this identity in the agent's environment."""
        environment = {
            **self.settings,
            **self.place,
            **identity,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        environment = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": NO_SERVER} | environment
        credentials = read_credentials(None, root=Path("/nowhere"), environment=environment)
        return open_objects(self.url(key, bucket), credentials)

    def open_mounted(self, root: Path, name: str, key: str) -> ObjectSource:
        """A source with the identity of a mounted secret."""
        credentials = read_credentials(name, root=root, environment=self.settings)
        return open_objects(self.url(key), credentials)


NO_SERVER = "http://127.0.0.1:1"


def mount(root: Path, name: str, files: Mapping[str, str]) -> None:
    """Lay a secret down as the kubelet does, or swap the one that is there."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    side = directory / f"..{len(os.listdir(directory))}"
    side.mkdir()
    for key, value in files.items():
        # What is a path in an environment is a file in a secret.
        content = Path(value).read_text() if os.path.exists(value) else value
        (side / key).write_text(content)
    (directory / "..new").symlink_to(side.name)
    (directory / "..new").rename(directory / "..data")
    for key in files:
        if not (directory / key).is_symlink():
            (directory / key).symlink_to(f"..data/{key}")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[S3]:
    """S3 with IAM and STS, by https: obstore's own STS client and ours want it."""
    with S3(tmp_path_factory.mktemp("s3"), certificate=authority.issue()) as server:
        server.make_bucket(BUCKET)
        server.make_bucket(PUBLIC, anonymous_read=True)
        yield server


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Azure]:
    """Blob Storage, by https: without it Azurite takes no tokens."""
    work, certificate = tmp_path_factory.mktemp("azure"), authority.issue()
    with Azure(work, certificate=certificate, oauth=True) as server:
        server.make_container(BUCKET)
        server.make_container(PUBLIC, anonymous_read=True)
        yield server


@pytest.fixture(scope="module")
def gcs(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, issuer: Issuer
) -> Iterator[GuardedGcs]:
    """Cloud Storage with a door, by https."""
    work, certificate = tmp_path_factory.mktemp("gcs"), authority.issue()
    with GuardedGcs(work, certificate=certificate, issuer=issuer) as server:
        server.make_bucket(BUCKET)
        server.make_bucket(PUBLIC)
        yield server


def key_file(directory: Path, name: str, key: Mapping[str, object]) -> str:
    """A file of Google's."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(key))
    return str(path)


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[Stand]:
    """Each server in turn, reached by https with a CA of its own."""
    ca = {"SSL_CERT_FILE": str(authority.file)}
    work = tmp_path_factory.mktemp("stand")
    match request.param:
        case "s3":
            yield stand_of_s3(request.getfixturevalue("s3"), ca)
        case "gs":
            yield stand_of_gcs(request.getfixturevalue("gcs"), ca, work)
        case _:
            yield stand_of_azure(request.getfixturevalue("azure"), ca)


def stand_of_gcs(gcs: GuardedGcs, ca: dict[str, str], work: Path) -> Stand:
    """Cloud Storage's stand."""
    ours, name = gcs.google.service_account(), "GOOGLE_APPLICATION_CREDENTIALS"
    theirs = {**ours, "private_key": SigningKey(work).pem}
    return Stand(
        scheme="gs",
        put=gcs.put,
        put_all=gcs.put_all,
        settings={"STORAGE_EMULATOR_HOST": gcs.url, **ca},
        right={name: key_file(work, "right", ours)},
        wrong={"the token is not accepted": {name: key_file(work, "wrong", theirs)}},
        denied="401",
        disturbing={"GOOGLE_BEARER_TOKEN": "of the process", "GOOGLE_SKIP_SIGNATURE": "true"},
    )


def stand_of_s3(s3: S3, ca: dict[str, str]) -> Stand:
    """S3's stand."""
    user = s3.iam.make_user("agent", [BUCKET])
    stranger = s3.iam.make_user("stranger", [PUBLIC])
    right = {
        "AWS_ACCESS_KEY_ID": user.access_key,
        "AWS_SECRET_ACCESS_KEY": user.secret_key,
    }
    return Stand(
        scheme="s3",
        put=s3.put,
        put_all=s3.put_all,
        settings={"AWS_ENDPOINT_URL": s3.url, "AWS_REGION": s3.region, **ca},
        right=right,
        wrong={
            "SignatureDoesNotMatch": {**right, "AWS_SECRET_ACCESS_KEY": "wrong"},
            "InvalidAccessKeyId": {**right, "AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"},
            "InvalidToken": {**right, "AWS_SESSION_TOKEN": "wrong"},
            "the identity may not read it": {
                "AWS_ACCESS_KEY_ID": stranger.access_key,
                "AWS_SECRET_ACCESS_KEY": stranger.secret_key,
            },
        },
        denied="403",
        disturbing={
            "AWS_ACCESS_KEY_ID": stranger.access_key,
            "AWS_SECRET_ACCESS_KEY": stranger.secret_key,
            "AWS_SESSION_TOKEN": "of the process",
        },
    )


def stand_of_azure(azure: Azure, ca: dict[str, str]) -> Stand:
    """Azure's stand."""
    # An account and its server belong together: a mounted secret names both.
    account = {
        "AZURE_STORAGE_ACCOUNT_NAME": azure.account,
        "AZURE_STORAGE_ENDPOINT": azure.url,
    }
    return Stand(
        scheme="az",
        put=azure.put,
        put_all=azure.put_all,
        settings=ca,
        place=account,
        right={**account, "AZURE_STORAGE_ACCOUNT_KEY": azure.key},
        wrong={
            "the key or token is not": {**account, "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="},
        },
        denied="403",
        disturbing={
            "AZURE_STORAGE_ACCOUNT_NAME": "process",
            "AZURE_STORAGE_ACCOUNT_KEY": "b2YgdGhlIHByb2Nlc3M=",
            "AZURE_STORAGE_USE_EMULATOR": "true",
        },
    )


def read_all(source: ObjectSource, blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of a blob."""
    return b"".join(source.read(blob, start, end))


def found(source: ObjectSource) -> dict[str, int | None]:
    """Sizes by path."""
    return {one.path: one.size for one in source.list().blobs}


def test_more_than_a_thousand_objects_are_all_listed(stand):
    # S3 answers with a thousand at a time; the emulator of GCS with all of them.
    names = {f"many/{number:05}/f": b"x" for number in range(1205)}
    stand.put_all(BUCKET, names)
    assert found(stand.open("many/")) == {one.removeprefix("many/"): 1 for one in names}


def test_azures_larger_pages_are_followed_too(tmp_path):
    names = {f"many/{number:05}": b"x" for number in range(5005)}
    # Without TLS, which would make the puts five times slower.
    with Azure(tmp_path) as azure:
        azure.make_container(BUCKET)
        azure.put_all(BUCKET, names)
        environment = azure.environment()
        credentials = read_credentials(None, root=tmp_path, environment=environment)
        assert len(found(open_objects("az://models/many/", credentials))) == len(names)


def test_a_prefix_ends_where_its_last_name_ends(stand):
    stand.put_all(BUCKET, {"edge/v2/a": b"12", "edge/v20/a": b"3", "edge/v2.tar": b"4"})
    for key in ("edge/v2/", "edge/v2"):
        assert found(stand.open(key)) == {"a": 2}


def test_one_object_and_one_archive(stand):
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("config.pbtxt"))
        packed = made.getvalue()
    stand.put_all(BUCKET, {"one/m.tar.gz": packed, "one/adapter.safetensors": b"123"})
    (blob,) = stand.open("one/m.tar.gz").list().blobs
    assert (blob.path, blob.packing) == ("", Packing.TAR_GZIP)
    assert read_all(stand.open("one/m.tar.gz"), blob) == packed
    assert found(stand.open("one/adapter.safetensors")) == {"adapter.safetensors": 3}


def test_names_with_other_signs_and_markers_of_directories(stand):
    names = ["a b+c", "ü/é.txt", "100%", "x&y=z;'", "(1)/~!$"]
    stand.put_all(BUCKET, {f"signs/{one}": one.encode() for one in names})
    stand.put_all(BUCKET, {"signs/dir/": b"", "signs/dir/x": b"", "signs/none/": b""})
    source = stand.open("signs/")
    read = {one.path: read_all(source, one) for one in source.list().blobs}
    assert read == {one: one.encode() for one in names} | {"dir/x": b""}


def test_any_part_is_read_by_many_at_once(stand):
    content = os.urandom(8 << 20)
    stand.put(BUCKET, "parts/weights", content)
    source = stand.open("parts/")
    (blob,) = source.list().blobs
    bounds = [*range(0, len(content), 700_001), len(content)]
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda one: read_all(source, blob, *one), pairwise(bounds))
        assert b"".join(parts) == content
    assert read_all(source, blob, 5) == content[5:]
    assert read_all(source, blob, len(content) - 1, len(content) + 10) == content[-1:]
    assert read_all(source, blob, 7, 7) == b""


def test_an_object_that_changes_while_it_is_read_is_not_mixed(stand):
    first, second = b"1" * (4 << 20), b"2" * (4 << 20)
    stand.put(BUCKET, "moving/weights", first)
    source = stand.open("moving/")
    contents = source.list()
    (blob,) = contents.blobs
    assert read_all(source, blob, 0, 1 << 20) == first[: 1 << 20]
    stand.put(BUCKET, "moving/weights", second)
    with pytest.raises(SourceMoved):
        read_all(source, blob, 1 << 20, 2 << 20)
    moved = source.list()
    assert moved.signature != contents.signature
    assert read_all(source, moved.blobs[0]) == second
    assert source.list().signature == moved.signature


def test_what_is_not_there_is_not_found(stand):
    stand.put(BUCKET, "there/x", b"1")
    for key in ("not-there/", "not-there", "not-there.zip"):
        with pytest.raises(NotFound, match=f"{stand.scheme}://models/{key}: there is no object"):
            stand.open(key).list()
    source = stand.open("there/")
    (blob,) = source.list().blobs
    gone = Blob(path="y", key="there/y", size=1, tag=blob.tag)
    # Azure calls it a condition that is not met.
    with pytest.raises((NotFound, SourceMoved), match=r"4\d\d from"):
        read_all(source, gone)


def test_the_right_identity_is_accepted_and_a_wrong_one_is_not(stand):
    stand.put_all(BUCKET, {"who/x": b"1", "who/x.tar": b"2"})
    assert found(stand.open("who/")) == {"x": 1, "x.tar": 1}
    for words, identity in stand.wrong.items():
        for key in ("who/", "who/x.tar"):
            with pytest.raises(AccessDenied, match=words) as caught:
                stand.open_as(identity, key).list()
            assert not [one for one in secrets(identity) if one in str(caught.value)]


def secrets(identity: Mapping[str, str]) -> list[str]:
    """What no message may show."""
    shown = {"AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT"}
    return [
        json.loads(Path(value).read_text())["private_key"] if os.path.exists(value) else value
        for name, value in identity.items()
        if name not in shown
    ]


def test_who_names_nobody_reads_what_is_public_and_nothing_else(stand):
    stand.put(BUCKET, "who/x", b"1")
    stand.put(PUBLIC, "who/y", b"12")
    source = stand.open_as({}, "who/", PUBLIC)
    (blob,) = source.list().blobs
    assert read_all(source, blob) == b"12"
    with pytest.raises(
        AccessDenied, match=f"{stand.denied} from .*no credentials found; the agent"
    ):
        stand.open_as({}, "who/").list()


def test_a_mounted_secret_counts_alone_and_is_read_anew_when_it_rotates(
    stand, tmp_path, monkeypatch
):
    stand.put(BUCKET, "who/x", b"1")
    for name, value in {**stand.disturbing, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    ((words, wrong), *_) = stand.wrong.items()
    mount(tmp_path, "team-a", wrong)
    with pytest.raises(AccessDenied, match=words):
        stand.open_mounted(tmp_path, "team-a", "who/").list()
    mount(tmp_path, "team-a", stand.right)
    assert "x" in found(stand.open_mounted(tmp_path, "team-a", "who/"))
    # The process may read, and that is of no use to a secret that may not.
    for name, value in {**stand.settings, **stand.right}.items():
        monkeypatch.setenv(name, value)
    mount(tmp_path, "team-a", wrong)
    with pytest.raises(AccessDenied, match=words):
        stand.open_mounted(tmp_path, "team-a", "who/").list()


def test_a_server_with_a_ca_of_its_own_is_trusted_where_it_is_named_only(
    stand, authority, tmp_path
):
    stand.put(BUCKET, "who/x", b"1")
    settings = {name: value for name, value in stand.settings.items() if name != "SSL_CERT_FILE"}
    credentials = read_credentials(None, root=tmp_path, environment={**settings, **stand.right})
    with pytest.raises(FetchFailed, match=r"certificate of .* is not trusted"):
        open_objects(stand.url("who/"), credentials).list()
    mount(tmp_path, "team-a", {**stand.right, "ca.crt": authority.file.read_text()})
    credentials = read_credentials("team-a", root=tmp_path, environment=settings)
    assert "x" in found(open_objects(stand.url("who/"), credentials))


def s3_environment(s3: S3, **identity: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ENDPOINT_URL_STS": s3.sts_url,
        "AWS_REGION": s3.region,
        "AWS_CA_BUNDLE": str(s3.authority),
        **identity,
    }


def open_s3(s3: S3, **identity: str) -> ObjectSource:
    environment = s3_environment(s3, **identity)
    credentials = read_credentials(None, root=Path("/nowhere"), environment=environment)
    return open_objects("s3://models/own/", credentials)


def test_a_session_token_is_needed_and_has_to_be_the_right_one(s3, issuer):
    s3.put(BUCKET, "own/x", b"1")
    role = s3.iam.make_role("session", [BUCKET], issuer, SUBJECT)
    keys = s3.iam.take_role(role, issuer.token(SUBJECT))
    pair = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
    }
    assert found(open_s3(s3, **pair, AWS_SESSION_TOKEN=keys.session_token)) == {"x": 1}
    for wrong, words in (({}, "InvalidAccessKeyId"), ({"AWS_SESSION_TOKEN": "x"}, "InvalidToken")):
        with pytest.raises(AccessDenied, match=words):
            open_s3(s3, **pair, **wrong).list()


def test_a_workloads_token_is_exchanged_for_a_role_by_sts(s3, issuer, tmp_path):
    s3.put(BUCKET, "own/x", b"1")
    role = s3.iam.make_role("workload", [BUCKET], issuer, SUBJECT)
    token = tmp_path / "token"
    given = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": role}
    token.write_text(issuer.token(SUBJECT))
    source = open_s3(s3, **given)
    (blob,) = source.list().blobs
    assert read_all(source, blob) == b"1"
    for wrong, words in (
        (issuer.token("system:serviceaccount:team-b:agent"), "InvalidIdentityToken"),
        (issuer.token(SUBJECT, seconds=-600), "ExpiredTokenException"),
        (issuer.token(SUBJECT, audience="another"), "InvalidIdentityToken"),
        ("no token at all", "InvalidIdentityToken"),
    ):
        token.write_text(wrong)
        with pytest.raises(AccessDenied, match=rf"STS refuses the agent \({words}\)") as caught:
            open_s3(s3, **given).list()
        assert wrong not in str(caught.value)


def test_a_mounted_secret_may_hold_a_projected_token(s3, issuer, tmp_path):
    s3.put(BUCKET, "own/x", b"1")
    files = {
        "AWS_ROLE_ARN": s3.iam.make_role("mounted", [BUCKET], issuer, SUBJECT),
        "AWS_WEB_IDENTITY_TOKEN_FILE": "projected",
        "projected": issuer.token(SUBJECT),
    }
    mount(tmp_path, "team-a", files)
    settings = s3_environment(s3)
    credentials = read_credentials("team-a", root=tmp_path, environment=settings)
    assert found(open_objects("s3://models/own/", credentials)) == {"x": 1}


def test_a_key_that_is_taken_away_counts_no_more(s3, tmp_path):
    s3.put(BUCKET, "own/x", b"1")
    old = s3.iam.make_user("rotated", [BUCKET])
    new = s3.iam.make_key("rotated")

    def secret(keys) -> dict[str, str]:
        # As in Michelangelo's Secret: an INI file under the key `credentials`.
        text = f"[default]\naws_access_key_id={keys.access_key}\n"
        return {"credentials": f"{text}aws_secret_access_key={keys.secret_key}\n"}

    def look() -> dict[str, int | None]:
        settings = s3_environment(s3)
        credentials = read_credentials("team-a", root=tmp_path, environment=settings)
        return found(open_objects("s3://models/own/", credentials))

    mount(tmp_path, "team-a", secret(old))
    assert look() == {"x": 1}
    s3.iam.delete_key("rotated", old)
    with pytest.raises(AccessDenied, match=r"InvalidAccessKeyId.*\[default\] of"):
        look()
    mount(tmp_path, "team-a", secret(new))
    assert look() == {"x": 1}


def open_azure(azure: Azure, **identity: str) -> ObjectSource:
    environment = {
        "AZURE_STORAGE_ENDPOINT": azure.url,
        "AZURE_STORAGE_ACCOUNT_NAME": azure.account,
        "SSL_CERT_FILE": str(azure.authority),
        **identity,
    }
    credentials = read_credentials(None, root=Path("/nowhere"), environment=environment)
    return open_objects("az://models/own/", credentials)


def test_a_shared_access_signature_is_enough_and_has_to_hold(azure):
    azure.put(BUCKET, "own/x", b"1")
    source = open_azure(azure, AZURE_STORAGE_SAS_TOKEN=f"?{azure.sas(BUCKET)}")
    (blob,) = source.list().blobs
    assert read_all(source, blob) == b"1"
    good = azure.sas(BUCKET)
    for wrong in (azure.sas(BUCKET, seconds=-60), azure.sas(PUBLIC), good[:-3] + "abc"):
        with pytest.raises(AccessDenied, match="AZURE_STORAGE_SAS_TOKEN in the agent") as caught:
            open_azure(azure, AZURE_STORAGE_SAS_TOKEN=wrong).list()
        assert wrong.rpartition("sig=")[2] not in str(caught.value)


def test_a_connection_string_says_it_all(azure):
    azure.put(BUCKET, "own/x", b"1")
    text = f"AccountName={azure.account};AccountKey={azure.key};BlobEndpoint={azure.url};"
    environment = {
        "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=https;{text}",
        "SSL_CERT_FILE": str(azure.authority),
    }
    credentials = read_credentials(None, root=Path("/nowhere"), environment=environment)
    assert found(open_objects("az://models/own/", credentials)) == {"x": 1}


@pytest.fixture(scope="module")
def entra(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, issuer: Issuer
) -> Iterator[Entra]:
    """The token server of Azure's applications."""
    work, certificate = tmp_path_factory.mktemp("entra"), authority.issue()
    with Entra(work, certificate=certificate, issuer=issuer) as server:
        yield server


def test_an_application_proves_itself_to_azure(azure, entra, issuer, tmp_path):
    azure.put(BUCKET, "own/x", b"1")
    token = tmp_path / "projected"
    token.write_text(issuer.token(ENTRA_SUBJECT, audience=ENTRA_AUDIENCE))
    application = entra.environment()
    by_secret = {"AZURE_CLIENT_SECRET": entra.secret}
    by_token = {"AZURE_FEDERATED_TOKEN_FILE": str(token)}
    for proof in (by_secret, by_token):
        source = open_azure(azure, **application, **proof)
        (blob,) = source.list().blobs
        assert read_all(source, blob) == b"1"
    token.write_text(issuer.token("system:serviceaccount:other:other", audience=ENTRA_AUDIENCE))
    for wrong in ({"AZURE_CLIENT_SECRET": "wrong"}, by_token):
        with pytest.raises(AccessDenied, match=r"Microsoft Entra refuses .* \(invalid_client\)"):
            open_azure(azure, **application, **wrong).list()
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        with pytest.raises(AccessDenied, match="Microsoft Entra refuses"):
            open_azure(azure, **{**application, name: "other"}, **by_secret).list()


def open_gcs(gcs: GuardedGcs, path: str) -> ObjectSource:
    environment = {
        "STORAGE_EMULATOR_HOST": gcs.url,
        "SSL_CERT_FILE": str(gcs.authority),
        "GOOGLE_APPLICATION_CREDENTIALS": path,
    }
    credentials = read_credentials(None, root=Path("/nowhere"), environment=environment)
    return open_objects("gs://models/own/", credentials)


def test_a_user_of_google_is_accepted_until_the_token_is_revoked(gcs, tmp_path):
    gcs.put(BUCKET, "own/x", b"1")
    path = key_file(tmp_path, "user", gcs.google.authorized_user())
    source = open_gcs(gcs, path)
    (blob,) = source.list().blobs
    assert read_all(source, blob) == b"1"
    revoked = {**gcs.google.authorized_user(), "refresh_token": "1//revoked"}
    with pytest.raises(AccessDenied, match=r"refuses the agent \(invalid_grant\)") as caught:
        open_gcs(gcs, key_file(tmp_path, "revoked", revoked)).list()
    assert "1//revoked" not in str(caught.value)


@pytest.mark.parametrize("impersonate", [False, True])
def test_a_workloads_token_is_a_federated_identity_of_google(gcs, issuer, tmp_path, impersonate):
    gcs.put(BUCKET, "own/x", b"1")
    token = tmp_path / "token"
    account = gcs.google.external_account(token, impersonate=impersonate)
    path = key_file(tmp_path, "federated", account)
    token.write_text(issuer.token(GOOGLE_SUBJECT, audience=GOOGLE_AUDIENCE))
    assert found(open_gcs(gcs, path)) == {"x": 1}
    for subject, audience, seconds in (
        ("system:serviceaccount:other:other", GOOGLE_AUDIENCE, 3600),
        (GOOGLE_SUBJECT, "another", 3600),
        (GOOGLE_SUBJECT, GOOGLE_AUDIENCE, -600),
    ):
        token.write_text(issuer.token(subject, audience=audience, seconds=seconds))
        with pytest.raises(AccessDenied, match="Google's STS refuses the agent"):
            open_gcs(gcs, path).list()
