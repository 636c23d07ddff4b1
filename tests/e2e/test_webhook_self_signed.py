"""Two replicas that look after their certificate themselves, as the shipped ServiceAccount."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import LabError
from lab.kube import Kube
from lab.tls import Authority
from tests.support.webhook_place import (
    NAME,
    NAMESPACE,
    Place,
    agents,
    engine_pod,
    leading_to,
    render,
)
from tests.support.webhook_process import WebhookProcess, wait_until

pytestmark = pytest.mark.kube

YES = {"model-sidecar.io/inject": "true"}


class Replicas:
    """Two servers; the API server asks the one that was chosen last."""

    def __init__(self, cluster: Kube, work: Path) -> None:
        self.cluster = cluster
        cluster.kubectl("create", "namespace", NAMESPACE)
        # Before anything of ours is there, with the permissions that are shipped.
        account = cluster.service_account_kubeconfig(NAMESPACE, NAME)
        flags = (
            f"--self-signed={NAME}",
            f"--kubeconfig={account}",
            "--resync-seconds=0.5",
            "--shutdown-grace-seconds=0",
        )
        self.servers = [WebhookProcess(work / str(n), *flags) for n in range(2)]

    def install(self) -> None:
        """Apply what is shipped, and have the first one asked."""
        objects = leading_to(self.servers[0].port, render(self.cluster, "self-signed"))
        self.cluster.apply(*(one for one in objects if one["kind"] != "Deployment"))

    def choose(self, number: int) -> None:
        """Have another one asked, and nothing else changed."""
        patch = [
            {
                "op": "replace",
                "path": f"/webhooks/{index}/clientConfig/service/port",
                "value": self.servers[number].port,
            }
            for index in range(2)
        ]
        self.cluster.kubectl(
            "patch", "mutatingwebhookconfiguration", NAME, "--type=json", f"-p={json.dumps(patch)}"
        )

    def is_ready(self, number: int) -> bool:
        """What it tells the kubelet, which asks nobody whose certificate that is."""
        return "ready: the API server trusts" in self.servers[number].log_text()

    def bundles(self) -> set[str]:
        """What the configurations trust."""
        found = set()
        for kind in ("mutating", "validating"):
            text = self.cluster.kubectl("get", f"{kind}webhookconfiguration", NAME, "-o", "json")
            found |= {
                one["clientConfig"].get("caBundle", "") for one in json.loads(text)["webhooks"]
            }
        return {base64.b64decode(one).decode() for one in found}

    def secret(self) -> dict[str, str]:
        """The shared pair."""
        text = self.cluster.kubectl("get", "secret", NAME, "-n", NAMESPACE, "-o", "json")
        data = json.loads(text).get("data") or {}
        return {name: base64.b64decode(value).decode() for name, value in data.items()}

    def store(self, **texts: str) -> None:
        """Put something else into the Secret."""
        named = {name.replace("_", "."): text for name, text in texts.items()}
        self.cluster.kubectl(
            *("patch", "secret", NAME, "-n", NAMESPACE, "--type=merge"),
            f"-p={json.dumps({'stringData': named})}",
        )

    def injects(self, place: Place, number: int) -> bool:
        """Whether the pods of that one are injected."""
        self.choose(number)
        pod = engine_pod("yes", YES, configmap="chat-models")
        return agents(place.create(pod, "--dry-run=server")) == 1

    def wait_renewed(self, place: Place, *others: str) -> None:
        """Wait until both show what the Secret holds, and that is none of the ``others``; pods
        come meanwhile, and none of them is refused."""
        refused: list[str] = []

        def look() -> bool:
            for number in (0, 1):
                try:
                    assert self.injects(place, number)
                except LabError as error:
                    refused.append(str(error))
            shown = {one.certificate() for one in self.servers}
            return shown == {self.secret()["tls.crt"]} and shown.isdisjoint(others)

        wait_until("renewal", look)
        assert refused == []


@pytest.fixture(scope="module")
def replicas(cluster: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    replicas = Replicas(cluster, tmp_path_factory.mktemp("replicas"))
    with ExitStack() as ends:
        for server in replicas.servers:
            ends.enter_context(server)
        yield replicas


def test_two_replicas_agree_on_one_certificate_and_renew_it(
    replicas: Replicas, authority: Authority
):
    first, second = replicas.servers
    # They are alive, and not ready, before anything is there to be looked after.
    first.wait_log("cannot be looked after")
    assert not replicas.is_ready(0)
    assert first.certificate() != second.certificate()
    replicas.install()
    wait_until("readiness of both", lambda: replicas.is_ready(0) and replicas.is_ready(1))
    shared = replicas.secret()
    assert first.certificate() == second.certificate() == shared["tls.crt"]
    assert replicas.bundles() == {shared["ca.crt"]}
    place = Place(replicas.cluster, "team-a")
    wait_until("injected pod", lambda: replicas.injects(place, 0))
    wait_until("injected pod", lambda: replicas.injects(place, 1))

    # A certificate near its end: both move on, and no pod is refused meanwhile.
    short = authority.issue(
        f"DNS:{NAME}.{NAMESPACE}.svc", f"DNS:{NAME}.{NAMESPACE}.svc.cluster.local"
    )
    chain = short.chain.read_text()
    before = replicas.secret()["tls.crt"]
    replicas.store(tls_crt=chain, tls_key=short.key.read_text(), ca_crt=chain + before)
    replicas.wait_renewed(place, before, chain)
    assert "because it ends in " in first.log_text() + second.log_text()

    # Nonsense is made good, and so is a key of another certificate.
    before = replicas.secret()["tls.crt"]
    replicas.store(tls_crt="nonsense", ca_crt="nonsense" + before)
    replicas.wait_renewed(place, before, "nonsense")
    before = replicas.secret()["tls.crt"]
    replicas.store(tls_key=short.key.read_text())
    for server in replicas.servers:
        server.stop()
        server.start()
    wait_until("new certificate", lambda: replicas.secret()["tls.crt"] != before)
    wait_until("injected pod", lambda: replicas.injects(place, 0) and replicas.injects(place, 1))
    for text in (first.log_text(), second.log_text()):
        assert "PRIVATE KEY" not in text
        assert "Traceback" not in text
