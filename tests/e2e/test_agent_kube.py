"""The agent on a ConfigMap of a real API server, as a ServiceAccount with the least Role.

The engine is the fake one inside the agent: what happens between the API and an engine call is what
is tried here. A restart of the agent would restart that engine, too, so none is in here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.kube import Kube
from lab.tiny_model import write_lora
from tests.support.agent_process import AgentProcess
from tests.support.kube_place import NAME, Place

pytestmark = pytest.mark.kube

Json = dict[str, Any]


class Chat:
    """A namespace, an agent in it, and LoRAs to ask for."""

    def __init__(self, place: Place, work: Path) -> None:
        self.place = place
        self._sources = work / "sources"
        self.agent = AgentProcess(
            work,
            engine="fake",
            documents=[f"--configmap={NAME}", f"--kubeconfig={place.kubeconfig}"],
            flags=["--resync-seconds=1"],
        )

    def lora(self, name: str, seed: int) -> dict[str, str]:
        """Write a LoRA, and return its entry."""
        return {"name": name, "source": str(write_lora(self._sources / str(seed), seed=seed))}

    def write(self, *entries: dict[str, str]) -> None:
        """Edit the ConfigMap through the API."""
        self.place.write({"models.yaml": json.dumps({"models": entries})})

    def held(self) -> dict[str, str]:
        """Path of each LoRA that the engine holds."""
        data = self.agent.get("/v1/models").json()["data"]
        return {one["id"]: one["root"] for one in data if one["parent"] is not None}

    def wait_held(self, *names: str) -> Json:
        """Wait until the agent converged, and the engine holds exactly these."""

        def look() -> Json | None:
            status = self.agent.status()
            return status if status["converged"] and self.held().keys() == set(names) else None

        return self.agent.wait_for(f"engine with {', '.join(names) or 'nothing'}", look, 60)

    def wait_problem(self, words: str) -> None:
        """Wait until the document is in trouble, in these words."""
        self.agent.wait_status(
            lambda one: any(words in problem["what"] for problem in one["document"]["problems"]),
            60,
            what=f"problem {words!r}",
        )

    def actions(self, word: str) -> float:
        """How often the agent did something to the engine."""
        lines = [
            line
            for line in self.agent.metrics_all().splitlines()
            if line.startswith("model_sidecar_actions_total") and f'action="{word}"' in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.fixture
def chat(cluster: Kube, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chat]:
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    chat = Chat(Place(cluster, name), tmp_path)
    yield chat
    chat.agent.stop()


def test_an_edit_through_the_api_reaches_the_engine(chat: Chat):
    sql, law = chat.lora("sql", 1), chat.lora("law", 2)
    chat.write(sql)
    chat.agent.start()
    status = chat.wait_held("sql")
    assert status["ready"] is True
    assert status["document"]["source"] == f"configmap {chat.place.namespace}/{NAME}"
    first = chat.held()["sql"]
    chat.write(sql, law)
    chat.wait_held("sql", "law")
    chat.write(chat.lora("sql", 3), law)
    chat.agent.wait_for("new revision", lambda: chat.held().get("sql", first) != first)
    chat.write()
    assert chat.wait_held()["document"]["generation"] == 4
    assert chat.agent.is_ready()


def test_a_configmap_that_comes_later_and_goes_unloads_nothing(chat: Chat):
    chat.agent.start()
    # There is nothing to wait for where nothing was ever asked for.
    chat.agent.wait_ready()
    sql = chat.lora("sql", 1)
    chat.write(sql)
    chat.wait_held("sql")
    chat.place.delete()
    chat.wait_problem("there is nothing here any more")
    assert chat.held().keys() == {"sql"}
    assert chat.agent.is_ready()
    chat.write(sql, chat.lora("law", 2))
    chat.wait_held("sql", "law")
    assert (chat.actions("load"), chat.actions("unload")) == (2, 0)


def test_an_invalid_edit_is_reported_and_changes_nothing(chat: Chat):
    chat.write(chat.lora("sql", 1))
    chat.agent.start()
    chat.wait_held("sql")
    chat.place.write({"models.yaml": "models: [{"})
    chat.agent.wait_status(lambda one: one["document"]["problems"])
    assert (set(chat.held()), chat.agent.is_ready()) == ({"sql"}, True)
    chat.write(chat.lora("law", 2))
    chat.wait_held("law")


def test_an_api_server_that_dies_costs_nothing_and_its_return_is_noticed(chat: Chat):
    sql = chat.lora("sql", 1)
    chat.write(sql)
    chat.agent.start()
    chat.wait_held("sql")
    chat.place.cluster.kill_apiserver()
    chat.wait_problem("cannot connect to 127.0.0.1")
    status = chat.agent.status()
    assert (status["ready"], status["converged"]) == (True, False)
    assert chat.held().keys() == {"sql"}
    chat.place.cluster.start_apiserver()
    chat.write(sql, chat.lora("law", 2))
    chat.wait_held("sql", "law")
    assert (chat.actions("load"), chat.actions("unload")) == (2, 0)


def test_rights_that_are_taken_away_cost_nothing_and_are_asked_for_by_name(chat: Chat):
    sql = chat.lora("sql", 1)
    chat.write(sql)
    chat.agent.start()
    chat.wait_held("sql")
    chat.place.forbid()
    # A watch that is open goes on; the next one is refused.
    chat.place.cluster.kill_apiserver()
    chat.place.cluster.start_apiserver()
    chat.wait_problem(f"needs get, list, watch on configmaps/{NAME}")
    chat.write(chat.lora("law", 2))
    assert (set(chat.held()), chat.agent.is_ready()) == ({"sql"}, True)
    chat.place.allow()
    chat.wait_held("law")


def test_an_agent_that_starts_without_rights_is_not_ready_until_it_can_read(chat: Chat):
    chat.place.forbid()
    chat.write(chat.lora("sql", 1))
    chat.agent.start()
    chat.wait_problem("needs get, list, watch")
    assert chat.agent.get("/live").status == 200
    assert not chat.agent.is_ready()
    assert "cannot be read" in chat.agent.status()["reasons"][0]
    chat.place.allow()
    chat.wait_held("sql")
    assert chat.agent.is_ready()
