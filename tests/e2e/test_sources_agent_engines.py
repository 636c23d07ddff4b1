"""From an edit of S3 and of a document to real engines that answer with these very weights."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from lab.s3 import S3
from lab.tiny_model import write_lora
from lab.triton import write_python_model
from lab.web import post
from tests.support.triton_pod import TritonPod
from tests.support.vllm_lab import HOUSE

pytestmark = pytest.mark.sources


def put_tree(s3: S3, bucket: str, prefix: str, directory: Path) -> None:
    """Put a directory below a prefix."""
    s3.put_all(
        bucket,
        {
            f"{prefix}{one.relative_to(directory)}": one
            for one in directory.rglob("*")
            if one.is_file()
        },
    )


@pytest.mark.vllm
def test_an_object_store_edit_becomes_a_lora_that_answers_on_vllm(
    engine, start_agent, s3: S3, tmp_path
):
    s3.make_bucket("adapters")
    for seed in (1, 2):
        put_tree(s3, "adapters", f"sql/v{seed}/", write_lora(tmp_path / f"v{seed}", seed=seed))
    agent = start_agent("vllm", [engine.url], flags=["--resync-seconds=1"], env=s3.environment())
    agent.apply([{"name": "sql", "source": "s3://adapters/sql/v1/"}])
    agent.wait_ready()
    assert engine.answers("sql") == engine.reference(1)
    agent.apply([{"name": "sql", "source": "s3://adapters/sql/v2/"}])
    assert engine.answers("sql") == engine.reference(2)
    agent.apply([])
    assert set(engine.models()) == {HOUSE}


@pytest.mark.vllm
def test_an_object_that_is_overwritten_replaces_the_lora_without_an_edit_of_the_document(
    engine, start_agent, s3: S3, tmp_path
):
    s3.make_bucket("moving")
    put_tree(s3, "moving", "sql/", write_lora(tmp_path / "v1", seed=1))
    agent = start_agent("vllm", [engine.url], flags=["--resync-seconds=1"], env=s3.environment())
    status = agent.apply([{"name": "sql", "source": "s3://moving/sql/", "refresh_seconds": 1}])
    assert engine.answers("sql") == engine.reference(1)
    old = status["targets"]["sql"]["revision"]
    put_tree(s3, "moving", "sql/", write_lora(tmp_path / "v2", seed=2))
    agent.wait_status(
        lambda status: status["converged"] and status["targets"]["sql"]["revision"] != old,
        what="new revision",
    )
    assert engine.answers("sql") == engine.reference(2)
    # The engine may read them again (P5).
    assert (agent.store / "lora" / "sql" / old).is_dir()


@pytest.mark.vllm
def test_a_store_that_refuses_our_keys_says_what_to_do_and_hurts_nobody_else(
    engine, start_agent, s3: S3, tmp_path
):
    s3.make_bucket("closed")
    put_tree(s3, "closed", "sql/", write_lora(tmp_path / "v1", seed=1))
    secrets = tmp_path / "secrets" / "team-a"
    secrets.mkdir(parents=True)
    (secrets / "AWS_ACCESS_KEY_ID").write_text(s3.root.access_key)
    (secrets / "AWS_SECRET_ACCESS_KEY").write_text("wrong-secret-of-team-a")
    agent = start_agent(
        "vllm",
        [engine.url],
        flags=["--resync-seconds=1", f"--credentials-dir={secrets.parent}"],
        env=s3.environment(),
    )
    agent.write(
        [
            {"name": "sql", "source": "s3://closed/sql/", "credentials": "team-a"},
            {"name": "chat", "source": str(write_lora(tmp_path / "v2", seed=2))},
        ]
    )
    refused = agent.wait_target("sql", lambda one: one["reason"] == "AccessDenied")
    assert "team-a" in refused["message"]
    assert "wrong-secret-of-team-a" not in json.dumps(agent.status()) + agent.log_text()
    agent.wait_target("chat", lambda one: one["state"] == "resident")
    assert engine.answers("chat") == engine.reference(2)
    # The mounted secret is rotated: no restart, no edit.
    (secrets / "AWS_SECRET_ACCESS_KEY").write_text(s3.root.secret_key)
    agent.wait_target("sql", lambda one: one["state"] == "resident", deadline=60.0)
    assert engine.answers("sql") == engine.reference(1)


@pytest.mark.triton
def test_a_michelangelo_list_of_a_bucket_becomes_ready_on_triton(s3: S3, tmp_path):
    """One model below a prefix, as generation 1 writes it, and one as a tar."""
    s3.make_bucket("deploy-models")
    april = write_python_model(tmp_path / "april", answer="april")
    put_tree(s3, "deploy-models", "fraud-2026-04/", april)
    may, packed = write_python_model(tmp_path / "may", answer="may"), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(may, arcname=".")
    s3.put("deploy-models", "fraud-2026-05.tar", packed.getvalue())
    models = [
        {"name": "fraud-2026-04", "storage_path": "s3://deploy-models/fraud-2026-04/"},
        {"name": "fraud-2026-05", "storage_path": "s3://deploy-models/fraud-2026-05.tar"},
    ]
    with TritonPod(tmp_path, env=s3.environment()) as pod:
        pod.agent.config.write({"model-list.json": json.dumps(models)})
        pod.agent.start()
        pod.agent.wait_converged(1)
        pod.agent.wait_ready()
        rows = post(f"{pod.agent.url}/v2/repository/index", {}).json()
        assert {row["name"]: row["state"] for row in rows} == {
            "fraud-2026-04": "READY",
            "fraud-2026-05": "READY",
        }
        assert (pod.infer("fraud-2026-04"), pod.infer("fraud-2026-05")) == ("april", "may")
