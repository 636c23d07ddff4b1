"""Edits by ``kubectl`` and by ``models``, through a real API server, into a real vLLM."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab import LabError
from lab.kube import Kube
from lab.tiny_model import write_lora
from lab.vllm import complete
from tests.e2e.conftest import StartAgent
from tests.support.agent_process import ROOT, AgentProcess
from tests.support.cluster_place import NAME, ClusterPlace
from tests.support.cluster_tokens import MountedToken
from tests.support.vllm_lab import HOUSE, VllmLab

pytestmark = [pytest.mark.kube, pytest.mark.vllm]

EDITOR = "editor"
RBAC = "rbac.authorization.k8s.io"


def allow_editor(place: ClusterPlace) -> Path:
    """Give an account the Role of the documentation; return its kubeconfig."""
    kubeconfig = place.kube.service_account_kubeconfig(place.namespace, EDITOR)
    text = (ROOT / "docs" / "models.md").read_text()
    (role,) = (yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    role["metadata"] = {"name": EDITOR}
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": EDITOR},
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": EDITOR},
        "subjects": [{"kind": "ServiceAccount", "name": EDITOR, "namespace": place.namespace}],
    }
    for one in (role, binding):
        place.kubectl("apply", "--validate=strict", "-f", "-", input=json.dumps(one))
    return kubeconfig


def models(kubeconfig: Path, *arguments: str) -> None:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "sidecar", "models", *arguments]
    command += [f"--configmap={NAME}", f"--kubeconfig={kubeconfig}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def wait_held(engine: VllmLab, agent: AgentProcess, *names: str) -> None:
    """Wait until the agent is converged, and vLLM lists its own LoRA and these."""
    wanted = {HOUSE, *names}
    agent.wait_status(
        lambda status: status["converged"] and engine.models().keys() == wanted,
        60,
        what=f"vLLM with {', '.join(sorted(wanted))}",
    )


def test_edits_by_kubectl_and_by_the_models_command_are_what_vllm_answers(
    cluster: Kube, engine: VllmLab, start_agent: StartAgent, tmp_path: Path
):
    place = ClusterPlace(cluster, "chat")
    place.allow()
    token = MountedToken(tmp_path / "token")
    token.rotate(place.grant()[0])
    kubeconfig = place.kubeconfig(tmp_path / "agent.kubeconfig", token.file, cluster.port)
    editor = allow_editor(place)
    sql, law = (write_lora(tmp_path / f"seed-{seed}", seed=seed) for seed in (1, 2))
    models(editor, "create")
    watched = [f"--configmap={NAME}", f"--kubeconfig={kubeconfig}"]
    agent = start_agent("vllm", [engine.url], documents=watched, flags=["--resync-seconds=1"])
    text = f"models:\n- name: sql\n  source: {sql}\n"
    patch = json.dumps({"data": {"models.yaml": text}})
    place.kubectl("patch", "configmap", NAME, "--type=merge", "-p", patch)
    wait_held(engine, agent, "sql")
    assert engine.answers("sql") == engine.reference(1)
    models(editor, "add", "law", f"--source={law}")
    wait_held(engine, agent, "law", "sql")
    assert engine.answers("law") == engine.reference(2)
    assert engine.answers("sql") == engine.reference(1)
    models(editor, "remove", "sql")
    wait_held(engine, agent, "law")
    with pytest.raises(LabError, match="sql answered 404"):
        complete(engine.url, "sql")
    assert engine.answers("law") == engine.reference(2)
    assert agent.is_ready()
