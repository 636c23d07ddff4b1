"""``oci://`` against the registry that most of the others are tested by: distribution.

ORAS artifacts are pushed by oras-go, images by the registry's API. Tokens are checked by the real
registry; the server that gives them out is the lab's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from lab import oras
from lab.registry import OTHER_PASSWORD, PASSWORD, USER, PasswordRegistry, Registry, TokenRegistry
from lab.tls import Authority
from sidecar.artifacts.files import Stopped
from sidecar.artifacts.listing import FREE_SIZE, Listing
from sidecar.artifacts.remote.fetcher import RemoteFetcher
from sidecar.artifacts.remote.oci import open_oci
from sidecar.artifacts.remote.secrets import Credentials, read_credentials
from sidecar.artifacts.workspace import Workspace
from sidecar.errors import (
    AccessDenied,
    ArtifactError,
    FetchFailed,
    InvalidArtifact,
    NotFound,
    StoreFull,
)
from tests.support.faulty import Cut, FaultyServer
from tests.support.oci import (
    FILEPATH,
    Layer,
    Pushed,
    artifact,
    docker_config,
    environment,
    file,
    image,
    index,
    tar_of,
)

pytestmark = pytest.mark.sources

CONFIG, WEIGHTS = b'{"r": 8}', os.urandom(300_000)
LORA = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
MODEL = {"config.pbtxt": b'name: "sql"', "1/model.py": b"pass"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def private(tmp_path: Path) -> Iterator[PasswordRegistry]:
    with PasswordRegistry(tmp_path / "private") as registry:
        yield registry


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenRegistry]:
    with TokenRegistry(tmp_path / "tokens") as registry:
        yield registry


def push(registry: Registry, repository: str, pushed: Pushed, reference: str) -> str:
    """Push what ``tests.support.oci`` made; the digest of its manifest."""
    for child in pushed.children:
        push(registry, repository, child, child.digest)
    for blob in pushed.blobs:
        registry.push_blob(repository, blob)
    assert registry.push_manifest(repository, reference, json.loads(pushed.text)) == pushed.digest
    return pushed.digest


def secret(root: Path, **files: str) -> Credentials:
    place = root / "credentials" / "team-a"
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return read_credentials("team-a", root=root / "credentials", environment={})


def workspace_in(root: Path) -> Workspace:
    made = Workspace(
        directory=root / "new",
        scratch=root / "scratch",
        report=lambda _: None,
        grow=lambda _: None,
        stop=Event(),
    )
    made.directory.mkdir(parents=True, exist_ok=True)
    made.scratch.mkdir(exist_ok=True)
    return made


def fetched(root: Path, reference: str, credentials: Credentials | None = None) -> dict[str, bytes]:
    """What is on disk after a fetch, without its mode and time."""
    workspace = workspace_in(root)
    fetcher = RemoteFetcher(open_oci(f"oci://{reference}", credentials or environment()), FREE_SIZE)
    try:
        fetcher.list()
        records = fetcher.bring(workspace)
    finally:
        fetcher.close()
    found = {
        str(one.relative_to(workspace.directory)): one.read_bytes()
        for one in workspace.directory.rglob("*")
        if one.is_file()
    }
    assert {one.path for one in records} == found.keys()
    return found


def listed(reference: str, credentials: Credentials | None = None) -> Listing:
    fetcher = RemoteFetcher(open_oci(f"oci://{reference}", credentials or environment()), FREE_SIZE)
    try:
        return fetcher.list()
    finally:
        fetcher.close()


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


# What people push


@pytest.mark.parametrize(
    "paths",
    [
        ["sql/adapter_config.json", "sql/adapter_model.safetensors"],
        ["sql"],
        ["sql.tar.gz:application/gzip"],
    ],
    ids=["files", "directory", "archive"],
)
def test_what_oras_pushes_is_fetched_as_it_was(registry, tmp_path, paths):
    work = folder(tmp_path / "work", {f"sql/{path}": data for path, data in LORA.items()})
    packed = tar_of({f"sql/{path}": data for path, data in LORA.items()}, is_zipped=True)
    (work / "sql.tar.gz").write_bytes(packed)
    reference = f"{registry.host}/oras/sql:{paths[0].count('/')}{len(paths)}{len(paths[0])}"
    digest = oras.push(reference, work, paths)
    assert listed(reference).signature == digest
    assert fetched(tmp_path, reference) == LORA


def test_files_and_directories_of_one_artifact_come_together(registry, tmp_path):
    work = folder(tmp_path / "work", MODEL)
    reference = f"{registry.host}/oras/model:v1"
    oras.push(reference, work, ["config.pbtxt", "1"])
    assert fetched(tmp_path, reference) == MODEL


@pytest.mark.parametrize(
    "pushed",
    [
        artifact(
            *(
                file(path, data, "application/vnd.cncf.model.weight.v1.raw", FILEPATH)
                for path, data in LORA.items()
            ),
            artifactType="application/vnd.cncf.model.manifest.v1+json",
        ),
        artifact(
            *(
                file(
                    path,
                    tar_of({path: data}, is_zipped=True),
                    "application/vnd.cncf.model.weight.v1.tar+gzip",
                    FILEPATH,
                )
                for path, data in LORA.items()
            )
        ),
        artifact(
            Layer(
                data=tar_of(dict(LORA)), media_type="application/vnd.kitops.modelkit.model.v1.tar"
            )
        ),
    ],
    ids=["modelpack raw", "modelpack tar", "kitops"],
)
def test_other_tools_artifacts_are_fetched_too(registry, tmp_path, pushed):
    push(registry, "tools/sql", pushed, "v1")
    assert fetched(tmp_path, f"{registry.host}/tools/sql:v1") == LORA


def test_a_modelcar_is_what_its_layers_make_below_models(registry, tmp_path):
    base = tar_of({"bin/sh": b"#!", "models/old/config.pbtxt": b"x"}, links={"lib": "/usr/lib"})
    one = tar_of({"models/sql/config.pbtxt": b"x", "models/sql/1/model.py": b"pass"})
    two = tar_of({"models/.wh.old": b"", "models/sql/config.pbtxt": MODEL["config.pbtxt"]})
    car = image(Layer(data=base, media_type="application/vnd.oci.image.layer.v1.tar"), one, two)
    push(registry, "cars/sql", index(("linux/amd64", car), ("linux/arm64", car)), "v1")
    found = listed(f"{registry.host}/cars/sql:v1")
    assert found.signature == car.digest
    # The directory of the one model that is left is taken off.
    assert fetched(tmp_path, f"{registry.host}/cars/sql:v1") == MODEL


def test_an_image_that_found_no_room_to_be_unpacked_is_unpacked_anew(registry, tmp_path):
    layers = [tar_of({"models/a": b"a" * 10}), tar_of({"models/.wh.a": b"", "models/b": b"b"})]
    push(registry, "cars/full", image(*layers), "v1")
    reference = f"{registry.host}/cars/full:v1"
    asked = []

    def grow(size: int) -> None:
        asked.append(size)
        if len(asked) == 2:
            raise StoreFull("no room")

    fetcher = RemoteFetcher(open_oci(f"oci://{reference}", environment()), FREE_SIZE)
    fetcher.list()
    with pytest.raises(StoreFull):
        fetcher.bring(replace(workspace_in(tmp_path), grow=grow))
    fetcher.close()
    assert fetched(tmp_path, reference) == {"b": b"b"}


# What moves, and what is broken


def test_a_tag_that_moves_is_seen_and_a_digest_stays(registry, tmp_path):
    first = push(registry, "moving/sql", artifact(file("config.pbtxt", b"1")), "v1")
    reference = f"{registry.host}/moving/sql"
    assert listed(f"{reference}:v1").signature == first
    second = push(registry, "moving/sql", artifact(file("config.pbtxt", b"2")), "v1")
    assert listed(f"{reference}:v1").signature == second != first
    assert fetched(tmp_path, f"{reference}:v1@{first}") == {"config.pbtxt": b"1"}
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        listed(f"{reference}@sha256:{'0' * 64}")
    with pytest.raises(NotFound, match="404 from"):
        listed(f"{reference}:v2")
    with pytest.raises(NotFound):
        listed(f"{registry.host}/no/such:v1")


def blob_file(registry: Registry, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    blobs = registry.work / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256"
    return blobs / name[:2] / name / "data"


def test_a_blob_that_the_registrys_disk_spoiled_is_never_taken(registry, tmp_path):
    pushed = artifact(file("adapter_config.json", CONFIG), file("w.safetensors", WEIGHTS[::-1]))
    push(registry, "spoiled/sql", pushed, "v1")
    reference = f"{registry.host}/spoiled/sql:v1"
    place = blob_file(registry, json.loads(pushed.text)["layers"][1]["digest"])
    data = place.read_bytes()
    place.write_bytes(data[:1000] + b"X" + data[1001:])
    with pytest.raises((InvalidArtifact, FetchFailed)):
        fetched(tmp_path, reference)
    place.write_bytes(data)
    assert fetched(tmp_path, reference)["w.safetensors"] == data


def test_a_manifest_that_the_registrys_disk_spoiled_is_never_read(registry):
    digest = push(registry, "spoiled/manifest", artifact(file("config.pbtxt", b"m")), "v1")
    place = blob_file(registry, digest)
    place.write_bytes(place.read_bytes().replace(b"config.pbtxt", b"config.pbtx1"))
    with pytest.raises(ArtifactError):
        listed(f"{registry.host}/spoiled/manifest:v1")


def test_a_cut_connection_is_read_on_and_a_stopped_fetch_resumed(registry, tmp_path):
    big = os.urandom(48 << 20)
    push(registry, "big/sql", artifact(file("adapter_config.json", CONFIG), file("w", big)), "v1")
    address, _, port = registry.host.partition(":")
    with FaultyServer(upstream=(address, int(port))) as wire:
        wire.add(Cut(after=5 << 20), path="/blobs/", when=lambda seen: seen.range, times=2)
        reference = f"oci://127.0.0.1:{wire.port}/big/sql:v1"
        workspace = workspace_in(tmp_path)
        enough, came = 20 << 20, [0]

        def report(size: int) -> None:
            came[0] += size
            if came[0] > enough:
                workspace.stop.set()

        fetcher = RemoteFetcher(open_oci(reference, environment()), FREE_SIZE)
        fetcher.list()
        with pytest.raises(Stopped):
            fetcher.bring(replace(workspace, report=report))
        fetcher.close()
        wire.clear()
        assert fetched(tmp_path, reference.removeprefix("oci://"))["w"] == big
        assert wire.sent_bytes < len(big)


# Who may read


@pytest.mark.parametrize("kind", ["keys", "pull secret"])
def test_the_right_password_is_accepted_and_a_wrong_one_rejected(private, tmp_path, kind):
    push(private, "team/sql", artifact(*(file(*one) for one in LORA.items())), "v1")
    reference = f"{private.host}/team/sql:v1"

    def credentials(password: str) -> Credentials:
        if kind == "keys":
            return secret(tmp_path, username=USER, password=password)
        config = docker_config(private.host, f"{USER}:{password}")
        return secret(tmp_path, _dockerconfigjson=config)

    with pytest.raises(AccessDenied, match="does not accept"):
        listed(reference, credentials(OTHER_PASSWORD))
    with pytest.raises(AccessDenied, match="the agent's environment has no credentials"):
        listed(reference)
    assert fetched(tmp_path, reference, credentials(PASSWORD)) == LORA
    # A rotated secret is read again.
    private.set_password(OTHER_PASSWORD)
    with pytest.raises(AccessDenied):
        listed(reference, credentials(PASSWORD))
    assert listed(reference, credentials(OTHER_PASSWORD)).files


def test_tokens_are_got_for_the_right_password_only_and_for_anybody_where_all_may_read(
    tokens, tmp_path
):
    pushed = artifact(*(file(*one) for one in LORA.items()))
    push(tokens, "team/sql", pushed, "v1")
    push(tokens, "public/sql", pushed, "v1")
    right = secret(tmp_path, username=USER, password=PASSWORD)
    assert fetched(tmp_path, f"{tokens.host}/team/sql:v1", right) == LORA
    # One token for all of it.
    assert len(tokens.tokens.requests) == 1
    assert listed(f"{tokens.host}/public/sql:v1").signature == pushed.digest
    with pytest.raises(AccessDenied, match="has no credentials"):
        listed(f"{tokens.host}/team/sql:v1")
    wrong = secret(tmp_path, username=USER, password=OTHER_PASSWORD)
    with pytest.raises(AccessDenied, match=r"token server .* not accepted"):
        listed(f"{tokens.host}/team/sql:v1", wrong)


@pytest.mark.parametrize("kind", [PasswordRegistry, TokenRegistry])
def test_a_registry_with_a_ca_of_its_own_is_trusted_by_that_alone(tmp_path, kind):
    ca, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    with kind(tmp_path / "registry", certificate=ca.issue()) as registry:
        pushed = artifact(*(file(*one) for one in LORA.items()))
        push(registry, "team/sql", pushed, "v1")
        login = {"username": USER, "password": PASSWORD}
        reference = f"{registry.host}/team/sql:v1"
        right = secret(tmp_path, ca_crt=ca.file.read_text(), **login)
        assert fetched(tmp_path, reference, right) == LORA
        wrong = secret(tmp_path, ca_crt=other.file.read_text(), **login)
        with pytest.raises(FetchFailed, match="not trusted"):
            listed(reference, wrong)
