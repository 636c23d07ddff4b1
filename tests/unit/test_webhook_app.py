"""The routes of the admission server: what one review costs the others."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest

from sidecar.cluster.webhook.app import MAX_BODY_BYTES, MAX_HELD_BYTES, WebhookApp
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
        waiting = [asyncio.create_task(post(app, "/stuck")) for _ in range(16)]
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


async def test_the_next_review_does_not_wait_for_one_that_has_run_out_of_time(stuck):
    calls = iter([stuck])

    def review(asked):
        return next(calls, lambda _: Verdict())(asked)

    with an_app({"/mixed": review}, 0.5) as app:
        assert (await post(app, "/mixed"))[0] == 503
        assert (await post(app, "/mixed"))[0] == 200


async def test_a_body_that_does_not_come_takes_nobodys_turn():
    with an_app({"/quick": lambda _: Verdict()}, 40.0) as app:
        first = {"type": "http.request", "body": BODY[:10], "more_body": True}
        slow = [asyncio.create_task(post(app, "/quick", first)) for _ in range(16)]
        assert (await asyncio.wait_for(post(app, "/quick"), 5))[0] == 200
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)


async def test_more_than_may_be_held_is_asked_to_come_again(stuck):
    large = {"type": "http.request", "body": b" " * MAX_BODY_BYTES, "more_body": True}
    with an_app({"/stuck": stuck}, 8.0) as app:
        held = [
            asyncio.create_task(post(app, "/stuck", large))
            for _ in range(MAX_HELD_BYTES // MAX_BODY_BYTES)
        ]
        # They have begun before this one, because tasks begin in their order.
        status, body = await asyncio.create_task(post(app, "/stuck"))
        assert (status, b"ask again" in body) == (503, True)
        for task in held:
            task.cancel()
        await asyncio.wait(held)


async def test_a_defect_is_answered_and_told_without_what_the_pod_holds(caplog):
    def review(_review):
        raise KeyError("hunter2")

    with an_app({"/defect": review}, 20.0) as app:
        status, body = await post(app, "/defect")
    assert (status, json.loads(body)) == (500, {"error": "the review failed: KeyError"})
    (record,) = caplog.records
    assert "test_webhook_app.py:" in record.getMessage()
    assert "hunter2" not in caplog.text
