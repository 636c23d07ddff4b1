"""``oci://`` as it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.artifacts.remote.oci_reference import parse_reference
from sidecar.errors import UnsupportedSource


@pytest.mark.parametrize(
    ("source", "url", "wanted"),
    [
        ("oci://ghcr.io/team/sql:v4", "https://ghcr.io/v2/team/sql", "v4"),
        ("oci://ghcr.io/sql", "https://ghcr.io/v2/sql", "latest"),
        ("oci://registry:5000/a/b/c:1", "https://registry:5000/v2/a/b/c", "1"),
        ("oci://team/sql:v4", "https://registry-1.docker.io/v2/team/sql", "v4"),
        ("oci://sql", "https://registry-1.docker.io/v2/library/sql", "latest"),
        ("oci://docker.io/sql", "https://registry-1.docker.io/v2/library/sql", "latest"),
        ("oci://index.docker.io/team/sql", "https://registry-1.docker.io/v2/team/sql", "latest"),
        ("oci://localhost:5000/sql", "http://localhost:5000/v2/sql", "latest"),
        ("oci://127.0.0.2/sql", "http://127.0.0.2/v2/sql", "latest"),
        ("oci://[::1]:5000/sql", "http://[::1]:5000/v2/sql", "latest"),
        ("oci://10.0.0.7:5000/sql", "https://10.0.0.7:5000/v2/sql", "latest"),
        (f"oci://ghcr.io/sql@sha256:{'a' * 64}", "https://ghcr.io/v2/sql", f"sha256:{'a' * 64}"),
        (f"oci://ghcr.io/sql:v4@sha256:{'a' * 64}", "https://ghcr.io/v2/sql", f"sha256:{'a' * 64}"),
    ],
)
def test_a_reference_means_what_it_means_to_docker(source, url, wanted):
    found = parse_reference(source)
    assert (found.url, found.digest or found.tag) == (url, wanted)


def test_a_registry_of_this_machine_with_a_ca_is_spoken_to_with_tls():
    found = parse_reference("oci://localhost:5000/sql", has_ca=True)
    assert (found.url, found.is_plain) == ("https://localhost:5000/v2/sql", False)
    assert found.is_loopback


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("oci://", "repository"),
        ("oci://ghcr.io/", "repository"),
        ("oci://ghcr.io/Team/sql", "lower case"),
        ("oci://ghcr.io/team/../sql", "repository"),
        ("oci://ghcr.io/sql:", "tag"),
        ("oci://ghcr.io/sql:a b", "tag"),
        ("oci://ghcr.io/sql@sha256:abc", "digest"),
        (f"oci://ghcr.io/sql@sha512:{'a' * 128}", "digest"),
        ("oci://robot:hunter2@ghcr.io/sql", "credentials:"),
        ("oci://ghcr.io/sql?x=1", "query"),
        ("oci://ghcr.io/sql#sub", "fragment"),
        ("oci://ghcr.io:port/sql", "registry"),
        (f"oci://ghcr.io/{'a' * 255}", "255"),
    ],
)
def test_a_reference_that_cannot_be_read_says_why_and_how_to_write_it(source, why):
    with pytest.raises(UnsupportedSource, match=why) as caught:
        parse_reference(source)
    assert "write oci://" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(st.text(alphabet="aZ0.:/@-_[]%?#é \n", max_size=40))
def test_any_text_is_a_plain_url_or_refused(text):
    try:
        found = parse_reference(f"oci://{text}")
    except UnsupportedSource:
        return
    assert not set(found.url + found.tag) & set("@?#% \n\\é")
    assert found.url.count("://") == 1
    assert ".." not in found.url.partition("/v2/")[2]
