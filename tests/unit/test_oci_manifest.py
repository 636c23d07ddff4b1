"""What manifests and indexes say, as the tools of the ecosystem write them."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.oci_manifest import choose_manifest, parse_manifest, read_contents
from sidecar.artifacts.remote.port import Contents, Packing
from sidecar.errors import ArtifactError, InvalidArtifact, UnsupportedSource
from tests.support.oci import (
    EMPTY,
    FILEPATH,
    IMAGE_CONFIG,
    LORA,
    TAR,
    TAR_GZIP,
    TITLE,
    Layer,
    Pushed,
    artifact,
    digest_of,
    directory,
    file,
    image,
    index,
    tar_of,
)

WHERE = "oci://registry/sql"
MODEL_ZSTD = "application/vnd.cncf.model.weight.v1.tar+zstd"


def listed(pushed: Pushed) -> Contents:
    return read_contents(parse_manifest(pushed.text, WHERE), pushed.digest, WHERE)


def chosen(*entries: tuple[str, Pushed] | tuple[str, Pushed, dict[str, str]]) -> str | None:
    return choose_manifest(parse_manifest(index(*entries).text, WHERE), "arm64", WHERE)


def shape(contents: Contents) -> list[tuple[str, Packing | None]]:
    return [(one.path, one.packing) for one in contents.blobs]


def test_files_that_oras_pushed_come_with_their_names_sizes_and_digests():
    found = listed(LORA)
    weights = b"weights" * 9000
    assert shape(found) == [("adapter_config.json", None), ("adapter_model.safetensors", None)]
    assert found.blobs[1].sha256 == hashlib.sha256(weights).hexdigest()
    assert found.blobs[1].size == len(weights)
    assert found.signature == LORA.digest
    assert found.image_directory == ""


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (directory("sql", {"adapter_config.json": b"{}"}), ("", Packing.TAR_GZIP)),
        # oras-py marks a directory by its type alone.
        (Layer(data=b"x", media_type=TAR_GZIP, annotations={TITLE: "sql"}), ("", Packing.TAR_GZIP)),
        (file("a/b.json", b"x", "application/json"), ("a/b.json", None)),
        (file("./b.json", b"x", "application/json"), ("b.json", None)),
        (file("c", b"x", "application/vnd.cncf.model.weight.v1.raw", FILEPATH), ("c", None)),
        (file("c", b"x", "application/vnd.docker.ai.safetensors", FILEPATH), ("c", None)),
        (file("c", b"x", "application/vnd.cncf.model.weight.v1.tar", FILEPATH), ("", Packing.TAR)),
        (file("c", b"x", "application/vnd.docker.ai.dir.tar", FILEPATH), ("", Packing.TAR)),
        (
            Layer(data=b"x", media_type="application/vnd.kitops.modelkit.model.v1.tar+gzip"),
            ("", Packing.TAR_GZIP),
        ),
        (file("sql.tar.gz", b"x"), ("", Packing.TAR_GZIP)),
        (file("sql.zip", b"x", "application/zip"), ("", Packing.ZIP)),
    ],
)
def test_a_layer_of_an_artifact_is_a_file_or_an_archive_by_what_its_tool_says(layer, expected):
    assert shape(listed(artifact(layer))) == [expected]


def test_an_archive_among_other_files_is_a_file():
    found = listed(artifact(file("extra.tar.gz", b"x"), file("config.pbtxt", b"y")))
    assert shape(found) == [("extra.tar.gz", None), ("config.pbtxt", None)]


def test_the_better_name_of_two_is_the_path():
    layer = Layer(data=b"x", media_type="a/b", annotations={TITLE: "w", FILEPATH: "1/w"})
    assert shape(listed(artifact(layer))) == [("1/w", None)]


def test_one_directory_around_an_artifact_is_taken_off():
    pushed = artifact(file("sql/adapter_config.json", b"{}"), file("sql/w.safetensors", b"w"))
    assert [path for path, _ in shape(listed(pushed))] == [
        "adapter_config.json",
        "w.safetensors",
    ]


@pytest.mark.parametrize(
    "names", [("1/model.py", "1/w.bin"), ("1/1/x", "1/2/x"), ("a/x.json", "a/y.json"), ("a/1", "b")]
)
def test_directories_that_mean_something_stay(names):
    found = listed(artifact(*(file(name, name.encode()) for name in names)))
    assert [path for path, _ in shape(found)] == list(names)


def test_the_same_file_twice_is_one_and_an_empty_layer_none():
    one = file("adapter_config.json", b"{}")
    found = listed(artifact(one, one, Layer(data=b"{}", media_type=EMPTY)))
    assert shape(found) == [("adapter_config.json", None)]


def test_layers_of_an_image_are_archives_of_which_models_counts():
    titled = Layer(data=b"3", media_type=TAR, annotations={TITLE: "model.py"})
    packed = Layer(data=b"2", media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")
    beside = Layer(data=b"4", media_type="application/vnd.in-toto+json")
    found = listed(image(b"1", packed, titled, beside))
    assert found.image_directory == "models"
    assert shape(found) == [("", Packing.TAR), ("", Packing.TAR_GZIP), ("", Packing.TAR)]
    assert [one.key for one in found.blobs] == [digest_of(one) for one in (b"1", b"2", b"3")]


def test_an_empty_config_makes_no_image_of_files_whatever_its_type():
    config = Layer(data=b"{}", media_type=IMAGE_CONFIG)
    old = artifact(file("config.pbtxt", b"x"), config=config, artifactType="")
    assert shape(listed(old)) == [("config.pbtxt", None)]


def test_archives_that_call_themselves_an_artifact_are_no_image():
    # As olot makes them: the config of an image, and files at the top.
    pushed = image(tar_of({"config.pbtxt": b"x"}), artifactType="application/vnd.acme.model")
    found = listed(pushed)
    assert (shape(found), found.image_directory) == ([("", Packing.TAR)], "")


def test_the_blobs_of_an_artifact_manifest_are_its_layers():
    said = json.loads(LORA.text)
    said["blobs"] = said.pop("layers")
    kind = "application/vnd.oci.artifact.manifest.v1+json"
    pushed = Pushed(text=json.dumps(said).encode(), media_type=kind, blobs=LORA.blobs)
    assert len(listed(pushed).blobs) == 2


@pytest.mark.parametrize(
    ("pushed", "kind", "why"),
    [
        (artifact(Layer(data=b"x", media_type=MODEL_ZSTD)), UnsupportedSource, "gzip"),
        (image(Layer(data=b"x", media_type=f"{TAR}+zstd")), UnsupportedSource, "gzip"),
        (
            artifact(Layer(data=b"x", media_type="application/vnd.ollama.image.model")),
            UnsupportedSource,
            "oras push",
        ),
        (artifact(), InvalidArtifact, "no files"),
        (Pushed(text=b'{"schemaVersion": 1}', media_type="x"), UnsupportedSource, "version 1"),
        (Pushed(text=b"<html>", media_type="x"), InvalidArtifact, "no manifest"),
        (Pushed(text=b"[" * 100_000, media_type="x"), InvalidArtifact, "no manifest"),
        (Pushed(text=b'{"layers": [1]}', media_type="x"), InvalidArtifact, "malformed"),
        (Pushed(text=b'{"layers": {}}', media_type="x"), InvalidArtifact, "malformed"),
        (Pushed(text=b'{"layers": [{"size": 1}]}', media_type="x"), InvalidArtifact, "media type"),
        (
            Pushed(text=b'{"layers": [{"mediaType": "x", "size": -1}]}', media_type="x"),
            InvalidArtifact,
            "size",
        ),
        (
            Pushed(
                text=b'{"layers": [{"mediaType": "x", "size": 1, "digest": "sha512:0"}]}',
                media_type="x",
            ),
            InvalidArtifact,
            "sha256 is needed",
        ),
        (
            Pushed(text=b'{"layers": [], "manifests": []}', media_type="x"),
            InvalidArtifact,
            "as well",
        ),
    ],
)
def test_a_manifest_that_is_not_read_is_refused_and_says_why(pushed, kind, why):
    with pytest.raises(kind, match=why):
        listed(pushed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("sha256:" + "a" * 64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "layers blobs manifests mediaType digest size annotations config platform os "
                f"artifactType {TITLE}".split()
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_contents_or_an_error_of_ours(said):
    try:
        manifest = parse_manifest(json.dumps(said).encode(), "oci://x")
        if choose_manifest(manifest, "amd64", "oci://x") is None:
            assert read_contents(manifest, "s", "oci://x").blobs
    except ArtifactError:
        return


# Which manifest of an index

ELSEWHERE = artifact(file("config.pbtxt", b"elsewhere"))
HERE = artifact(file("config.pbtxt", b"here"))


@pytest.mark.parametrize(
    "entries",
    [
        (("linux/s390x", ELSEWHERE), ("linux/arm64", HERE)),
        (("windows/amd64", ELSEWHERE), ("linux/arm64", HERE), ("linux/mips", LORA)),
        (("linux/s390x", HERE),),
        (("", HERE),),
        (("unknown/unknown", ELSEWHERE), ("linux/s390x", HERE)),
        (
            ("linux/amd64", ELSEWHERE, {"vnd.docker.reference.type": "attestation-manifest"}),
            ("linux/arm64", HERE),
        ),
    ],
)
def test_of_an_index_this_machines_manifest_counts_or_the_only_one(entries):
    assert chosen(*entries) == HERE.digest


def test_an_index_without_a_manifest_for_us_says_what_it_has():
    entries = (("windows/s390x", HERE), ("linux/mips", ELSEWHERE))
    with pytest.raises(InvalidArtifact, match="windows/s390x, linux/mips"):
        chosen(*entries)
