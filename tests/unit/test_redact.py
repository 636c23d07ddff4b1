import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.redact import redact_source


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/models/a@b?c#d", "/models/a@b?c#d"),
        ("s3://bucket/key/", "s3://bucket/key/"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("https://host:8443/a@b", "https://host:8443/a@b"),
        ("hf://org/repo@main", "hf://org/repo@main"),
        ("hf://gpt2@main", "hf://gpt2@main"),
        ("hf://user:secret@org/repo", "hf://***@org/repo"),
        ("oci://sql@sha256:0a1b", "oci://sql@sha256:0a1b"),
        ("oci://user:secret@sha256:0a1b", "oci://***@sha256:0a1b"),
        ("oci://registry:5000/repo@sha256:ab", "oci://registry:5000/repo@sha256:ab"),
        ("https://user:secret@host/x.tar", "https://***@host/x.tar"),
        ("https://secret@host/x.tar", "https://***@host/x.tar"),
        ("https://user:se/cret@host/x.tar", "https://***@host/x.tar"),
        ("https://user:se?cret@host/x.tar", "https://***?***"),
        ("https://user:se#cret@host/x.tar", "https://***#***"),
        ("//user:secret@host/x", "//***@host/x"),
        (
            "https://b.example/x?X-Amz-Signature=secret&versionId=3&secret",
            "https://b.example/x?X-Amz-Signature=***&versionId=3&***",
        ),
        ("https://b.example/x?sig=secret#secret", "https://b.example/x?sig=***#***"),
    ],
)
def test_what_grants_access_is_taken_out(source, shown):
    assert redact_source(source) == shown


# user:0/x@host is also a host with a port and a path that holds an "@".
@given(
    st.text(st.characters(exclude_characters="s"), max_size=20).filter(
        lambda password: not re.match(r"\d+[/?#]", password)
    )
)
def test_a_password_is_never_shown(password):
    shown = redact_source(f"https://user:{password}secret@host/key")
    assert "secret" not in shown


@given(st.text())
def test_it_never_raises_and_redacts_once(source):
    once = redact_source(source)
    assert redact_source(once) == once


@pytest.mark.parametrize(
    "source",
    ["https://user:p@/secret@host/key", "https://user:x@y/secret@host/key", "s3://u:@/secret@b/k"],
)
def test_a_password_with_at_signs_and_slashes_is_taken_out_whole(source):
    shown = redact_source(source)
    assert "secret" not in shown
    assert shown.endswith(("host/key", "b/k"))
