"""Inference pods on one machine, and pickers and gateways in front of them.

A `Pod` is a loopback address of its own (127.0.0.2, 127.0.0.3, ...) with a real vLLM and its agent;
engine port and agent port are the same on every pod, as they are in a pool. A `Picker` is a real
EPP with a real Envoy in front. `PickerLab` has both; several pickers can look at the same pods.

The EPP's configuration comes in as finished text: the ports and the path of the endpoints' file
that it has to name are attributes of the `PickerLab`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lab import LabError, envoy
from lab.configmap import MountedConfigMap
from lab.envoy import Envoy
from lab.epp import Epp, free_port_everywhere
from lab.process import POLL_SECONDS, Process
from lab.tiny_model import write_base_model, write_lora
from lab.vllm import Vllm
from lab.web import get, is_ok, post

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("127.0.0.2", "127.0.0.3")
START_SECONDS = 240.0
AGENT_SECONDS = 20.0
WAIT_SECONDS = 30.0
Entry = Mapping[str, Any]
Json = dict[str, Any]


def wait_until(what: str, condition: Callable[[], object], deadline: float = WAIT_SECONDS) -> float:
    """Wait until the condition holds; return the seconds that it took.

    Raises:
        LabError: it did not within `deadline` seconds.
    """
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > deadline:
            raise LabError(f"no {what} in {deadline:g} s")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - begun


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPorts:
    """One choice for all pods of a pool."""

    engine: int
    agent: int


class Pod:
    """A real vLLM and its agent at one address, with a mounted ConfigMap."""

    def __init__(
        self,
        work: Path,
        *,
        name: str,
        address: str,
        ports: PodPorts,
        base: Path,
        max_loras: int = 2,
        max_cpu_loras: int = 8,
        engine_args: Sequence[str] = (),
        engine_env: Mapping[str, str] | None = None,
        agent_flags: Sequence[str] = (),
    ) -> None:
        """`agent_flags` come last: a later flag wins over an earlier one."""
        self.name = name
        self.address = address
        self.work = work
        self.engine_endpoint = f"{address}:{ports.engine}"
        self.agent_url = f"http://{address}:{ports.agent}"
        self.config = MountedConfigMap(work / "config")
        self.engine = Vllm(
            work / "engine",
            base,
            host=address,
            port=ports.engine,
            max_loras=max_loras,
            max_cpu_loras=max_cpu_loras,
            extra_args=engine_args,
            extra_env=engine_env,
        )
        self.engine_url = self.engine.url
        self.agent = Process(
            f"agent of {name}",
            [
                *(sys.executable, "-m", "sidecar", "run", "--engine=vllm"),
                f"--engine-url={self.engine.url}",
                f"--config-dir={self.config.path}",
                f"--store-dir={work / 'store'}",
                f"--listen={address}:{ports.agent}",
                f"--max-loras={max_loras}",
                f"--max-cpu-loras={max_cpu_loras}",
                *agent_flags,
            ],
            log=work / "agent.log",
            cwd=work,
            env={"PYTHONPATH": str(ROOT), "POD_NAME": name, "POD_UID": name},
        )
        self._agent_command = self.agent.command
        self._is_hung = False

    def start_agent(self, *flags: str) -> None:
        """Start the agent, with further flags for this life, and wait until it is heard of (not
        until it is ready)."""
        self.agent.command = [*self._agent_command, *flags]
        self.agent.start()
        self.agent.wait_ready(lambda: is_ok(f"{self.agent_url}/live"), AGENT_SECONDS)

    def stop(self) -> None:
        """End both, the agent first."""
        self.agent.stop()
        self.resume()
        self.engine.stop()

    def write(self, entries: Iterable[Entry]) -> None:
        """Make a native document of these entries the ConfigMap."""
        # JSON is YAML, too.
        self.config.write({"models.yaml": json.dumps({"models": list(entries)})})

    def apply(self, entries: Iterable[Entry], deadline: float = WAIT_SECONDS) -> float:
        """Write a document that differs from the last one, and wait until the engine agrees;
        return the seconds that it took."""
        before = self.status()["document"]["generation"]
        self.write(entries)

        def is_taken_over() -> bool:
            status = self.status()
            return bool(status["converged"]) and status["document"]["generation"] > before

        return wait_until(f"convergence of {self.name}", is_taken_over, deadline)

    def status(self) -> Json:
        """What the agent's `/status` says now."""
        status: Json = get(f"{self.agent_url}/status").json()
        return status

    def is_ready(self) -> bool:
        """What the agent's `/ready` says now: what the kubelet would see."""
        return is_ok(f"{self.agent_url}/ready")

    def hang(self) -> None:
        """Stop every process of the engine where it stands: connections open, nobody answers."""
        os.killpg(self.engine.process.pid, signal.SIGSTOP)
        self._is_hung = True

    def resume(self) -> None:
        """Let a hung engine go on."""
        if self._is_hung:
            os.killpg(self.engine.process.pid, signal.SIGCONT)
            self._is_hung = False


class Picker:
    """A real EPP, and a real Envoy that asks it."""

    def __init__(
        self,
        work: Path,
        config: str | Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pool: str | None = "lab",
        verbosity: int = 2,
    ) -> None:
        self.epp = Epp(work, config, args=args, env=env, pool=pool, verbosity=verbosity)
        self.envoy = Envoy(work, self.epp.grpc_port)
        self.url = self.envoy.url

    def start(self) -> Self:
        """Start both, and wait until both are ready."""
        self.epp.start()
        try:
            self.envoy.start()
        except BaseException:
            self.epp.kill()
            raise
        return self

    def stop(self) -> None:
        """End both. Twice is fine."""
        self.envoy.stop()
        self.epp.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class PickerLab:
    """Pods, and as many pickers in front of them as are asked for."""

    def __init__(
        self,
        work: Path,
        *,
        addresses: Sequence[str] = ADDRESSES,
        max_loras: int = 2,
        max_cpu_loras: int = 8,
        engine_args: Sequence[str] = (),
        engine_env: Callable[[str], Mapping[str, str]] = lambda _: {},
        agent_flags: Sequence[str] = (),
    ) -> None:
        """`engine_env` gives further environment variables for the engine of a pod of that name."""
        if envoy.find() is None:
            raise LabError("Envoy is not installed: run `python -m lab install picker`.")
        self.work = work
        self.ports = PodPorts(engine=free_port_everywhere(), agent=free_port_everywhere())
        self.endpoints = work / "endpoints.yaml"
        """For file discovery: every pod, at the port of its engine."""
        base = write_base_model(work / "base")
        self.pods = tuple(
            Pod(
                work / f"pod-{index}",
                name=f"pod-{index}",
                address=address,
                ports=self.ports,
                base=base,
                max_loras=max_loras,
                max_cpu_loras=max_cpu_loras,
                engine_args=engine_args,
                engine_env=engine_env(f"pod-{index}"),
                agent_flags=agent_flags,
            )
            for index, address in enumerate(addresses)
        )
        self._running = ExitStack()

    def start(self) -> Self:
        """Start engines, all at once, and their agents; wait until every pod is ready."""
        try:
            with ThreadPoolExecutor(max_workers=len(self.pods)) as threads:
                for pod in self.pods:
                    self._running.callback(pod.stop)
                # Iterating raises what one of them raised.
                list(threads.map(lambda pod: pod.engine.start(START_SECONDS), self.pods))
            for pod in self.pods:
                pod.write([])
                pod.start_agent()
            for pod in self.pods:
                wait_until(f"readiness of {pod.name}", pod.is_ready)
            self.show_pods(self.pods)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything, pickers first."""
        self._running.close()

    def show_pods(self, pods: Iterable[Pod]) -> None:
        """Make these the endpoints that file discovery sees."""
        entries = [
            # The port is a string there. JSON is YAML, too.
            {"name": pod.name, "address": pod.address, "port": str(self.ports.engine)}
            for pod in pods
        ]
        fresh = self.endpoints.with_suffix(".new")
        fresh.write_text(json.dumps({"endpoints": entries}))
        # A file that is being written could be read half done.
        fresh.rename(self.endpoints)

    def picker(self, name: str, config: str | Path, **more: Any) -> Picker:  # noqa: ANN401 - passed on
        """Start a picker that sees these pods; it ends with the lab, unless it is stopped before.

        `more` is what `Picker` takes.
        """
        picker = Picker(self.work / name, config, **more).start()
        self._running.callback(picker.stop)
        return picker

    def lora(self, name: str, *, seed: int) -> Path:
        """Write a LoRA that agents can take as a source."""
        return write_lora(self.work / "loras" / f"{name}-{seed}", seed=seed)

    def pod_at(self, endpoint: str) -> Pod | None:
        """The pod whose engine listens at `address:port`."""
        return next((pod for pod in self.pods if pod.engine_endpoint == endpoint), None)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a client got through the gateway."""

    status: int
    text: str
    """Of the completion; of the error where the status is not 200."""
    endpoint: str
    """`address:port` of the engine that answered; empty where none did."""
    seconds: float


def ask(
    url: str, model: str, prompt: str = "hello", max_tokens: int = 16, *, timeout: float = 60.0
) -> Reply:
    """One completion through a gateway. A connection that fails is a reply of status 0."""
    begun = time.monotonic()
    payload = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        # Every answer has exactly max_tokens tokens.
        "ignore_eos": True,
    }
    try:
        answer = post(f"{url}/v1/completions", payload, timeout=timeout)
    except OSError as exc:
        return Reply(status=0, text=str(exc), endpoint="", seconds=time.monotonic() - begun)
    text = answer.text
    if answer.status == 200:
        text = answer.json()["choices"][0]["text"]
    return Reply(
        status=answer.status,
        text=text,
        endpoint=answer.headers.get(envoy.SERVED_BY, ""),
        seconds=time.monotonic() - begun,
    )
