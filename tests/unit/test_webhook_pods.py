"""AdmissionReviews of pods: from the bytes that come to the bytes that go."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cluster.inject import InjectError, Options, inject_pod
from sidecar.cluster.webhook.pods import INJECTED_BY, review_pod
from sidecar.cluster.webhook.review import BadReview, parse_review, render
from tests.support.admission import admission, patch_of, response
from tests.support.json_patch import apply_patch

OPTIONS = Options(configmap="chat-models")
ARGUMENTS = st.lists(
    st.sampled_from(["--port=8001", "--max-loras=4", "--model=q/q", "--enable-lora", "--x"]),
    unique=True,
)


def pod(*, labels=None, annotations=None, args=(), **spec):
    metadata = {"generateName": "chat-", "labels": labels or {}, "annotations": annotations or {}}
    engine = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.11.0",
        "args": ["--model=q/q", "--enable-lora", *args],
        "ports": [{"containerPort": 8000, "protocol": "TCP"}],
    }
    spec = {"containers": [engine], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def answer(review, options=OPTIONS):
    parsed = parse_review(json.dumps(review).encode())
    return response(render(parsed, review_pod(parsed, options)))


def injected(before):
    """What the injection alone makes of a pod, with this server's mark."""
    after = inject_pod(before, OPTIONS, namespace="team-a").pod
    after["metadata"]["annotations"][INJECTED_BY] = "webhook"
    return after


def patched(before, options=OPTIONS, **more):
    found = answer(admission(before, **more), options)
    assert found["allowed"], found
    return apply_patch(copy.deepcopy(before), patch_of(found))


def test_the_patch_gives_the_injected_pod():
    before = pod()
    after = patched(before)
    assert after == injected(before)
    assert [one["name"] for one in after["spec"]["initContainers"]] == ["model-sidecar"]


@given(
    args=ARGUMENTS,
    labels=st.dictionaries(st.sampled_from(["app", "x/y", "a~b"]), st.just("v")),
    volumes=st.lists(st.sampled_from(["a", "b"]), unique=True),
)
def test_the_patch_gives_the_injected_pod_whatever_stands_in_it(args, labels, volumes):
    before = pod(args=args, labels=labels, volumes=[{"name": n, "emptyDir": {}} for n in volumes])
    found = answer(admission(before))
    try:
        wanted = injected(before)
    except InjectError:
        assert not found["allowed"]
        return
    after = apply_patch(copy.deepcopy(before), patch_of(found))
    assert after == wanted


def test_asked_again_about_its_own_pod_it_changes_nothing_and_says_nothing():
    found = answer(admission(patched(pod())))
    assert found == {"uid": found["uid"], "allowed": True}


def test_a_container_that_came_meanwhile_is_kept():
    before = patched(pod())
    before["spec"]["containers"].append({"name": "proxy", "image": "proxy:1"})
    assert [one["name"] for one in patched(before)["spec"]["containers"]] == ["vllm", "proxy"]


def test_what_others_changed_in_the_engine_meanwhile_is_followed():
    before = patched(pod(args=["--port=8000"]))
    before["spec"]["containers"][0]["args"][-1] = "--port=8100"
    (agent,) = patched(before)["spec"]["initContainers"]
    assert any("8100" in one for one in agent["args"])


def test_an_agent_that_a_pod_came_with_stays_as_it_is():
    before = inject_pod(pod(), Options(configmap="of-its-own"), namespace="team-a").pod
    assert patched(before) == before
    assert patched(before, Options()) == before


def test_the_agent_is_for_leaders_alone():
    label = "leaderworkerset.sigs.k8s.io/worker-index"
    worker = pod(labels={label: "1", "model-sidecar.io/inject": "true"})
    assert patched(worker) == worker
    leader = pod(labels={label: "0", "model-sidecar.io/inject": "true"})
    assert patched(leader) == injected(leader)


def test_a_leader_with_workers_needs_a_store_that_they_see():
    size = {"leaderworkerset.sigs.k8s.io/size": "2"}
    message = answer(admission(pod(annotations=size)))["status"]["message"]
    assert "its workers cannot see" in message
    assert "model-sidecar.io/store-volume" in message
    claim = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    engine = pod(annotations={**size, "model-sidecar.io/store-volume": "models"}, volumes=[claim])
    engine["spec"]["containers"][0]["volumeMounts"] = [{"name": "models", "mountPath": "/models"}]
    assert patched(engine) == injected(engine)


def test_a_pod_without_an_engine_is_refused_only_where_it_asked_itself():
    cache = {"name": "cache", "image": "redis:8"}
    other = pod(containers=[cache])
    assert patched(other) == other
    asking = pod(containers=[cache], labels={"model-sidecar.io/inject": "true"})
    assert "no container is seen" in answer(admission(asking))["status"]["message"]


def test_a_dry_run_is_answered_alike():
    assert answer(admission(pod())) == answer(admission(pod(), dryRun=True))


def test_a_pod_that_says_no_is_left_alone():
    refusing = pod(labels={"model-sidecar.io/inject": "false"})
    assert patched(refusing) == refusing


def test_what_cannot_be_injected_is_refused_with_place_and_remedy():
    found = answer(admission(pod()), Options())
    assert not found["allowed"]
    assert found["status"]["code"] == 422
    assert found["status"]["message"].startswith("the agent cannot be put into this pod\n- ")
    assert "configmap" in found["status"]["message"]


def test_what_is_no_creation_is_left_alone():
    assert "patch" not in answer(admission(pod(), operation="UPDATE"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps({**admission(pod()), "apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps({**admission(pod()), "request": None}).encode(),
        json.dumps(admission(pod(), uid="")).encode(),
    ],
)
def test_what_is_no_review_is_said_to_be_none(body):
    with pytest.raises(BadReview):
        parse_review(body)


def test_another_kind_is_no_question_for_it():
    with pytest.raises(BadReview, match="apps/Deployment"):
        answer(admission(pod(), kind={"group": "apps", "version": "v1", "kind": "Deployment"}))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"os": {"name": "windows"}},
        {"volumes": [{"name": "model-sidecar-x", "emptyDir": {}}]},
        {"initContainers": [{"name": "model-sidecar", "image": "ours:1"}]},
    ],
)
def test_pods_of_a_namespace_that_are_no_engines_pass(more):
    size = {"leaderworkerset.sigs.k8s.io/size": "2", "model-sidecar.io/odd": "x"}
    for annotations in ({}, size):
        redis = pod(containers=[{"name": "redis", "image": "redis:8"}], annotations=annotations)
        redis["spec"] |= more
        assert patched(redis, Options()) == redis


def test_an_agent_that_was_written_by_hand_is_left_alone():
    before = pod(initContainers=[{"name": "model-sidecar", "image": "ours:1"}])
    assert patched(before) == before


@pytest.mark.parametrize("volume", [{"emptyDir": {}}, {"hostPath": {"path": "/m"}}])
def test_a_leader_with_workers_needs_a_volume_of_many_nodes(volume):
    said = {"leaderworkerset.sigs.k8s.io/size": "2", "model-sidecar.io/store-volume": "models"}
    before = pod(annotations=said, volumes=[{"name": "models", **volume}])
    assert "its workers cannot see" in answer(admission(before))["status"]["message"]


def others(before):
    """What other webhooks do to an injected pod."""
    agent = before["spec"]["initContainers"][0]
    agent["image"] = "mirror.example/model-sidecar:1"
    agent["resources"] = {"limits": {"cpu": "1"}}
    agent["env"].insert(0, {"name": "PROXY", "value": "on"})
    agent["volumeMounts"].append({"name": "mesh", "mountPath": "/mesh"})
    before["spec"]["volumes"].insert(0, {"name": "mesh", "emptyDir": {}})
    before["spec"]["initContainers"].append({"name": "mesh", "image": "mesh:1"})
    return before


def test_what_other_webhooks_made_of_the_agent_stays():
    before = others(patched(pod(args=["--port=8000"])))
    assert patched(before) == before


def test_only_arguments_follow_what_others_changed_in_the_engine():
    before = others(patched(pod(args=["--port=8000"])))
    before["spec"]["containers"][0]["args"][-1] = "--port=8100"
    wanted = copy.deepcopy(before)
    agent = wanted["spec"]["initContainers"][0]
    agent["args"] = [one.replace(":8000", ":8100") for one in agent["args"]]
    after = patched(before)
    assert sorted(after["spec"]["initContainers"][0].pop("volumeMounts"), key=str) == sorted(
        agent.pop("volumeMounts"), key=str
    )
    assert after["spec"] == wanted["spec"]
    assert patched(patched(before)) == patched(before)
