"""Whole agents and a real S3: fetched once for a node, taken over from a killed agent, with little
memory and no secret told."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.configmap import MountedConfigMap
from lab.s3 import S3
from lab.sigv4 import Keys
from tests.support.agent_process import AgentProcess
from tests.support.faulty import Slow
from tests.support.s3_front import S3Front, native, size_of, tree_of, write_lora_of
from tests.support.store_watch import StoreWatch

pytestmark = pytest.mark.sources

MIB = 1 << 20
OBJECTS = 1200
LARGE = 100 * MIB
UNNOTED = 32 * MIB
"""What a killed agent may have read in vain: so much may lie between two notes of what it has."""
PEAK_BYTES = 150 * MIB


@pytest.fixture
def front(s3: S3) -> Iterator[S3Front]:
    """The S3 server with a proxy of this test's own."""
    with S3Front(s3) as front:
        yield front


def start_pods(start_agent, front: S3Front, store: Path, *pods: str) -> list[AgentProcess]:
    """Agents of one node: one store for all of them."""
    flags = [f"--store-dir={store}", "--resync-seconds=1"]
    return [
        start_agent("fake", flags=flags, env={**front.environment(), "POD_UID": pod}, pod_name=pod)
        for pod in pods
    ]


def progress_until_converged(agents: list[AgentProcess], name: str) -> list[list[int]]:
    """How far each agent said that the fetch of a target was, until all are converged."""
    told: list[list[int]] = [[] for _ in agents]

    def look() -> bool:
        statuses = [agent.status() for agent in agents]
        for mine, status in zip(told, statuses, strict=True):
            target = status["targets"].get(name, {})
            if target.get("state") == "fetching" and target.get("total_bytes"):
                mine.append(target["bytes"])
        return all(one["converged"] and one["targets"] for one in statuses)

    agents[0].wait_for("convergence of all agents", look, 60.0)
    return told


# Exactly once


def test_agents_of_one_node_read_every_object_once_and_each_tells_how_far_it_is(
    front, start_agent, tmp_path
):
    many = write_lora_of(tmp_path / "many", files=OBJECTS - 2)
    large = write_lora_of(tmp_path / "large", size=LARGE)
    store, size = tmp_path / "store", size_of(many) + size_of(large)
    entries = native({one.name: front.put_tree(one.name, one) for one in (many, large)})
    front.proxy.add(Slow(5 * MIB), path=front.path("large"), times=None)
    agents = start_pods(start_agent, front, store, "a", "b")
    with StoreWatch(store) as watch:
        for agent in agents:
            agent.write(entries)
        told = progress_until_converged(agents, "large")
    assert watch.faults == []
    assert front.read_bytes() == size
    assert set(Counter(one.target for one in front.reads("many")).values()) == {1}
    assert sum(agent.series("model_sidecar_fetched_bytes_total") for agent in agents) == size
    paths = [{name: agent.target(name)["path"] for name in ("many", "large")} for agent in agents]
    assert paths[0] == paths[1]
    assert tree_of(paths[0]["many"]) == tree_of(many)
    assert tree_of(paths[0]["large"]) == tree_of(large)
    # Whoever fetches, and whoever waits for it.
    for mine in told:
        assert mine == sorted(mine)
        assert [one for one in mine if 0 < one < LARGE], told


def test_a_killed_agents_fetch_is_gone_on_with_by_the_other_one_of_the_node(
    front, start_agent, tmp_path
):
    lora, size = write_lora_of(tmp_path / "sql", size=160 * MIB), 160 * MIB
    store, entries = tmp_path / "store", native({"sql": front.put_tree("sql", lora)})
    front.proxy.add(Slow(10 * MIB), path=front.path("sql"), times=None)
    victim, heir = start_pods(start_agent, front, store, "a", "b")
    with StoreWatch(store) as watch:
        victim.write(entries)
        front.proxy.wait(lambda: front.read_bytes() > 0)
        heir.write(entries)
        heir.wait_target("sql", lambda one: one["bytes"] > 0)
        front.proxy.wait(lambda: front.read_bytes() >= 0.6 * size)
        (staged,) = (store / ".staging").glob("fetch-*/new")
        identity = staged.stat().st_ino
        victim.kill()
        heir.wait_converged(1)
        read = front.read_bytes()
        assert read <= size_of(lora) + UNNOTED + 4 * MIB
        assert heir.series("model_sidecar_fetched_bytes_total") < 0.7 * size
        victim.start()
        victim.wait_converged()
    assert front.read_bytes() == read
    assert watch.faults == []
    assert len(watch.seen) == 1
    assert victim.target("sql")["path"] == heir.target("sql")["path"]
    assert tree_of(heir.target("sql")["path"]) == tree_of(lora)
    # It was made out of sight, and became visible as a whole, by a rename.
    assert Path(heir.target("sql")["path"]).stat().st_ino == identity
    assert list((store / ".staging").iterdir()) == []


# Memory


def test_four_large_fetches_at_once_take_little_memory(
    front, start_agent, tmp_path, capsys, record_property
):
    size, names = 300 * MIB, ("one", "two", "three", "four")
    lora = write_lora_of(tmp_path / "lora")
    source = front.put_tree("lora", lora)
    blob = tmp_path / "blob"
    with blob.open("wb") as file:
        file.truncate(size)
    front.put("lora/more", blob)
    # The server itself: a proxy in Python would be the bottleneck.
    agent = start_agent("fake", flags=["--resync-seconds=1"], env=front.s3.environment())
    began = high_water(agent)
    agent.apply(native(dict.fromkeys(names, source)), 120.0)
    peak = high_water(agent)
    figures = f"{len(names)} x {size // MIB} MiB at once: {peak / MIB:.0f} MiB at the most, "
    figures += f"{began / MIB:.0f} MiB before"
    record_property("memory", figures)
    with capsys.disabled():
        print(f"\n{figures}")
    assert agent.series("model_sidecar_fetched_bytes_total") >= len(names) * size
    assert peak < PEAK_BYTES
    # Temporary directories of tests stay for a while; these would be a gigabyte each.
    agent.stop()
    shutil.rmtree(agent.store)
    front.s3.delete(front.bucket, "lora/more")


def high_water(agent: AgentProcess) -> int:
    """The most memory that the agent has had resident, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{agent.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# Credentials


def test_a_rotated_secret_is_used_without_a_restart_or_an_edit(front, start_agent, tmp_path):
    keys = front.s3.iam.make_user("team-a", [front.bucket])
    secret = MountedConfigMap(tmp_path / "credentials" / "team-a")
    secret.write(keys.environment())
    old, new = (write_lora_of(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2))
    source = front.put_tree("sql", old)
    # An identity of the agent's own, which must not help.
    stranger = Keys(access_key="AKIASTRANGER", secret_key="of the agent itself")
    flags = [f"--credentials-dir={secret.path.parent}", "--resync-seconds=1"]
    agent = start_agent("fake", flags=flags, env=front.environment(stranger))
    agent.apply(native({"sql": source}, credentials="team-a", refresh_seconds=1))
    assert tree_of(agent.target("sql")["path"]) == tree_of(old)
    fresh = front.s3.iam.make_key("team-a")
    front.s3.iam.delete_key("team-a", keys)
    front.put_tree("sql", new)
    blind = agent.wait_target("sql", lambda one: "cannot be looked at" in one["message"])
    assert "mounted secret `team-a`" in blind["message"]
    assert (blind["state"], blind["reason"]) == ("resident", "")
    assert tree_of(blind["path"]) == tree_of(old)
    secret.write(fresh.environment())
    moved = agent.wait_target("sql", lambda one: one["path"] not in {"", blind["path"]})
    assert tree_of(moved["path"]) == tree_of(new)
    assert agent.wait_converged()["targets"]["sql"]["message"] == ""


def test_keys_that_are_refused_are_told_nowhere(front, start_agent, tmp_path):
    source = front.put_tree("sql", write_lora_of(tmp_path / "sql"))
    secret = MountedConfigMap(tmp_path / "credentials" / "team-a")
    mounted = Keys(access_key=front.s3.root.access_key, secret_key="mounted+secret/of=team-a")
    secret.write(mounted.environment())
    own = Keys(access_key="AKIAOFTHEAGENT", secret_key="own+secret/of=agent", session_token="t0ken")
    presigned = f"{front.proxy.url}/{front.bucket}/x.tar?X-Amz-Signature=51gnature&versionId=1"
    entries = [
        *native({"mounted": source}, credentials="team-a"),
        *native({"own": source}),
        *native(
            {
                "presigned": presigned,
                "password": presigned.replace("://", "://user:pa55word@").partition("?")[0],
            },
            digest="sha256:" + 64 * "0",
        ),
    ]
    flags = [f"--credentials-dir={secret.path.parent}", "--log-level=debug"]
    agent = start_agent("fake", flags=flags, env=front.environment(own))
    agent.write(entries)
    # Twice each: what is remembered of the first attempt is told, too.
    names = [str(one["name"]) for one in entries]
    agent.wait_status(
        lambda status: all(status["targets"].get(one, {}).get("attempts", 0) > 1 for one in names),
        what="two attempts each",
    )
    targets = agent.status()["targets"]
    assert {targets[one]["reason"] for one in ("mounted", "own", "password")} == {"AccessDenied"}
    assert "mounted secret `team-a`" in targets["mounted"]["message"]
    assert "the agent's environment" in targets["own"]["message"]
    pages = [agent.get(page).text for page in ("/status", "/metrics", "/metrics/all", "/ready")]
    pages += [agent.get(f"/status/{name}").text for name in names]
    secrets = [mounted.secret_key, own.secret_key, own.session_token, "51gnature", "pa55word"]
    for told in (*pages, agent.log_text()):
        # As JSON writes them, too.
        assert [one for one in secrets if one in told or json.dumps(one)[1:-1] in told] == []
        assert own.access_key not in told
