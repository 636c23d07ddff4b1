"""Manifests of public shapes through ``inject``, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sidecar.cluster.inject import Options, inject_stream, remove_stream
from sidecar.cluster.inject.asked import parse_settings
from sidecar.flags import parse_bytes
from tests.support.inject import GOLDEN, OPTIONS, inputs, output, pods_of

ROUTER = """\
# A router, which is no engine.
apiVersion: apps/v1
kind: Deployment
metadata: {name: router}
spec:
  template:
    spec: {containers: [{name: router, image: router:1}]}   # one line
"""
JOB = """\
apiVersion: batch/v1
kind: Job
metadata: {name: batch}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: vllm, image: vllm/vllm-openai:v0.32.0, args: [--model=m/m, --enable-lora]}
"""


@pytest.mark.parametrize("path", inputs(), ids=lambda path: path.stem)
def test_a_manifest_becomes_its_golden_file(path: Path):
    answer = inject_stream([(path.name, path.read_text())], OPTIONS)
    assert answer.problems == []
    assert answer.text == output(path).read_text()


@pytest.mark.parametrize("path", inputs(), ids=lambda path: path.stem)
def test_injecting_an_injected_manifest_changes_nothing(path: Path):
    text = output(path).read_text()
    assert inject_stream([(path.name, text)], OPTIONS).text == text


@pytest.mark.parametrize("path", inputs(), ids=lambda path: path.stem)
def test_removal_gives_back_the_manifest(path: Path):
    removed = remove_stream([(path.name, output(path).read_text())])
    before = [one for one in yaml.safe_load_all(path.read_text()) if one]
    assert [one for one in yaml.safe_load_all(removed.text) if one] == before


@pytest.mark.parametrize("path", inputs(), ids=lambda path: path.stem)
def test_the_store_is_at_one_path_for_both_and_larger_than_the_agent_fills_it(path: Path):
    for pod in pods_of(output(path).read_text()):
        spec = pod["spec"]
        agents = [one for one in spec.get("initContainers", ()) if one["name"] == "model-sidecar"]
        if not agents:
            continue
        settings = parse_settings(agents[0]["args"][1:])
        seen = [
            mount
            for one in (*agents, *spec["containers"])
            for mount in one.get("volumeMounts", ())
            if mount["mountPath"] == settings.store_dir
        ]
        assert len(seen) == 2
        assert [mount.get("readOnly", False) for mount in seen] == [False, True]
        volume = next(one for one in spec["volumes"] if one["name"] == seen[0]["name"])
        if "emptyDir" in volume:
            assert settings.store_max_bytes is not None
            assert settings.store_max_bytes < parse_bytes(volume["emptyDir"]["sizeLimit"])


@pytest.mark.parametrize("path", inputs(), ids=lambda path: path.stem)
def test_the_pods_own_settings_stay(path: Path):
    for before, after in zip(
        pods_of(path.read_text()), pods_of(output(path).read_text()), strict=True
    ):
        for name in ("securityContext", "automountServiceAccountToken", "serviceAccountName"):
            assert before["spec"].get(name) == after["spec"].get(name)
        added = [one for one in after["spec"].get("initContainers", ()) if "startupProbe" in one]
        assert added == []


def test_the_engines_own_port_is_taken_and_not_the_pools():
    pods = pods_of(output(GOLDEN / "llm-d-prefill-decode.yaml").read_text())
    args = [pod["spec"]["initContainers"][-1]["args"] for pod in pods]
    urls = [next(one for one in some if "engine-url" in one) for some in args]
    assert urls == ["--engine-url=http://127.0.0.1:8200", "--engine-url=http://127.0.0.1:8000"]


def test_documents_that_do_not_change_are_passed_on_byte_for_byte():
    text = f"{ROUTER}--- # next\n{JOB}---\n\n# nothing\n---\nkind:   Odd\napiVersion: x/v1\n"
    answer = inject_stream([("all", text)], OPTIONS)
    first, second, *others = answer.text.split("---")
    assert first == ROUTER
    assert second.startswith(" # next\napiVersion: batch/v1\nkind: Job\n")
    assert "---".join(others) == "\n\n# nothing\n---\nkind:   Odd\napiVersion: x/v1\n"
    assert (answer.changed, answer.engines, answer.lost_comments) == (1, 1, False)


def test_files_come_out_in_their_order_each_a_document_of_its_own():
    answer = inject_stream([("a", ROUTER.rstrip("\n")), ("b", JOB), ("c", ROUTER)], OPTIONS)
    kinds = [one["kind"] for one in yaml.safe_load_all(answer.text)]
    assert kinds == ["Deployment", "Job", "Deployment"]


def test_lost_comments_are_told():
    text = JOB.replace("restartPolicy: Never", "restartPolicy: Never   # once")
    assert inject_stream([("a", text)], OPTIONS).lost_comments


def test_items_of_a_list_are_injected_and_json_stays_json():
    job = yaml.safe_load(JOB)
    listed = {"apiVersion": "v1", "kind": "List", "items": [{"kind": "Odd"}, job]}
    answer = inject_stream([("list", json.dumps(listed))], OPTIONS)
    odd, injected = json.loads(answer.text)["items"]
    assert odd == {"kind": "Odd"}
    assert injected["spec"]["template"]["spec"]["initContainers"][0]["name"] == "model-sidecar"
    removed = remove_stream([("list", answer.text)])
    assert json.loads(removed.text) == listed


@pytest.mark.parametrize(
    "kind", ["InferenceService", "LLMInferenceService", "ServingRuntime", "TrainedModel"]
)
def test_kinds_of_kserve_are_passed_on(kind: str):
    text = JOB.replace("batch/v1", "serving.kserve.io/v1beta1").replace("Job", kind)
    answer = inject_stream([("a", text)], OPTIONS)
    assert (answer.text, answer.engines) == (text, 0)


def test_cron_jobs_are_injected():
    job = yaml.safe_load(JOB)
    cron = {
        **job,
        "kind": "CronJob",
        "spec": {"schedule": "@daily", "jobTemplate": {"spec": job["spec"]}},
    }
    (found,) = yaml.safe_load_all(inject_stream([("a", yaml.safe_dump(cron))], OPTIONS).text)
    spec = found["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["initContainers"][0]["restartPolicy"] == "Always"


def test_quotes_stay_where_kubernetes_would_read_something_else_without_them():
    value = '[{name: A, value: "y"}, {name: B, value: \'1e3\'}, {name: C, value: "0x1f"}]'
    text = JOB.replace("args:", f"env: {value}, args:")
    answer = inject_stream([("a", text)], OPTIONS).text
    for line in ('value: "y"', "value: '1e3'", 'value: "0x1f"'):
        assert line in answer


def test_aliases_share_nothing_after_injection():
    text = """\
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  containers:
  - {name: other, image: other:v1, env: &same [{name: A, value: b}]}
  - {name: vllm, image: vllm/vllm-openai:v1, args: [--enable-lora], env: *same}
"""
    (pod,) = yaml.safe_load_all(inject_stream([("a", text)], OPTIONS).text)
    first, second = (one["env"] for one in pod["spec"]["containers"])
    assert (len(first), len(second)) == (1, 2)


def test_the_role_that_the_api_needs_is_written_once_and_taken_away_again():
    text = f"{JOB}---\n{JOB.replace('batch}', 'other}')}"
    answer = inject_stream([("a", text)], Options(configmap="chat", api=True))
    values = list(yaml.safe_load_all(answer.text))
    assert [one["kind"] for one in values] == ["Job", "Job", "Role", "RoleBinding"]
    assert values[2]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["chat"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    assert values[3]["subjects"] == [{"kind": "ServiceAccount", "name": "default"}]
    again = inject_stream([("a", answer.text)], Options(configmap="chat", api=True))
    assert (again.text, again.changed) == (answer.text, 0)
    removed = list(yaml.safe_load_all(remove_stream([("a", answer.text)]).text))
    assert removed == list(yaml.safe_load_all(text))


def test_every_problem_is_told_with_its_object_and_place():
    text = JOB.replace("--enable-lora", "--port=x")
    answer = inject_stream([("all.yaml", f"{text}---\n{text}---\na: [")], OPTIONS)
    assert [one.where for one in answer.problems][:2] == [
        "all.yaml: Job batch: spec.template.spec.containers[0].args"
    ] * 2
    assert "no YAML" in answer.problems[-1].what


GROUP = """\
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: big}
spec:
  leaderWorkerTemplate:
    size: 2
    leaderTemplate: &pod
      spec:
        containers: [{name: vllm, image: vllm/vllm-openai:v1, args: [--enable-lora]}]
    workerTemplate: *pod
"""


def test_a_store_that_workers_cannot_see_is_refused():
    (problem,) = inject_stream([("a", GROUP)], OPTIONS).problems
    assert problem.where == "a: LeaderWorkerSet big: spec.leaderWorkerTemplate.workerTemplate.spec"
    assert "cannot see the store" in problem.what
    assert "store-volume" in problem.hint


def test_a_leader_without_a_template_of_its_own_is_refused_unless_it_is_alone():
    value = yaml.safe_load(GROUP)
    del value["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    (problem,) = inject_stream([("a", json.dumps(value))], OPTIONS).problems
    assert problem.where.endswith("spec.leaderWorkerTemplate.leaderTemplate")
    value["spec"]["leaderWorkerTemplate"]["size"] = 1
    answer = inject_stream([("a", json.dumps(value))], OPTIONS)
    group = json.loads(answer.text)["spec"]["leaderWorkerTemplate"]
    assert group["workerTemplate"]["spec"]["initContainers"][0]["name"] == "model-sidecar"
    assert json.loads(remove_stream([("a", answer.text)]).text) == value
