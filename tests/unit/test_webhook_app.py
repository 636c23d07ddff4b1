"""The routes of the admission server: what one review costs the others."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest

from sidecar.cluster.webhook.app import MAX_AT_ONCE, WebhookApp
from sidecar.cluster.webhook.review import Verdict
from tests.support.admission import admission, response

BODY = json.dumps(admission({"kind": "Pod"})).encode()


@contextmanager
def an_app(reviewers, seconds):
    app = WebhookApp(reviewers, review_seconds=seconds)
    try:
        yield app
    finally:
        app.close()


async def post(app, path, *messages):
    """Send one request, in the messages that a server makes of it; status and body."""
    coming = iter(messages or ({"type": "http.request", "body": BODY},))
    sent = []

    async def receive():
        for message in coming:
            return message
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": path}, receive, send)
    start, body = sent
    return start["status"], body["body"]


@pytest.fixture
def stuck():
    """A reviewer that does not come to an end before the test does."""
    end = threading.Event()

    def review(_review):
        end.wait(30)
        return Verdict()

    yield review
    end.set()


async def test_who_waits_for_one_path_is_not_in_the_way_of_another(stuck):
    with an_app({"/stuck": stuck, "/quick": lambda _: Verdict()}, 20.0) as app:
        waiting = [asyncio.create_task(post(app, "/stuck")) for _ in range(MAX_AT_ONCE * 2)]
        status, body = await asyncio.wait_for(post(app, "/quick"), 10)
        assert (status, response(body)["allowed"]) == (200, True)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_a_review_without_end_is_answered_in_time(stuck):
    with an_app({"/stuck": stuck}, 0.05) as app:
        status, body = await post(app, "/stuck")
        assert status == 503
        assert b"no answer within 0.05 s" in body


async def test_a_body_that_does_not_come_is_not_waited_for():
    with an_app({"/quick": lambda _: Verdict()}, 0.05) as app:
        first = {"type": "http.request", "body": BODY[:10], "more_body": True}
        assert (await post(app, "/quick", first))[0] == 503


async def test_a_body_in_pieces_is_put_together():
    with an_app({"/quick": lambda _: Verdict(warnings=("w",))}, 20.0) as app:
        first = {"type": "http.request", "body": BODY[:10], "more_body": True}
        status, body = await post(app, "/quick", first, {"type": "http.request", "body": BODY[10:]})
        assert status == 200
        assert response(body)["warnings"] == ["w"]


async def test_a_caller_who_leaves_is_no_defect():
    with an_app({"/quick": lambda _: Verdict()}, 20.0) as app:
        assert (await post(app, "/quick", {"type": "http.disconnect"}))[0] == 400


async def test_a_refusal_is_an_answer():
    with an_app({"/no": lambda _: Verdict(message="because")}, 20.0) as app:
        status, body = await post(app, "/no")
        assert status == 200
        assert response(body)["status"]["message"] == "because"
