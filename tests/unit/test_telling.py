"""Events and conditions of the agent's own pod: written in the background, off where refused."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.fake import FakeEngine
from lab.tiny_model import write_lora
from sidecar.board import Board
from sidecar.cluster.conditions import Condition, conditions_of, due_in
from sidecar.cluster.pod import RETRY_SECONDS
from sidecar.cluster.telling import open_telling
from sidecar.core.status import EngineCondition, EngineStatus, State, TargetStatus
from sidecar.opening import first_status
from sidecar.settings import Settings
from tests.support.agent import Running, running_agent
from tests.support.scripted_api import Call, ScriptedApi, scripted_api

EVENTS = "/api/v1/namespaces/chat/events"
STATUS = "/api/v1/namespaces/chat/pods/pod-0/status"
WAIT_SECONDS = 20.0


def accept(call: Call) -> object:
    return {"kind": "Whatever"}


@pytest.fixture
def lora(tmp_path: Path) -> Callable[[int], str]:
    def write(seed: int) -> str:
        path = tmp_path / "sources" / f"l{seed}"
        write_lora(path, seed=seed, rank=4, hidden=32, layers=1)
        return str(path)

    return write


async def until(run: Running, condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await run.agent.board.wait_changed(0.02)


def telling(api: ScriptedApi, **flags: Any) -> dict[str, Any]:
    return {"kubeconfig": str(api.kubeconfig), "pod_namespace": "chat", **flags}


def set_conditions(api: ScriptedApi) -> list[dict[str, str]]:
    return [
        {one["type"]: one["status"] for one in call.body["status"]["conditions"]}
        for call in api.of("PATCH")
    ]


async def test_events_tell_loaded_failed_and_healed(tmp_path, lora):
    with scripted_api(tmp_path, accept) as api:
        async with running_agent(tmp_path, **telling(api, events=True)) as run:
            run.write([{"name": "sql", "source": lora(1)}, {"name": "gone", "source": "/nowhere"}])
            await until(run, lambda: len(api.of("POST")) >= 2)
            run.engine.kill()
            await run.wait(lambda status: "sql" not in run.engine.held)
            run.engine.restart()
            await until(run, lambda: api.of("POST")[-1].body["reason"] == "EngineHealed")
    posts = api.of("POST")
    assert {call.path for call in posts} == {EVENTS}
    said = {call.body["reason"]: call.body for call in posts}
    assert set(said) == {"TargetLoaded", "TargetFailed", "EngineHealed"}
    assert said["TargetFailed"]["type"] == "Warning"
    assert "gone: NotFound" in said["TargetFailed"]["message"]
    assert said["TargetLoaded"]["type"] == "Normal"
    involved = said["TargetLoaded"]["involvedObject"]
    assert (involved["kind"], involved["name"], involved["uid"]) == ("Pod", "pod-0", "uid-0")
    # What came back after the restart is told by that one Event.
    assert [call.body["reason"] for call in posts].count("TargetLoaded") == 1


async def test_repeats_are_counted_and_an_expired_event_is_written_anew(tmp_path):
    gone = iter([404])

    def reply(call: Call) -> object:
        return next(gone, {}) if call.method == "PATCH" else {}

    with scripted_api(tmp_path, reply) as api:
        async with running_agent(tmp_path, **telling(api, events=True)) as run:
            run.write([{"name": "gone", "source": "/nowhere"}])
            await until(run, lambda: len(api.of("POST")) >= 2)
    (first, second), (patch, *_) = api.of("POST")[:2], api.of("PATCH")
    assert patch.path == f"{EVENTS}/{first.body['metadata']['name']}"
    assert patch.body["count"] >= 2
    assert patch.content_type == "application/merge-patch+json"
    assert second.body["count"] == patch.body["count"]
    assert second.body["firstTimestamp"] == first.body["firstTimestamp"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"events": True}, "--events is off until the agent restarts"),
        ({"condition": ("converged",)}, "--condition is off until the agent restarts"),
    ],
)
async def test_without_the_right_it_is_off_with_one_line(tmp_path, lora, caplog, flags, said):
    with scripted_api(tmp_path, lambda call: 403) as api:
        async with running_agent(tmp_path, **telling(api, **flags)) as run:
            run.write([{"name": "sql", "source": lora(1)}])
            await until(run, lambda: api.calls)
            await until(run, lambda: said in caplog.text)
            await run.apply([{"name": "law", "source": lora(2)}])
            await run.apply([])
    assert len(api.calls) == 1
    lines = [one for one in caplog.records if one.name.startswith("sidecar.cluster")]
    assert [one.levelno for one in lines] == [logging.WARNING]
    assert "needs" in lines[0].getMessage()


class Played:
    """One of the tasks on a board and a clock that the test moves."""

    def __init__(self, api: ScriptedApi, **flags: Any) -> None:
        self.now = 1000.0
        self.attempts = 0
        self.up = replace(
            first_status(Settings(), "x"),
            engine=EngineStatus(kind="vllm", urls=(), state=EngineCondition.UP),
        )
        self.board = Board(self.up)
        settings = Settings(**telling(api, **flags), pod_name="pod-0", pod_uid="u")
        (self.work,) = open_telling(settings, self.board, lambda: self.now).values()

    def fail(self) -> None:
        """Half a second later, one more attempt has failed."""
        self.now += 0.5
        self.attempts += 1
        failed = TargetStatus(
            name="sql",
            kind=None,
            source="/x",
            desired=True,
            readiness="initial",
            state=State.FAILED,
            reason="NotFound",
            attempts=self.attempts,
        )
        self.board.publish(replace(self.up, targets={"sql": failed}))

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the clock run until it is so."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self.now += 0.01
                self.board.publish(self.board.status)
                await self.board.wait_changed(0.01)

    async def fail_often(self) -> None:
        """20 failures in 10 s; whoever is told has every opportunity to do something about it."""
        for _ in range(20):
            self.fail()
            await self.board.wait_changed(0.01)


@asynccontextmanager
async def played(api: ScriptedApi, **flags: Any) -> AsyncIterator[Played]:
    one = Played(api, **flags)
    task = asyncio.ensure_future(one.work())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.wait([task])


BOTH = pytest.mark.parametrize("flags", [{"events": True}, {"condition": ("ready",)}])


@BOTH
async def test_an_api_server_that_is_away_is_asked_again_after_a_while(tmp_path, caplog, flags):
    away = True
    with scripted_api(tmp_path, lambda call: 503 if away else {}) as api:
        async with played(api, **flags) as one:
            one.fail()
            await one.until(lambda: "wait: the API server answered 503" in caplog.text)
            await one.fail_often()
            assert len(api.calls) == 1
            away = False
            one.now += RETRY_SECONDS
            one.fail()
            await one.until(lambda: len(api.calls) == 2)
    assert len(caplog.records) == 1
    if "events" in flags:
        assert api.calls[1].body["count"] == one.attempts


@BOTH
async def test_who_was_refused_does_not_ask_again(tmp_path, caplog, flags):
    with scripted_api(tmp_path, lambda call: 403) as api:
        async with played(api, **flags) as one:
            one.fail()
            await one.until(lambda: "is off until the agent restarts" in caplog.text)
            for _ in range(3):
                one.now += RETRY_SECONDS
                await one.fail_often()
    assert len(api.calls) == 1
    assert len(caplog.records) == 1


@BOTH
async def test_credentials_that_are_not_accepted_may_be_later(tmp_path, flags):
    codes = iter([401])
    with scripted_api(tmp_path, lambda call: next(codes, None) or {}) as api:
        async with played(api, **flags) as one:
            one.fail()
            await one.until(lambda: len(api.calls) == 1)
            one.now += 2 * RETRY_SECONDS
            one.fail()
            await one.until(lambda: len(api.calls) >= 2)


def test_nothing_is_said_of_a_pod_of_which_nothing_is_known_yet():
    # An agent that restarted would take a pod out of service that serves well.
    assert conditions_of(first_status(Settings(), "x"), ("ready", "converged")) is None


async def test_an_api_server_that_hangs_holds_nothing_up(tmp_path, lora):
    served = asyncio.Event()
    loop = asyncio.get_running_loop()
    release = threading.Event()

    def hang(call: Call) -> object:
        loop.call_soon_threadsafe(served.set)
        release.wait(30)
        return {}

    with scripted_api(tmp_path, hang) as api:
        flags = telling(api, events=True, condition=("ready",))
        async with running_agent(tmp_path, **flags) as run:
            await run.apply([{"name": "sql", "source": lora(1)}])
            async with asyncio.timeout(WAIT_SECONDS):
                await served.wait()
            status = await run.apply([{"name": "law", "source": lora(2)}])
            assert status.ready
            assert set(run.engine.held) == {"law"}
        release.set()


async def test_conditions_follow_the_status_and_outlive_the_agent(tmp_path, lora):
    engine = FakeEngine()
    flags: dict[str, Any] = {"condition": ("ready", "converged")}
    ready, converged = "model-sidecar.io/ready", "model-sidecar.io/converged"
    with scripted_api(tmp_path, accept) as api:
        async with running_agent(tmp_path, engine, **telling(api, **flags)) as run:
            run.write([{"name": "sql", "source": lora(1)}])
            both = {ready: "True", converged: "True"}
            await until(run, lambda: both in set_conditions(api))
            run.write([{"name": "gone", "source": "/nowhere"}])
            await until(run, lambda: set_conditions(api)[-1] == {ready: "True", converged: "False"})
        said = set_conditions(api)
        # An agent that ends says nothing of the pod.
        assert said[-1][ready] == "True"
        before = len(said)
        async with running_agent(tmp_path, engine, **telling(api, **flags)) as run:
            await until(run, lambda: len(set_conditions(api)) > before)
        assert all(one[ready] == "True" for one in set_conditions(api)[before:])
    patch = api.of("PATCH")[before - 1]
    assert (patch.path, patch.content_type) == (STATUS, "application/strategic-merge-patch+json")
    assert patch.body["metadata"] == {"uid": "uid-0"}
    conditions = {one["type"]: one for one in patch.body["status"]["conditions"]}
    assert conditions[converged]["reason"] == "NotConverged"
    assert conditions[converged]["message"] == "gone (NotFound)"
    assert conditions[ready]["reason"] == "Ready"
    times = [one["lastTransitionTime"] for one in conditions.values()]
    assert all(time.endswith("Z") for time in times)


async def test_only_the_conditions_that_were_asked_for_are_set(tmp_path):
    with scripted_api(tmp_path, accept) as api:
        async with running_agent(tmp_path, **telling(api, condition=("ready",))) as run:
            await run.apply([])
            await until(run, lambda: api.of("PATCH"))
    assert {name for one in set_conditions(api) for name in one} == {"model-sidecar.io/ready"}


async def test_nothing_is_told_unless_asked_for(tmp_path, lora):
    with scripted_api(tmp_path, accept) as api:
        async with running_agent(tmp_path) as run:
            await run.apply([{"name": "sql", "source": lora(1)}])
    assert api.calls == []


async def test_events_without_the_pods_uid_are_off(tmp_path, lora, caplog):
    with scripted_api(tmp_path, accept) as api:
        async with running_agent(tmp_path, **telling(api, events=True, pod_uid="")) as run:
            await run.apply([{"name": "sql", "source": lora(1)}])
    assert api.calls == []
    assert "needs POD_UID" in caplog.text


def test_the_client_is_imported_only_when_something_is_told():
    code = (
        "import sys\n"
        "from sidecar.agent import Agent\n"
        "from sidecar.opening import open_adapter, open_source\n"
        "from sidecar.settings import Settings\n"
        "settings = Settings(engine='fake', config_dir='/x', store_dir='/x', {flags})\n"
        "Agent(settings, adapter=open_adapter(settings), source=open_source(settings))\n"
        "print('kubernetes' in sys.modules)\n"
    )
    for flags, imported in (("", "False"), ("events=True, pod_uid='u'", "True")):
        ran = subprocess.run(
            [sys.executable, "-c", code.format(flags=flags)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout.strip() == imported


def test_a_message_alone_is_set_seldom():
    def ready(message: str, is_true: bool = True) -> dict[str, Condition]:
        return {"ready": Condition(name="ready", is_true=is_true, message=message)}

    assert due_in(ready("a"), {}, 0.0, 100.0) == 0.0
    assert due_in(ready("a"), ready("a"), 100.0, 100.0) is None
    assert due_in(ready("b"), ready("a"), 100.0, 110.0) == 20.0
    assert due_in(ready("b", False), ready("a"), 100.0, 100.5) == 0.5
