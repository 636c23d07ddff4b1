"""Programs of the lab: each in its own session, with a log file, and gone when its starter is gone.

Whoever starts a program may be killed itself (a test that timed out, Ctrl-C in make). A guard, one
idle `sh` per program, waits for the end of a pipe that only the starter holds open, and then kills
the program's group. That reaches grandchildren too (vLLM's EngineCore), and does not depend on the
thread that started the program, unlike a parent-death signal.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from lab import LabError

POLL_SECONDS = 0.02
# Below the range that Linux takes ports of outgoing connections from, so that none is lost to one
# of those between the moment it is chosen and the moment the program binds it.
PORTS = range(20000, 32000)
# An engine must not import from the project's own environment or checkout.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")

_given_out: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody listens on and that this process has not given out before."""
    choices = random.sample(PORTS, len(PORTS))
    for port in choices:
        if port in _given_out:
            continue
        with socket.socket() as probe:
            # As servers do: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_out.add(port)
        return port
    raise LabError("There is no free loopback port left.")


class Process:
    """One program: start, wait until ready, stop or kill, and start again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self._cwd = cwd
        self._env = dict(env or {})
        self._popen: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its group."""
        if self._popen is None:
            raise LabError(f"{self.name} is not started.")
        return self._popen.pid

    def start(self) -> None:
        """Start the program; it is running, not ready, when this returns."""
        if self._popen is not None:
            raise LabError(f"{self.name} is started already.")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k not in FOREIGN} | self._env
        with self.log.open("ab") as out:
            self._log_start = out.tell()
            try:
                self._popen = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=self._cwd,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as exc:
                raise LabError(f"{self.name} cannot be started: {exc}") from exc
        self._start_guard(self._popen.pid)

    def _start_guard(self, group: int) -> None:
        read_end, self._pipe = os.pipe()
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "lab-guard", str(group)],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def is_alive(self) -> bool:
        """Whether the program has not ended."""
        if self._popen is None or self._popen.returncode is not None:
            return False
        # Not reaped here, so that its process group id cannot become someone else's.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._popen.pid, flags) is None

    def wait_ready(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait until the condition holds, at most `deadline` seconds; end what is not ready."""
        end = time.monotonic() + deadline
        try:
            while not condition():
                if not self.is_alive():
                    raise LabError(f"{self.name} ended before it was ready. {self._last_words()}")
                if time.monotonic() > end:
                    raise LabError(
                        f"{self.name} was not ready in {deadline:.0f} s. {self._last_words()}"
                    )
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.kill()
            raise

    def _last_words(self) -> str:
        return f"The end of {self.log}:\n{self.log_tail()}"

    def wait_exit(self, timeout: float) -> bool:
        """Wait until the program ends by itself; False when it runs on after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.is_alive():
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def stop(self, timeout: float = 15.0) -> None:
        """SIGTERM, and SIGKILL to the whole group after `timeout` seconds. Twice is fine."""
        if self._popen is None:
            return
        if self.is_alive():
            os.kill(self._popen.pid, signal.SIGTERM)
            self.wait_exit(timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group, now. Also clears away what an ended program left behind."""
        if self._popen is None:
            return
        # The leader is not reaped yet, so nobody else can own this group id.
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._popen = None
        self._end_guard()

    def _end_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard = None
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def log_tail(self, lines: int = 30) -> str:
        """The last lines that this life of the program wrote."""
        if not self.log.exists():
            return "(no log)"
        with self.log.open("rb") as handle:
            handle.seek(self._log_start)
            text = handle.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:]) or "(empty log)"

    def __enter__(self) -> Self:
        if self._popen is None:
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
