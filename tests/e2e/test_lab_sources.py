"""The servers of the lab are what they are taken for: they list far, and let only the right one in.

Nothing of the product is used here. When one of these fails, a test of a source that fails says
nothing about the source.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from urllib.parse import urlencode

import pytest

from lab import LabError, entra, oras
from lab.azure import Azure
from lab.gcs import GuardedGcs
from lab.gcs_door import AUDIENCE, SUBJECT
from lab.registry import (
    MANIFEST,
    OTHER_PASSWORD,
    PASSWORD,
    USER,
    PasswordRegistry,
    Registry,
    TokenRegistry,
    basic,
)
from lab.s3 import S3
from lab.tls import Authority
from lab.tokens import Issuer, SigningKey
from lab.web import Answer, send

pytestmark = pytest.mark.sources

POD = "system:serviceaccount:models:agent"
MANY = {f"many/{number:04}": b"x" for number in range(1205)}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def code(answer: Answer) -> tuple[int, str]:
    """The status, and the error code of an S3-like answer."""
    found = re.search("<Code>([^<]*)</Code>", answer.text)
    return answer.status, found[1] if found else ""


# S3


def test_s3_lists_more_than_a_page(s3: S3):
    s3.make_bucket("many")
    s3.put_all("many", MANY)
    keys: list[str] = []
    query = {"list-type": "2"}
    for _ in range(3):
        page = s3.send("GET", "/many", query=query).text
        keys += re.findall("<Key>([^<]*)</Key>", page)
        token = re.search("<NextContinuationToken>([^<]*)<", page)
        if token is None:
            break
        assert len(keys) == 1000
        query["continuation-token"] = token[1]
    assert keys == sorted(MANY)


def test_s3_takes_the_right_keys_alone(s3: S3):
    s3.make_bucket("mine")
    s3.make_bucket("others")
    s3.put("mine", "a", b"hello")
    user = s3.iam.make_user("someone", ["mine"])
    assert s3.send("GET", "/mine/a", keys=user).body == b"hello"
    wrong = dataclasses.replace(user, secret_key="wrong")
    assert code(s3.send("GET", "/mine/a", keys=wrong)) == (403, "SignatureDoesNotMatch")
    unknown = dataclasses.replace(user, access_key="AKIAUNKNOWN")
    assert code(s3.send("GET", "/mine/a", keys=unknown)) == (403, "InvalidAccessKeyId")
    assert code(s3.send("GET", "/others/a", keys=user)) == (403, "AccessDenied")
    assert code(send("GET", f"{s3.url}/mine/a")) == (403, "AccessDenied")
    s3.iam.delete_key("someone", user)
    assert code(s3.send("GET", "/mine/a", keys=user)) == (403, "InvalidAccessKeyId")


def test_s3_lets_everybody_into_a_public_bucket(s3: S3):
    s3.make_bucket("public", anonymous_read=True)
    s3.put("public", "a", b"hello")
    assert send("GET", f"{s3.url}/public/a").body == b"hello"


def test_s3_gives_temporary_keys_for_the_right_token_and_takes_them_with_theirs(
    s3: S3, issuer: Issuer, tmp_path
):
    s3.make_bucket("roles")
    s3.put("roles", "a", b"hello")
    role = s3.iam.make_role("reader", ["roles"], issuer, POD)
    keys = s3.iam.take_role(role, issuer.token(POD))
    assert s3.send("GET", "/roles/a", keys=keys).body == b"hello"
    wrong = dataclasses.replace(keys, session_token="wrong")
    assert code(s3.send("GET", "/roles/a", keys=wrong)) == (400, "InvalidToken")
    without = dataclasses.replace(keys, session_token=None)
    assert code(s3.send("GET", "/roles/a", keys=without)) == (403, "InvalidAccessKeyId")

    for token, words in (
        (issuer.token("system:serviceaccount:models:other"), "InvalidIdentityToken"),
        (issuer.token(POD, audience="elsewhere"), "InvalidIdentityToken"),
        (issuer.token(POD, seconds=-3600), "ExpiredToken"),
        (issuer.token(POD, key=SigningKey(tmp_path)), "InvalidIdentityToken"),
    ):
        with pytest.raises(LabError, match=f"<Code>{words}"):
            s3.iam.take_role(role, token)


def test_s3_speaks_https_and_is_the_same_after_a_crash(tmp_path, authority: Authority):
    with S3(tmp_path, certificate=authority.issue()) as s3:
        s3.make_bucket("kept")
        tag = s3.put("kept", "a b/ü+", b"hello")
        s3.kill()
        s3.start()
        answer = s3.send("GET", "/kept/a b/ü+", headers={"Range": "bytes=1-2", "If-Match": tag})
        assert (answer.status, answer.body) == (206, b"el")
        moved = s3.send("GET", "/kept/a b/ü+", headers={"If-Match": '"other"'})
        assert code(moved) == (412, "PreconditionFailed")


# Azure


def test_azure_lists_more_than_a_page(azure: Azure):
    azure.make_container("many")
    azure.put_all("many", MANY)
    query = {"restype": "container", "comp": "list", "maxresults": "1000"}
    first = azure.send("GET", "/many", query=query).text
    marker = re.search("<NextMarker>([^<]*)<", first)
    assert marker is not None
    rest = azure.send("GET", "/many", query=query | {"marker": marker[1]}).text
    assert re.findall("<Name>([^<]*)</Name>", first + rest) == sorted(MANY)


def test_azure_takes_the_right_key_and_signature_alone(azure: Azure):
    azure.make_container("mine")
    tag = azure.put("mine", "a b/ü", b"hello")
    answer = azure.send("GET", "/mine/a b/ü", headers={"Range": "bytes=1-2", "If-Match": tag})
    assert (answer.status, answer.body) == (206, b"el")
    wrong = base64.b64encode(b"wrong" * 12).decode()
    assert code(azure.send("GET", "/mine/a b/ü", key=wrong)) == (403, "AuthorizationFailure")
    url = f"{azure.url}/mine/a%20b/%C3%BC"
    assert send("GET", f"{url}?{azure.sas('mine')}").body == b"hello"
    altered = azure.sas("mine").replace("sp=rl", "sp=rwl")
    for query in (azure.sas("mine", seconds=-60), azure.sas("other"), altered, ""):
        assert code(send("GET", f"{url}?{query}")) == (403, "AuthorizationFailure")


def test_azure_lets_everybody_into_a_public_container(azure: Azure):
    azure.make_container("public", anonymous_read=True)
    azure.put("public", "a", b"hello")
    assert send("GET", f"{azure.url}/public/a").body == b"hello"


def test_azure_takes_what_entra_gives_for_the_right_secret_or_token(
    tmp_path, authority: Authority, issuer: Issuer
):
    certificate = authority.issue()
    with (
        entra.Entra(tmp_path / "entra", certificate=certificate, issuer=issuer) as login,
        Azure(tmp_path / "azure", certificate=certificate, oauth=True) as azure,
    ):
        azure.make_container("mine")
        azure.put("mine", "a", b"hello")
        azure.restart()

        def ask(**proof: str) -> Answer:
            asked = {"grant_type": "client_credentials", "client_id": login.client, **proof}
            return send(
                "POST",
                f"{login.url}/{login.tenant}/oauth2/v2.0/token",
                body=urlencode({**asked, "scope": entra.SCOPE}).encode(),
                headers=FORM,
                authority=authority.file,
            )

        def present(token: str) -> Answer:
            return ask(client_assertion_type=entra.ASSERTION, client_assertion=token)

        for given in (
            ask(client_secret=login.secret),
            present(issuer.token(entra.SUBJECT, audience=entra.AUDIENCE)),
        ):
            bearer = f"Bearer {given.json()['access_token']}"
            headers = {"Authorization": bearer, "x-ms-version": "2023-11-03"}
            answer = send("GET", f"{azure.url}/mine/a", headers=headers, authority=authority.file)
            assert answer.body == b"hello"
        assert ask(client_secret="wrong").status == 401
        assert present(issuer.token("other", audience=entra.AUDIENCE)).status == 401


# Google Cloud Storage


def ask_gcs(gcs: GuardedGcs, path: str, token: str | None = None, **headers: str) -> Answer:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return send("GET", f"{gcs.url}{path}", headers=headers)


def ask_token(gcs: GuardedGcs, path: str, **form: str) -> Answer:
    url = f"{gcs.google.tokens.url}{path}"
    return send("POST", url, body=urlencode(form).encode(), headers=FORM)


def test_gcs_lists_more_than_a_thousand(gcs: GuardedGcs):
    gcs.make_bucket("many")
    gcs.put_all("many", MANY)
    listed = ask_gcs(gcs, "/many?list-type=2", gcs.google.self_signed()).text
    assert re.findall("<Key>([^<]*)</Key>", listed) == sorted(MANY)


def test_gcs_takes_the_key_of_the_service_account_alone(gcs: GuardedGcs, tmp_path):
    gcs.make_bucket("mine")
    gcs.put("mine", "a b/ü", b"hello")
    path = "/mine/a%20b/%C3%BC"
    token = gcs.google.self_signed()
    answer = ask_gcs(gcs, path, token, Range="bytes=1-2")
    assert (answer.status, answer.body) == (206, b"el")
    assert ask_gcs(gcs, path).status == 401
    assert ask_gcs(gcs, path, gcs.google.self_signed(SigningKey(tmp_path))).status == 401
    gcs.google.rotate()
    assert ask_gcs(gcs, path, token).status == 401
    assert ask_gcs(gcs, path, gcs.google.self_signed()).status == 200


def test_gcs_gives_tokens_for_what_it_knows_alone(gcs: GuardedGcs, issuer: Issuer):
    gcs.make_bucket("given")
    gcs.put("given", "a", b"hello")
    user = gcs.google.authorized_user()
    renewal = {name: user[name] for name in ("client_id", "client_secret", "refresh_token")}
    renewal["grant_type"] = "refresh_token"
    exchange = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "audience": AUDIENCE,
        "subject_token": issuer.token(SUBJECT, audience=AUDIENCE),
    }
    for path, form, wrong in (
        ("/token", renewal, {"refresh_token": "wrong"}),
        ("/sts", exchange, {"subject_token": issuer.token("other", audience=AUDIENCE)}),
        ("/sts", exchange, {"audience": "other"}),
    ):
        given = ask_token(gcs, path, **form).json()["access_token"]
        assert ask_gcs(gcs, "/given/a", given).body == b"hello"
        assert ask_token(gcs, path, **form | wrong).status == 400


def test_gcs_lets_everybody_into_a_public_bucket(gcs: GuardedGcs):
    gcs.make_bucket("public-models")
    gcs.put("public-models", "a", b"hello")
    assert ask_gcs(gcs, "/public-models/a").body == b"hello"


# OCI


def push_lora(registry: Registry, repository: str, tag: str) -> str:
    """An artifact of one layer; the path of its manifest."""
    empty = registry.push_blob(repository, b"{}")
    layer = registry.push_blob(repository, b"hello")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", **empty},
        "layers": [{"mediaType": "application/octet-stream", **layer}],
    }
    registry.push_manifest(repository, tag, manifest)
    return f"/v2/{repository}/manifests/{tag}"


def pull(registry: Registry, path: str, authorization: str | None = None) -> Answer:
    headers = {"Accept": MANIFEST}
    if authorization is not None:
        headers["Authorization"] = authorization
    return send("GET", f"{registry.url}{path}", headers=headers, authority=registry.authority)


def test_the_registry_keeps_what_is_pushed_and_reads_from_the_middle(registry: Registry):
    path = push_lora(registry, "team/lora", "v1")
    registry.restart()
    layer = pull(registry, path).json()["layers"][0]
    url = f"{registry.url}/v2/team/lora/blobs/{layer['digest']}"
    answer = send("GET", url, headers={"Range": "bytes=1-2"})
    assert (answer.status, answer.body) == (206, b"el")


def test_the_password_registry_takes_the_present_password_alone(tmp_path, authority: Authority):
    with PasswordRegistry(tmp_path, certificate=authority.issue()) as registry:
        path = push_lora(registry, "team/lora", "v1")
        assert pull(registry, path, basic(USER, PASSWORD)).status == 200
        assert pull(registry, path).headers["WWW-Authenticate"].startswith("Basic ")
        assert pull(registry, path, basic(USER, OTHER_PASSWORD)).status == 401
        registry.set_password(OTHER_PASSWORD)
        assert pull(registry, path, basic(USER, PASSWORD)).status == 401
        assert pull(registry, path, basic(USER, OTHER_PASSWORD)).status == 200


def test_the_token_registry_takes_its_own_tokens_for_their_repository_alone(tmp_path):
    with TokenRegistry(tmp_path) as registry:
        path = push_lora(registry, "team/lora", "v1")
        asked = urlencode({"service": "lab", "scope": "repository:team/lora:pull"})
        url = f"{registry.tokens.url}/token?{asked}"
        given = send("GET", url, headers={"Authorization": basic(USER, PASSWORD)})
        assert pull(registry, path, f"Bearer {given.json()['token']}").status == 200
        for authorization in (None, basic(USER, "wrong")):
            headers = {"Authorization": authorization} if authorization else {}
            assert send("GET", url, headers=headers).status == 401
        challenge = pull(registry, path).headers["WWW-Authenticate"]
        assert challenge.startswith(f'Bearer realm="{registry.tokens.url}/token"')
        for token in (
            registry.token("other/lora", ["pull"]),
            registry.token("team/lora", ["pull"], seconds=-3600),
            registry.token("team/lora", ["pull"])[:-8] + "AAAAAAAA",
        ):
            assert pull(registry, path, f"Bearer {token}").status == 401


def test_the_token_registry_gives_everybody_a_token_for_public_repositories(tmp_path):
    with TokenRegistry(tmp_path) as registry:
        path = push_lora(registry, "public/lora", "v1")
        asked = urlencode({"service": "lab", "scope": "repository:public/lora:pull"})
        given = send("GET", f"{registry.tokens.url}/token?{asked}").json()["token"]
        assert pull(registry, path, f"Bearer {given}").status == 200


def test_oras_pushes_files_and_directories_with_the_right_password_alone(
    tmp_path, authority: Authority
):
    folder = tmp_path / "lora"
    (folder / "more").mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "more" / "notes.txt").write_text("hello")
    with TokenRegistry(tmp_path / "registry", certificate=authority.issue()) as registry:
        reference = f"{registry.host}/team/oras:v1"
        paths = ["adapter_config.json:application/json", "more"]
        oras.push(reference, folder, paths, user=(USER, PASSWORD), authority=authority.file)
        token = f"Bearer {registry.token('team/oras', ['pull'])}"
        layers = pull(registry, "/v2/team/oras/manifests/v1", token).json()["layers"]
        titles = [layer["annotations"]["org.opencontainers.image.title"] for layer in layers]
        assert titles == ["adapter_config.json", "more"]
        assert json.loads(layers[1]["annotations"]["io.deis.oras.content.unpack"]) is True
        with pytest.raises(LabError, match="401"):
            oras.push(reference, folder, paths, user=(USER, "wrong"), authority=authority.file)
