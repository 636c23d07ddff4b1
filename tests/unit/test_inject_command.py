"""The command ``inject``: streams, exit codes, and what it says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.support.inject import GOLDEN

SAMPLE = GOLDEN / "vllm-production-stack.yaml"
IMAGE = "--image=registry.example/model-sidecar:1"


def test_manifests_go_in_by_name_and_come_out_on_stdout(capsys):
    assert main(["inject", "-f", str(SAMPLE), "--configmap", "chat-models", IMAGE]) == 0
    out, err = capsys.readouterr()
    assert out == SAMPLE.with_suffix(".injected.yaml").read_text()
    assert f"{SAMPLE}: Deployment stack-deployment-router: no container is seen" in err


def test_manifests_go_in_by_stdin(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SAMPLE.read_bytes())))
    assert main(["inject", "-f", "-", "--configmap=chat-models", IMAGE]) == 0
    assert capsys.readouterr().out == SAMPLE.with_suffix(".injected.yaml").read_text()


def test_nothing_is_written_when_anything_is_in_the_way(capsys, tmp_path: Path):
    broken = tmp_path / "b.yaml"
    broken.write_text(SAMPLE.read_text().replace('- "--enable-lora"', '- "--enforce-eager"'))
    assert main(["inject", "-f", str(SAMPLE), "-f", str(broken), "--configmap=m"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    place = "Deployment stack-chat-deployment-vllm: spec.template.spec.containers[0].command"
    assert f"{broken}: {place}: vLLM is started without --enable-lora" in err
    assert err.endswith("nothing is written: 1 problem\n")


def test_manifests_without_an_engine_are_no_success(capsys, tmp_path: Path):
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\napiVersion: v1\n")
    assert main(["inject", "-f", str(tmp_path / "a.yaml"), "--configmap=m"]) == 1
    assert "vLLM, SGLang or Triton" in capsys.readouterr().err


def test_removal_is_told_by_nothing_but_the_manifests(capsys):
    name = SAMPLE.with_suffix(".injected.yaml")
    assert main(["inject", "--remove", "-f", str(name)]) == 0
    out, err = capsys.readouterr()
    assert ("model-sidecar-store" in out, err) == (False, "")


@pytest.mark.parametrize("arguments", [[], ["-f", "/nowhere.yaml"]])
def test_bad_usage_ends_with_64(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inject", *arguments])
    assert ended.value.code == 64
    assert "-f" in capsys.readouterr().err


def test_an_engine_that_may_go_without_the_agent_is_no_success(capsys, tmp_path: Path):
    bench = tmp_path / "b.yaml"
    spec = "{containers: [{name: a, image: 'vllm/vllm-openai:v1', command: [vllm, bench]}]}"
    bench.write_text(f"apiVersion: v1\nkind: Pod\nmetadata: {{name: bench}}\nspec: {spec}\n")
    assert main(["inject", "-f", str(SAMPLE), "-f", str(bench), "--configmap=m"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Pod bench: spec.containers: 'a' has an image of vllm, and is not seen" in err
    no = '{name: bench, labels: {model-sidecar.io/inject: "false"}}'
    bench.write_text(bench.read_text().replace("{name: bench}", no))
    assert main(["inject", "-f", str(SAMPLE), "-f", str(bench), "--configmap=m"]) == 0
