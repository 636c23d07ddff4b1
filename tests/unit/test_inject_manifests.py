"""Manifests of public shapes through ``inject``, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


REDIS = ROUTER.replace("router", "redis")


@pytest.mark.parametrize(
    "annotations", ["", "metadata: {annotations: {model-sidecar.io/configmap: a}}"]
)
def test_an_engine_among_others_needs_nothing_of_them(annotations: str):
    text = JOB.replace(
        "    spec:\n",
        "    metadata: {annotations: {model-sidecar.io/configmap: m}}\n    spec:\n",
        1,
    )
    redis = REDIS.replace("  template:\n", f"  template:\n    {annotations}\n", 1)
    answer = inject_stream([("a", f"{text}---\n{redis}")], Options())
    assert (answer.problems, answer.engines, answer.unseen) == ([], 1, [])
    assert answer.text.endswith(redis)


def test_a_group_without_an_engine_is_passed_on():
    value = yaml.safe_load(GROUP.replace("vllm", "redis"))
    del value["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    answer = inject_stream([("a", json.dumps(value))], OPTIONS)
    assert (answer.problems, answer.engines) == ([], 0)


def test_pods_that_say_no_are_left_alone():
    text = JOB.replace(
        "    spec:\n", '    metadata: {labels: {model-sidecar.io/inject: "false"}}\n    spec:\n', 1
    )
    answer = inject_stream([("a", text)], OPTIONS)
    assert (answer.text, answer.engines) == (text, 0)


def test_accounts_are_read_by_both_names_and_bindings_do_not_collide():
    def job(account: str, configmap: str) -> str:
        said = f"    metadata: {{annotations: {{model-sidecar.io/configmap: {configmap}}}}}\n"
        return JOB.replace("    spec:\n", f"{said}    spec:\n      serviceAccount: {account}\n", 1)

    text = f"{job('a', 'b-c')}---\n{job('c-a', 'b').replace('batch}', 'other}')}"
    values = list(yaml.safe_load_all(inject_stream([("a", text)], Options(api=True)).text))
    bindings = [one for one in values if one["kind"] == "RoleBinding"]
    assert [one["subjects"][0]["name"] for one in bindings] == ["a", "c-a"]
    assert len({one["metadata"]["name"] for one in bindings}) == 2


def test_rights_that_are_no_longer_wanted_go():
    theirs = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: theirs}\n"
    labels = "{app.kubernetes.io/managed-by: model-sidecar-inject}"
    labelled = f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s, labels: {labels}}}\n"
    text = f"{JOB}---\n{theirs}---\n{labelled}"
    first = inject_stream([("a", text)], Options(configmap="chat", api=True)).text
    again = inject_stream([("a", first)], Options(configmap="other", api=True))
    names = [(one["kind"], one["metadata"]["name"]) for one in yaml.safe_load_all(again.text)]
    assert names[:3] == [("Job", "batch"), ("Role", "theirs"), ("Secret", "s")]
    assert [kind for kind, _ in names[3:]] == ["Role", "RoleBinding"]
    assert all("other" in name for _, name in names[3:])
    none = inject_stream([("a", first)], Options(configmap="chat")).text
    assert [one["kind"] for one in yaml.safe_load_all(none)] == ["Job", "Role", "Secret"]


CORE = [
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("null", r"~|null|Null|NULL|"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
]
"""What YAML 1.2 (10.3.2, core schema) takes for anything but a text."""


@pytest.mark.parametrize("text", ["22:30", "190:20:30.5", "=", "1:2", "-1:30", "2026-01-02"])
def test_texts_of_yaml_1_2_stay_texts(text: str):
    manifest = JOB.replace("args:", f"env: [{{name: A, value: {text}}}], args:")
    answer = inject_stream([("a", manifest)], OPTIONS)
    assert answer.problems == []
    node = yaml.compose(answer.text, Loader=yaml.BaseLoader)

    def at(node: Any, *path: str | int) -> Any:
        for part in path:
            value = node.value
            node = value[part] if isinstance(part, int) else {k.value: v for k, v in value}[part]
        return node

    path = ("spec", "template", "spec", "containers", 0, "env", 0, "value")
    found = at(node, *path)
    assert found.value == text
    assert found.style or not any(re.fullmatch(pattern, text) for _, pattern in CORE)


def test_a_key_that_stands_twice_is_refused_with_its_line():
    text = JOB.replace("metadata: {name: batch}", "metadata: {name: batch}\nmetadata: {name: b}")
    (problem,) = inject_stream([("a", text)], OPTIONS).problems
    assert problem.line == "a (line 4 of the document): the key 'metadata' stands twice"
    other = text.replace("kind: Job", "kind: Odd")
    assert inject_stream([("a", other)], OPTIONS).text == other


def test_merged_keys_are_no_key_that_stands_twice():
    text = JOB.replace("metadata: {name: batch}", "metadata: {<<: {name: a}, name: batch}")
    assert inject_stream([("a", text)], OPTIONS).problems == []


def test_aliases_cannot_grow_without_end():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    bomb = "\n".join(lines) + "\n"
    (problem,) = inject_stream([("a", JOB + bomb)], OPTIONS).problems
    assert "more than 200000 values" in problem.what
    odd = f"kind: Odd\n{bomb}"
    assert inject_stream([("a", odd)], OPTIONS).text == odd
    (problem,) = inject_stream([("a", JOB + "a: &a [*a]\n")], OPTIONS).problems
    assert "more than" in problem.what
    (problem,) = inject_stream([("a", JOB + "a: " + "[" * 5000)], OPTIONS).problems
    assert "nested too deeply" in problem.what


def test_other_kinds_may_have_tags_of_their_own():
    odd = "kind: Odd\nvalue: !Ref name\n"
    assert inject_stream([("a", odd)], OPTIONS).text == odd


def group(volume: str, *, workers: str = "", worker: str = "vllm/vllm-openai:v1") -> str:
    mount = "volumeMounts: [{name: models, mountPath: /var/lib/model-sidecar%s}]"
    engine = "{name: vllm, image: %s, args: [--enable-lora], %s}"
    return f"""\
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {{name: big}}
spec:
  leaderWorkerTemplate:
    size: 2
    leaderTemplate:
      metadata: {{annotations: {{model-sidecar.io/store-volume: models}}}}
      spec:
        containers: [{engine % ("vllm/vllm-openai:v1", mount % ", subPath: a")}]
        volumes: [{{name: models, {volume}}}]
    workerTemplate:
      spec:
        containers:
        - {engine % (worker, mount % workers)}
        - {{name: other, image: other:1, {mount % ", subPath: a"}}}
        volumes: [{{name: models, {volume}}}]
"""


def test_the_workers_engines_see_the_store_as_the_leader_does():
    claim = "persistentVolumeClaim: {claimName: m}"
    seen = inject_stream([("a", group(claim, workers=", subPath: a"))], OPTIONS)
    assert (seen.problems, seen.engines) == ([], 1)
    for text in (
        group(claim),
        group(claim, workers=", subPath: b"),
        group("hostPath: {path: /m}", workers=", subPath: a"),
        group("emptyDir: {}", workers=", subPath: a"),
    ):
        (problem,) = inject_stream([("a", text)], OPTIONS).problems
        assert "cannot see the store" in problem.what
