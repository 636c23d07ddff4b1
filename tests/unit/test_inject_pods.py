"""Rules that hold for every pod: idempotence, removal, class of service, level of security."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cluster.inject import RECORD, InjectError, Options, inject_pod, remove_pod
from sidecar.cluster.inject.qos import is_guaranteed, parse_quantity

Json = dict[str, Any]
OPTIONS = Options(configmap="models")
ENGINES = [
    {"image": "vllm/vllm-openai:v1", "args": ["m/m", "--enable-lora"]},
    {"image": "x:1", "command": ["sh", "-c", "vllm serve m --port 8200 --enable-lora"]},
    {
        "image": "x:1",
        "args": ["tritonserver", "--model-store=/models", "--model-control-mode=explicit"],
    },
    {"image": "x:1", "args": ["python", "-m", "sglang.launch_server", "--enable-lora"]},
]
MOUNTS = [
    {"name": "models", "mountPath": "/models"},
    {"name": "models", "mountPath": "/models/", "readOnly": True, "subPath": "a"},
    {"name": "shm", "mountPath": "/dev/shm"},
]
VOLUMES = [
    {"emptyDir": {}},
    {"hostPath": {"path": "/m"}},
    {"persistentVolumeClaim": {"claimName": "m"}},
]
FULL = {"limits": {"cpu": "2", "memory": "4Gi"}, "requests": {"cpu": "2000m"}}
RESOURCES = [{}, None, FULL, {"limits": {"memory": "1Gi", "ephemeral-storage": "9Gi"}}]


def empty_or(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Something, nothing in it, null, or (as a missing key) None of the three."""
    return st.one_of(st.just("absent"), st.none(), st.just("empty"), strategy)


def put(value: Json, name: str, held: Any, empty: Any) -> None:
    if held != "absent":
        value[name] = empty if held == "empty" else held


@st.composite
def pods(draw: st.DrawFn) -> Json:
    engine: Json = {"name": "engine", **copy.deepcopy(draw(st.sampled_from(ENGINES)))}
    put(engine, "env", draw(empty_or(st.just([{"name": "A", "value": "b"}]))), [])
    mounts = draw(empty_or(st.lists(st.sampled_from(MOUNTS), max_size=1)))
    put(engine, "volumeMounts", copy.deepcopy(mounts), [])
    put(engine, "resources", draw(empty_or(st.sampled_from(RESOURCES))), {})
    other = {"name": "other", "image": "other:1", "resources": draw(st.sampled_from(RESOURCES))}
    containers = draw(st.permutations([engine, *draw(st.sampled_from([[], [other]]))]))
    spec: Json = {"containers": list(containers)}
    volumes = [
        {"name": "models", **draw(st.sampled_from(VOLUMES))},
        {"name": "shm", "emptyDir": {}},
    ]
    put(
        spec,
        "volumes",
        volumes if engine.get("volumeMounts") else draw(empty_or(st.just(volumes))),
        [],
    )
    init = [{"name": "init", "image": "init:1", "resources": draw(st.sampled_from(RESOURCES))}]
    put(spec, "initContainers", draw(empty_or(st.just(init))), [])
    user = st.sampled_from([{"runAsUser": 0}, {"runAsUser": 1000, "fsGroup": 7}])
    put(spec, "securityContext", draw(empty_or(user)), {})
    pod: Json = {"spec": spec}
    annotations = {"a": "b", "model-sidecar.io/store-size": "2Gi"}
    metadata: Json = {"labels": {"app": "x"}}
    put(metadata, "annotations", draw(empty_or(st.just(annotations))), {})
    put(pod, "metadata", draw(empty_or(st.just(metadata))), {})
    return copy.deepcopy(pod)


OTHERS = st.sampled_from(
    [
        Options(configmap="other", api=True),
        Options(configmap="models", store_size="3Gi", flags=("--prune=none",)),
        Options(configmap="models", image="newer:2"),
    ]
)


@given(pods())
def test_injecting_twice_is_injecting_once(pod: Json):
    once = inject_pod(pod, OPTIONS).pod
    assert inject_pod(once, OPTIONS).pod == once


@given(pods())
def test_removal_gives_back_every_pod(pod: Json):
    before = json.loads(json.dumps(pod))
    injected = inject_pod(pod, OPTIONS).pod
    assert pod == before
    assert remove_pod(injected) == before
    assert remove_pod(before) == before


@given(pods(), OTHERS)
def test_other_options_make_the_pod_that_they_would_have_made_at_once(pod: Json, other: Options):
    assert inject_pod(inject_pod(pod, OPTIONS).pod, other).pod == inject_pod(pod, other).pod


@given(pods())
def test_a_guaranteed_pod_stays_one_and_no_other_gets_a_limit_of_cpu(pod: Json):
    spec = inject_pod(pod, OPTIONS).pod["spec"]
    assert is_guaranteed(spec) == is_guaranteed(pod["spec"])
    if not is_guaranteed(spec):
        assert "cpu" not in spec["initContainers"][-1]["resources"]["limits"]


@given(pods())
def test_the_agent_is_of_the_restricted_level_and_no_other_container_is_touched(pod: Json):
    spec = inject_pod(pod, OPTIONS).pod["spec"]
    context = spec["initContainers"][-1]["securityContext"]
    assert context.pop("runAsUser", 1) != 0
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert "startupProbe" not in spec["initContainers"][-1]
    before = {one["name"]: one for one in pod["spec"]["containers"]}
    for one in spec["containers"]:
        if one["name"] != "engine":
            assert one == before[one["name"]]


def pod(**annotations: str) -> Json:
    held = {
        f"model-sidecar.io/{name.replace('_', '-')}": value for name, value in annotations.items()
    }
    engine = {"name": "engine", **copy.deepcopy(ENGINES[0])}
    return {"metadata": {"annotations": held}, "spec": {"containers": [engine]}}


def agent(value: Json, options: Options = OPTIONS) -> Json:
    container: Json = inject_pod(value, options).pod["spec"]["initContainers"][-1]
    return container


def refused(value: Json, options: Options = OPTIONS) -> str:
    with pytest.raises(InjectError) as caught:
        inject_pod(value, options)
    return str(caught.value)


def test_a_configmap_has_to_be_named():
    words = refused(pod(), Options())
    assert words.startswith("metadata.annotations[model-sidecar.io/configmap]: no ConfigMap")
    assert "--config-dir=/etc/model-sidecar/config" in agent(pod(configmap="a"), Options())["args"]


def test_a_missing_configmap_does_not_hold_the_pod_back():
    volumes = inject_pod(pod(), OPTIONS).pod["spec"]["volumes"]
    assert {"name": "models", "optional": True} in [one.get("configMap") for one in volumes]


def test_the_token_is_in_the_agents_container_alone_and_only_when_it_is_needed():
    for value, wanted in ((pod(), 0), (pod(api="true"), 1), (pod(flags="--condition ready"), 1)):
        spec = inject_pod(value, OPTIONS).pod["spec"]
        projected = [one["name"] for one in spec["volumes"] if "projected" in one]
        assert len(projected) == wanted
        mounts = [one["name"] for one in spec["containers"][0]["volumeMounts"]]
        assert not set(mounts) & set(projected)
        assert "automountServiceAccountToken" not in spec


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"confgmap": "a"}, "did you mean model-sidecar.io/configmap?"),
        ({"configmap": "A_b"}, "'A_b' is no name"),
        ({"api": "maybe"}, "true or false"),
        ({"store_size": "50K"}, "is no size"),
        ({"engine": "tgi"}, "one of vllm, sglang, triton"),
        ({"flags": "--prun=all"}, "did you mean --prune?"),
        ({"flags": "--prune=some"}, "not one of owned, all, none"),
        ({"flags": "--retain-seconds=-1"}, "not usable"),
        ({"flags": "'"}, "No closing quotation"),
        ({"flags": "--config-dir=/x"}, "model-sidecar.io/configmap is for that"),
        ({"flags": "--store-max-bytes=50Gi"}, "not below the volume's size"),
        ({"flags": "--listen=127.0.0.1:9110"}, "nothing that the kubelet's probes reach"),
        ({"flags": "--stale-after-seconds=0.01"}, "--stale-after-seconds must be above"),
        ({"flags": "--store-dir=store"}, "no directory to mount at"),
        ({"store_volume": "gone"}, "the pod has no volume 'gone'"),
        ({"sources": "gone"}, "the engine mounts no volume 'gone'"),
        ({"env_from": "config/x"}, "configmap/NAME or secret/NAME"),
        ({"run_as_user": "root"}, "number of a user"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_refused_by_name(annotations, words):
    message = refused(pod(**annotations))
    assert message.startswith("metadata.annotations")
    assert words in message


def test_annotations_win_over_options():
    said = pod(image="a:1", configmap="b", store_size="2Gi", flags="--prune=all --listen=:9999")
    container = agent(said, Options(configmap="c", image="d:1", flags=("--prune=none",)))
    assert container["image"] == "a:1"
    assert container["args"][-3:] == ["--prune=none", "--prune=all", "--listen=:9999"]
    assert container["ports"] == [{"name": "sidecar", "containerPort": 9999}]
    assert "--store-max-bytes=1843Mi" in container["args"]


def test_probes_ask_https_where_the_agent_serves_it():
    flags = "--tls-cert-file=/tls/tls.crt --tls-key-file=/tls/tls.key"
    container = agent(pod(flags=flags))
    assert {container[one]["httpGet"]["scheme"] for one in ("readinessProbe", "livenessProbe")} == {
        "HTTPS"
    }


def test_a_port_that_is_taken_is_refused():
    value = pod()
    value["spec"]["containers"][0]["ports"] = [{"containerPort": 9110}]
    assert refused(value).startswith("spec.containers[0].ports: port 9110 is the agent's")


def test_an_agent_that_was_written_by_hand_is_not_touched():
    value = pod()
    value["spec"]["initContainers"] = [{"name": "model-sidecar", "image": "ours:1"}]
    assert "was not put there by an injection" in refused(value)


def test_a_damaged_record_is_told():
    for damage in ("{", "[]", '{"container": 1}', '{"other": 1}'):
        value = pod()
        value["metadata"]["annotations"][RECORD] = damage
        assert "not as the injection wrote it" in refused(value)


def test_what_else_is_mounted_at_the_stores_path_is_refused():
    value = pod()
    mount = {"name": "own", "mountPath": "/var/lib/model-sidecar"}
    value["spec"]["containers"][0]["volumeMounts"] = [mount]
    value["spec"]["volumes"] = [{"name": "own", "persistentVolumeClaim": {"claimName": "c"}}]
    assert "model-sidecar.io/store-volume: own" in refused(value)
    value["metadata"]["annotations"]["model-sidecar.io/store-volume"] = "own"
    spec = inject_pod(value, OPTIONS).pod["spec"]
    assert spec["containers"][0]["volumeMounts"] == [mount]
    assert mount in spec["initContainers"][0]["volumeMounts"]


def test_sources_credentials_and_environment_reach_the_agent():
    value = pod(sources="data", credentials="team-a, team-b", env_from="secret/s3,configmap/m")
    mount = {"name": "data", "mountPath": "/data", "subPath": "x"}
    value["spec"]["containers"][0]["volumeMounts"] = [mount]
    value["spec"]["volumes"] = [{"name": "data", "emptyDir": {}}]
    container = agent(value)
    paths = {one["mountPath"] for one in container["volumeMounts"]}
    assert {**mount, "readOnly": True} in container["volumeMounts"]
    assert {
        "/etc/model-sidecar/credentials/team-a",
        "/etc/model-sidecar/credentials/team-b",
    } < paths
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}, {"configMapRef": {"name": "m"}}]


def test_root_is_given_on_request_and_never_where_the_pod_forbids_it():
    value = pod(run_as_user="0")
    context = agent(value)["securityContext"]
    assert (context["runAsUser"], context["runAsNonRoot"]) == (0, False)
    value["spec"]["securityContext"] = {"runAsNonRoot": True}
    assert "runs as another user" in refused(value)


def test_a_pod_with_resources_of_its_own_gives_the_agent_none():
    value = pod()
    value["spec"]["resources"] = {"limits": {"cpu": "4", "memory": "8Gi"}}
    assert "resources" not in agent(value)


def test_pods_for_windows_are_refused():
    value = pod()
    value["spec"]["os"] = {"name": "windows"}
    assert "Linux only" in refused(value)


def test_the_store_counts_where_the_disk_of_the_pod_is_limited():
    value = pod()
    value["spec"]["containers"][0]["resources"] = {"limits": {"ephemeral-storage": "1Gi"}}
    assert agent(value)["resources"]["limits"]["ephemeral-storage"] == "50Gi"


def test_what_others_added_to_the_agent_stays():
    once = inject_pod(pod(), OPTIONS).pod
    container = once["spec"]["initContainers"][0]
    container["env"].append({"name": "MESH", "value": "on"})
    container["ports"][0]["protocol"] = "TCP"
    once["spec"]["volumes"].insert(0, {"name": "mesh", "emptyDir": {}})
    assert inject_pod(once, OPTIONS).pod == once
    container["image"] = "tampered:1"
    assert agent(once)["image"] == OPTIONS.image


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1500m", "1.5"), ("2Ki", 2048), ("1e3", 1000), ("0.5Gi", 2**29), (4, 4)],
)
def test_quantities_are_read_as_kubernetes_does(text, value):
    from decimal import Decimal

    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "x", "1.2.3", ".", None, "1 Gi", "1Q"])
def test_what_is_no_quantity_is_none(text):
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    "spec", [{"containers": "x"}, {"containers": [1]}, {"containers": [{}], "volumes": {}}, [], "x"]
)
def test_what_is_no_pod_is_refused_with_its_place(spec):
    assert refused({"metadata": {}, "spec": spec}).startswith("spec")


def renamed(value: Json) -> Json:
    after = inject_pod(value, OPTIONS).pod
    after["spec"]["containers"][0]["name"] = "renamed"
    return after


def test_an_engine_that_was_renamed_is_given_back_whole():
    value = pod()
    after = remove_pod(renamed(value))
    value["spec"]["containers"][0]["name"] = "renamed"
    assert after == value


def test_what_cannot_be_given_back_is_refused_and_mounts_of_gone_volumes_are_not_left():
    value = renamed(pod())
    second = {**copy.deepcopy(value["spec"]["containers"][0]), "name": "second"}
    value["spec"]["containers"].append(second)
    with pytest.raises(InjectError, match="the engine was 'engine', which is not there"):
        remove_pod(value)
    for one in value["spec"]["containers"]:
        one["env"], one["volumeMounts"][0]["mountPath"] = [], "/elsewhere"
    spec = remove_pod(value)["spec"]
    assert [one["volumeMounts"] for one in spec["containers"]] == [[], []]


def test_mounts_of_ours_in_other_containers_go_too():
    value = inject_pod(pod(), OPTIONS).pod
    mount = {"name": "model-sidecar-store", "mountPath": "/s"}
    value["spec"]["containers"].append({"name": "reader", "volumeMounts": [mount]})
    assert remove_pod(value)["spec"]["containers"][1]["volumeMounts"] == []


@pytest.mark.parametrize(
    "damage",
    [
        "[" * 100_000,
        '{"container": "engine", "volumes": [{}]}',
        '{"container": "engine", "mounts": [1]}',
        '{"container": "engine", "moved": {"/a": "no json"}}',
        '{"container": "engine", "moved": {"/a": "[1]"}}',
        '{"container": "engine", "moved": {"/a": {}}}',
        '{"container": "engine", "made": {"spec.volumes": "{"}}',
        '{"container": "engine", "made": {"spec.volumes": "[1]"}}',
        '{"container": "engine", "made": {"spec.volumes": null}}',
    ],
)
def test_a_record_of_which_a_part_is_damaged_is_told_with_its_place(damage):
    value = pod()
    value["metadata"]["annotations"][RECORD] = damage
    for change in (remove_pod, lambda one: inject_pod(one, OPTIONS)):
        with pytest.raises(InjectError) as caught:
            change(value)
        assert str(caught.value).startswith(f"metadata.annotations[{RECORD}]: ")


def with_store(volume: Json, **mount: Any) -> Json:
    value = pod(store_volume="own")
    if mount:
        held = {"name": "own", "mountPath": "/var/lib/model-sidecar", **mount}
        value["spec"]["containers"][0]["volumeMounts"] = [held]
    value["spec"]["volumes"] = [{"name": "own", **volume}]
    return value


CLAIM = {"persistentVolumeClaim": {"claimName": "c"}}


def test_a_part_of_a_volume_is_the_store_of_both():
    container = agent(with_store(CLAIM, subPath="a/b", readOnly=True))
    mount = {"name": "own", "mountPath": "/var/lib/model-sidecar", "subPath": "a/b"}
    assert mount in container["volumeMounts"]
    assert "subPathExpr cannot be" in refused(with_store(CLAIM, subPathExpr="$(A)"))


def test_an_empty_dir_says_how_much_the_store_may_be():
    assert (
        "--store-max-bytes=921Mi" in agent(with_store({"emptyDir": {"sizeLimit": "1Gi"}}))["args"]
    )
    assert not any("max-bytes" in one for one in agent(with_store({"emptyDir": {}}))["args"])
    value = with_store({"emptyDir": {"sizeLimit": "1Gi"}})
    value["metadata"]["annotations"]["model-sidecar.io/flags"] = "--store-max-bytes=1Gi"
    assert "not below the volume's size" in refused(value)


@pytest.mark.parametrize(
    "volume",
    [
        {"persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
        {"nfs": {"server": "s", "path": "/", "readOnly": True}},
        {"configMap": {"name": "c"}},
    ],
)
def test_a_store_that_cannot_be_written_is_refused(volume):
    assert "the volume 'own' is read-only" in refused(with_store(volume))
