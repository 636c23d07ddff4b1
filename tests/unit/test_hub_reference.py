"""How ``hf://`` is written, held against the hub's own parser."""

from __future__ import annotations

import pytest
from huggingface_hub import HfUri, parse_hf_uri
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.hub_reference import parse_reference
from sidecar.errors import InvalidArtifact, UnsupportedSource


@pytest.mark.parametrize(
    ("source", "repository", "revision", "path"),
    [
        ("hf://acme/lora", "acme/lora", "main", ""),
        ("hf://models/acme/lora/", "acme/lora", "main", ""),
        ("HF://acme/lora@v1.0", "acme/lora", "v1.0", ""),
        ("hf://acme/lora@v1.0/sub/dir/", "acme/lora", "v1.0", "sub/dir"),
        ("hf://acme/lora@team%2Fsql/sub", "acme/lora", "team/sql", "sub"),
        ("hf://acme/lora@refs/pr/3/sub", "acme/lora", "refs/pr/3", "sub"),
        ("hf://acme/lora@refs/convert/pq-1", "acme/lora", "refs/convert/pq-1", ""),
        ("hf://acme/lora/file@2.json", "acme/lora", "main", "file@2.json"),
        ("hf://acme/lora:v2", "acme/lora", "v2", ""),
    ],
)
def test_a_source_names_repository_revision_and_path(source, repository, revision, path):
    found = parse_reference(source)
    assert (found.repository, found.revision, found.path) == (repository, revision, path)


@pytest.mark.parametrize(
    "source",
    [
        "hf://",
        "hf://gpt2",
        "hf://gpt2@main/sub",
        "hf:///acme/lora",
        "hf://acme",
        "hf://acme@main/lora",
        "hf://user:secret@acme/lora",
        "hf://acme:8080/lora",
        "hf://acme/lo?ra",
        "hf://acme/lora#main",
        "hf://ac\nme/lora",
        "hf://../lora",
        "hf://acme/..",
        "hf://acme/lo--ra",
        "hf://acme/lora.git",
        "hf://acme/-lora",
        "hf://\u00e4cme/lora",
        "hf://datasets/acme/table",
        "hf://buckets/acme/bucket",
        "hf://models/spaces/acme/app",
    ],
)
def test_what_is_no_model_repository_is_refused_with_the_right_form(source):
    with pytest.raises(UnsupportedSource, match="write hf://namespace/name") as caught:
        parse_reference(source)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "hf://acme/lora@",
        "hf://acme/lora@/sub",
        "hf://acme/lora:/data:ro",
        "hf://acme/lora@a%2F..%2Fb",
        "hf://acme/lora@a%0Ab",
        "hf://acme/lora@a b",
        "hf://acme/lora/../other",
        "hf://acme/lora/a//b",
        "hf://acme/lora/./b",
        "hf://acme/lora/%2e%2e/b",
        "hf://acme/lora/a?b",
        "hf://acme/lora/a#b",
        "hf://acme/lora/a\\b",
        "hf://acme/lora/a\tb",
    ],
)
def test_a_revision_or_path_that_nothing_can_have_is_refused(source):
    with pytest.raises(InvalidArtifact):
        parse_reference(source)


NAMES = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_]|[.-][A-Za-z0-9]){0,10}", fullmatch=True)
WORDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_@=+,-]{0,8}", fullmatch=True)


@given(
    names=st.tuples(NAMES, NAMES).filter(
        lambda names: names[0] not in {"models", "datasets", "spaces", "kernels", "buckets"}
    ),
    revision=st.none()
    | st.lists(NAMES, min_size=1, max_size=3).map("/".join)
    | st.from_regex(r"refs/(pr/[0-9]{1,4}|convert/[a-z.-]*[a-z])", fullmatch=True).filter(
        lambda revision: ".." not in revision
    ),
    path=st.lists(WORDS, max_size=3).map("/".join),
)
def test_sources_mean_what_they_mean_to_the_hubs_own_library(names, revision, path):
    uri = HfUri("model", "/".join(names), revision, path)
    for source in (uri.to_uri(), uri.to_uri().replace("hf://models/", "hf://")):
        theirs, ours = parse_hf_uri(source), parse_reference(source)
        assert ours.repository == theirs.id
        assert ours.revision == (theirs.revision or "main")
        assert ours.path == theirs.path_in_repo
