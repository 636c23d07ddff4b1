"""``oci://``: who is told our password, and what is said when it is refused."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator

import pytest

from sidecar.artifacts.remote.http_client import Client
from sidecar.artifacts.remote.oci import open_oci
from sidecar.artifacts.remote.oci_auth import Authorizer, parse_challenges
from sidecar.artifacts.remote.oci_login import Login, find_login
from sidecar.artifacts.remote.oci_reference import parse_reference
from sidecar.artifacts.remote.secrets import read_credentials
from sidecar.errors import AccessDenied, FetchFailed, SourceNotAllowed
from tests.support.faulty import FaultyServer, Status
from tests.support.https_server import HttpProxy, https_server, make_certificates
from tests.support.oci import (
    WEIGHTS,
    Opened,
    Pushed,
    artifact,
    ask_basic,
    ask_token,
    basic_header,
    docker_config,
    environment,
    file,
    secret,
    serve,
    whole,
)

PAIR = "robot:hunter2"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


@pytest.fixture
def lora() -> Pushed:
    """Never seen before: what was read of a manifest is remembered, and ports are used again."""
    return artifact(
        file("adapter_config.json", b'{"r": 8}'),
        file("adapter_model.safetensors", WEIGHTS),
        annotations={"made": secrets.token_hex(8)},
    )


@pytest.fixture
def opened(server: FaultyServer) -> Iterator[Opened]:
    with Opened(server) as opened:
        yield opened


@pytest.mark.parametrize(
    "files",
    [
        {"username": "robot", "password": "hunter2"},
        {"_dockerconfigjson": "{registry}"},
        {"config_json": "{registry}"},
        {"_dockerconfigjson": "https://{registry}/v1/"},
        {"_dockerconfigjson": "{registry}/team"},
        {"_dockerconfigjson": "*.0.0.*:{port}"},
    ],
)
def test_credentials_of_a_mounted_secret_are_accepted(server, opened, tmp_path, files, lora):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, PAIR)
    registry = f"127.0.0.1:{server.port}"
    said = {
        name: value
        if name in {"username", "password"}
        else docker_config(value.format(registry=registry, port=server.port), PAIR)
        for name, value in files.items()
    }
    source = opened(credentials=secret(tmp_path, **said))
    assert whole(source, source.list().blobs[0]) == b'{"r": 8}'
    # The first request is without, all others know.
    assert [one.status for one in server.seen] == [401, 200, 200, 200]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "mounted secret `team-a` has no credentials for it"),
        ({"username": "robot", "password": "wrong"}, "does not accept the user and password"),
        ({"username": "robot"}, "has no credentials for it"),
        ({"_dockerconfigjson": docker_config("ghcr.io", PAIR)}, "has no entry for 127.0.0.1"),
        ({"_dockerconfigjson": docker_config("{registry}/te", PAIR)}, "has no entry for 127.0.0.1"),
        ({"_dockerconfigjson": docker_config("127.0.0", PAIR)}, "has no entry for 127.0.0.1"),
        ({"_dockerconfigjson": docker_config("{registry}", "robot:wrong")}, "does not accept"),
        ({"_dockerconfigjson": '{"credsStore": "ecr-login"}'}, "program that it names"),
        (
            {"_dockerconfigjson": '{"auths": {"{registry}": {}}, "credsStore": "desktop"}'},
            "program that it names",
        ),
        ({"_dockerconfigjson": '{"hunter2"'}, "is no JSON"),
        ({"_dockerconfigjson": "[]"}, "is no JSON object"),
        ({"_dockerconfigjson": '{"auths": {"{registry}": {"auth": "%%%"}}}'}, "no base64"),
        (
            {"_dockerconfigjson": '{"auths": {"{registry}": {"auth": "cm9ib3Q="}}}'},
            "without a user",
        ),
        (
            {"_dockerconfigjson": '{"auths": {"{registry}": {"identitytoken": "hunter2"}}}'},
            "identity token",
        ),
    ],
)
def test_wrong_or_missing_credentials_are_refused_and_say_what_to_do(
    server, opened, tmp_path, files, why, lora
):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, PAIR)
    registry = f"127.0.0.1:{server.port}"
    said = {name: value.replace("{registry}", registry) for name, value in files.items()}
    source = opened(credentials=secret(tmp_path, **said))
    with pytest.raises(AccessDenied, match=why) as caught:
        source.list()
    assert "hunter2" not in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_entries_the_one_for_the_longest_path_counts(
    server, opened, tmp_path, order, lora
):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, PAIR)
    registry = f"127.0.0.1:{server.port}"
    entries = {registry: "robot:wrong", f"{registry}/team": PAIR}
    auths: dict[str, object] = {}
    for key, pair in list(entries.items())[::order]:
        auths |= json.loads(docker_config(key, pair))["auths"]
    credentials = secret(tmp_path, _dockerconfigjson=json.dumps({"auths": auths}))
    assert opened(credentials=credentials).list().signature == lora.digest


def test_dockers_own_config_is_read_where_it_says_so(server, opened, tmp_path, lora):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, PAIR)
    with pytest.raises(AccessDenied, match=r"the agent's environment .*DOCKER_CONFIG"):
        opened().list()
    config = docker_config(f"127.0.0.1:{server.port}", PAIR)
    (tmp_path / "config.json").write_text(config)
    credentials = environment(DOCKER_CONFIG=str(tmp_path))
    assert opened(credentials=credentials).list().signature == lora.digest
    # Whatever a variable of this name is for, it is no credential.
    with pytest.raises(AccessDenied, match="DOCKER_CONFIG"):
        opened(credentials=environment(username="robot", password="hunter2")).list()


@pytest.mark.parametrize("port", ["", ":443"])
def test_a_registry_elsewhere_is_asked_by_https_and_through_a_proxy(tmp_path, lora, port):
    names = "DNS:registry.example.com, DNS:auth.example.com"
    certificates = make_certificates(tmp_path, names=names)
    secret(tmp_path, username="robot", password="hunter2", ca_crt=certificates.ca)
    with (
        https_server(certificates) as far,
        HttpProxy(("127.0.0.1", far.port)) as proxy,
    ):
        ask_token(far, far, PAIR, realm="https://auth.example.com/token")
        serve(far, "team/sql", lora, "v1")
        mounted = read_credentials(
            "team-a", root=tmp_path, environment={"HTTPS_PROXY": f"http://{proxy.host}"}
        )
        source = open_oci(f"oci://registry.example.com{port}/team/sql:v1", mounted)
        try:
            assert whole(source, source.list().blobs[1]) == WEIGHTS
        finally:
            source.close()
        assert {line.split()[1] for line in proxy.seen} == {
            "registry.example.com:443",
            "auth.example.com:443",
        }


def test_a_mounted_secret_is_not_mixed_with_the_agents_own_config(server, opened, tmp_path, lora):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, PAIR)
    (tmp_path / "config.json").write_text(docker_config(f"127.0.0.1:{server.port}", PAIR))
    secret(tmp_path, other="x")
    mounted = read_credentials(
        "team-a", root=tmp_path, environment={"DOCKER_CONFIG": str(tmp_path)}
    )
    with pytest.raises(AccessDenied, match="team-a"):
        opened(credentials=mounted).list()
    # Nor does a secret say which files of the agent are read.
    (tmp_path / "team-a" / "DOCKER_CONFIG").write_text(str(tmp_path))
    mounted = read_credentials("team-a", root=tmp_path, environment={})
    with pytest.raises(AccessDenied, match="team-a"):
        opened(credentials=mounted).list()


def test_a_token_is_got_once_and_sent_with_every_request(server, opened, tmp_path, lora):
    with FaultyServer() as tokens:
        state = ask_token(server, tokens, PAIR)
        serve(server, "team/sql", lora, "v1")
        credentials = secret(tmp_path, username="robot", password="hunter2")
        source = opened(credentials=credentials)
        assert whole(source, source.list().blobs[0]) == b'{"r": 8}'
        assert [one.status for one in server.seen] == [401, 200, 200, 200]
        assert state.asked == [
            {"service": "stub registry", "scope": "repository:team/sql:pull,push"}
        ]
        # The registry never sees the password.
        sent = [one.headers.get("authorization") for one in server.seen]
        assert sent == [None, "Bearer token-1", "Bearer token-1", "Bearer token-1"]


def test_an_expired_token_is_renewed_once_for_all_threads(server, opened, tmp_path, lora):
    with FaultyServer() as tokens:
        state = ask_token(server, tokens, PAIR)
        serve(server, "team/sql", lora, "v1")
        credentials = secret(tmp_path, username="robot", password="hunter2")
        source = opened(credentials=credentials)
        blob = source.list().blobs[1]
        state.expire()
        read: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: read.append(whole(source, blob))) for _ in range(6)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join(20)
        assert read == [WEIGHTS] * 6
        assert len(state.asked) == 2


def test_anybody_gets_a_token_where_anybody_may_read(server, opened, lora):
    with FaultyServer() as tokens:
        ask_token(server, tokens)
        serve(server, "team/sql", lora, "v1")
        assert opened().list().signature == lora.digest
        assert tokens.seen[0].headers.get("authorization") is None


@pytest.mark.parametrize(
    ("password", "why"),
    [("wrong", "401 from the token server .* not accepted"), ("", "has no credentials for it")],
)
def test_a_token_server_that_refuses_us_is_told_by_its_name(
    server, opened, tmp_path, password, why, lora
):
    with FaultyServer() as tokens:
        ask_token(server, tokens, PAIR)
        serve(server, "team/sql", lora, "v1")
        credentials = secret(tmp_path, username="robot", password=password)
        with pytest.raises(AccessDenied, match=why):
            opened(credentials=credentials).list()


def test_a_token_that_may_not_read_this_is_a_refusal_after_one_try(server, opened, tmp_path):
    with FaultyServer() as tokens:
        state = ask_token(server, tokens, PAIR)
        credentials = secret(tmp_path, username="robot", password="hunter2")
        server.clear()
        text = b'{"errors":[{"code":"UNAUTHORIZED"}]}'
        challenge = f'Bearer realm="{tokens.url}/token",error="insufficient_scope"'
        server.add(Status(401, text, (("WWW-Authenticate", challenge),)), times=None)
        with pytest.raises(AccessDenied, match="what they may read"):
            opened(credentials=credentials).list()
        assert len(state.asked) == 1


@pytest.mark.parametrize(
    ("faults", "kind", "why"),
    [
        (Status(503), FetchFailed, "503 from the token server"),
        (Status(429), FetchFailed, "429 from the token server"),
        (Status(200, b"<html>"), FetchFailed, "no token"),
        (Status(200, b'{"token": "a\\nb"}'), FetchFailed, "no token"),
        (Status(200, b'{"token": 7}'), FetchFailed, "no token"),
        (Status(200, b'{"token": "hunter2 \xc3\xa9"}'), FetchFailed, "no token"),
    ],
)
def test_what_is_no_token_is_not_sent_on(server, opened, faults, kind, why):
    with FaultyServer() as tokens:
        tokens.add(faults, path="token", times=None)
        ask_token(server, tokens)
        with pytest.raises(kind, match=why) as caught:
            opened().list()
        assert "hunter2" not in str(caught.value)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("realm", "kind"),
    [
        ("http://169.254.169.254/token", SourceNotAllowed),
        ("http://[fd00:ec2::254]/token", SourceNotAllowed),
        ("http://auth.example.com/token", SourceNotAllowed),
        ("ftp://127.0.0.1/token", SourceNotAllowed),
        ("http://[oops/token", FetchFailed),
        ("token", FetchFailed),
    ],
)
def test_a_realm_is_asked_only_where_asking_is_allowed(server, opened, tmp_path, realm, kind):
    with FaultyServer() as tokens:
        ask_token(server, tokens, realm=realm)
        credentials = secret(tmp_path, username="robot", password="hunter2")
        with pytest.raises(kind):
            opened(credentials=credentials).list()
        assert tokens.seen == []


@pytest.mark.parametrize("realm", ["http://auth.example.com/token", "https://127.0.0.1:1/token"])
def test_a_registry_elsewhere_names_no_token_server_without_tls_or_on_this_machine(realm):
    reference = parse_reference("oci://registry.example.com/sql")
    client = Client(reference.where, settings={})
    authorizer = Authorizer(reference, environment(), client)
    with pytest.raises(SourceNotAllowed, match="token server"):
        authorizer.answer(f'Bearer realm="{realm}"', used="")


def test_a_layer_elsewhere_is_fetched_without_telling_who_we_are(server, opened, tmp_path, lora):
    with FaultyServer() as storage:
        serve(server, "team/sql", lora, "v1")
        ask_basic(server, PAIR)
        credentials = secret(tmp_path, username="robot", password="hunter2")
        source = opened(credentials=credentials)
        blob = source.list().blobs[1]
        server.clear()
        place = f"{storage.url}/signed?X-Amz-Signature=hunter3"
        storage.put("/signed", WEIGHTS)
        server.add(Status(307, headers=(("Location", place),)), times=None)
        assert b"".join(source.read(blob, 7, 14)) == b"weights"
        assert server.seen[0].headers["authorization"] == basic_header(PAIR)
        assert "authorization" not in storage.seen[0].headers
        assert storage.seen[0].range == (7, 14)
        # It asks who we are: it is not told either, and what was signed is not shown.
        storage.add(Status(401, headers=(("WWW-Authenticate", 'Basic realm="x"'),)))
        server.clear()
        server.add(Status(307, headers=(("Location", place),)), times=None)
        with pytest.raises(AccessDenied, match="a layer may not be read") as caught:
            whole(source, blob)
        assert len(server.seen) == 1
        assert "authorization" not in storage.seen[-1].headers
        assert "hunter3" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Basic realm="a, b"', {"basic": {"realm": "a, b"}}),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            {
                "bearer": {
                    "realm": "https://a/t",
                    "service": "s",
                    "scope": "repository:x:pull,push",
                }
            },
        ),
        (
            'BEARER Realm=https://a/t, Basic realm="b"',
            {"bearer": {"realm": "https://a/t"}, "basic": {"realm": "b"}},
        ),
        ("Negotiate, Basic realm=b", {"negotiate": {}, "basic": {"realm": "b"}}),
        ("", {}),
    ],
)
def test_challenges_are_taken_apart(text, expected):
    assert parse_challenges(text) == expected


def test_nothing_secret_is_shown_by_a_login():
    assert "hunter2" not in repr(Login(user="robot", password="hunter2"))


@pytest.mark.parametrize("by_config", [True, False])
@pytest.mark.parametrize(
    ("host", "is_used"), [("127.0.0.1", True), ("registry.example.com", False)]
)
def test_a_secret_for_one_host_is_not_told_to_another(
    server, opened, tmp_path, lora, by_config, host, is_used
):
    serve(server, "team/sql", lora, "v1")
    ask_basic(server, PAIR)
    files = {"username": "robot", "password": "hunter2"}
    if by_config:
        files = {"_dockerconfigjson": docker_config(f"127.0.0.1:{server.port}", PAIR)}
    credentials = secret(tmp_path, **files)
    (tmp_path / "team-a" / "https-host").write_text(host)
    credentials = read_credentials("team-a", root=tmp_path, environment={})
    source = opened(credentials=credentials)
    if is_used:
        assert source.list().signature == lora.digest
        return
    with pytest.raises(AccessDenied, match="is for another host"):
        source.list()
    assert not any("authorization" in one.headers for one in server.seen)


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_one_host_by_all_its_names(tmp_path, host):
    secret(tmp_path, username="robot", password="hunter2")
    (tmp_path / "team-a" / "https-host").write_text(host)
    credentials = read_credentials("team-a", root=tmp_path, environment={})
    assert find_login(parse_reference("oci://team/sql"), credentials).login is not None
