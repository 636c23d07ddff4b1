"""``make lab`` starts a whole pool, says how to use it, and ends at Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lab.picker import ask

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0
LAST_LINE = "Ctrl-C ends everything."


@pytest.mark.vllm
@pytest.mark.epp
def test_the_lab_by_hand():
    # Engines keep sockets below it, whose paths have to be short.
    with tempfile.TemporaryDirectory() as work:
        output = Path(work) / "output"
        place = Path(work) / "tmp"
        place.mkdir()
        with output.open("w") as out:
            lab = subprocess.Popen(
                [sys.executable, "-m", "demo.picker"],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(place)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            end = time.monotonic() + START_SECONDS
            while LAST_LINE not in output.read_text():
                assert lab.poll() is None, output.read_text()
                assert time.monotonic() < end, output.read_text()
                time.sleep(0.1)
            said = output.read_text()
            url = re.findall(r"curl -si (\S+)/v1/completions", said)[0]
            first_pod = re.findall(r"engine  http://(\S+)", said)[0]
            replies = [ask(url, "solo", f"number {n}", 4) for n in range(5)]
            assert {(one.status, one.endpoint) for one in replies} == {(200, first_pod)}
            lab.send_signal(signal.SIGINT)
            assert lab.wait(timeout=60) == 0, output.read_text()
            assert os.listdir(place) == []
        finally:
            # What it started is gone with it.
            lab.kill()
            lab.wait()


def test_without_a_picker_the_lab_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "demo.picker"],
        cwd=ROOT,
        # No program is needed to say so, and there may be a picker in any folder of the machine.
        env=os.environ | {"MODEL_SIDECAR_LAB": str(tmp_path), "PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "There is no EPP binary." in done.stdout
    assert done.stderr == ""
