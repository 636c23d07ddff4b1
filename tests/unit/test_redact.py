import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.redact import redact_source


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/models/a@b?c#d", "/models/a@b?c#d"),
        ("s3://bucket/key/", "s3://bucket/key/"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("https://host:8443/a/b", "https://host:8443/a/b"),
        ("https://host:8443/secret@b", "https://***@b"),
        ("https://host/a@b", "https://host/a@b"),
        ("hf://org/repo@main", "hf://org/repo@main"),
        ("hf://gpt2@main", "hf://gpt2@main"),
        ("hf://user:secret@org/repo", "hf://***@org/repo"),
        ("hf://hf_secret@org/repo", "hf://***@org/repo"),
        ("hf://secret@org/repo@main", "hf://***@org/repo@main"),
        ("hf://hf_secret@org", "hf://***@org"),
        ("oci://sql@sha256:0a1b", "oci://sql@sha256:0a1b"),
        ("oci://user:secret@sha256:0a1b", "oci://***@sha256:0a1b"),
        ("oci://registry:5000/repo@sha256:ab", "oci://registry:5000/repo@sha256:ab"),
        ("https://user:secret@host/x.tar", "https://***@host/x.tar"),
        ("https://secret@host/x.tar", "https://***@host/x.tar"),
        ("https://user:se/cret@host/x.tar", "https://***@host/x.tar"),
        ("https://user:se?cret@host/x.tar", "https://***?***"),
        ("https://user:se#cret@host/x.tar", "https://***#***"),
        ("https://user:12/secret@host/x", "https://***@host/x"),
        ("https://user:12/sec@ret?@host/x", "https://***?***"),
        ("https://user:se?secret=@host/x", "https://***?***"),
        ("https://user:se?secret=#@host/x", "https://***?***#***"),
        ("//user:secret@host/x", "//***@host/x"),
        (" https://user:secret@host/x", " https://***@host/x"),
        ("https:/user:secret@host/x", "https:/***@host/x"),
        ("https:\\\\user:secret@host/x", "https:\\\\***@host/x"),
        ("ht\ntps://user:secret@host/x", "ht\ufffdtps://***@host/x"),
        ("https://host/x\r\nfoo\x1b[2J\u202e", "https://host/x\ufffd\ufffdfoo\ufffd[2J\ufffd"),
        ("/models/a\nb", "/models/a\ufffdb"),
        ("https://b.example/x?version=1;sig=secret", "https://b.example/x?version=***"),
        ("https://b.example/x?version=1%26sig=secret", "https://b.example/x?version=***"),
        ("https://b.example/x?secret/secret=1", "https://b.example/x?***"),
        ("https://b.example/x?versionId=3/L4k+q.J_~", "https://b.example/x?versionId=3/L4k+q.J_~"),
        (
            "https://b.example/x?snapshot=2011-03-09T01%3A42:34.936Z",
            "https://b.example/x?snapshot=2011-03-09T01%3A42:34.936Z",
        ),
        (
            "https://b.example/x?X-Amz-Signature=secret&versionId=3&secret",
            "https://b.example/x?X-Amz-Signature=***&versionId=3&***",
        ),
        ("https://b.example/x?sig=secret#secret", "https://b.example/x?sig=***#***"),
    ],
)
def test_what_grants_access_is_taken_out(source, shown):
    assert redact_source(source) == shown


@given(st.text(st.characters(exclude_characters="s"), max_size=20))
@example("12/")
@example("12/?")
@example("?x=")
@example("?x=1&")
@example("?version=")
@example("#")
def test_a_password_is_never_shown(password):
    shown = redact_source(f"https://user:{password}secret@host/key")
    assert "secret" not in shown


@given(st.text() | st.text("h:/\\?#@&=;\n "))
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
