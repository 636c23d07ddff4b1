"""A kubelet's part in readiness: it probes the containers of Pods, and writes the Pods' status.

Nothing is run here. Whoever runs the processes of a Pod on a loopback address says so with
`Kubelet.run`; what to probe, and how often, is what the Pod object on the API server says. The
rules are those of Kubernetes 1.36 (pkg/kubelet/prober and pkg/kubelet/status):

- a container with a readinessProbe is not ready before that succeeded; one without one is ready;
- the first probe comes at once, then one a period; an answer of 200 to 399 in time is a success;
- fewer equal results in a row than the threshold leave what was;
- a container that does not run is not ready, and a restarted one begins anew: a crash makes the
  Pod NotReady, however short it is;
- native sidecars count as other containers do, and the Pod is Ready when all of them are.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from lab import LabError
from lab.kube import Kube
from lab.process import POLL_SECONDS
from lab.web import get

Json = dict[str, Any]

NODE = "lab"
JOIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An HTTP readinessProbe, its port resolved."""

    path: str
    port: int
    period_seconds: float
    timeout_seconds: float
    success_threshold: int
    failure_threshold: int

    @classmethod
    def of(cls, container: Mapping[str, Any]) -> Self | None:
        """The probe of a container of a Pod on the API server, which filled in every default."""
        probe = container.get("readinessProbe")
        if probe is None:
            return None
        request = probe.get("httpGet")
        if request is None or request["scheme"] != "HTTP":
            raise LabError(f"{container['name']}: only probes over HTTP are played.")
        ports = {one.get("name"): one["containerPort"] for one in container.get("ports", ())}
        return cls(
            path=request["path"],
            port=ports.get(request["port"], request["port"]),
            period_seconds=probe["periodSeconds"],
            timeout_seconds=probe["timeoutSeconds"],
            success_threshold=probe["successThreshold"],
            failure_threshold=probe["failureThreshold"],
        )

    def trouble(self, address: str) -> str | None:
        """Probe once: why it failed, or None."""
        try:
            answer = get(f"http://{address}:{self.port}{self.path}", timeout=self.timeout_seconds)
        except (OSError, http.client.HTTPException) as exc:
            return repr(exc)
        if 200 <= answer.status < 400:
            return None
        return f"{answer.status}: {answer.text.strip()}"


class Container:
    """One container: whether it runs, and what its probe has said so far."""

    def __init__(self, name: str, probe: Probe | None) -> None:
        self.name = name
        self.probe = probe
        self.restarts = 0
        self.trouble: str | None = None
        """Why the last probe failed, where it did."""
        self._last: bool | None = None
        self._run = 0
        self.start()

    def start(self) -> None:
        """It runs, and has to be found ready; results in a row go on being counted."""
        self.running = True
        self.ready = self.probe is None
        self.started_at = _now()

    def end(self) -> None:
        """It runs no more."""
        self.running = self.ready = False

    def take(self, trouble: str | None) -> None:
        """Count one result of the probe."""
        if self.probe is None or not self.running:
            return
        self.trouble = trouble
        success = trouble is None
        self._run = self._run + 1 if success is self._last else 1
        self._last = success
        enough = self.probe.success_threshold if success else self.probe.failure_threshold
        if self._run >= enough:
            self.ready = success

    def status(self) -> Json:
        """Its entry in the status of the Pod."""
        state: Json = {"waiting": {"reason": "CrashLoopBackOff"}}
        if self.running:
            state = {"running": {"startedAt": self.started_at}}
        return {
            "name": self.name,
            "image": self.name,
            "imageID": "",
            "containerID": f"lab://{self.name}-{self.restarts}",
            "restartCount": self.restarts,
            "ready": self.ready,
            "started": self.running,
            "state": state,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A Pod's condition Ready as it was written, at this reading of the monotonic clock."""

    at: float
    pod: str
    ready: bool


class Kubelet:
    """Probes Pods of one namespace until `stop`; one thread a probe."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.changes: list[Change] = []
        """Every change of a Pod's readiness, oldest first."""
        self._kube = kube
        self._namespace = namespace
        self._pods: dict[str, _Pod] = {}

    def run(self, name: str, address: str) -> None:
        """Take over a Pod that is on the API server: its processes listen on this address."""
        path = f"/api/v1/namespaces/{self._namespace}/pods/{name}"
        self._pods[name] = _Pod(self._kube, path, address, self.changes)
        self._pods[name].start()

    def delete(self, name: str) -> None:
        """Probe a Pod no more, and take it off the API server at once."""
        pod = self._pods.pop(name)
        pod.stop()
        pod.join()
        self._kube.call("DELETE", pod.path, {"gracePeriodSeconds": 0})

    def crash(self, name: str, container: str) -> None:
        """The process of this container ended; `restarted` says when it runs again."""
        self._pods[name].end(container)

    def restarted(self, name: str, container: str) -> None:
        """This container runs again, as a new one: it is probed at once."""
        self._pods[name].restart(container)

    def is_ready(self, name: str) -> bool:
        """What was last written of a Pod."""
        return self._pods[name].ready is True

    def wait_ready(self, name: str, deadline: float) -> None:
        """Wait until a Pod's readiness is written; a LabError says what is missing."""
        end = time.monotonic() + deadline
        while not self.is_ready(name):
            if time.monotonic() > end:
                raise LabError(f"{name} was not Ready in {deadline:g} s: {self._pods[name]}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Probe no more; the Pods keep the status they have. Raises what went wrong meanwhile."""
        pods = list(self._pods.values())
        self._pods.clear()
        for pod in pods:
            pod.stop()
        for pod in pods:
            pod.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Pod:
    """One Pod: its containers, a thread for each probe, and the status on the API server."""

    def __init__(self, kube: Kube, path: str, address: str, changes: list[Change]) -> None:
        self.ready: bool | None = None
        self._ending = False
        self.path = path
        self._kube = kube
        self._address = address
        self._changes = changes
        self._lock = threading.Lock()
        self._written: Json | None = None
        self._trouble: LabError | None = None
        self._since = _now()
        found = kube.call("GET", path)
        self._name = found["metadata"]["name"]
        spec = found["spec"]
        inits = spec.get("initContainers", ())
        if any(one.get("restartPolicy") != "Always" for one in inits):
            raise LabError(f"{self._name}: an init container that is no sidecar is not played.")
        self._sidecars = [Container(one["name"], Probe.of(one)) for one in inits]
        self._mains = [Container(one["name"], Probe.of(one)) for one in spec["containers"]]
        self._wakes = {one.name: threading.Event() for one in self._containers}
        self._threads = [
            threading.Thread(target=self._probe, args=(one, one.probe), daemon=True)
            for one in self._containers
            if one.probe is not None
        ]

    @property
    def _containers(self) -> list[Container]:
        return [*self._sidecars, *self._mains]

    def __str__(self) -> str:
        said = [f"{one.name} is ready={one.ready}, {one.trouble}" for one in self._containers]
        return "; ".join([*said, f"not written: {self._trouble}" if self._trouble else "written"])

    def start(self) -> None:
        """Write the first status, and begin to probe."""
        self._publish()
        for thread in self._threads:
            thread.start()

    def end(self, container: str) -> None:
        with self._lock:
            self._find(container).end()
        self._publish()

    def restart(self, container: str) -> None:
        with self._lock:
            found = self._find(container)
            found.restarts += 1
            found.start()
        self._publish()
        self._wakes[container].set()

    def stop(self) -> None:
        self._ending = True
        for wake in self._wakes.values():
            wake.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        if self._trouble is not None:
            raise self._trouble

    def _find(self, name: str) -> Container:
        return next(one for one in self._containers if one.name == name)

    def _probe(self, container: Container, probe: Probe) -> None:
        wake = self._wakes[container.name]
        while not self._ending:
            # Cleared first, so that what comes during the probe is not missed.
            wake.clear()
            due = time.monotonic() + probe.period_seconds
            life = container.restarts
            if container.running:
                trouble = probe.trouble(self._address)
                with self._lock:
                    # An answer of the life before says nothing of this one.
                    if container.restarts == life:
                        container.take(trouble)
                self._publish()
            if not self._ending:
                wake.wait(max(due - time.monotonic(), 0.0))

    def _publish(self) -> None:
        """Write the status when it differs from the one on the API server."""
        with self._lock:
            ready = all(one.ready for one in self._containers)
            if ready is not self.ready:
                self._since = _now()
            status = self._status(ready)
            if status == self._written:
                return
            try:
                self._kube.call(
                    "PATCH",
                    f"{self.path}/status",
                    {"status": status},
                    content_type="application/merge-patch+json",
                )
            except LabError as error:
                # The next probe writes it again; nobody may take an unwritten status for written.
                self._trouble = error
                return
            self._trouble, self._written = None, status
            if ready is not self.ready:
                self.ready = ready
                self._changes.append(Change(at=time.monotonic(), pod=self._name, ready=ready))

    def _status(self, ready: bool) -> Json:
        unready = [one.name for one in self._containers if not one.ready]
        because = {"reason": "ContainersNotReady", "message": f"not ready: {', '.join(unready)}"}
        verdict = {
            "status": "True" if ready else "False",
            "lastTransitionTime": self._since,
            **({} if ready else because),
        }
        return {
            "phase": "Running",
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Initialized", "status": "True"},
                {"type": "ContainersReady", **verdict},
                {"type": "Ready", **verdict},
            ],
            "initContainerStatuses": [one.status() for one in self._sidecars],
            "containerStatuses": [one.status() for one in self._mains],
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
