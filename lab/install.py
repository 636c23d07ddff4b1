"""Installs: a lock, a stamp, and a deadline for each step, so that a half install is never used.

A finished install carries a stamp with its version and recipe. Whatever has none, or another one,
is made anew.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import LabError, directory

STAMP = ".lab-stamp"
PIP_TIMEOUT_SECONDS = 1800.0
PYTHONS = ("3.11",)
"""Seen to work with both engines. (With 3.12 and 3.13 Triton starts; its Python models hang.)"""

# Children of an install hold its lock too: when the installer is killed, they may still be writing.
_held: set[int] = set()


def say(line: str) -> None:
    """One line of progress, for people."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str = "",
) -> str:
    """Run a command and return its output; a failure becomes a LabError with the last lines."""
    shown = " ".join(str(part) for part in command)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            pass_fds=tuple(_held),
            check=False,
        )
    except FileNotFoundError as exc:
        raise LabError(f"{command[0]}: no such program. {hint}".strip()) from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"`{shown}` did not end within {timeout:.0f} s. {hint}".strip()) from exc
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise LabError(f"`{shown}` failed with {done.returncode}:\n{tail}\n{hint}".strip())
    return done.stdout


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of one component across processes; the one who waits finds the work done."""
    directory().mkdir(parents=True, exist_ok=True)
    with (directory() / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process installs it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        _held.add(handle.fileno())
        try:
            yield
        finally:
            _held.discard(handle.fileno())


def is_stamped(target: Path, version: str) -> bool:
    """Whether this directory was finished by this version of the recipe."""
    stamp = target / STAMP
    return stamp.is_file() and stamp.read_text().strip() == version


def write_stamp(target: Path, version: str) -> None:
    """Declare a directory finished."""
    (target / STAMP).write_text(f"{version}\n")


@dataclass(frozen=True, slots=True)
class Venv:
    """A virtual environment of the lab. An engine never shares one with the product."""

    path: Path

    @property
    def bin(self) -> Path:
        return self.path / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    @property
    def version(self) -> str:
        """The interpreter's, such as `3.11`."""
        made = sorted((self.path / "lib").glob("python3.*"))
        if not made:
            raise LabError(f"{self.path} is no virtual environment")
        return made[0].name.removeprefix("python")

    @property
    def site_packages(self) -> Path:
        return self.path / "lib" / f"python{self.version}" / "site-packages"

    def pip(self, *arguments: str | Path) -> str:
        """Run this environment's pip, with the user's own index configuration."""
        return run(
            [
                *(self.python, "-m", "pip", "--disable-pip-version-check", "--no-input"),
                # A cache would keep gigabytes that are needed once.
                "--no-cache-dir",
                *arguments,
            ],
            timeout=PIP_TIMEOUT_SECONDS,
            env={"PIP_DEFAULT_TIMEOUT": "60", "PIP_RETRIES": "5"},
            hint="Check that pip reaches a PyPI index (pip config list), and install again.",
        )


def base_python() -> str:
    """The interpreter that environments are made from: ours, when its version will do."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        if (found := shutil.which(f"python{version}")) is not None:
            return found
    raise LabError(f"The lab's engines need Python {', '.join(PYTHONS)} on PATH.")


def _make_environment(path: Path) -> None:
    python = base_python()
    try:
        run([python, "-m", "venv", path], timeout=300)
    except LabError:
        # Debian keeps ensurepip in a package of its own; uv, where it is, brings pip along.
        beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        uv = shutil.which("uv", path=beside)
        if uv is None:
            raise
        run([uv, "venv", "--seed", "--clear", "--python", python, path], timeout=300)


def venv(name: str) -> Venv:
    """The environment of a component, made or not."""
    return Venv(directory() / name)


def is_venv_ready(name: str, version: str) -> bool:
    """Whether the environment of a component is finished."""
    return is_stamped(venv(name).path, version) and venv(name).python.exists()


def install_venv(name: str, version: str, fill: Callable[[Venv], None]) -> Venv:
    """Make the environment of a component once. `fill` installs into a fresh environment."""
    made = venv(name)
    if is_venv_ready(name, version):
        return made
    with locked(name):
        if is_venv_ready(name, version):
            return made
        if made.path.exists():
            say(f"{name}: removing an unfinished or older install")
            shutil.rmtree(made.path)
        say(f"{name}: making a virtual environment in {made.path}")
        _make_environment(made.path)
        fill(made)
        write_stamp(made.path, version)
        say(f"{name}: done")
    return made
