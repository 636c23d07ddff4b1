"""The stage of a demo: the agent beside an engine, a mounted ConfigMap, and a step-by-step account.

A step edits the ConfigMap, waits until what it promises is so, and shows it. What does not happen
in time is a ``DemoError``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from lab import LabError
from lab.configmap import MountedConfigMap
from lab.process import Process, free_port
from lab.web import Answer, get, is_ok

WIDTH = 100
LABEL = 12
POLL_SECONDS = 0.02
STEP_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("vllm:num_requests_waiting", "vllm:num_requests_running", "model_sidecar_ready")
LORAS = re.compile(r"^vllm:lora_requests_info\{(.*)\}", re.MULTILINE)
LABELS = re.compile(r'(\w+)="([^"]*)"')

Entry = Mapping[str, str]
Status = dict[str, Any]
T = TypeVar("T")


class DemoError(Exception):
    """A step did not come to what it promises; the message says which and where to look."""


class Engine(Protocol):
    """The engine of a demo."""

    @property
    def title(self) -> str: ...

    @property
    def url(self) -> str: ...

    @property
    def metrics_url(self) -> str: ...

    @property
    def flags(self) -> Sequence[str]:
        """What the agent is told of it."""
        ...

    def start(self) -> object: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def ask(self, name: str) -> str:
        """Ask a target something; another revision answers otherwise. Raises ``LabError``."""
        ...


class Stage:
    """Engine, agent and ConfigMap below one temporary directory; also writes the account."""

    def __init__(self, work: Path, engine: Engine) -> None:
        self.work = work
        self.engine = engine
        self.steps = 0
        self._config = MountedConfigMap(work / "config")
        self._draft = work / "draft" / "models.yaml"
        self._draft.parent.mkdir()
        self._url = f"http://127.0.0.1:{free_port()}"
        self._about = [*engine.flags, f"--store-dir={work / 'store'}"]
        self._environment = {
            "PYTHONPATH": str(ROOT),
            "POD_NAME": "demo-pod",
            # `plan` has no flag for it.
            "MODEL_SIDECAR_ENGINE_METRICS_URL": engine.metrics_url,
        }
        self._agent = Process(
            "the agent",
            [
                *(sys.executable, "-m", "sidecar", "run", *self._about),
                f"--config-dir={self._config.path}",
                f"--listen={self._url.removeprefix('http://')}",
                # A demo shows changes; idling cheaply is not among them.
                "--resync-seconds=1",
            ],
            log=work / "agent.log",
            cwd=work,
            env=self._environment,
        )
        self._edited = time.monotonic()
        self._generation = 0
        self._heard: dict[str, str] = {}

    def __enter__(self) -> Self:
        begun = time.monotonic()
        self.engine.start()
        say("engine", f"{self.engine.title} at {self.engine.url}, {_since(begun)}")
        try:
            self._config.write({"models.yaml": "models: []\n"})
            begun = time.monotonic()
            self._agent.start()
            self._agent.wait_ready(lambda: is_ok(f"{self._url}/ready"), STEP_SECONDS)
        except BaseException:
            self.engine.kill()
            raise
        say("agent", f"{self._url} (/ready, /status, /metrics), {_since(begun)}")
        say("each step", "edits the ConfigMap as a pod sees it, and waits until the engine agrees")
        return self

    def __exit__(self, *exc: object) -> None:
        self._agent.stop()
        self.engine.stop()

    # What a step does

    def step(self, title: str) -> None:
        """Begin a step."""
        self.steps += 1
        write("")
        write(_bold(f"{self.steps}. {title}"))

    def edit(self, *entries: Entry) -> None:
        """Show the document and the plan for it, and make it the ConfigMap's content."""
        listed = "".join(f"- {{{_fields(entry)}}}\n" for entry in entries)
        text = f"models:\n{listed}" if listed else "models: []\n"
        say("models.yaml", *text.splitlines())
        self._draft.write_text(text)
        say("plan", self._plan())
        self._generation = self.status()["document"]["generation"] + 1
        self._edited = time.monotonic()
        self._config.write({"models.yaml": text})

    def wait(self, what: str, condition: Callable[[Status], object]) -> Status:
        """Return the first status of the edited document for which the condition holds."""

        def look() -> Status | None:
            status = self.status()
            current = status["document"]["generation"] >= self._generation
            return status if current and condition(status) else None

        return self.until(what, look)

    def wait_converged(self) -> None:
        """Wait until the engine holds exactly what the document says."""
        self.wait("convergence", lambda status: status["converged"])

    @staticmethod
    def is_resident(status: Status, name: str) -> bool:
        """Tell whether the engine holds a target."""
        return bool(status["targets"].get(name, {}).get("state") == "resident")

    def until(self, what: str, look: Callable[[], T | None]) -> T:
        """Return the first true value of ``look``."""
        end = time.monotonic() + STEP_SECONDS
        while not (found := look()):
            if not self._agent.is_alive():
                raise DemoError(f"step {self.steps}: the agent ended:\n{self._agent.log_tail(5)}")
            if time.monotonic() > end:
                said = self.status()["cycle"]
                raise DemoError(
                    f"step {self.steps}: no {what} in {STEP_SECONDS:.0f} s. The agent says: {said}"
                )
            time.sleep(POLL_SECONDS)
        return found

    # What a step shows

    def tell(self) -> None:
        """Show what the agent says of itself: its last cycle's sentence, readiness, picker page."""
        say("agent", self._sentence())
        answer = self._get("/ready")
        reasons = " ".join(answer.json()["reasons"])
        say("/ready", f"{answer.status}{f', {reasons}' if reasons else ''}")
        self.check(answer.status == 200, f"/ready answers {answer.status}: {reasons}")
        say("/metrics", self._page())

    def answer(self, name: str, wanted: str, note: str = "") -> None:
        """Wait until the revision called ``wanted`` answers, and show what it says."""
        heard = self.until(f"answer of {wanted}", lambda: self._ask(name, wanted))
        seconds = time.monotonic() - self._edited
        note = note or f"{seconds:.1f} s after the edit"
        say("answer", f"{name} ({wanted}) says {heard!r}, {note}")

    def silent(self, name: str) -> None:
        """Check that nobody answers to a name any more."""
        try:
            heard = self.engine.ask(name)
        except LabError:
            say("answer", f"nobody answers to {name} any more")
        else:
            raise DemoError(f"step {self.steps}: {name} still answers {heard!r}")

    def check(self, holds: bool, otherwise: str) -> None:
        """Raise ``DemoError`` unless something holds."""
        if not holds:
            raise DemoError(f"step {self.steps}: {otherwise}")

    def status(self) -> Status:
        """What the agent publishes now."""
        status: Status = self._get("/status").json()
        return status

    def _ask(self, name: str, wanted: str) -> str | None:
        """Return the answer if it is that of ``wanted``: new where that is new, the same again."""
        try:
            heard = self.engine.ask(name)
        except (LabError, OSError):
            return None
        if wanted not in self._heard and heard not in self._heard.values():
            self._heard[wanted] = heard
        return heard if self._heard.get(wanted) == heard else None

    def _plan(self) -> str:
        """Return what ``model-sidecar plan`` foresees for the draft, shortened to its verbs."""
        command = [sys.executable, "-m", "sidecar", "plan", *self._about, "--json"]
        command += [f"--config-file={self._draft}"]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            cwd=self.work,
            env=os.environ | self._environment,
            check=False,
        )
        # 2: something would change; 1: something would fail, which is what a demo may want to show.
        if done.returncode not in (0, 1, 2) or not done.stdout:
            raise DemoError(f"`model-sidecar plan` failed: {done.stderr.strip()}")
        foreseen = json.loads(done.stdout)
        steps = [f"{one['action']} {one['target']}" for one in foreseen["actions"]]
        return ", ".join(steps) or "nothing to do"

    def _sentence(self) -> str:
        pattern = re.compile(rf"\b(generation {self._generation}: (?!converged).*)")
        said = pattern.findall(self._agent.log.read_text(errors="replace"))
        return str(said[-1]) if said else str(self.status()["cycle"])

    def _page(self) -> str:
        """Return the figures of the picker page that say most, on one line."""
        text = self.until("picker page", self._fresh_page)
        lines = text.splitlines()
        plain = [line.removeprefix("vllm:") for line in lines if line.partition(" ")[0] in FIGURES]
        labels = dict(LABELS.findall("".join(LORAS.findall(text))))
        if labels["max_lora"] != "0":
            plain[0] = f'running_lora_adapters="{labels["running_lora_adapters"]}"'
        return "  ".join(plain)

    def _fresh_page(self) -> str | None:
        answer = self._get("/metrics")
        return answer.text if answer.status == 200 else None

    def _get(self, path: str) -> Answer:
        try:
            return get(f"{self._url}{path}")
        except OSError as exc:
            raise DemoError(f"step {self.steps}: the agent does not answer: {exc}") from exc


def perform(
    title: str, open_engine: Callable[[Path], Engine], play: Callable[[Stage], None]
) -> int:
    """Set the stage, play, and clear it away; return the exit code."""
    write(_bold(title))
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
    has_logs = False
    try:
        with Stage(work, open_engine(work)) as stage:
            play(stage)
    except (DemoError, LabError) as exc:
        write("", _bold("The demo failed: ") + str(exc))
        has_logs = any(work.rglob("*.log"))
        if has_logs:
            write(f"Engine and agent are stopped; their logs stay in {work}.")
        return 1
    except KeyboardInterrupt:
        write("", "Interrupted; everything is stopped.")
        return 130
    finally:
        if not has_logs:
            shutil.rmtree(work, ignore_errors=True)
    write("", _bold(f"All {stage.steps} steps happened, in {time.monotonic() - begun:.0f} s."))
    write("Engine and agent are stopped, and nothing but the installed engine is left behind.")
    return 0


def write(*lines: str) -> None:
    """Write lines at once, however the output is buffered."""
    for line in lines:
        print(line, flush=True)


def say(label: str, *lines: str) -> None:
    """Write lines of the account beside their label, long ones wrapped."""
    wrapped = [
        part
        for line in lines
        for part in textwrap.wrap(line, WIDTH - LABEL - 3, break_on_hyphens=False) or [""]
    ]
    for index, part in enumerate(wrapped):
        write(f"   {label if index == 0 else '':<{LABEL}}{part}")


def _fields(entry: Entry) -> str:
    return ", ".join(f"{key}: {value}" for key, value in entry.items())


def _since(begun: float) -> str:
    return f"up in {time.monotonic() - begun:.1f} s"


def _bold(text: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\033[1m{text}\033[0m"
