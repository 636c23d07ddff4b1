"""``python -m demo.picker`` (``make lab``): a whole inference pool on this machine, to play with.

Two pods (a real vLLM on CPU and its agent each), the real endpoint picker with a configuration that
we ship, and Envoy in front. It runs until Ctrl-C.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from demo.stage import write
from lab import LabError, envoy, epp, vllm
from lab.epp import VERBOSE
from lab.picker import Picker, PickerLab, Pod, wait_until
from lab.picker_config import lab_config

CONFIG = "default"
COMMON = {"de": 1, "fr": 2, "it": 3}
SOLO = "solo"


def document(lab: PickerLab, *, holds_solo: bool) -> str:
    """A model-config document, as a person writes it."""
    lines = [f"- {{name: {n}, source: {lab.lora(n, seed=s)}}}" for n, s in COMMON.items()]
    # A share of the pods, chosen by a hash: nearly all of them, or none.
    share = 99.99 if holds_solo else 0
    lines.append(
        f"- {{name: {SOLO}, source: {lab.lora(SOLO, seed=4)}, rollout: {{percent: {share}}}}}"
    )
    return "models:\n" + "".join(f"{line}\n" for line in lines)


def fill(lab: PickerLab) -> None:
    """Give every pod three LoRAs, and the first one a LoRA of its own."""
    for index, pod in enumerate(lab.pods):
        pod.config.write({"models.yaml": document(lab, holds_solo=index == 0)})
    wait_until("such pods", lambda: all(_holds(pod, "de") for pod in lab.pods), 60)
    wait_until(f"pod with {SOLO}", lambda: _holds(lab.pods[0], SOLO), 60)


def _holds(pod: Pod, name: str) -> bool:
    status = pod.status()
    return bool(status["converged"]) and status["targets"].get(name, {}).get("state") == "resident"


def explain(lab: PickerLab, picker: Picker) -> None:
    """Say where everything is, and what to try."""
    write("", "Clients ask the gateway; the picker chooses the pod, and x-served-by names it:")
    write(
        f"  curl -si {picker.url}/v1/completions -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{SOLO}", "prompt": "hello", "max_tokens": 8}}\''
    )
    write("", "Pods:")
    for pod in lab.pods:
        write(f"  {pod.name}  engine  {pod.engine_url}")
        write(f"         agent   {pod.agent_url}  (/status, /ready, /metrics)")
        write(f"         edit    {pod.config.path / 'models.yaml'}")
    write("", "The picker:")
    write(f"  metrics  {picker.epp.metrics_url}")
    write(f"  log      {picker.epp.log}  (grep 'Refreshed metrics': what it knows of each pod)")
    write(f"  config   manifests/epp/{CONFIG}.yaml, with the lab's ports")
    write("", "To watch:")
    write(f"  - {', '.join(COMMON)} go to either pod; {SOLO} only to {lab.pods[0].name}.")
    write(f"  - Exchange the percents of {SOLO} in both documents: requests follow.")
    group = lab.pods[1].engine.process.pid
    write(f"  - kill -STOP -- -{group}  hangs {lab.pods[1].name}'s engine (-CONT: it goes on);")
    write("    llm_d_epp_ready_endpoints falls to 1, and no request goes there any more.")
    write("", "Ctrl-C ends everything.")


def main() -> int:
    """Start it all, and wait for Ctrl-C; return the exit code."""
    if epp.find() is None:
        write(epp.MISSING, "Without it there is nothing to start.")
        return 1
    work = Path(tempfile.mkdtemp(prefix="sidecar-lab-"))
    try:
        vllm.install()
        envoy.install()
        begun = time.monotonic()
        write("Two vLLM take a minute to start...")
        with PickerLab(
            work,
            agent_flags=["--lora-labels=registered"],
            # vLLM leaves its sockets behind: here they go with everything else.
            engine_env=lambda _: {"TMPDIR": str(work)},
        ) as lab:
            fill(lab)
            text = lab_config(CONFIG, port=lab.ports.agent, endpoints=lab.endpoints)
            picker = lab.picker("picker", text, verbosity=VERBOSE)
            write(f"Everything is up, after {time.monotonic() - begun:.0f} s.")
            explain(lab, picker)
            threading.Event().wait()
    except KeyboardInterrupt:
        write("", "Everything is stopped.")
    except LabError as exc:
        write("", f"The lab failed: {exc}", f"The logs stay in {work}.")
        return 1
    shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
