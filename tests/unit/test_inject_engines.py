"""What injection reads from an engine's command line, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sidecar.cluster.inject import InjectError, NoEngineError, Options, inject_pod
from sidecar.cluster.inject.asked import parse_settings
from sidecar.settings import Settings

Json = dict[str, Any]
OPTIONS = Options(configmap="models")
VLLM, TRITON, SGLANG = (
    "vllm/vllm-openai:v0.32.0",
    "nvcr.io/nvidia/tritonserver:26.08-py3",
    "lmsysorg/sglang:v0.5.23",
)
SERVE = ["vllm", "serve", "m/m", "--enable-lora"]
TRITONSERVER = ["tritonserver", "--model-repository=/models", "--model-control-mode=explicit"]
LAUNCH = ["python3", "-m", "sglang.launch_server", "--model-path", "m", "--enable-lora"]


def pod(*args: str, image: str = VLLM, flags: str = "", **more: Any) -> Json:
    container = {"name": "engine", "image": image, "args": list(args), **more}
    metadata = {"annotations": {"model-sidecar.io/flags": flags}} if flags else {}
    return {"metadata": metadata, "spec": {"containers": [container]}}


def injected(value: Json, options: Options = OPTIONS) -> Json:
    before = copy.deepcopy(value)
    result = inject_pod(value, options).pod
    assert value == before
    return result


def agent(value: Json) -> Json:
    container: Json = injected(value)["spec"]["initContainers"][-1]
    return container


def settings(value: Json) -> Settings:
    return parse_settings(agent(value)["args"][1:])


def notes(value: Json) -> str:
    return "\n".join(inject_pod(value, OPTIONS).notes)


def refused(value: Json, options: Options = OPTIONS) -> str:
    with pytest.raises(InjectError) as caught:
        inject_pod(value, options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "args", "url"),
    [
        ([], ["m/m", "--enable-lora"], "http://127.0.0.1:8000"),
        ([], ["--model", "m/m", "--enable-lora", "--port", "8100"], "http://127.0.0.1:8100"),
        (SERVE, ["--port=8200", "--host", "::"], "http://[::1]:8200"),
        (SERVE, ["--port=8200", "--port", "8201"], "http://127.0.0.1:8201"),
        (["/opt/venv/bin/vllm", "serve"], ["--enable-lora", "--host=0.0.0.0"], "http://127.0.0.1:8000"),
        (
            ["python3", "-m", "vllm.entrypoints.openai.api_server"],
            ["--enable_lora", "--port", "$(PORT)"],
            "http://127.0.0.1:8300",
        ),
        (["sh", "-c"], ["vllm serve m/m --enable-lora --port 8400"], "http://127.0.0.1:8400"),
        (["bash", "-lc", "exec vllm serve m --enable-lora --port ${PORT}"], [], "http://127.0.0.1:8300"),
        (
            ["tini", "--", "/bin/bash", "-ec"],
            ["# why\nulimit -l 1 && \\\n A=b numactl -N 0 vllm serve m \\\n --enable-lora; ls"],
            "http://127.0.0.1:8000",
        ),
    ],
)  # fmt: skip
def test_the_engines_address_is_read_as_it_is_started(command, args, url):
    value = pod(*args, command=command, env=[{"name": "PORT", "value": "8300"}])
    assert settings(value).engine_url == (url,)


def test_limits_of_vllm_are_passed_on_and_its_defaults_too():
    said = settings(pod(*SERVE, "--max_loras", "4", "--max-cpu-loras=12", "--max-lora-rank", "64"))
    assert (said.max_loras, said.max_cpu_loras, said.max_lora_rank) == (4, 12, 64)
    unsaid = settings(pod(*SERVE))
    assert (unsaid.max_loras, unsaid.max_cpu_loras, unsaid.max_lora_rank) == (1, 1, 16)


def test_runtime_loras_are_allowed_and_told():
    value = pod(*SERVE)
    env = injected(value)["spec"]["containers"][0]["env"]
    assert env == [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"}]
    assert "can load and unload LoRAs" in notes(value)


def test_runtime_loras_that_are_allowed_stay_as_they_are():
    env = [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"}]
    value = pod(*SERVE, env=env)
    assert injected(value)["spec"]["containers"][0]["env"] == env
    assert notes(value) == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["m/m", "--port", "8000"], "without --enable-lora"),
        ([*SERVE, "--no-enable-lora"], "without --enable-lora"),
        ([*SERVE, "--host", "10.0.0.7"], "listens on '10.0.0.7' alone"),
        ([*SERVE, "--port", "$(POD_PORT)"], "its port is '$(POD_PORT)'"),
        ([*SERVE, "--max-loras=$N"], "--max-loras is '$N'"),
        ([*SERVE, "--uds=/tmp/s"], "no http on a port"),
        ([*SERVE, "--grpc"], "no http on a port"),
        ([*SERVE, "--api-server-count=0"], "without an API server"),
        ([*SERVE, "--data-parallel-start-rank=0", "-dpl", "2"], "starts as many"),
        ([*SERVE, "--data-parallel-multi-port-external-lb"], "a port of its own"),
        ([*SERVE, "--api-server-count", "4"], "one API server only"),
        ([*SERVE, "--data-parallel-size=2"], "starts as many API servers"),
        ([*SERVE, "-dp", "2"], "starts as many API servers"),
        ([*SERVE, "--data-parallel-hybrid-lb", "--data-parallel-size-local=2"], "starts as many"),
        ([*SERVE, "--headless"], "without an API server"),
        ([*SERVE, "--ssl-keyfile=/k"], "certificate has to be checked"),
        ([*SERVE, "--config", "/c.yaml"], "its flags are in a file"),
        ([*SERVE, "--api-key", "secret"], "stands in the command line"),
    ],
)
def test_what_cannot_work_with_vllm_is_refused(args, words):
    assert words in refused(pod(*args))


@pytest.mark.parametrize(
    "args",
    [
        ["--data-parallel-size=2", "--api-server-count=1"],
        ["--data-parallel-size=8", "--data-parallel-rank=3"],
        ["--data-parallel-size=8", "--data-parallel-external-lb"],
        ["--data-parallel-size=8", "--data-parallel-hybrid-lb", "--data-parallel-size-local", "1"],
        ["-dp", "8", "-dpn", "3"],
        ["--root-path=/chat", "--served-model-name", "a", "b"],
    ],
)
def test_ranks_with_one_api_server_each_are_taken(args):
    assert settings(pod(*SERVE, *args)).engine_url == ("http://127.0.0.1:8000",)


def test_runtime_loras_that_are_forbidden_are_refused_at_the_variable():
    env = [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "0"}]
    assert refused(pod(*SERVE, env=env)).startswith("spec.containers[0].env: ")


def test_what_is_said_needs_no_finding_out():
    flags = "--engine-url=http://10.0.0.7:9 --max-loras=2 --max-cpu-loras=2 --max-lora-rank=8"
    found = settings(pod(*SERVE, "--host=10.0.0.7", "--max-loras=$N", flags=flags))
    assert (found.engine_url, found.max_loras) == (("http://10.0.0.7:9",), 2)


def test_a_key_from_a_secret_is_mounted_and_one_in_the_manifest_never_repeated():
    reference = {"secretKeyRef": {"name": "keys", "key": "vllm"}}
    value = pod(*SERVE, env=[{"name": "VLLM_API_KEY", "valueFrom": reference}])
    after = injected(value)["spec"]
    assert {"name": "keys", "items": [{"key": "vllm", "path": "api-key"}]}.items() <= {
        "name": after["volumes"][-1]["secret"]["secretName"],
        "items": after["volumes"][-1]["secret"]["items"],
    }.items()
    assert settings(value).engine_api_key_file == "/etc/model-sidecar/engine/api-key"
    for plain in (
        pod(*SERVE, "--api-key=hunter2"),
        pod(*SERVE, env=[{"name": "VLLM_API_KEY", "value": "hunter2"}]),
    ):
        assert "hunter2" not in refused(plain)


def test_sglang_is_read_with_its_own_defaults():
    value = pod(*LAUNCH, "--max-lora-rank=32", image=SGLANG)
    found = settings(value)
    assert (found.engine, found.engine_url) == ("sglang", ("http://127.0.0.1:30000",))
    assert (found.max_lora_rank, found.max_loras) == (32, None)
    assert "--enable-metrics" in notes(value)
    assert "env" not in injected(value)["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (LAUNCH[:-1], "without --enable-lora"),
        ([*LAUNCH, "--dp-size", "2"], "2 data-parallel replicas"),
        ([*LAUNCH, "--api-key", "x"], "stands in the command line"),
    ],
)
def test_what_cannot_work_with_sglang_is_refused(args, words):
    assert words in refused(pod(*args, image=SGLANG))


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ([], "=none, which loads everything at its start"),
        (["--model-control-mode", "poll"], "=poll"),
    ],
)
def test_triton_in_another_mode_is_refused_with_the_reason(mode, why):
    assert why in refused(pod(*TRITONSERVER[:2], *mode, image=TRITON))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tritonserver", TRITONSERVER[2]], "no --model-repository"),
        ([*TRITONSERVER, "--model-store=/more"], "2 model repositories"),
        ([TRITONSERVER[0], "--model-store=s3://b/models", TRITONSERVER[2]], "no directory"),
        ([*TRITONSERVER, "--allow-http=false"], "serves no http"),
        ([*TRITONSERVER, "--http-address=10.0.0.7"], "alone"),
    ],
)
def test_what_cannot_work_with_triton_is_refused(args, words):
    assert words in refused(pod(*args, image=TRITON))


def test_triton_is_read_with_its_ports_and_gets_a_repository():
    value = pod(*TRITONSERVER, "--http-port=8080", "--metrics-port", "9002", image=TRITON)
    found = settings(value)
    assert found.engine_url == ("http://127.0.0.1:8080",)
    assert found.engine_metrics_url == ("http://127.0.0.1:9002/metrics",)
    assert found.repository_dir == "/models"
    spec = injected(value)["spec"]
    for one in (spec["containers"][0], spec["initContainers"][0]):
        mount = {"name": "model-sidecar-repository", "mountPath": "/models"}
        assert mount in one["volumeMounts"]


def triton_with(volume: Json, *args: str, **mount: Any) -> Json:
    mounts = [{"name": "models", "mountPath": "/models", **mount}]
    value = pod(*TRITONSERVER, *args, image=TRITON, volumeMounts=mounts)
    value["spec"]["volumes"] = [{"name": "models", **volume}]
    return value


def test_a_repository_of_this_pod_alone_is_shared_as_it_is():
    value = triton_with({"emptyDir": {}}, subPath="a", readOnly=True)
    spec = injected(value)["spec"]
    assert {"name": "models", "mountPath": "/models", "subPath": "a"} in spec["initContainers"][0][
        "volumeMounts"
    ]
    assert spec["containers"][0]["volumeMounts"][0]["readOnly"] is True


@pytest.mark.parametrize("volume", [{"hostPath": {"path": "/m"}}, {"persistentVolumeClaim": {}}])
def test_a_repository_that_other_pods_see_becomes_a_source(volume):
    value = triton_with(volume, subPath="a")
    spec = injected(value)["spec"]
    source = {"name": "models", "mountPath": "/sources", "readOnly": True, "subPath": "a"}
    assert source in spec["initContainers"][0]["volumeMounts"]
    own = {"name": "model-sidecar-repository", "mountPath": "/models"}
    assert spec["containers"][0]["volumeMounts"][0] == own
    assert "--load-model" in refused(triton_with(volume, "--load-model=fraud"))


def test_a_repository_below_a_shared_volume_covers_its_own_directory_alone():
    mounts = [{"name": "data", "mountPath": "/data/", "subPath": "a"}]
    args = ["tritonserver", "--model-repository=/data/in/models", TRITONSERVER[2]]
    value = pod(*args, image=TRITON, volumeMounts=mounts)
    value["spec"]["volumes"] = [{"name": "data", "nfs": {"server": "s", "path": "/"}}]
    spec = injected(value)["spec"]
    assert spec["containers"][0]["volumeMounts"][:1] == mounts
    own = {"name": "model-sidecar-repository", "mountPath": "/data/in/models"}
    assert own in spec["containers"][0]["volumeMounts"]
    source = {"name": "data", "mountPath": "/sources", "readOnly": True, "subPath": "a/in/models"}
    assert source in spec["initContainers"][0]["volumeMounts"]


def test_probes_of_strict_readiness_are_told():
    probe = {"httpGet": {"path": "/v2/health/ready", "port": 8000}}
    assert "/v2/health/live" in notes(pod(*TRITONSERVER, image=TRITON, startupProbe=probe))
    lax = pod(*TRITONSERVER, "--strict-readiness=false", image=TRITON, startupProbe=probe)
    assert notes(lax) == ""


def test_a_pod_without_an_engine_is_told_apart_from_a_broken_one():
    with pytest.raises(NoEngineError, match="no container is seen to start an engine"):
        inject_pod(pod("--vllm-port=8000", image="llm-d-routing-sidecar:v1"), OPTIONS)
    with pytest.raises(NoEngineError, match="not seen to start it"):
        inject_pod(pod("bench", "serve", command=["vllm"]), OPTIONS)


def test_of_several_engines_one_has_to_be_named():
    value = pod(*SERVE)
    value["spec"]["containers"].append({"name": "other", "image": SGLANG, "command": LAUNCH})
    assert "engine, other are engines" in refused(value)
    value["metadata"] = {"annotations": {"model-sidecar.io/container": "other"}}
    assert settings(value).engine == "sglang"
    value["metadata"] = {"annotations": {"model-sidecar.io/engine": "vllm"}}
    assert settings(value).engine == "vllm"
    value["metadata"] = {"annotations": {"model-sidecar.io/container": "nobody"}}
    assert "there is no container 'nobody'" in refused(value)


def test_a_script_that_starts_two_engines_is_refused():
    assert "starts 2 engines" in refused(pod("vllm serve a & vllm serve b", command=["sh", "-c"]))


def test_an_engine_behind_a_script_of_its_own_is_taken_when_everything_is_said():
    value = pod("/start.sh", command=["bash"])
    value["metadata"] = {"annotations": {"model-sidecar.io/engine": "vllm"}}
    assert "its command line is not known" in refused(value)
    flags = "--engine-url=http://127.0.0.1:8000 --max-loras=4"
    value["metadata"]["annotations"]["model-sidecar.io/flags"] = flags
    assert settings(value).max_loras == 4


def test_a_pod_without_an_engine_is_none_whatever_else_stands_in_it():
    redis = {"name": "redis", "image": "redis:8"}
    for spec in (
        {"containers": [redis]},
        {"containers": [redis], "os": {"name": "windows"}},
        {"containers": [redis], "volumes": [{"name": "model-sidecar-x", "emptyDir": {}}]},
    ):
        for held in ({}, {"model-sidecar.io/confgmap": "a"}):
            value = {"metadata": {"annotations": held}, "spec": spec}
            with pytest.raises(NoEngineError):
                inject_pod(value, Options())


@pytest.mark.parametrize("path", ["/models/llama", "/models/llama/", "/mnt/a-b/c.d"])
def test_the_image_of_vllm_takes_a_directory_as_its_model(path):
    assert settings(pod(path, "--enable-lora")).engine_url == ("http://127.0.0.1:8000",)


@pytest.mark.parametrize("args", [["/start.sh", "--x"], ["/usr/bin/env", "--x"], ["/a/b", "c"]])
def test_the_image_of_vllm_with_another_program_is_not_seen_to_start_it(args):
    with pytest.raises(NoEngineError) as caught:
        inject_pod(pod(*args), OPTIONS)
    assert caught.value.image


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([*SERVE, "--api-key=$hunter2"], "stands in the command line"),
        ([*SERVE, "--api-key=$$hunter2"], "stands in the command line"),
        ([*SERVE, "--api-key", "${hunter2}"], "stands in the command line"),
        (["sh", "-c", f"{' '.join(SERVE)} --api-key '$hunter2'"], "none that this container"),
        (["sh", "-c", f"{' '.join(SERVE)} --api-key $hunter2"], "none that this container"),
    ],
)
def test_what_may_be_a_key_is_never_repeated(command, words):
    message = refused(pod(command=command))
    assert words in message
    assert "hunter2" not in message


def test_the_variable_of_a_key_is_named_where_it_can_be_nothing_else():
    assert "NAME is none that" in refused(pod(*SERVE, "--api-key=$(NAME)"))
    line = f"{' '.join(SERVE)} --api-key ${{NAME}}"
    assert "NAME is none that" in refused(pod(command=["sh", "-c", line]))


def test_a_key_that_may_come_by_env_from_is_told():
    held = [{"secretRef": {"name": "all"}}]
    assert "if VLLM_API_KEY is among them" in notes(pod(*SERVE, envFrom=held))
    assert "envFrom" not in notes(pod(*SERVE))
