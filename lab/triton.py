"""Triton 2.51 from PyPI: the server inside nvidia-pytriton, with the Python backend, on CPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from lab import LabError
from lab.install import Venv, install_venv, is_venv_ready, say, venv
from lab.process import Process, free_port
from lab.web import is_ok, post

VERSION = "0.7.0"
RECIPE = f"nvidia-pytriton {VERSION} recipe 1"
NAME = "triton"


def _fill(made: Venv) -> None:
    say(f"{NAME}: pip install nvidia-pytriton=={VERSION} (about 370 MB)")
    # The server and its Python backend need numpy alone; what else the package asks for is its
    # client's.
    made.pip("install", "--only-binary=:all:", "numpy>=1.26,<2")
    made.pip("install", "--no-deps", f"nvidia-pytriton=={VERSION}")
    server = made.site_packages / "pytriton" / "tritonserver"
    backends = made.path / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / made.version / "triton_python_backend_stub"
    shutil.copy2(stub, backends / "python" / stub.name)


def install() -> Venv:
    """Install Triton into the lab, once."""
    return install_venv(NAME, RECIPE, _fill)


def find() -> Path | None:
    """The server program, when it is installed."""
    if not is_venv_ready(NAME, RECIPE):
        return None
    return venv(NAME).site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"


class Triton:
    """One server under explicit model control; it loads nothing by itself, save `load_models`."""

    def __init__(
        self,
        work: Path,
        repository: Path,
        *,
        http_port: int | None = None,
        metrics_port: int | None = None,
        load_models: Sequence[str] = (),
        extra_args: Sequence[str] = (),
    ) -> None:
        program = find()
        if program is None:
            raise LabError("Triton is not installed: run `python -m lab install triton`.")
        environment = venv(NAME)
        self.http_port = http_port or free_port()
        self.metrics_port = metrics_port or free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.metrics_url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.log = work / "triton.log"
        # The Python backend talks to its stubs through shared memory; a killed server leaves it.
        self._shared_memory = f"lab_{os.getpid()}_{self.http_port}_"
        work.mkdir(parents=True, exist_ok=True)
        self.process = Process(
            NAME,
            [
                program,
                f"--model-repository={repository}",
                f"--backend-directory={environment.path / 'backends'}",
                f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
                "--model-control-mode=explicit",
                "--http-address=127.0.0.1",
                f"--http-port={self.http_port}",
                "--allow-grpc=false",
                "--metrics-address=127.0.0.1",
                f"--metrics-port={self.metrics_port}",
                "--exit-on-error=false",
                "--exit-timeout-secs=5",
                *(f"--load-model={name}" for name in load_models),
                *extra_args,
            ],
            log=self.log,
            cwd=work,
            env={
                "LD_LIBRARY_PATH": str(environment.site_packages / "nvidia_pytriton.libs"),
                # The stub of the Python backend runs the first python of PATH.
                "PATH": f"{environment.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            },
        )

    def start(self, deadline: float = 60.0) -> Self:
        """Start, and wait until live; again after `stop` or `kill`, on the same ports."""
        self.process.start()
        self.process.wait_ready(lambda: is_ok(f"{self.url}/v2/health/live"), deadline)
        return self

    def stop(self) -> None:
        """End the server in good order."""
        self.process.stop()
        self._remove_shared_memory()

    def kill(self) -> None:
        """End the server as a crash would."""
        self.process.kill()
        self._remove_shared_memory()

    def _remove_shared_memory(self) -> None:
        for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            region.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


MODEL_PY = """import time

import numpy as np
import triton_python_backend_utils as pb_utils

ANSWER = {answer!r}


class TritonPythonModel:
    def initialize(self, args):
        time.sleep({load_delay!r})
        if {broken!r}:
            raise RuntimeError("this model is broken on purpose")

    def execute(self, requests):
        time.sleep({delay!r})
        kind = np.object_ if isinstance(ANSWER, str) else np.float32
        answer = pb_utils.Tensor("ANSWER", np.array([ANSWER], dtype=kind))
        return [pb_utils.InferenceResponse(output_tensors=[answer]) for _ in requests]
"""

CONFIG = """backend: "python"
max_batch_size: 0
input [{{ name: "TEXT", data_type: TYPE_STRING, dims: [ 1 ] }}]
output [{{ name: "ANSWER", data_type: {type}, dims: [ 1 ] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
"""


def write_python_model(
    directory: Path,
    *,
    answer: str | float,
    broken: bool = False,
    delay: float = 0.0,
    load_delay: float = 0.0,
) -> Path:
    """Write a model that takes TEXT and always answers the same, which tells whose bytes answered.

    `broken` fails at load; the delays are seconds per request and per load. It is named as the
    directory is.
    """
    version = directory / "1"
    version.mkdir(parents=True, exist_ok=True)
    kind = "TYPE_STRING" if isinstance(answer, str) else "TYPE_FP32"
    (directory / "config.pbtxt").write_text(CONFIG.format(type=kind))
    (version / "model.py").write_text(
        MODEL_PY.format(answer=answer, broken=broken, delay=delay, load_delay=load_delay)
    )
    return directory


def write_ensemble(directory: Path, parts: Sequence[str]) -> Path:
    """Write an ensemble that chains models of text answers: the last one's answer comes out."""
    (directory / "1").mkdir(parents=True, exist_ok=True)
    steps = []
    for index, part in enumerate(parts):
        source = "TEXT" if index == 0 else f"step_{index - 1}"
        target = "ANSWER" if index == len(parts) - 1 else f"step_{index}"
        steps.append(
            f'  {{ model_name: "{part}" model_version: -1\n'
            f'    input_map {{ key: "TEXT" value: "{source}" }}\n'
            f'    output_map {{ key: "ANSWER" value: "{target}" }} }}'
        )
    (directory / "config.pbtxt").write_text(
        'platform: "ensemble"\n'
        "max_batch_size: 0\n"
        'input [{ name: "TEXT", data_type: TYPE_STRING, dims: [ 1 ] }]\n'
        'output [{ name: "ANSWER", data_type: TYPE_STRING, dims: [ 1 ] }]\n'
        "ensemble_scheduling { step [\n" + ",\n".join(steps) + "\n] }\n"
    )
    return directory


def infer(url: str, model: str, *, text: str = "hello", timeout: float = 30.0) -> str | float:
    """Ask a model written by this module, and return its answer."""
    tensor = {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": [text]}
    answer = post(f"{url}/v2/models/{model}/infer", {"inputs": [tensor]}, timeout=timeout)
    if answer.status != 200:
        raise LabError(f"{model} answered {answer.status}: {answer.text}")
    value: str | float = answer.json()["outputs"][0]["data"][0]
    return value
