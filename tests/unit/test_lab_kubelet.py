"""The played kubelet counts the results of a readinessProbe as the real one does."""

from __future__ import annotations

import socket
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from lab import LabError
from lab.kubelet import Container, Probe
from tests.support.stub_http import StubHttp, Told


def probe(*, success: int = 1, failure: int = 3, port: int = 1) -> Probe:
    return Probe(
        path="/ready",
        port=port,
        period_seconds=2.0,
        timeout_seconds=1.0,
        success_threshold=success,
        failure_threshold=failure,
    )


def container(results: str, probe: Probe) -> Container:
    """Return a container after these results, ``+`` or ``-``, oldest first."""
    made = Container("one", probe)
    for result in results:
        made.take(None if result == "+" else "503")
    return made


@pytest.mark.parametrize(
    ("results", "ready"),
    [
        ("", False),
        ("+", True),
        ("-", False),
        ("+--", True),
        ("+---", False),
        ("+--+--", True),
        ("+---+", True),
    ],
)
def test_results_count_when_enough_of_them_come_in_a_row(results, ready):
    assert container(results, probe()).ready is ready


def test_a_threshold_of_successes_is_kept_too():
    assert container("+-+", probe(success=2)).ready is False
    assert container("+-++", probe(success=2)).ready is True


def test_a_container_that_ends_is_not_ready_and_begins_anew_when_it_is_restarted():
    made = container("+", probe())
    made.end()
    assert made.ready is False
    made.take(None)
    assert made.ready is False
    made.start()
    assert made.ready is False
    made.take(None)
    assert made.ready is True


def test_a_container_without_a_probe_is_ready_while_it_runs():
    made = Container("one", None)
    assert made.ready is True
    made.end()
    assert made.ready is False


@pytest.mark.parametrize(("status", "success"), [(200, True), (204, True), (404, False)])
def test_a_probe_goes_by_the_status(status, success):
    with StubHttp(lambda _: Told(status=status)) as server:
        assert (probe(port=port_of(server)).trouble("127.0.0.1") is None) is success
        assert server.asked[0].path == "/ready"
    assert "refused" in str(probe(port=port_of(server)).trouble("127.0.0.1"))


def test_a_probe_that_is_not_answered_in_time_fails():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = replace(probe(port=silent.getsockname()[1]), timeout_seconds=0.1)
        assert "timed out" in str(mute.trouble("127.0.0.1"))


def port_of(server: StubHttp) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port


def test_a_probe_is_read_off_the_pod_on_the_api_server():
    made = {
        "httpGet": {"path": "/ready", "port": "sidecar", "scheme": "HTTP"},
        "periodSeconds": 2,
        "timeoutSeconds": 1,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    ports = [{"name": "other", "containerPort": 1}, {"name": "sidecar", "containerPort": 9110}]
    assert Probe.of({"name": "agent", "ports": ports, "readinessProbe": made}) == probe(port=9110)
    made["httpGet"] = {"path": "/ready", "port": 9111, "scheme": "HTTP"}
    assert Probe.of({"name": "agent", "readinessProbe": made}) == probe(port=9111)
    assert Probe.of({"name": "agent"}) is None
    with pytest.raises(LabError, match="over HTTP"):
        Probe.of({"name": "agent", "readinessProbe": {"exec": {"command": ["true"]}}})
