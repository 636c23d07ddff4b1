"""The admission server as a process: TLS that follows its files, limits, an ordered end."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys

import pytest

from lab.tls import Authority
from sidecar.cluster.webhook.app import MAX_BODY_BYTES
from tests.support.admission import admission, configmap
from tests.support.webhook_process import Files, WebhookProcess, wait_until

BROKEN = {"models.yaml": "models:\n- {name: sql}\n"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def files(tmp_path, authority):
    files = Files(tmp_path / "certificate")
    files.write(authority.issue())
    return files


@pytest.fixture
def server(request, tmp_path, files):
    grace = getattr(request, "param", 0)
    with WebhookProcess(tmp_path, *files.flags, f"--shutdown-grace-seconds={grace}") as server:
        yield server


def test_both_reviews_are_answered_over_one_port(server, authority):
    found = server.ask("/validate", admission(configmap(BROKEN)), authority.file)
    assert "models[0]" in found["status"]["message"]
    pod = {"kind": "Pod", "metadata": {"labels": {"model-sidecar.io/inject": "false"}}}
    assert server.ask("/inject", admission(pod), authority.file)["allowed"]


def test_it_says_what_it_does_not_serve(server, authority):
    assert server.get("/ready", authority.file).json() == {"ready": True, "reasons": []}
    assert server.get("/live", authority.file).json() == {"live": True}
    assert server.get("/metrics", authority.file).status == 404
    assert server.get("/inject", authority.file).status == 405
    assert server.post("/ready", b"", authority.file).status == 405
    assert server.post("/validate", b"{}", authority.file).status == 400


def test_a_body_larger_than_any_review_is_refused_and_the_next_one_answered(server, authority):
    assert server.post("/validate", b" " * (MAX_BODY_BYTES + 1), authority.file).status == 413
    largest = configmap({"models.yaml": "models: []\n", "other": "x" * (3 << 20)})
    review = admission(largest, operation="UPDATE", old=largest)
    assert server.ask("/validate", review, authority.file)["allowed"]


def test_a_changed_certificate_is_shown_and_a_broken_one_is_not(server, authority, files):
    before = server.certificate()
    files.write(authority.issue())
    wait_until("new certificate", lambda: server.certificate() not in (before, None))
    shown = server.certificate()
    files.key.write_text("no key")
    server.wait_log("the changed TLS certificate is not used")
    assert server.certificate() == shown
    review = admission(configmap(BROKEN))
    assert not server.ask("/validate", review, authority.file)["allowed"]


@pytest.mark.parametrize("server", [2], indirect=True)
def test_asked_to_stop_it_answers_on_and_then_ends(server, authority):
    os.kill(server.pid, signal.SIGTERM)
    wait_until("refusal", lambda: server.get("/ready", authority.file).status == 503)
    context = ssl.create_default_context(cafile=str(authority.file))
    connection = http.client.HTTPSConnection("localhost", server.port, timeout=10, context=context)
    connection.request("POST", "/validate", json.dumps(admission(configmap(BROKEN))))
    with connection.getresponse() as answer:
        assert answer.status == 200
        # Whoever would keep the connection is to take it to another replica.
        assert answer.headers["connection"] == "close"
    connection.close()
    assert server.wait_exit(15)
    assert "stopped" in server.log_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--tls-cert-file or --self-signed"),
        (("--tls-cert-file=a",), "belong together"),
        (("--tls-cert-file=a", "--tls-key-file=b", "--self-signed=x"), "--self-signed"),
        (("--tls-cert-file=/nowhere/a", "--tls-key-file=/nowhere/b"), "/nowhere/a"),
    ],
)
def test_flags_that_do_not_fit_are_bad_usage(flags, words):
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "webhook", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 64
    assert words in done.stderr
    assert "Traceback" not in done.stderr
