"""One ConfigMap through the API: what is seen, and what every trouble leads to."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import time
from contextlib import asynccontextmanager
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio.config import kube_config

from sidecar.core.snapshot import Presence
from sidecar.kube import errors
from sidecar.kube.errors import KubeError, KubeProtocolError, KubeUnavailable
from sidecar.sources import base, kube
from sidecar.sources.base import (
    BACKOFF_FIRST_SECONDS,
    BACKOFF_MAX_SECONDS,
    backoff_seconds,
)
from sidecar.sources.configmap import split_lines
from sidecar.sources.kube import KubeSource
from tests.support.kube_api import (
    CUT,
    Answer,
    bookmark,
    configmap,
    event,
    listed,
    refused,
    scripted_kube,
    status_object,
    stream,
    write_kubeconfig,
)
from tests.support.snapshots import running

ONE = {"models.yaml": "one"}
TWO = {"models.yaml": "two"}
THREE = {"models.yaml": "three"}
NEEDED = "needs get, list, watch on configmaps/models in namespace chat"


def is_absent(snapshot) -> bool:
    return snapshot.presence is Presence.ABSENT


def is_unreadable(snapshot) -> bool:
    return snapshot.presence is Presence.UNREADABLE


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch):
    """No proxy, and no system certificates: reading them takes longer than most tests here."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)


@pytest.fixture
def quick(monkeypatch):
    """Shorten the waits between attempts; what is waited for is not shortened."""
    monkeypatch.setattr(base, "BACKOFF_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(base, "BACKOFF_MAX_SECONDS", 0.02)


@pytest.fixture
def kubeconfig(tmp_path):
    (tmp_path / "token").write_text("first\n")

    def write(url):
        return write_kubeconfig(tmp_path / "kubeconfig", url, {"tokenFile": "token"})

    return write


@pytest.fixture
def watching(kubeconfig):
    @asynccontextmanager
    async def watching(lists, watches):
        async with scripted_kube(lists, watches) as server:
            source = KubeSource("models", None, kubeconfig=kubeconfig(server.url), random=Random(1))
            async with running(source) as published:
                yield server, published

    return watching


async def test_the_list_is_published_then_every_change(watching):
    live = stream()
    async with watching([listed("10", configmap("9", ONE))], [live]) as (server, published):
        first = await published.wait_files(ONE)
        await server.wait_requests(lambda: bool(server.watches))
        before = time.monotonic()
        live.feed(event("MODIFIED", configmap("11", TWO)))
        second = await published.wait_files(TWO)
    assert first.source == "configmap chat/models"
    assert first.presence is Presence.PRESENT
    assert before <= second.seen_at <= time.monotonic()
    assert len(server.lists) == 1
    assert {one.path for one in server.requests} == {"/api/v1/namespaces/chat/configmaps"}
    assert {one.query["fieldSelector"] for one in server.requests} == {"metadata.name=models"}
    (watch,) = server.watches
    assert watch.query["resourceVersion"] == "10"
    assert watch.query["allowWatchBookmarks"] == "true"
    assert 240 <= int(watch.query["timeoutSeconds"]) <= 300


async def test_another_configmap_in_the_list_is_not_ours(watching):
    other = configmap("9", TWO)
    other["metadata"]["name"] = "other"
    async with watching([listed("10", other, configmap("9", ONE))], [stream()]) as (_, published):
        await published.wait_files(ONE)


async def test_what_does_not_change_is_published_once(watching):
    live = stream(
        event("MODIFIED", configmap("11", ONE)),
        bookmark("12"),
        event("MODIFIED", configmap("13", TWO)),
    )
    async with watching([listed("10", configmap("9", ONE))], [live]) as (_, published):
        await published.wait_files(TWO)
    assert [dict(one.files) for one in published.all] == [ONE, TWO]


async def test_an_empty_list_is_absent_until_the_configmap_is_made(watching):
    live = stream()
    async with watching([listed("10")], [live]) as (_, published):
        missing = await published.wait_for(is_absent)
        live.feed(event("ADDED", configmap("11", ONE)))
        await published.wait_files(ONE)
    assert missing.reason == "configmap chat/models does not exist"


async def test_a_deleted_configmap_is_absent_and_a_new_one_is_seen(watching):
    live = stream(event("DELETED", configmap("11", ONE)))
    async with watching([listed("10", configmap("9", ONE))], [live]) as (_, published):
        await published.wait_for(is_absent)
        live.feed(event("ADDED", configmap("12", TWO)))
        await published.wait_files(TWO)


async def test_a_configmap_without_keys_is_present_and_holds_nothing(watching):
    bare = configmap("9")
    del bare["data"]
    async with watching([listed("10", bare)], [stream()]) as (_, published):
        snapshot = await published.wait_for(lambda _: True)
    assert snapshot.presence is Presence.PRESENT
    assert not snapshot.files


async def test_binary_data_is_text_where_it_can_be(watching):
    binary = {
        "text.yaml": base64.b64encode(b"zwei").decode(),
        "latin.yaml": base64.b64encode(b"caf\xe9").decode(),
        "broken.yaml": "?",
    }
    answer = listed("10", configmap("9", ONE, binaryData=binary))
    async with watching([answer], [stream()]) as (_, published):
        snapshot = await published.wait_for(lambda _: True)
    assert snapshot.files == {"models.yaml": "one", "text.yaml": "zwei"}
    assert snapshot.unreadable == {
        "latin.yaml": "not UTF-8 text (byte 3)",
        "broken.yaml": "not base64",
    }


async def test_an_event_may_come_in_pieces_and_several_in_one(watching):
    whole = event("MODIFIED", configmap("11", TWO)) + event("MODIFIED", configmap("12", THREE))
    live = stream(whole[:7], whole[7:60], whole[60:])
    async with watching([listed("10", configmap("9", ONE))], [live]) as (_, published):
        await published.wait_files(THREE)


async def test_a_watch_that_ends_on_time_goes_on_from_its_last_bookmark(watching, monkeypatch):
    monkeypatch.setattr(kube, "WATCH_SECONDS", 1.0)
    seconds = 0.95

    def end_on_time(request):
        answer = stream(bookmark("77"))
        asyncio.get_running_loop().call_later(seconds, answer.feed, None)
        return answer

    live = stream(event("MODIFIED", configmap("78", TWO)))
    async with watching([listed("10", configmap("9", ONE))], [end_on_time, live]) as pair:
        server, published = pair
        await published.wait_files(TWO)
    assert [one.query["resourceVersion"] for one in server.watches] == ["10", "77"]
    assert len(server.lists) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda: stream(event("ERROR", status_object(410))), id="410 in an event"),
        pytest.param(lambda: refused(410), id="410 in HTTP"),
        pytest.param(lambda: refused(500), id="500"),
        pytest.param(lambda: stream(event("ERROR", status_object(500))), id="500 in an event"),
        pytest.param(lambda: stream(b'{"type": "MODIF', CUT), id="cut within an event"),
        pytest.param(lambda: stream(b'{"type": "MODIF', ended=True), id="ended within an event"),
        pytest.param(lambda: stream(CUT), id="cut between events"),
        pytest.param(lambda: stream(ended=True), id="ended early"),
        pytest.param(lambda: stream(b"{garbage\n"), id="garbage"),
        pytest.param(lambda: stream(b"[" * 100_000 + b"\n"), id="garbage that nests"),
        pytest.param(lambda: stream(b"[]\n"), id="no object"),
        pytest.param(lambda: stream(b'{"type": "MODIFIED"}\n'), id="no subject"),
        pytest.param(lambda: stream(event("SURPRISE", configmap("11", TWO))), id="unknown event"),
        pytest.param(lambda: stream(event("MODIFIED", {})), id="no resourceVersion"),
        pytest.param(
            lambda: stream(event("MODIFIED", configmap("11") | {"data": {"a": 1}})), id="no text"
        ),
    ],
)
async def test_a_broken_watch_leads_to_a_new_list_and_is_no_document_trouble(watching, trouble):
    lists = [listed("10", configmap("9", ONE)), listed("20", configmap("19", TWO))]
    async with watching(lists, [trouble(), stream()]) as (server, published):
        await published.wait_files(TWO)
        await server.wait_requests(lambda: len(server.watches) == 2)
    assert [dict(one.files) for one in published.all] == [ONE, TWO]
    assert server.watches[1].query["resourceVersion"] == "20"


@pytest.mark.usefixtures("quick")
async def test_an_event_without_end_is_cut_off(watching, monkeypatch):
    monkeypatch.setattr("sidecar.sources.configmap.MAX_BODY_BYTES", 1000)
    lists = [listed("10", configmap("9", ONE)), listed("20", configmap("19", TWO))]
    async with watching(lists, [stream(b"x" * 1001), stream()]) as (_, published):
        await published.wait_files(TWO)


@pytest.mark.usefixtures("quick")
async def test_a_half_open_watch_ends_at_its_deadline(watching, monkeypatch):
    monkeypatch.setattr(kube, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(kube, "WATCH_MARGIN_SECONDS", -0.8)
    lists = [listed("10", configmap("9", ONE)), listed("20", configmap("19", TWO))]
    async with watching(lists, [stream(), stream()]) as (server, published):
        await published.wait_files(TWO)
    assert server.lists[1].at - server.watches[0].at >= 0.15


@pytest.mark.usefixtures("quick")
async def test_a_list_that_hangs_ends_at_its_deadline(watching, monkeypatch):
    monkeypatch.setattr(kube, "LIST_TIMEOUT_SECONDS", 0.1)
    lists = [stream(), listed("10", configmap("9", ONE))]
    async with watching(lists, [stream()]) as (_, published):
        hung = await published.wait_for(is_unreadable)
        await published.wait_files(ONE)
    assert hung.reason == "the API server did not answer in 0.1 s"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            refused(403, "User cannot list"),
            f"the API server refuses: 403 User cannot list; {NEEDED}",
        ),
        (refused(401), "the API server does not accept the credentials: 401 because"),
        (refused(500), "the API server answered 500 because"),
        (Answer(status=500, body=b"<html>"), "the API server answered 500 InternalError"),
        (Answer(body=b"<html>"), "the API server sent what is not JSON"),
        (Answer(body=b'{"items": []}'), "the API server sent an object without a resourceVersion"),
        (Answer(body=b'{"items": 3}'), "the API server sent a list without items"),
        (stream(CUT), "the API server closed the connection"),
    ],
)
async def test_before_the_first_read_every_trouble_is_said_at_once(watching, answer, reason):
    async with watching([answer, listed("10", configmap("9", ONE))], [stream()]) as (_, published):
        said = await published.wait_for(is_unreadable)
        await published.wait_files(ONE)
    assert said.reason == reason
    assert not said.files
    assert len(published.all) == 2


@pytest.mark.usefixtures("quick")
async def test_after_a_good_read_a_trouble_is_said_once_it_lasts(watching, monkeypatch):
    monkeypatch.setattr(kube, "GRACE_SECONDS", 0.15)
    good = listed("10", configmap("9", ONE))
    async with watching([good, refused(403)], [stream(CUT)]) as (server, published):
        await published.wait_files(ONE)
        said = await published.wait_for(is_unreadable)
        failed = len(server.lists)
        assert NEEDED in said.reason
        assert published.times[1] - published.times[0] >= 0.15
        server.script.lists[:] = [good]
        server.script.watches[:] = [stream()]
        await published.wait_files(ONE)
    assert failed > 2, "it was tried several times before it was said"
    assert len(published.all) == 3, "one trouble is said once"


@pytest.mark.usefixtures("quick")
async def test_an_old_trouble_does_not_make_a_new_one_look_lasting(watching, monkeypatch):
    monkeypatch.setattr(kube, "GRACE_SECONDS", 0.1)
    live = stream()
    lists = [refused(500), listed("10", configmap("9", ONE)), listed("20", configmap("19", TWO))]
    async with watching(lists, [live, stream()]) as (_, published):
        await published.wait_files(ONE)
        with pytest.raises(TimeoutError):
            await published.wait_files(TWO, timeout=0.15)
        live.feed(CUT)
        await published.wait_files(TWO)
    assert [is_unreadable(one) for one in published.all] == [True, False, False]


@pytest.mark.usefixtures("quick")
async def test_without_the_watch_verb_the_list_is_repeated(watching, caplog):
    lists = [listed("10", configmap("9", ONE)), listed("20", configmap("19", TWO))]
    async with watching(lists, [refused(403, "cannot watch")]) as (server, published):
        await published.wait_files(TWO)
        await server.wait_requests(lambda: len(server.watches) > 3)
    assert not [one for one in published.all if is_unreadable(one)]
    said = [one.getMessage() for one in caplog.records if one.name == kube.__name__]
    assert said == [f"configmap chat/models: the API server refuses: 403 cannot watch; {NEEDED}"]


@pytest.mark.usefixtures("quick")
async def test_a_rotated_token_is_read_anew(watching, tmp_path):
    def only_second(request):
        if request.headers["authorization"] == "Bearer second":
            return listed("10", configmap("9", ONE))
        return refused(401)

    async with watching([only_second], [stream()]) as (server, published):
        await published.wait_for(is_unreadable)
        (tmp_path / "token").write_text("second\n")
        await published.wait_files(ONE)
    assert server.lists[0].headers["authorization"] == "Bearer first"


@pytest.mark.parametrize(
    "lists",
    [[refused(500)], [refused(403)], [Answer(body=b"<html>")], [listed("10", configmap("9", ONE))]],
    ids=["500", "403", "garbage", "the watch ends at once"],
)
async def test_no_trouble_makes_a_hot_loop(watching, monkeypatch, lists):
    monkeypatch.setattr(base, "BACKOFF_FIRST_SECONDS", 0.04)
    async with watching(lists, [stream(bookmark("11"), ended=True)]) as (server, published):
        server.script.watches[:] = [lambda _: stream(bookmark("11"), ended=True)]
        await published.wait_for(lambda _: True)
        began = time.monotonic()
        await server.wait_requests(lambda: len(server.lists) >= 5)
        took = time.monotonic() - began
    # Waits of at least half of 0.04, 0.08, 0.16 and 0.32 s.
    assert took >= 0.3
    assert len(server.watches) <= 5


async def test_reading_once_says_what_is_there(kubeconfig):
    async with scripted_kube([listed("10", configmap("9", ONE)), refused(403)], []) as server:
        source = KubeSource("models", "chat", kubeconfig=kubeconfig(server.url), random=Random(1))
        assert source.describe() == "configmap chat/models"
        assert (await source.read_once()).files == ONE
        refusal = await source.read_once()
    assert is_unreadable(refusal)
    assert NEEDED in refusal.reason
    away = await source.read_once()
    assert is_unreadable(away)
    assert away.reason.startswith("cannot connect to 127.0.0.1:")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("", "the kubeconfig is malformed"),
        ("{}", "Invalid kube-config file. Expected key current-context"),
        ("users: [{token: s3cret", "the kubeconfig is not valid YAML"),
        ("- s3cret", "the kubeconfig is malformed"),
    ],
)
async def test_an_unusable_kubeconfig_is_a_reason_without_its_secrets(tmp_path, text, reason):
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    source = KubeSource("models", None, kubeconfig=path, random=Random(1))
    snapshot = await source.read_once()
    assert is_unreadable(snapshot)
    assert reason in snapshot.reason
    assert "s3cret" not in snapshot.reason


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (
            {"auth-provider": {"name": "gcp", "config": {"access-token": "s3cret", "expiry": "x"}}},
            "the kubeconfig is malformed",
        ),
        (
            {"auth-provider": {"name": "oidc", "config": {"refresh-token": "s3cret"}}},
            "Invalid kube-config file. Expected key client-id",
        ),
        ({"tokenFile": "s3cret"}, "No such file or directory"),
        ({"exec": {"command": "false", "apiVersion": "v1"}}, "cannot connect"),
    ],
)
async def test_credentials_that_cannot_be_had_are_a_reason(tmp_path, user, reason):
    path = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1", user)
    snapshot = await KubeSource("models", None, kubeconfig=path, random=Random(1)).read_once()
    assert is_unreadable(snapshot)
    assert reason in snapshot.reason
    assert "refresh-token" not in snapshot.reason


@pytest.mark.usefixtures("quick")
async def test_a_kubeconfig_that_comes_late_is_used(tmp_path, kubeconfig):
    source = KubeSource("models", None, kubeconfig=tmp_path / "kubeconfig", random=Random(1))
    assert source.describe() == "configmap models"
    async with (
        scripted_kube([listed("10", configmap("9", ONE))], [stream()]) as server,
        running(source) as published,
    ):
        await published.wait_for(is_unreadable)
        kubeconfig(server.url)
        await published.wait_files(ONE)


async def test_outside_a_pod_and_without_a_kubeconfig_that_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    nowhere = str(tmp_path / "none")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", nowhere)
    snapshot = await KubeSource("models", None, kubeconfig=None, random=Random(1)).read_once()
    assert is_unreadable(snapshot)
    assert snapshot.reason == (
        f"no ServiceAccount (Service host/port is not set.), and no {nowhere}"
    )


@pytest.mark.parametrize("name", ["", "Models", "a,b", "a/b", "models=x", "-a", "a" * 254])
def test_impossible_names_are_refused(name):
    with pytest.raises(ValueError, match="cannot be the name"):
        KubeSource(name, None, kubeconfig=None, random=Random(1))
    with pytest.raises(ValueError, match="cannot be the name"):
        KubeSource("models", name, kubeconfig=None, random=Random(1))


LEAST_SECONDS = BACKOFF_FIRST_SECONDS / 2


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded_and_never_shrinks(failures, share):
    delay = backoff_seconds(failures, share)
    assert LEAST_SECONDS <= delay <= BACKOFF_MAX_SECONDS
    assert backoff_seconds(failures + 1, share) >= delay


@pytest.mark.parametrize("failures", [1, 2, 5, 8, 100])
def test_backoff_is_drawn_from_the_whole_step(failures):
    step = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** (failures - 1))
    assert backoff_seconds(failures, 0.0) == LEAST_SECONDS
    assert backoff_seconds(failures, 0.5) == pytest.approx((LEAST_SECONDS + step) / 2)
    assert backoff_seconds(failures, 1.0) == step


@pytest.mark.parametrize(("outage", "most"), [(2.0, 80), (5.0, 45), (10.0, 35)])
def test_backoff_brings_a_hundred_back_spread(outage, most):
    random = Random(1)
    times = []
    for _ in range(100):
        at, failures = 0.0, 0
        while at < outage:
            failures += 1
            at += backoff_seconds(failures, random.random())
        times.append(at)
    assert max(sum(start <= at < start + 1.0 for at in times) for start in times) <= most


async def _chunks(parts):
    for part in parts:
        yield part


@given(
    st.lists(
        st.binary(min_size=1, max_size=8).filter(lambda one: b"\n" not in one and one.strip())
    ),
    st.lists(st.integers(0, 200)),
)
async def test_lines_do_not_depend_on_where_chunks_are_cut(lines, cuts):
    whole = b"".join(line + b"\n" for line in lines)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    parts = [whole[a:b] for a, b in itertools.pairwise(places)]
    assert [line async for line in split_lines(_chunks(parts))] == lines


async def test_a_stream_that_ends_within_a_line_is_an_error():
    with pytest.raises(KubeUnavailable, match="within an event"):
        [line async for line in split_lines(_chunks([b"a\n", b"b"]))]


def test_every_error_of_the_api_is_a_kube_error():
    leaves = {KubeUnavailable, KubeProtocolError, errors.KubeDenied, errors.KubeGone}
    of_writes = {errors.KubeNotFound, errors.KubeConflict, errors.KubeInvalid}
    assert set(KubeError.__subclasses__()) == leaves | of_writes | {errors.KubeConfigUnusable}
