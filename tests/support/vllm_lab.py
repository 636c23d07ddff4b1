"""A real vLLM beside agents: what it holds, what it was asked, and how each LoRA answers.

One server serves many tests, so that its start is paid for once. ``house`` is a LoRA that it was
started with; whatever else a test leaves behind is cleared away.
"""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

from lab import LabError
from lab.tiny_model import write_base_model, write_lora
from lab.vllm import Vllm, complete, stream
from lab.web import get, is_ok, post
from tests.support.picker_oracle import Family, parse

HOUSE = "house"
MAX_LORAS = 2
MAX_CPU_LORAS = 4
MAX_LORA_RANK = 16
LONG = "a prompt of several blocks, of which the engine keeps the whole ones: " * 5
PROMPTS = ("hello", LONG)
"""The second one is longer than two blocks of the prefix cache."""
ACCESS = re.compile(r'"(GET|POST) (/[^ ?]*)[^"]*" (\d+)')
LOADED = re.compile(r"Loaded new LoRA adapter: name '([^']+)', path '([^']+)'")


class VllmLab:
    """One vLLM server, and questions to it."""

    def __init__(
        self,
        work: Path,
        *,
        house: bool = True,
        dev_mode: bool = True,
        loras: bool = True,
        max_loras: int = MAX_LORAS,
    ) -> None:
        """``dev_mode``: with sleep and ``/server_info``; ``loras``: started to take LoRAs."""
        self.work = work
        # The name is the one that it is served by: then a LoRA for another base can be told.
        self.base = write_base_model(work / "base")
        self.house = write_lora(work / HOUSE, seed=1000)
        self.server = Vllm(
            work / "server",
            self.base,
            max_loras=max_loras,
            max_cpu_loras=MAX_CPU_LORAS,
            max_lora_rank=MAX_LORA_RANK,
            lora_modules={HOUSE: self.house} if house else None,
            enable_lora=loras,
            allow_runtime_lora=loras,
            dev_mode=dev_mode,
        )
        self.url = self.server.url
        self._has_house = house
        self._references: dict[int, tuple[str, ...]] = {}

    def is_up(self) -> bool:
        """Tell whether it answers."""
        return is_ok(f"{self.url}/health")

    def models(self) -> dict[str, str]:
        """Every LoRA that it lists, with the path it was loaded from."""
        cards = get(f"{self.url}/v1/models").json()["data"]
        return {card["id"]: card["root"] for card in cards if card["parent"] is not None}

    def answers(self, name: str) -> tuple[str, ...]:
        """How a LoRA answers the prompts."""
        return tuple(complete(self.url, name, prompt) for prompt in PROMPTS)

    def reference(self, seed: int) -> tuple[str, ...]:
        """How the LoRA of a seed answers when it is loaded fresh, under a name of its own."""
        if seed not in self._references:
            with self.loaded_fresh(seed) as name:
                self._references[seed] = self.answers(name)
        return self._references[seed]

    def loaded_fresh(self, seed: int) -> FreshLora:
        """The LoRA of a seed under a name and path that the engine has never seen."""
        return FreshLora(self, seed)

    def page(self) -> dict[str, Family]:
        """Its own page of metrics."""
        return parse(get(f"{self.url}/metrics").body)

    def figure(self, family: str) -> float:
        """The sum of one family."""
        found = self.page().get(family)
        return sum(value for _, value, _ in found.samples) if found is not None else 0.0

    def mark(self) -> int:
        """Where its log ends now."""
        return self.server.log.stat().st_size

    def log_since(self, mark: int) -> str:
        """What it logged since ``mark``."""
        with self.server.log.open("rb") as handle:
            handle.seek(mark)
            return handle.read().decode(errors="replace")

    def calls(self, path: str, since: int) -> list[int]:
        """The statuses with which it answered each request for ``path``, in order."""
        found = ACCESS.finditer(self.log_since(since))
        return [int(match[3]) for match in found if match[2] == path]

    def lora_calls(self, since: int) -> tuple[int, int]:
        """How often it was asked to load and to unload a LoRA."""
        loads = self.calls("/v1/load_lora_adapter", since)
        unloads = self.calls("/v1/unload_lora_adapter", since)
        return len(loads), len(unloads)

    def loads(self, since: int) -> list[str]:
        """Names of the LoRAs that it loaded, in order."""
        return [match[1] for match in LOADED.finditer(self.log_since(since))]

    def sleep(self) -> None:
        """Put it to sleep."""
        assert post(f"{self.url}/sleep?level=1", {}).status == 200

    def wake(self) -> None:
        """Wake it up."""
        assert post(f"{self.url}/wake_up", {}).status == 200

    def clear(self) -> None:
        """Make it hold what it was started with, awake; start it again if it is dead."""
        if not self.is_up():
            self.server.kill()
            self.server.start()
            return
        sleeping = get(f"{self.url}/is_sleeping")
        if sleeping.status == 200 and sleeping.json()["is_sleeping"]:
            self.wake()
        held = self.models()
        for name in held:
            if name != HOUSE:
                self.server.unload_lora(name)
        if self._has_house and HOUSE not in held:
            self.server.load_lora(HOUSE, self.house)


class FreshLora:
    """One LoRA that no agent has a hand in; gone at the end of the ``with``."""

    def __init__(self, lab: VllmLab, seed: int) -> None:
        self._lab = lab
        self._directory = lab.work / "fresh" / f"seed-{seed}"
        self.name = f"fresh-{seed}"
        write_lora(self._directory, seed=seed)

    def __enter__(self) -> str:
        answer = self._lab.server.load_lora(self.name, self._directory)
        assert answer.status == 200, answer.text
        return self.name

    def __exit__(self, *exc: object) -> None:
        self._lab.server.unload_lora(self.name)


class Streams:
    """Requests that run beside the test; each collects its text."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._threads: list[threading.Thread] = []
        self.texts: list[str] = []
        self.errors: list[str] = []

    def begin(self, name: str, prompt: str, max_tokens: int) -> None:
        """Begin one more."""
        index = len(self.texts)
        self.texts.append("")

        def run() -> None:
            try:
                for piece in stream(self._url, name, prompt, max_tokens):
                    self.texts[index] += piece
            except (OSError, LabError) as error:
                self.errors.append(str(error))

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def are_running(self) -> bool:
        """Tell whether every one of them still is."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self, deadline: float = 60.0) -> None:
        """Wait for the end of all of them."""
        for thread in self._threads:
            thread.join(deadline)
            assert not thread.is_alive(), "a stream did not end"
        assert self.errors == []


def replace_bytes(directory: Path, *, seed: int) -> None:
    """Give a LoRA's directory other weights under the same path."""
    shutil.rmtree(directory)
    write_lora(directory, seed=seed)
