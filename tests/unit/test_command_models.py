"""``models`` on the command line: flags to entries, what is printed, exit codes."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import ExitStack

import pytest
import yaml

from sidecar.cli import main
from tests.support.configmap_api import ConfigMaps, serve_configmaps
from tests.support.kube_api import refused, write_kubeconfig

KEY = "models.yaml"
PIN = "sha256:" + "a" * 64


class Served:
    """ConfigMaps behind a socket, served by a thread, and the command that reaches them."""

    def __init__(self, api: ConfigMaps, kubeconfig: str, capsys: pytest.CaptureFixture[str]):
        self.api = api
        self._flags = [f"--kubeconfig={kubeconfig}"]
        self._capsys = capsys

    def models(self, operation: str, *argv: str, configmap: str = "models") -> tuple[int, str, str]:
        code = main(["models", operation, f"--configmap={configmap}", *self._flags, *argv])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def held(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = yaml.safe_load(self.api.data("models")[KEY])["models"]
        return found


@pytest.fixture
def served(tmp_path, capsys):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    context = serve_configmaps()
    with ExitStack() as stack:
        stack.callback(loop.close)
        thread.start()
        stack.callback(thread.join)
        stack.callback(loop.call_soon_threadsafe, loop.stop)
        opening = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop)
        api = opening.result(10)
        stack.callback(
            lambda: asyncio.run_coroutine_threadsafe(
                context.__aexit__(None, None, None), loop
            ).result(10)
        )
        kubeconfig = write_kubeconfig(tmp_path / "config", api.url, {})
        yield Served(api, str(kubeconfig), capsys)


def usage_error(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main(["models", *argv])
    assert caught.value.code == 64
    return capsys.readouterr().err


def test_every_native_field_has_its_flag(served):
    served.api.put("models")
    flags = (
        "--source=s3://adapters/a/",
        "--kind=lora",
        f"--digest={PIN}",
        "--base-model=base",
        "--readiness=required",
        "--rollout-percent=12.5",
        "--rollout-otherwise=/old",
        "--warmup",
        "--pinned=false",
        "--credentials=team-a",
        "--refresh-seconds=300",
        '--parameters={"is_3d_lora_weight": true}',
    )
    assert served.models("add", "a", *flags)[0] == 0
    assert served.held() == [
        {
            "name": "a",
            "kind": "lora",
            "source": "s3://adapters/a/",
            "digest": PIN,
            "base_model": "base",
            "readiness": "required",
            "rollout": {"percent": 12.5, "otherwise": "/old"},
            "warmup": True,
            "pinned": False,
            "credentials": "team-a",
            "refresh_seconds": 300,
            "parameters": {"is_3d_lora_weight": True},
        }
    ]


def test_every_field_of_michelangelo_has_its_flag(served):
    served.api.put("models", {"model-list.json": "[]"})
    flags = ("--source=s3://b/a/", "--deployment=eu", "--phase=canary", "--canary-pod=p-0")
    assert served.models("add", "a", *flags)[0] == 0
    assert json.loads(served.api.data("models")["model-list.json"]) == [
        {
            "name": "a",
            "storage_path": "s3://b/a/",
            "deployment_name": "eu",
            "phase": "canary",
            "canary_pod": "p-0",
        }
    ]
    _, out, _ = served.models("list")
    assert out.splitlines()[1].split(maxsplit=4)[4] == "deployment eu, canary on p-0"
    _, out, _ = served.models("remove", "a")
    assert out.splitlines() == [
        "configmap chat/models, model-list.json: a is not there",
        "a is still there for other deployments (--deployment): eu",
    ]
    assert served.models("remove", "a", "--deployment=eu")[0] == 0
    assert served.api.data("models") == {"model-list.json": "[]"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "OPERATION"),
        (("list",), "--configmap"),
        (("add", "a", "--configmap=m"), "--source"),
        (("add", "a", "--configmap=m", "--source=/a", "--wait"), "-l SELECTOR"),
        (("remove", "a", "--configmap=m", "-l", "app=x"), "give both"),
        (("add", "a", "--configmap=m", "--source=/a", "--parameters=[1]"), "a JSON object"),
        (("add", "a", "--configmap=m", "--source=/a", "--pinned=maybe"), "true or false"),
        (("remove", "a", "--configmap=m", "--wait", "-l", "a=b", "--port=0"), "1 to 65535"),
        (("list", "--configmap=m", "--format=kserve"), "invalid choice"),
    ],
)
def test_command_line_that_makes_no_sense_is_bad_usage(argv, words, capsys):
    assert words in usage_error(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("add", "a", "--source=/a", "--phase=canary"), "--phase: documents of format native"),
        (("add", "a", "--source=/a", "--rollout-otherwise=/b"), "needs --rollout-percent"),
        (("list", "--namespace=a/b"), "cannot be the name"),
        (("list", "--format=michelangelo", "--config-key=x.yaml"), "model-list.json"),
    ],
)
def test_flags_that_do_not_fit_are_bad_usage(served, argv, words):
    served.api.put("models")
    with pytest.raises(SystemExit) as caught:
        served.models(*argv)
    assert caught.value.code == 64
    assert words in served._capsys.readouterr().err
    assert served.api.writes == []


def test_each_operation_tells_what_it_did(served):
    place = "configmap chat/models"
    assert served.models("exists") == (2, f"{place} does not exist\n", "")
    assert served.models("create") == (0, f"{place} created\n", "")
    assert served.models("create") == (0, f"{place} exists already\n", "")
    assert served.models("exists") == (0, f"{place} exists\n", "")
    assert served.models("list") == (0, f"{place} asks for nothing\n", "")
    add = ("add", "a", "--source=/a")
    assert served.models(*add) == (0, f"{place}, {KEY}: added a\n", "")
    assert served.models(*add) == (0, f"{place}, {KEY}: a is there already\n", "")
    assert served.models("remove", "a") == (0, f"{place}, {KEY}: removed a\n", "")
    assert served.models("remove", "a") == (0, f"{place}, {KEY}: a is not there\n", "")
    assert served.models("delete") == (0, f"{place} deleted\n", "")
    assert served.models("delete") == (0, f"{place} does not exist\n", "")


def test_json_tells_the_same(served):
    _, out, _ = served.models("exists", "--json")
    assert json.loads(out) == {"configmap": "configmap chat/models", "exists": False}
    served.api.put("models", {KEY: "models: [{name: a, source: /a}] # one\n"})
    _, out, _ = served.models("add", "b", "--source=/b", "--json")
    told = json.loads(out)
    assert told.pop("digest")
    assert told == {
        "configmap": "configmap chat/models",
        "operation": "add",
        "name": "b",
        "changed": True,
        "key": KEY,
        "problems": [],
        "comments_lost": True,
        "converged": None,
    }
    code, out, _ = served.models("list", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["documents"][0]["models"][1] == {
        "name": "b",
        "kind": "-",
        "source": "/b",
        "notes": "initial",
    }
    assert (told["valid"], told["problems"]) == (True, [])


def test_comments_that_were_lost_are_told(served):
    served.api.put("models", {KEY: "models: [{name: a, source: /a}] # one\n"})
    _, out, _ = served.models("remove", "a")
    assert "comments in the document were lost" in out


def test_entry_that_agents_cannot_use_after_all_is_told(served):
    text = "models:\n- name: a\n  source: /a\n  digst: x\n"
    served.api.put("models", {KEY: text, "model-list.json": '[{"name": "b", "s3_path": "/b"}]'})
    code, out, _ = served.models("add", "a", "--source=/b", "--format=native")
    assert code == 0
    assert f"agents cannot use it: {KEY}: models[0].digst (line 4): the field 'digst' is " in out
    code, out, _ = served.models("add", "b", "--source=/b", "--format=native", "--json")
    assert code == 0
    (problem,) = json.loads(out)["problems"]
    assert "'b' is also in model-list.json" in problem["what"]


def test_list_shows_no_secret_and_every_problem(served):
    secret = "https://user:s3cret@host/a"
    broken = "- {name: b, source: x}\n"
    served.api.put("models", {KEY: f"models:\n- {{name: a, source: '{secret}'}}\n{broken}"})
    for flags in ((), ("--json",)):
        code, out, _ = served.models("list", *flags)
        assert code == 0
        assert "s3cret" not in out
        assert "https://***@host/a" in out
        assert "models[1].source (line 3)" in out


def test_list_of_a_broken_document_fails(served):
    served.api.put("models", {KEY: "models: ["})
    code, out, _ = served.models("list")
    assert code == 1
    assert "it is no YAML" in out


@pytest.mark.parametrize(
    ("operation", "method", "verbs"),
    [
        (("list",), "GET", "get"),
        (("add", "a", "--source=/a"), "PUT", "get, update"),
        (("create",), "POST", "create"),
        (("delete",), "DELETE", "get, delete"),
    ],
)
def test_refusal_tells_which_rights_are_needed(served, operation, method, verbs):
    served.api.put("models", {KEY: "models: []"})
    served.api.faults = {method: [refused(403, 'User "x" cannot do it'), refused(403, "a policy")]}
    code, out, err = served.models(*operation)
    assert (code, out) == (1, "")
    assert err.endswith(f"; needs {verbs} on configmaps/models\n")
    assert served.models(*operation)[2].endswith("403 a policy\n")


def test_entry_that_agents_would_refuse_is_told_with_what_to_do(served):
    served.api.put("models")
    code, _, err = served.models("add", "a", "--source=a/b")
    assert code == 1
    assert err.startswith("model-sidecar models: the entry 'a': the source is no URL and no ")
    assert "write an absolute path" in err


def test_nothing_steers_the_terminal(served):
    served.api.put("models", {KEY: 'models:\n- {name: a, source: "/a\\e[2J"}\n'})
    for argv in (("list",), ("add", "b\x1b[2J", "--source=/b")):
        _, out, err = served.models(*argv)
        assert "\x1b" not in out + err


def test_waiting_for_a_document_that_is_not_there_ends_at_once(served):
    served.api.put("models")
    code, out, _ = served.models("remove", "a", "--wait", "-l", "app=x", "--json")
    assert code == 0
    assert json.loads(out)["converged"] is None
